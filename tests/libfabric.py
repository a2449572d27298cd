#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: libfabric.py LIBPINLEASE_LIBFABRIC APP IMPORTING_APP - libfabric with pinlease for its memory monitor, in a program that isn't changed
and in one that is.

The provider is verbs, whose registrations libfabric caches; the same patterns with libfabric's own monitor show that they find
what they are to find. Needs an RDMA device.
"""
import os
import re
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tree

LIBRARY, APP, IMPORTING = (os.path.abspath(path) for path in sys.argv[1:4])
PATTERNS = ('hit', 'file-hit', 'munmap', 'libc-munmap', 'map-over', 'mremap', 'move-away', 'discard', 'file', 'release', 'threads', 'allocator')

# What is touched is missing, and libfabric's userfaultfd for missing pages has nobody who serves faults; or its reader wants the lock
# of libfabric's that is held by who unmaps.
HANGS = (('file', 'userfaultfd', 'handle_userfault'), ('move-away', 'userfaultfd', 'handle_userfault'),
         ('allocator', 'userfaultfd', 'userfaultfd_event_wait_completion'), ('allocator', 'memhooks', 'futex'))
NOT_CONNECTED, TRIES = 3, 5


def kernel():
    return tuple(int(number) for number in re.findall(r'\d+', os.uname().release)[:2])


def clean():
    return {name: value for name, value in os.environ.items() if not name.startswith(('FI_', 'PINLEASE_LIBFABRIC'))}


def run(pattern, program=APP, **variables):
    """Status and output of the program, which gets some tries to connect."""
    for _ in range(TRIES):
        try:
            app = subprocess.run([program, pattern], capture_output=True, encoding='utf-8', errors='replace', check=False, timeout=330,
                                 stdin=subprocess.DEVNULL, env=clean() | variables)
        except subprocess.TimeoutExpired as late:
            raise tree.Failure(f'{pattern}: no end after 330 s: {late.stdout}') from late
        if app.returncode != NOT_CONNECTED:
            break
    if app.returncode == 77:
        raise tree.Skip(app.stdout.strip().removeprefix('no ') or 'an RDMA device')
    return app.returncode, app.stdout + app.stderr


def preloaded():
    """ThreadSanitizer's and AddressSanitizer's libraries, which the program brings, want to be first."""
    return {'LD_PRELOAD': LIBRARY, 'PINLEASE_LIBFABRIC': '1', 'ASAN_OPTIONS': 'verify_asan_link_order=0:detect_leaks=0'}


def never_stale(pattern):
    status, said = run(pattern, **preloaded())
    if pattern == 'file-hit' and said == 'registered anew\n' and kernel() < (6, 14):
        raise tree.Skip('Linux 6.14, where holes in files are told')
    if status or said:
        raise tree.Failure(f'{pattern}: status {status}: {said}')


def never_stale_by_import(pattern):
    status, said = run(pattern, IMPORTING)
    if status or said:
        raise tree.Failure(f'{pattern}: status {status}: {said}')


def is_stale(pattern, monitor):
    status, said = run(pattern, FI_MR_CACHE_MONITOR=monitor, PINLEASE_TEST_WAIT='5')
    if status != 1:
        raise tree.Failure(f'{pattern} with {monitor} is to find what is stale, and ended with {status}: {said}')


def waits_in(pid):
    try:
        with open(f'/proc/{pid}/wchan', encoding='ascii') as where:
            return where.read()
    except OSError:
        return ''


def hung(pattern, monitor, where):
    """Whether it is seen there for four seconds; how it ended and what it said if it wasn't."""
    seen = 0
    env = clean() | {'FI_MR_CACHE_MONITOR': monitor}
    with subprocess.Popen([APP, pattern], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env) as app:
        try:
            while seen < 20 and app.poll() is None:
                seen = seen + 1 if waits_in(app.pid).startswith(where) else 0
                time.sleep(0.2)
        finally:
            app.kill()
        said = app.stdout.read().decode(errors='replace')
    return seen == 20, app.returncode, said


def hangs(pattern, monitor, where):
    """For good: its only thread that could end it waits for it, in the kernel's function `where`."""
    for _ in range(TRIES):
        yes, status, said = hung(pattern, monitor, where)
        if status != NOT_CONNECTED:
            break
    if status == 77:
        raise tree.Skip('an RDMA device')
    if not yes:
        raise tree.Failure(f'{pattern} with {monitor} is to hang in {where}, and ended with {status}: {said}')


def replaces_what_the_environment_says():
    status, said = run('munmap', FI_MR_CACHE_MONITOR='memhooks', **preloaded())
    if status or said:
        raise tree.Failure(f'status {status}: {said}')


def main():
    tests = [(pattern, lambda p=pattern: never_stale(p)) for pattern in PATTERNS]
    tests += [(f'{pattern}, imported from code', lambda p=pattern: never_stale_by_import(p)) for pattern in ('hit', 'munmap', 'threads')]
    tests += [(f'{pattern} is stale with memhooks', lambda p=pattern: is_stale(p, 'memhooks'))
              for pattern in ('munmap', 'map-over', 'mremap', 'move-away', 'discard', 'file', 'release')]
    tests += [(f'{pattern} hangs with {monitor}', lambda p=pattern, m=monitor, w=where: hangs(p, m, w)) for pattern, monitor, where in HANGS]
    tests.append(('file-hit is registered anew with userfaultfd', lambda: is_stale('file-hit', 'userfaultfd')))
    tests.append(('before FI_MR_CACHE_MONITOR', replaces_what_the_environment_says))
    return tree.tap(tests)


sys.exit(main())
