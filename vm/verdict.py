# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a job's end means: pure, from what the guest left behind to a list of test programs as scripts/tally reads it.

Beside the job's tests there is always one "kernel log", which fails when the kernel complained. A skip that the job
doesn't expect fails; a test that was expected to be skipped and ran is only told.
"""
import fnmatch
import re

COMPLAINTS = re.compile(r'WARNING:|BUG:|\bOops\b|Kernel panic|KASAN|UBSAN|general protection fault|soft lockup|hard LOCKUP|'
                        r'rcu: .*detected.* stall|blocked for more than|unregister_netdevice: waiting|possible.*deadlock')
# While it boots no test is to blame for a machine that stood still, or for a clock of an emulated one that leapt.
SLOW = re.compile(r'soft lockup|hard LOCKUP|rcu: .*detected.* stall|blocked for more than')
BOOTING = 'booting'
RESULT = re.compile(r'(not )?ok (\d+) - (.*?)(?: # SKIP (.*))?$')
STAMP = re.compile(r'^\[ *[\d.]+\] ?')
MARK = 'pinlease-vm: '
AFTER = 40  # lines of the log that follow a complaint


def log_lines(console):
    return [STAMP.sub('', line.rstrip('\r')) for line in console.splitlines()]


def complaints(console, allow):
    """[(what ran, the line)] of the kernel's log, without what the job allows."""
    running, found = BOOTING, []
    for line in log_lines(console):
        if line.startswith(MARK):
            running = line[len(MARK):]
        elif running == BOOTING and SLOW.search(line):
            continue
        elif COMPLAINTS.search(line) and not any(re.search(pattern, line) for pattern, _ in allow):
            found.append((running, line))
    return found


def excerpt(console, line):
    lines = log_lines(console)
    at = lines.index(line)
    return '\n'.join(lines[max(at - 3, 0):at + AFTER])


def record(name, results, status=0, stderr='', duration=0):
    """A test program for the log; results: TAP."""
    return {'name': name, 'stdout': results, 'stderr': stderr, 'returncode': status, 'result': 'FAIL' if status else 'OK',
            'duration': duration, 'skips': 'expected'}


def failure(name, what, details=''):
    return record(name, f'not ok 1 - {what}\n1..1\n{details}', 1)


def judge_skips(name, output, skip):
    """The output with unexpected skips as failures; and the patterns of expected ones that came, and of those that ran."""
    lines, used, ran = [], set(), set()
    for line in output.splitlines():
        if result := RESULT.match(line):
            bad, number, case, why = result.groups()
            expected = [p for p, _ in skip if fnmatch.fnmatch(f'{name}/{case}', p)]
            if why is not None and expected:
                used.update(expected)
            elif why is not None:
                line = f'not ok {number} - {case}: skipped ({why}), and the job does not expect it'
            elif not bad:
                ran.update(expected)
        lines.append(line)
    return '\n'.join(lines) + '\n', used, ran


def program(step_name, left, skip):
    """left: (output, errors, status line) of one test; the record and its skips."""
    output, errors, status = left
    status, duration = (int(word) for word in (status or '0 0').split())
    output, used, ran = judge_skips(step_name, output, skip)
    if status == 0 and re.search(r'^not ok', output, re.M):
        status = 1
    return record(step_name, output, status, errors, duration), used, ran


def not_up(end, boots, console, qemu):
    """QEMU's own words come first: they are few, and mostly the reason."""
    said = qemu.strip().splitlines()
    tail = '\n'.join([*said, *log_lines(console)[-AFTER:]])
    last = f'; QEMU says: {said[-1]}' if said else ''
    if end == 'refused':
        return failure('vm', f'QEMU did not start{last}', tail)
    return failure('vm', f'VM LOST: the guest did not come up in {boots} boots{last}', tail)


def judge(job, end, boots, results, console, setup=None, qemu=''):
    """(records, notes). results: [(name, what a test left, or None when it has not ended)]; setup: (name, output) if it failed."""
    records, notes, used, ran = [], [], set(), set()
    if boots > 1:
        notes.append(f'{boots} boots')
    if end in ('lost', 'refused'):
        return [not_up(end, boots, console, qemu)], notes
    if setup:
        records.append(failure(setup[0], 'setting up the guest failed', setup[1]))
    missing = [name for name, left in results if left is None]
    for name, left in results:
        if left is not None:
            one, was_used, has_run = program(name, left, job.skip)
            records.append(one)
            used |= was_used
            ran |= has_run
    if missing and not setup:
        how = {'died': 'the guest ended', 'timeout': f'the guest was not through after {job.timeout} s', 'stopped': 'stopped'}
        records.append(failure(missing[0], f"{how.get(end, end)} in this test or before it; {len(missing) - 1} more were not run",
                               '\n'.join(log_lines(console)[-AFTER:])))
    elif end != 'done' and not setup:
        records.append(failure('vm', f'{end} after the last test'))
    found = complaints(console, job.allow)
    if found:
        records.append(failure('kernel log', '; '.join(f'{line} (in: {running})' for running, line in found[:5]),
                               excerpt(console, found[0][1])))
    else:
        records.append(record('kernel log', 'ok 1 - the kernel has not complained\n1..1\n'))
    notes += [f'expected to be skipped, and ran: {p}' for p in sorted(ran - used)]
    return records, notes


def as_expected(patterns, records):
    """For jobs that are there to fail: one record, good if each failure has its pattern and each pattern its failure."""
    failures = [f"{r['name']}: {m[3]}" for r in records for m in map(RESULT.match, r['stdout'].splitlines()) if m and m[1]]
    strange = [f for f in failures if not any(re.search(p, f) for p in patterns)]
    absent = [p for p in patterns if not any(re.search(p, f) for f in failures)]
    if strange or absent:
        return failure('expected failures', f'{len(absent)} did not come, {len(strange)} are others',
                       '\n'.join([*(f'did not come: {p}' for p in absent), *(f'not expected: {f}' for f in strange)]))
    return record('expected failures', f'ok 1 - {len(patterns)} came, and no others\n1..1\n')
