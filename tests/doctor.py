#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""pinlease doctor: what it prints is what pinl_map_range() accepts and what was seen, and it fits.

usage: doctor.py PINLEASE
"""
import ctypes
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import tree

PINLEASE = sys.argv[1]
ABILITIES = {'told', 'before', 'held', 'refused'}
OUTCOMES = {'same page', 'only in the file', 'lost with success', 'the device gets an error', 'not applicable',
            'the kernel refuses the pin'}
PR_CAPBSET_DROP = 24


def doctor(*arguments, **options):
    return subprocess.run([PINLEASE, 'doctor', *arguments], capture_output=True, encoding='utf-8', timeout=200,
                          check=False, **options)


def drop_capabilities():
    libc = ctypes.CDLL(None)
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@functools.cache
def found(privileged=True):
    """The whole of what it finds, as this user or without any capability."""
    result = doctor('--json', preexec_fn=None if privileged else drop_capabilities)
    if result.returncode not in (0, 1) or result.stderr:
        raise tree.Failure(f'status {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr}')
    return json.loads(result.stdout) | {'status': result.returncode}


def both():
    return [found(), found(False)]


def leases(result):
    """(memory, lease, device) of all that were tried."""
    devices = {device['name']: device for device in result['devices']}
    return [(memory, lease, devices[lease['device']]) for memory in result['memories'] for lease in memory['leases'] or []
            if devices[lease['device']]['here']]


def shape():
    for result in both():
        rows = leases(result)
        if len(rows) < 10 or not result['sources'] or not result['kernel']:
            raise tree.Failure(f'{len(rows)} leases, sources {result["sources"]}')
        names = {memory['name'] for memory in result['memories']}
        if not {'anonymous', 'memfd', 'hugetlb', 'device memory', 'secret memory'} <= names:
            raise tree.Failure(f'only {sorted(names)}')
        for memory in result['memories']:
            if memory['here'] == bool(memory['why']):
                raise tree.Failure(f'{memory["name"]}: here and why: {memory["why"]}')
            for operation in (memory['without_pinlease'] or {}).values():
                if operation['outcome'] not in OUTCOMES:
                    raise tree.Failure(str(operation))


def tried():
    """Every operation that takes pages was done, and it showed what was promised."""
    for result in both():
        count = 0
        marked = [f'{name} of {memory["name"]}, {lease["device"]}' for memory, lease, _ in leases(result)
                  for name, cell in (lease['operations'] or {}).items() if cell['mismatch']]
        if result['mismatches'] != len(marked) or result['status'] != bool(marked) or marked:
            raise tree.Failure(f'status {result["status"]}, {result["mismatches"]} mismatches: {marked}')
        for memory, lease, _ in leases(result):
            for name, cell in (lease['operations'] or {}).items():
                where = f'{name} of {memory["name"]}, {lease["device"]}: {cell}'
                if not set(cell['promised']) <= set(cell['coverage']) <= ABILITIES:
                    raise tree.Failure(f'more promised than covered: {where}')
                if (cell['seen'] is not None) != (cell['applicable'] and cell['detaches']):
                    raise tree.Failure(f'tried or not: {where}')
                if cell['seen'] is None:
                    continue
                count += 1
                if cell['error'] or not set(cell['promised']) <= set(cell['seen']):
                    raise tree.Failure(f'less than promised: {where}')
        if count < 50:
            raise tree.Failure(f'only {count} operations were tried')


def harmless():
    """What the library takes for harmless to a pinned lease loses nothing without it either."""
    for result in both():
        compared = 0
        for memory, lease, device in leases(result):
            for name, cell in (lease['operations'] or {}).items():
                compared += device['pinned'] and not cell['detaches']
                outcome = memory['without_pinlease'][name]['outcome']
                if device['pinned'] and not cell['detaches'] and outcome in ('lost with success', 'only in the file'):
                    raise tree.Failure(f'{name} of {memory["name"]}: {outcome}, but no page is said to be taken')
        if not compared:
            raise tree.Failure('nothing was compared')


# ------------------------------------------------------------------------ the table and pinl_map_range()

def uncovered(lease, ability):
    return [name for name, cell in lease['operations'].items()
            if cell['detaches'] and name != 'guard' and ability not in cell['coverage']]


def unrefusable(lease, on_demand, refuse):
    """Of the operations in `refuse`; one that takes no page even from an on-demand device needs no refusing."""
    return [name for name in refuse if 'refused' not in lease['operations'][name]['coverage'] and
            on_demand['operations'][name]['detaches']]


def expected(policy, lease, device, on_demand):
    """(accepted, operations that are in the way) by the table alone; None: other reasons decide, too."""
    revocable = device['class'] in ('REVOCABLE', 'FAULTING')
    name = policy['policy']
    if name == 'KEEP':
        return True, []
    if name == 'REFUSE':
        missing = unrefusable(lease, on_demand, policy['refuse'])
        return not missing, missing
    if name == 'FOLLOW':
        possible = device['class'] == 'FAULTING' and not device['pinned']
    elif name in ('SCRATCH', 'COPY'):
        possible = revocable and lease['kind'] != 'hugetlb' and not (name == 'COPY' and not device['pinned'])
    else:
        possible = revocable
    missing = (uncovered(lease, 'told') or (uncovered(lease, 'held') if name == 'STRICT' else [])) if possible else []
    return possible and not missing, missing


def agreement():
    """The printed coverage predicts each verdict, and the sentence names the very operations."""
    for result in both():
        no_copy = any(line.startswith('copy: missing') for line in result['sources'])
        verdicts = 0
        for memory, lease, device in leases(result):
            accepted = [policy['policy'] for policy in lease['policies'] if policy['accepted']]
            if not lease['leasable']:
                if accepted or not lease['why']:
                    raise tree.Failure(f'{memory["name"]}, {lease["device"]}: no lease, but {accepted} {lease["why"]}')
                continue
            on_demand = next(l for l in memory['leases'] if l['device'] == 'soft FAULTING on demand')
            for policy in lease['policies']:
                accept, missing = expected(policy, lease, device, on_demand)
                why = policy['why'] or ''
                if policy['policy'] == 'COPY' and accept and (no_copy or '6.13' in why):
                    accept = False
                named = why.rsplit(': ', 1)[-1].split(', ') if missing else []
                verdicts += 1
                if policy['accepted'] != accept or bool(why) == accept or named != missing:
                    raise tree.Failure(f'{memory["name"]}, {lease["device"]}: the table says {accept} {missing}, '
                                       f'pinl_map_range says {policy}')
        if verdicts < 100:
            raise tree.Failure(f'only {verdicts} verdicts were compared')


def gaps_are_explained():
    """Whatever isn't promised has a reason and something that would close it."""
    for result in both():
        for memory, lease, device in leases(result):
            full = ABILITIES if device['class'] in ('REVOCABLE', 'FAULTING') else {'told', 'refused'}
            mine = [gap for gap in result['gaps'] if memory['name'] in gap['memories'] and device['name'] in gap['devices']]
            if not lease['leasable'] and not any(not gap['operations'] and not gap['policies'] and gap['reason'] for gap in mine):
                raise tree.Failure(f'no reason why {memory["name"]} has no lease on {device["name"]}')
            for name, cell in (lease['operations'] or {}).items():
                missing = full - set(cell['promised'])
                if not cell['applicable'] or not cell['detaches'] or not missing:
                    continue
                if not any(name in gap['operations'] and missing <= set(gap['missing']) and gap['reason'] and gap['closed_by']
                           for gap in mine):
                    raise tree.Failure(f'{name} of {memory["name"]}, {device["name"]}: no reason for {missing}')
    told = [gap['reason'] for gap in found(False)['gaps']]
    if not any('CAP_SYS_ADMIN' in reason for reason in told):
        raise tree.Failure(f'without privilege nothing says so: {told}')


# ------------------------------------------------------------------------------------ what it looks like

def fits():
    for arguments in ([], ['--without']):
        result = doctor(*arguments)
        if result.returncode or result.stderr or len(result.stdout.splitlines()) < 15:
            raise tree.Failure(f'{arguments}: status {result.returncode}\n{result.stdout}\n{result.stderr}')
        wide = [line for line in result.stdout.splitlines() if len(line) > 80 or line != line.rstrip()]
        if wide:
            raise tree.Failure('too wide, or blanks at the end:\n' + '\n'.join(wide))


def table_rows(text):
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip('|').split('|')] for line in lines)}


def document():
    """docs/without-pinlease.md has the rows that this machine gives, if it is about this kernel."""
    text = (tree.ROOT / 'docs/without-pinlease.md').read_text(encoding='utf-8')
    here, there = doctor('--markdown').stdout, re.search(r'^Linux (\d+\.\d+)', text, re.M)
    rows, written = table_rows(here), table_rows(text)
    if not there or rows['memory'] != written.get('memory') or len(written) < 8:
        raise tree.Failure(f'no table of a kernel in the document, or other columns: {rows["memory"]}')
    if not here.startswith(f'Linux {there[1]}.'):
        print(f'# the document is about Linux {there[1]}, which this is not: rows are not compared')
        return
    other = [f'{name}:\n  here     {rows[name]}\n  document {written[name]}' for name in rows
             if name in written and rows[name] != written[name]]
    if other:
        raise tree.Failure('docs/without-pinlease.md is not what happens here (pinlease doctor --markdown):\n' + '\n'.join(other))


def wrong_command_lines():
    for arguments, because in ((['--nonsense'], 'unrecognized'), (['nonsense'], '"nonsense"'),
                               (['--json', '--without'], 'exclude'), (['--dir'], 'argument'),
                               (['--dir', '/nonexistent/directory'], 'No such file'),
                               (['--dir', ''], 'No such file'), (['--dir', __file__], 'Not a directory')):
        result = doctor(*arguments)
        if result.returncode != 2 or because not in result.stderr or result.stdout:
            raise tree.Failure(f"doctor {' '.join(arguments)}: {result}")


def unwritable_output():
    with open('/dev/full', 'wb') as full:
        status = subprocess.run([PINLEASE, 'doctor', '--without'], stdout=full, stderr=subprocess.PIPE, timeout=200, check=False)
    if status.returncode != 2 or not status.stderr:
        raise tree.Failure(str(status))


def leaves_nothing():
    with tempfile.TemporaryDirectory(dir=os.environ.get('PINLEASE_TEST_DIR', '/var/tmp')) as directory:
        result = doctor('--without', '--dir', directory)
        if result.returncode or os.listdir(directory):
            raise tree.Failure(f'{os.listdir(directory)}: {result}')


if __name__ == '__main__':
    sys.exit(tree.tap([
        ('the JSON has every memory, device and operation', shape),
        ('what is promised was tried and seen', tried),
        ('what takes no page loses nothing without pinlease', harmless),
        ('the table predicts what pinl_map_range accepts, and its sentence', agreement),
        ('every gap has a reason', gaps_are_explained),
        ('it fits into 80 columns', fits),
        ('the document has the table of this machine', document),
        ('a wrong command line is an error', wrong_command_lines),
        ('output that can\'t be written is an error', unwritable_output),
        ('nothing is left behind', leaves_nothing),
    ]))
