#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A test that fails makes CI fail: what scripts/tap makes of a program's output, and scripts/tally of all logs."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import tree

GOOD = 'printf "1..2\\nok 1 - a\\nok 2 - b\\n"'


def tap(shell):
    """(exit status, results) of a program as scripts/tap shows it."""
    result = subprocess.run([tree.ROOT / 'scripts/tap', 'sh', '-c', shell], capture_output=True, encoding='utf-8', timeout=tree.HANGS, check=False)
    return result.returncode, [line.split(' # ')[0] for line in result.stdout.splitlines() if line.startswith(('ok', 'not ok'))]


def programs():
    cases = [(GOOD, ['ok', 'ok']),
             ('printf "1..2\\nok 1 - a\\nnot ok 2 - b\\n"', ['ok', 'not ok']),
             (f'{GOOD}; exit 3', ['ok', 'ok', 'not ok']),
             (f'{GOOD}; kill -SEGV $$', ['ok', 'ok', 'not ok']),
             ('printf "1..3\\nok 1 - a\\n"; kill -ABRT $$', ['ok', 'not ok', 'not ok']),
             ('exit 0', ['not ok']),
             ('printf "1..1\\nnot ok 1 # SKIP a\\n"', ['not ok']),  # doesn't say what is missing
             ('printf "1..1\\nskip: a feature\\nnot ok 1 # SKIP a\\n"', ['ok'])]
    for shell, expected in cases:
        status, results = tap(shell)
        seen = ['not ok' if line.startswith('not') else 'ok' for line in results]
        if seen != expected or status != ('not ok' in expected):
            raise tree.Failure(f'{shell}: status {status}, {results}')


def tally(*suites, ci=False):
    """(exit status, last line); a suite is a word, or meson's status and its log."""
    with tempfile.TemporaryDirectory() as directory:
        arguments = []
        for number, suite in enumerate(suites):
            if isinstance(suite, tuple):
                log = pathlib.Path(directory) / f'{number}.json'
                log.write_text(suite[1], encoding='utf-8')
                suite = f'{suite[0]}:{log}'
            arguments.append(f's{number}={suite}')
        allowed = pathlib.Path(directory) / 'allowed'
        allowed.write_text('p/known*\n', encoding='utf-8')
        result = subprocess.run([tree.ROOT / 'scripts/tally', '--allowed', allowed, *arguments], capture_output=True, encoding='utf-8',
                                env=os.environ | {'CI': 'true' if ci else ''}, timeout=tree.HANGS, check=False)
    return result.returncode, result.stdout.splitlines()[-1]


def run(stdout, result='OK', status=0):
    return json.dumps({'name': 'pinlease / p', 'stdout': stdout, 'result': result, 'returncode': status}) + '\n'


def sums():
    good, bad = run('ok 1 - a\nok 2 - b\n1..2\n'), run('ok 1 - a\nnot ok 2 - b\n1..2\n', 'FAIL', 1)
    skips = run('ok 1 - known_one # SKIP x\nok 2 - other # SKIP y\n1..2\n')
    for suites, ci, expected in [
            (((0, good), 'passed'), False, (0, '3 passed, 0 failed, 0 skipped')),
            (((1, good + bad), 'passed'), False, (1, '4 passed, 1 failed, 0 skipped')),
            (((0, good + run('ok 1 - a\n1..1\n', 'TIMEOUT', -15)),), False, (1, '3 passed, 1 failed, 0 skipped')),
            (((0, run('', 'OK')),), False, (1, '0 passed, 1 failed, 0 skipped')),
            (((143, good),), False, (1, '2 passed, 1 failed, 0 skipped')),  # meson itself was killed
            (((0, good + '{"name'),), False, (1, '0 passed, 1 failed, 0 skipped')),
            (((0, ''),), False, (1, '0 passed, 1 failed, 0 skipped')),
            (('0:/nonexistent',), False, (1, '0 passed, 1 failed, 0 skipped')),
            (((0, good), 'failed'), False, (1, '2 passed, 1 failed, 0 skipped')),
            (((0, good + skips),), False, (0, '2 passed, 0 failed, 2 skipped')),
            (((0, good + skips),), True, (1, '2 passed, 1 failed, 1 skipped'))]:
        if tally(*suites, ci=ci) != expected:
            raise tree.Failure(f'{suites}: {tally(*suites, ci=ci)}, not {expected}')


if __name__ == '__main__':
    sys.exit(tree.tap([
        ("a program's failures, crashes and missing results fail", programs),
        ('every suite counts, and the sum is right', sums),
    ]))
