#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run the measurements in interleaved rounds, print the tables, write results and plots.

usage: bench/run.py PROGRAM [--scale huge|full|quick|tiny] [--only PREFIX] [--dir DIR] [--out DIR] [--readme]

PROGRAM is build/bench/pinlease-bench; `make bench` builds it and calls this. --readme also makes this run
the reference: it goes to bench/results/reference and into bench/README.md; with --only it replaces these
groups there. pinleased and pinlease are $PINLEASED and $PINLEASE, or those that were built beside PROGRAM.
"""
import argparse
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
BENCH = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(BENCH))
import plots
import results
import tables

ROUNDS = {'huge': 1, 'full': 5, 'quick': 5, 'tiny': 1}
STEPS = [('reference', 'same'), ('reference', 'across'), ('recall-mem', 'same'), ('recall-mem', 'across'),
         ('recall-file', 'same'), ('recall-file', 'across'), ('map', 'same'), ('calls', 'same'), ('calls', 'across'),
         ('cache-hit', 'same'), ('cache-hit', 'across'), ('touch', 'same'), ('files', 'same'), ('files', 'across'), ('arbiter-hold', 'same'), ('arbiter-hold', 'across'),
         ('arbiter-files', 'same'), ('arbiter-files', 'across'), ('arbiter-force', 'same'), ('arbiter-fair', 'same'),
         ('arbiter-many', 'same'), ('device-ring', 'same'), ('device-verbs', 'same'), ('device-vfio', 'same'), ('device-iommufd', 'same'), ('pins', 'same')]
HUGE_STEPS = [('huge-cache', 'same')]  # of the scale "huge": what takes gigabytes and minutes, and nothing else
MOST_ROUNDS = {'arbiter-many': 3}
BEGIN, END = '<!-- measured: begin -->\n', '<!-- measured: end -->\n'


def first_match(path, pattern, otherwise='unknown'):
    try:
        found = re.search(pattern, pathlib.Path(path).read_text(encoding='utf-8'), re.M)
    except OSError:
        found = None
    return found[1] if found else otherwise


def output_of(*command):
    try:
        return subprocess.run(command, capture_output=True, encoding='utf-8', check=False, cwd=BENCH).stdout.strip() or 'unknown'
    except OSError:
        return 'unknown'


def machine(directory):
    cpus = len(os.sched_getaffinity(0))
    return {
        'kernel': os.uname().release, 'machine': os.uname().machine,
        'cpu': first_match('/proc/cpuinfo', r'^model name\s*:\s*(.+)$'), 'cpus': cpus,
        'virtual': 'hypervisor' in first_match('/proc/cpuinfo', r'^flags\s*:(.+)$', ''),
        'memory': f"{int(first_match('/proc/meminfo', r'^MemTotal: +([0-9]+)', '0')) // 1048576} GiB",
        'file system': output_of('findmnt', '-n', '-o', 'FSTYPE', '-T', directory),
        'huge pages': first_match('/sys/kernel/mm/transparent_hugepage/enabled', r'\[(\w+)\]'),
        'root': os.geteuid() == 0, 'nice': os.nice(0), 'tree': output_of('git', 'describe', '--always', '--dirty'),
        'date': datetime.date.today().isoformat(), 'load before': os.getloadavg()[0],
    }


class Progress:
    """One line that changes on a terminal, one line per round elsewhere."""

    def __init__(self, total):
        self.total, self.done, self.began, self.live = total, 0, time.monotonic(), sys.stderr.isatty()

    def step(self, now, words, first):
        line = f'{100 * self.done // self.total:3d} %  round {now}: {words}, {time.monotonic() - self.began:.0f} s'
        if self.live:
            print(f'\r\033[K{line}', end='', file=sys.stderr, flush=True)
        elif first:
            print(line, file=sys.stderr, flush=True)
        self.done += 1

    def end(self):
        if self.live:
            print('\r\033[K', end='', file=sys.stderr, flush=True)


def one(program, group, place, scale, directory, backwards):
    command = [program, group, '--scale', scale, '--place', place, '--dir', directory] + (['--backwards'] if backwards else [])
    run = subprocess.run(command, capture_output=True, encoding='utf-8', timeout=1200, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: status {run.returncode}\n{run.stderr}")
    return [json.loads(line) for line in run.stdout.splitlines()]


def measure(options):
    found = results.Results(machine(options.dir), {'scale': options.scale, 'rounds': ROUNDS[options.scale]})
    wanted = [s for s in (HUGE_STEPS if options.scale == 'huge' else STEPS) if s[0].startswith(options.only)]
    steps = [s for s in wanted if s[1] == 'same' or len(os.sched_getaffinity(0)) > 1]
    if len(steps) < len(wanted):
        found.left_out['all', 'columns "other CPU"'] = 'there is only one CPU'
    rounds = ROUNDS[options.scale]
    progress = Progress(rounds * len(steps))
    with tempfile.TemporaryDirectory(prefix='pinlease-bench-', dir=options.dir) as directory:
        for turn in range(rounds):
            for step in steps:
                progress.step(f'{turn + 1} of {rounds}', ' '.join(step), step == steps[0])
                if turn >= MOST_ROUNDS.get(step[0], rounds):
                    continue
                for row in one(options.program, *step, options.scale, directory, turn % 2):
                    found.add(row)
    progress.end()
    found.machine['load after'] = os.getloadavg()[0]
    return found


def left_out_lines(found):
    return [f'{what}: {why}' for (_, what), why in found.left_out.items()]


def describe_run(m, o):
    return (f"Linux {m['kernel']} {m['machine']}, {m['cpus']} x {m['cpu']}{' (virtual)' if m['virtual'] else ''}, {m['memory']}, "
            f"{m['file system']}, {'root' if m['root'] else 'not root'}, nice {m['nice']}; tree {m['tree']}, {m['date']}; {o['rounds']} rounds, scale "
            f"{o['scale']}; load average {m['load before']:.1f} before, {m['load after']:.1f} after")


def describe(found):
    later = [f"; {run['groups']}: {describe_run(run['machine'], run['options'])}" for run in found.machine.get('later', [])]
    return describe_run(found.machine, found.options) + ''.join(later)


def measured_part(found):
    """What README.md has between its marks."""
    parts = [describe(found) + '.', *(['Left out: ' + '; '.join(left_out_lines(found)) + '.'] if found.left_out else []),
             '![Recall latency by policy](results/reference/recall.svg)',
             '![Leases on a ring by size](results/reference/map.svg)',
             '![The cache by the number of registrations](results/reference/cache.svg)', *map(tables.as_markdown, tables.all_tables(found))]
    return '\n\n'.join(parts) + '\n'


def readme_with(text, found):
    before, rest = text.split(BEGIN)
    return before + BEGIN + '\n' + measured_part(found) + '\n' + END + rest.split(END)[1]


def write_readme(found):
    path = BENCH / 'README.md'
    path.write_text(readme_with(path.read_text(encoding='utf-8'), found), encoding='utf-8')


def write(found, directory):
    directory.mkdir(parents=True, exist_ok=True)
    found.dump(directory / 'results.json')
    plots.draw(found, directory)


def main():
    parser = argparse.ArgumentParser(description='Run the measurements of pinlease.')
    parser.add_argument('program', nargs='?', help='build/bench/pinlease-bench')
    parser.add_argument('--scale', choices=ROUNDS, default='full')
    parser.add_argument('--only', default='', metavar='PREFIX', help='only the groups whose names begin so')
    parser.add_argument('--dir', default='/var/tmp', help='for files; on ext4, XFS or btrfs if possible')
    parser.add_argument('--out', type=pathlib.Path, default=BENCH / 'results/latest')
    parser.add_argument('--readme', action='store_true', help='make this run the reference')
    parser.add_argument('--again', type=pathlib.Path, metavar='JSON', help='only report on an earlier run')
    options = parser.parse_args()
    if not options.program and not options.again:
        parser.error('a program to run, or --again')
    built = pathlib.Path(options.program or '').resolve().parent.parent
    os.environ.setdefault('PINLEASED', str(built / 'daemon/pinleased'))
    os.environ.setdefault('PINLEASE', str(built / 'tools/pinlease/pinlease'))
    found = results.load(options.again) if options.again else measure(options)
    out = BENCH / 'results/reference' if options.readme else options.out
    if options.readme and options.only:
        found = results.merged(results.load(out / 'results.json'), found, options.only)
    write(found, out)
    if options.readme:
        write_readme(found)
    for table in tables.all_tables(found):
        print(tables.as_text(table), end='\n\n')
    for line in left_out_lines(found):
        print('left out:', line)
    print(describe(found))
    print('written:', os.path.relpath(out))


if __name__ == '__main__':
    main()
