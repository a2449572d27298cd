#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""pinlease doctor: what it prints is what pinl_map_range() accepts and what was seen, and it fits.

usage: doctor.py PINLEASE
"""
import contextlib
import ctypes
import errno
import fcntl
import functools
import glob
import importlib.machinery
import importlib.util
import io
import json
import os
import pathlib
import re
import struct
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
KEEP = os.environ.get('PINLEASE_TEST_KEEP')  # what it found, for scripts/kernel-support
# IOMMU groups, in a virtual machine, where nobody else needs them.
GROUPS = [word for option, group in (('--vfio', os.environ.get('PINLEASE_TEST_VFIO')), ('--iommufd', os.environ.get('PINLEASE_TEST_IOMMUFD')))
          if group for word in (option, group)]


def doctor(*arguments, **options):
    return subprocess.run([PINLEASE, 'doctor', *arguments], capture_output=True, encoding='utf-8', timeout=1800,
                          check=False, **options)


def drop_capabilities():
    libc = ctypes.CDLL(None)
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@functools.cache
def found(privileged=True):
    """The whole of what it finds, as this user or without any capability."""
    result = doctor('--json', *GROUPS, preexec_fn=None if privileged else drop_capabilities)
    if result.returncode not in (0, 1) or result.stderr:
        raise tree.Failure(f'status {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr}')
    if privileged and KEEP:
        pathlib.Path(KEEP).write_text(result.stdout, encoding='utf-8')
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
        if not {'anonymous', 'memfd', 'hugetlb', "driver's mapping", 'secret memory'} <= names:
            raise tree.Failure(f'only {sorted(names)}')
        for memory in result['memories']:
            if memory['here'] == bool(memory['why']):
                raise tree.Failure(f'{memory["name"]}: here and why: {memory["why"]}')
            for operation in (memory['without_pinlease'] or {}).values():
                if operation['outcome'] not in OUTCOMES:
                    raise tree.Failure(str(operation))


def ioctl_works(path, request, argument):
    """None of these ioctls is known to other kernels by another name."""
    with open(path, 'rb') as file:
        try:
            fcntl.ioctl(file, request, bytearray(argument))
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            return False
    return True


def can_procmap_query():
    at = id(errno)
    return ioctl_works('/proc/self/maps', 0xc0686611, struct.pack('3Q', 104, 0, at) + bytes(80))


def can_pagemap_scan():
    at = id(errno) & ~4095
    return ioctl_works('/proc/self/pagemap', 0xc0606610, struct.pack('5Q', 96, 0, at, at + 4096, 0) + bytes(56))


def follows(privileged, **environment):
    """(functions of the kernel that pinlease pins --watch follows by trampolines, by kprobes)"""
    with subprocess.Popen([PINLEASE, 'pins', '--watch', '--json'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding='utf-8',
                          env=dict(os.environ, **environment), preexec_fn=None if privileged else drop_capabilities) as command:
        line = command.stdout.readline()
        command.terminate()
        command.communicate()
    start = json.loads(line) if line else {}
    return start.get('functions_by_trampoline', 0), start.get('functions_by_kprobe', 0)


def takes_census(privileged):
    command = [PINLEASE, 'pins', '--json']
    return subprocess.run(command, capture_output=True, preexec_fn=None if privileged else drop_capabilities, check=False).returncode != 2


def facilities_are_right():
    """Each is here or says why not, and what it brings is here with it; where that can be seen another way, it is."""
    for privileged in (True, False):
        result = found(privileged)
        for facility in result['facilities']:
            why = facility['why']
            if facility['here'] == bool(why) or (why and (why.endswith('.') or not re.search('[:;] ', why) or '\n' in why)):
                raise tree.Failure(f'no sentence with a cause and a remedy: {facility}')
        here = {facility['name']: facility['here'] for facility in result['facilities']}
        running = {line.split(':')[0] for line in result['sources'] if ': running' in line}
        copies = [policy['accepted'] for memory, lease, device in leases(result) for policy in lease['policies']
                  if (memory['name'], device['backend'], policy['policy']) == ('anonymous', 'uring', 'COPY')]
        memory = {m['name']: m['here'] for m in result['memories']}
        rdma = [device for device in result['devices'] if device['backend'] == 'verbs' and (device['here'] or device['name'] != 'RDMA')]
        same = [('uffd source', 'uffd' in running, here['userfaultfd WP_ASYNC']),
                ('files source', 'files' in running, here['fanotify pre-content events'] and here['fanotify FAN_REPORT_TID']),
                ('fanotify without privilege', not privileged and any(here[name] for name in here if 'fanotify' in name), False),
                ('COPY on a ring', any(copies), here['io_uring buffer clone'] and here['userfaultfd']),
                ('PROCMAP_QUERY', can_procmap_query(), here['PROCMAP_QUERY']),
                ('PAGEMAP_SCAN', can_pagemap_scan(), here['PAGEMAP_SCAN']),
                ('huge pages', memory['hugetlb'] and not here['huge page pool'], False),
                ('DAX', any(' DAX ' in name for name in memory), here['DAX file systems']),
                ('RDMA devices', bool(rdma), here['RDMA']),
                ('all RDMA devices', len(rdma) // 2 < min(3, len(glob.glob('/sys/class/infiniband/*'))) and here['RDMA'], False),
                ('IOMMU', bool(glob.glob('/sys/class/iommu/*')), here['IOMMU']),
                ('IOMMU faults', bool(glob.glob('/sys/class/iommu/dmar*') + glob.glob('/sys/class/iommu/ivhd*')) and 'faults' in running,
                 here['IOMMU faults']),
                ('iommufd', os.path.exists('/dev/iommu'), here['iommufd']),
                ('groups', bool(glob.glob('/dev/vfio/[0-9]*')), here['VFIO groups']),
                ('DAX devices', bool(glob.glob('/dev/dax*')), here['DAX devices']),
                ('census of pins', takes_census(privileged), here['census of pins'])]
        if 'pins live, by kprobes' in here:  # else built without BPF
            by_trampolines, by_both = follows(privileged)
            same += [('pins by trampolines', by_trampolines > 0 and not by_both, here['pins live, by trampolines']),
                     ('pins by kprobes', follows(privileged, PINLEASE_BPF_KPROBES='1')[1] > 0, here['pins live, by kprobes'])]
        wrong = [what for what, seen, said in same if seen != said]
        if wrong:
            raise tree.Failure(f'said otherwise than seen: {wrong}\n{same}\n{result["facilities"]}')


def what_lacks_is_named():
    """What root has here isn't had by a newer kernel."""
    here = {facility['name'] for facility in found()['facilities'] if facility['here']}
    wrong = [facility for facility in found(False)['facilities']
             if facility['name'] in here and 'newer kernel' in (facility['why'] or '')]
    if wrong:
        raise tree.Failure(f'{wrong}')


def sentence(text):
    """With a cause, whole and without what a terminal or a table would stumble over."""
    if not text or text.endswith('.') or '\n' in text or len(text) < 20:
        raise tree.Failure(f'no sentence: {text!r}')


def device_classes():
    """Each kind of device, and of device memory, has a row: what is there, or why it isn't."""
    for result in both():
        backends = {device['backend'] for device in result['devices']}
        if backends != {'uring', 'soft', 'verbs', 'vfio', 'iommufd'}:
            raise tree.Failure(f'rows for {sorted(backends)} only')
        for device in result['devices']:
            if device['here'] == bool(device['why']):
                raise tree.Failure(f'here and why: {device}')
            if device['why']:
                sentence(device['why'])
        exports = {export['name']: export for export in result['device_memory']}
        if set(exports) != {'mapped BAR', 'dma-buf of a BAR', 'DAX device', 'dma-buf of a memfd'}:
            raise tree.Failure(f'device memory: {sorted(exports)}')
        facilities = {facility['name']: facility['here'] for facility in result['facilities']}
        same = [('DAX device', facilities['DAX devices']), ('dma-buf of a memfd', facilities['dma-bufs of memfds']),
                ('dma-buf of a BAR', facilities['dma-bufs of BARs']), ('mapped BAR', bool(GROUPS))]
        for name, here in same:
            if exports[name]['here'] != here or here == bool(exports[name]['why']) or here != (exports[name]['imports'] is not None):
                raise tree.Failure(f'{name}: {here}, said {exports[name]}')
            if not here:
                sentence(exports[name]['why'])


# What is known to be given device memory; all others refuse it with a sentence.
IMPORTS = {('soft', 'REVOCABLE'), ('soft', 'FAULTING'), ('vfio', 'mapped BAR'), ('iommufd', 'dma-buf of a BAR'), ('uring', 'DAX device'),
           ('verbs', 'DAX device'), ('vfio', 'DAX device'), ('iommufd', 'DAX device')}


def device_memory():
    """Every device that is here was asked for every kind that is here, and was off it when it was taken back."""
    for result in both():
        here = {device['name']: device for device in result['devices'] if device['here']}
        for export in (export for export in result['device_memory'] if export['here']):
            if [one['device'] for one in export['imports']] != list(here):
                raise tree.Failure(f"{export['name']}: asked were {[one['device'] for one in export['imports']]}")
            for one in export['imports']:
                device = here[one['device']]
                for policy in one['policies']:
                    if policy['mismatch'] or policy['accepted'] == bool(policy['why']):
                        raise tree.Failure(f"{export['name']}, {one['device']}: {policy}")
                    if policy['why']:
                        sentence(policy['why'])
                may = {(device['backend'], device['class']), (device['backend'], export['name'])} & IMPORTS
                if one['policies'][0]['accepted'] and not may:
                    raise tree.Failure(f"{export['name']} was given to {one['device']}: {one}")
        driver = next(memory for memory in result['memories'] if memory['name'] == "driver's mapping")
        if any(lease['leasable'] or 'exporter' not in lease['why'] for lease in driver['leases'] or [] if lease['policies']):
            raise tree.Failure(f'{driver}')


def texts(thing):
    if isinstance(thing, str):
        yield thing
    for part in (thing.values() if isinstance(thing, dict) else thing if isinstance(thing, list) else []):
        yield from texts(part)


def nothing_is_cut():
    """The last words of whatever is long stand together somewhere in the sources."""
    sources = ' '.join(path.read_text(encoding='utf-8') for folder in ('lib', 'tools') for path in (tree.ROOT / folder).rglob('*.c'))
    joined = re.sub(r'"\s*\n?\s*"', '', sources)
    for result in both():
        operations = '|'.join(next(memory['without_pinlease'] for memory in result['memories'] if memory['here']))
        for text in {re.sub(rf': ({operations})(, ({operations}))*$', '', text) for text in texts(result) if len(text) > 150}:
            last = re.findall(r'[A-Za-z_]+', text)[-3:]
            if not re.search(r'\b' + r'\b[^A-Za-z_]+\b'.join(last) + r'\b', joined) and not re.search(r'\(\w+\)$', text):
                raise tree.Failure(f'cut: {text}')


def copy_of_verbs():
    """Where a pinned lease has no COPY, what would give it one is named."""
    for result in both():
        for device in result['devices']:
            if device['backend'] != 'verbs' or not device['here'] or not device['pinned']:
                continue
            if 'PINL_VERBS_READ' not in device['found']:
                raise tree.Failure(f'{device}')
            mine = [gap for gap in result['gaps'] if device['name'] in gap['devices'] and 'COPY' in gap['policies'] and
                    'anonymous' in gap['memories']]
            told = 'no source here tells' in ' '.join(gap['reason'] for gap in mine)
            if not told and not any('PINL_VERBS_READ' in f"{gap['reason']} {gap['closed_by']}" for gap in mine):
                raise tree.Failure(f'{mine}')


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
    elif name in ('SCRATCH', 'COPY') and device['backend'] == 'verbs' and device['pinned']:
        possible = False
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
                if policy['policy'] == 'COPY' and ((accept and no_copy) or '6.13' in why):
                    accept, missing = False, []
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
    if not any('CAP_SYS_ADMIN' in reason or 'FAN_PRE_ACCESS' in reason for reason in told):  # what the kernel hasn't got, nobody has
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


def kernel_support():
    path = str(tree.ROOT / 'scripts/kernel-support')
    loader = importlib.machinery.SourceFileLoader('kernel_support', path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader('kernel_support', loader))
    loader.exec_module(module)
    return module


def document_of_kernels():
    """What is written of several machines is read back as what was found on each; and the document has its three kernels."""
    support = kernel_support()
    there = support.parse((tree.ROOT / 'docs/kernel-support.md').read_text(encoding='utf-8'))
    if not {'6.1', '6.12', '7.2'} <= set(there) or min(map(len, there.values())) < 100:
        raise tree.Failure(f'kernels in docs/kernel-support.md: {sorted(there)}')
    machines = {'5.4': found(), '6.30': found(False), '6.4': found()}
    text = support.document([result | {'kernel': f'{kernel}.7-amd64'} for kernel, result in machines.items()])
    back = support.parse(text)
    for kernel, result in machines.items():
        other = back[kernel] ^ set(support.facts(result))
        if other:
            raise tree.Failure(f'of {kernel}, these are not in both: {sorted(other)[:5]}')


def kernels_are_compared():
    """One cell that is otherwise is found, and how to write the document anew is said."""
    support = kernel_support()
    machine = found() | {'kernel': '6.30.1', 'mismatches': 0}
    text = support.document([machine])
    with tempfile.TemporaryDirectory() as directory:
        path, support.DOCUMENT = pathlib.Path(directory) / 'found.json', pathlib.Path(directory) / 'document.md'
        path.write_text(json.dumps(machine), encoding='utf-8')
        for changed, ok in ((text, True), (text.replace('| KEEP', '| FOLLOW', 1), False),
                            (text.replace('| PAGEMAP_SCAN |', '| PAGEMAP |'), False), ('', False)):
            support.DOCUMENT.write_text(changed, encoding='utf-8')
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                support.check(path)
            if out.getvalue().startswith('ok 1') != ok or ('make kernel-support' in out.getvalue()) != (changed != text):
                raise tree.Failure(f'changed: {changed != text}\n{out.getvalue()[:2000]}')


def groups():
    """What can't be taken is an error before anything is tried."""
    there = [int(path.rsplit('/', 1)[1]) for path in glob.glob('/sys/kernel/iommu_groups/*')]
    bound = {int(path.rsplit('/', 1)[1]) for path in glob.glob('/dev/vfio/[0-9]*')}
    unbound = [group for group in there if group not in bound]
    for option in ('--vfio', '--iommufd'):
        wrong = [('99999', 'there is no IOMMU group 99999')]
        if unbound and (option == '--vfio' or not os.path.exists('/dev/iommu')):
            wrong.append((str(unbound[0]), 'vfio' if option == '--vfio' else '/dev/iommu'))
        for group, because in wrong:
            result = doctor(option, group)
            said = result.stderr.strip()
            if result.returncode != 2 or result.stdout or because not in said or not said.startswith('pinlease doctor: ') or \
                    '\n' in said or not re.search('[:;,] ', said.split(': ', 1)[1]):
                raise tree.Failure(f'{option} {group}: {result}')


def wrong_command_lines():
    for arguments, because in ((['--nonsense'], 'unrecognized'), (['nonsense'], '"nonsense"'),
                               (['--json', '--without'], 'exclude'), (['--dir'], 'argument'),
                               (['--dir', '/nonexistent/directory'], 'No such file'),
                               (['--dir', ''], 'No such file'), (['--vfio', 'x'], 'no number'), (['--vfio', '-1'], 'no number'),
                               (['--vfio', ''], 'no number'), (['--iommufd', '1x'], 'no number'), (['--iommufd'], 'argument'),
                               (['--vfio', '7', '--iommufd', '7'], 'given twice'), (['--without', '--vfio', '7'], 'leave out --vfio'),
                               ([word for group in range(9) for word in ('--vfio', str(group))], 'at most'),
                               (['--dir', '/proc'], 'name a directory that you can write to'), (['--dir', __file__], 'Not a directory')):
        result = doctor(*arguments)
        if result.returncode != 2 or because not in ' '.join(result.stderr.split()) or result.stdout:
            raise tree.Failure(f"doctor {' '.join(arguments)}: {result}")


def leaves_nothing():
    with tempfile.TemporaryDirectory(dir=os.environ.get('PINLEASE_TEST_DIR', '/var/tmp')) as directory:
        result = doctor('--without', '--dir', directory)
        if result.returncode or os.listdir(directory):
            raise tree.Failure(f'{os.listdir(directory)}: {result}')


if __name__ == '__main__':
    sys.exit(tree.tap([
        ('the JSON has every memory, device and operation', shape),
        ('facilities are here as they say', facilities_are_right),
        ("what root has isn't had by a newer kernel", what_lacks_is_named),
        ('each kind of device and of device memory has a row', device_classes),
        ('device memory is given as it says', device_memory),
        ('no sentence is cut', nothing_is_cut),
        ('COPY on pinned RDMA leases names its flag', copy_of_verbs),
        ('what is promised was tried and seen', tried),
        ('what takes no page loses nothing without pinlease', harmless),
        ('the table predicts what pinl_map_range accepts, and its sentence', agreement),
        ('every gap has a reason', gaps_are_explained),
        ('it fits into 80 columns', fits),
        ('the document has the table of this machine', document),
        ('the document of kernels is read as it was written', document_of_kernels),
        ('a machine that differs from the document is found', kernels_are_compared),
        ('a wrong command line is an error', wrong_command_lines),
        ("a group that can't be taken is an error", groups),
        ('nothing is left behind', leaves_nothing),
    ]))
