#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The measurements still run, and what bench/README.md shows is what the committed run gave.

usage: bench.py PINLEASE-BENCH
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

sys.dont_write_bytecode = True
sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parent.parent / 'bench')]
import tree
import plots
import results
import run
import tables

PROGRAM = sys.argv[1]
REFERENCE = tree.ROOT / 'bench/results/reference'


def check_groups(found):
    seen = {key[0] for key in found.rows} | {group for group, _ in found.left_out}
    missing = {group for group, _ in run.STEPS} - seen
    if missing:
        raise tree.Failure(f'neither measured nor left out: {sorted(missing)}')
    bad = [key for key, rounds in found.rows.items()
           if (min(rounds['p50']) <= 0 and key[4] not in ('landed', 'mappings', 'idle')) or rounds['p99'] < rounds['p50']]
    if bad:
        raise tree.Failure(f'no time, or percentiles in the wrong order: {bad}')
    landed = [key for key, rounds in found.rows.items() if key[4] == 'landed' and key[3] != 'plain' and any(rounds['p50'])]
    if landed:
        raise tree.Failure(f'bytes landed after the device was off: {landed}')


def tiny_run():
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory(dir='/var/tmp') as work:
        out = pathlib.Path(directory)
        result = subprocess.run([sys.executable, tree.ROOT / 'bench/run.py', PROGRAM, '--scale', 'tiny', '--out', out, '--dir', work],
                                capture_output=True, encoding='utf-8', timeout=tree.HANGS, check=False)
        if result.returncode:
            raise tree.Failure(f'status {result.returncode}\n{result.stdout}{result.stderr}')
        found = results.load(out / 'results.json')
        check_groups(found)
        for table in tables.all_tables(found):
            if table.title not in result.stdout:
                raise tree.Failure(f'no table "{table.title}" in\n{result.stdout}')
        for svg in out.glob('*.svg'):
            xml.etree.ElementTree.parse(svg)
        left = list(pathlib.Path(work).iterdir())
        if left:
            raise tree.Failure(f'left behind: {left}')


def huge():
    """What only the scale "huge" measures, with as little as the others here."""
    lines = subprocess.run([PROGRAM, 'huge-cache', '--scale', 'tiny'], capture_output=True, encoding='utf-8', timeout=tree.HANGS,
                           check=True).stdout.splitlines()
    found = results.Results({}, {})
    for line in lines:
        found.add(json.loads(line))
    if {group for group, _ in run.HUGE_STEPS} != {key[0] for key in found.rows}:
        raise tree.Failure(lines)
    for what in ('1 thread, random of', 'insert'):
        if not any(plots.cache_points(found, what, 'pinlease', metric) for metric in ('hit', 'insert')):
            raise tree.Failure(f'"{what}" is not in the plot: {lines}')


def ratios():
    """Medians over rounds, ratios within rounds: the slow second round is no outlier of the ratio."""
    found = results.Results({}, {})
    for mine, base in ((20, 10), (4000, 1000), (30, 10)):
        for variant, value in (('lease', mine), ('plain', base)):
            found.add({'group': 'g', 'place': 'same', 'what': 'w', 'variant': variant, 'metric': 'call', 'n': 1,
                       'p50': value, 'p99': value})
    lease, plain = (('g', 'same', 'w', variant, 'call') for variant in ('lease', 'plain'))
    if found.get('p50', *lease) != 30 or found.ratio(lease, plain) != 3 or found.get('p50', 'g', 'same', 'w', 'x', 'call'):
        raise tree.Failure(f"median {found.get('p50', *lease)}, ratio {found.ratio(lease, plain)}")


def some_groups_again():
    """A later run of some groups replaces these, and both runs are described."""
    first, later = (results.Results({'kernel': kernel}, {}) for kernel in ('old', 'new'))
    for found, groups in ((first, ('files', 'arbiter-hold', 'arbiter-gone')), (later, ('arbiter-hold',))):
        for group in groups:
            found.add({'group': group, 'place': 'same', 'what': 'w', 'variant': 'v', 'metric': 'm', 'n': 1, 'p50': 1,
                       'p99': 9 if found is later else 3})
    both = results.merged(results.merged(first, later, 'arbiter'), later, 'arbiter')
    if {key[0]: rounds['p99'] for key, rounds in both.rows.items()} != {'files': [3], 'arbiter-hold': [9]}:
        raise tree.Failure(both.rows)
    if [run['machine']['kernel'] for run in both.machine['later']] != ['new']:
        raise tree.Failure(both.machine)


def without_pinleased():
    """What can't be measured is named, with the reason."""
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory(dir='/var/tmp') as work:
        result = subprocess.run([sys.executable, tree.ROOT / 'bench/run.py', PROGRAM, '--scale', 'tiny', '--only', 'arbiter', '--out', out,
                                 '--dir', work], env=dict(os.environ, PINLEASED='/nonexistent'), capture_output=True, encoding='utf-8',
                                timeout=tree.HANGS, check=False)
    for words in ('hold and release', 'files of other programs', 'force of a stopped holder', 'many held at once', 'many leases'):
        if f'left out: pinleased: {words}: no pinleased' not in result.stdout:
            raise tree.Failure(f'status {result.returncode}, "{words}" not in\n{result.stdout}{result.stderr}')


def readme():
    text = (tree.ROOT / 'bench/README.md').read_text(encoding='utf-8')
    found = results.load(REFERENCE / 'results.json')
    if run.readme_with(text, found) != text:
        raise tree.Failure('bench/README.md is not what bench/results/reference gives; run '
                           'bench/run.py --again bench/results/reference/results.json --readme')
    for name, draw in (('recall.svg', plots.recall), ('map.svg', plots.maps), ('cache.svg', plots.cache)):
        if (REFERENCE / name).read_text(encoding='utf-8') != draw(found):
            raise tree.Failure(f'bench/results/reference/{name} is not drawn from its results.json')


if __name__ == '__main__':
    sys.exit(tree.tap([
        ('a tiny run measures every group and leaves nothing behind', tiny_run),
        ('what the scale "huge" has is measured and in the plot', huge),
        ('ratios are taken within rounds', ratios),
        ('some groups measured again replace those of the reference', some_groups_again),
        ('without pinleased its groups are left out, and said so', without_pinleased),
        ("bench/README.md and its plots show the reference run's numbers", readme),
    ]))
