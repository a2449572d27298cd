#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: ucx.py LIBPINLEASE_UCX APP STARTING_APP - UCX told of changes by pinlease, in a program that isn't changed and in one that is.

The transport is rc_verbs, whose registrations UCX caches; the same patterns with UCX's own hooks show that they find what they are
to find. Needs an RDMA device.
"""
import os
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tree

LIBRARY, APP, STARTING = (os.path.abspath(path) for path in sys.argv[1:4])
PATTERNS = ('munmap', 'libc-munmap', 'map-over', 'mremap', 'move-away', 'discard', 'by-another', 'file', 'release', 'threads',
            'allocator', 'libc-text')
# soft-RoCE's completions don't have the kind of a packet's addresses, which ud_verbs, by which rc_verbs connects, takes for a wrong
# address and drops the packet. And all goes by RDMA from the program's own memory.
UCX = {'UCX_TLS': 'rc_verbs,ud_verbs', 'UCX_UD_VERBS_ETH_DGID_CHECK': 'n', 'UCX_ZCOPY_THRESH': '0',
       'UCX_WARN_UNUSED_ENV_VARS': 'n', 'UCX_RCACHE_MAX_UNRELEASED': '0'}
NO_HOOKS = {'UCX_MEM_MMAP_HOOK_MODE': 'none'}


def run(pattern, program=APP, **variables):
    """Status and output of the program."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(('UCX_', 'PINLEASE_UCX'))}
    try:
        app = subprocess.run([program, pattern], capture_output=True, encoding='utf-8', errors='replace', check=False, timeout=330,
                             stdin=subprocess.DEVNULL, env=env | UCX | variables)
    except subprocess.TimeoutExpired as late:
        raise tree.Failure(f'{pattern}: no end after 330 s: {late.stdout}') from late
    if app.returncode == 77:
        raise tree.Skip('an RDMA device')
    return app.returncode, app.stdout + app.stderr


def preloaded():
    """ThreadSanitizer's and AddressSanitizer's libraries, which the program brings, want to be first."""
    return {'LD_PRELOAD': LIBRARY, 'PINLEASE_UCX': '1', 'ASAN_OPTIONS': 'verify_asan_link_order=0:detect_leaks=0'}


def right(pattern, program, **variables):
    status, said = run(pattern, program, **variables)
    if status or said:
        raise tree.Failure(f'{pattern}: status {status}: {said}')


def never_stale(pattern):
    right(pattern, APP, **preloaded(), **NO_HOOKS)


def never_stale_by_start(pattern):
    right(pattern, STARTING, **NO_HOOKS)


def is_wrong(pattern):
    status, said = run(pattern, PINLEASE_TEST_WAIT='5')
    if status != 1:
        raise tree.Failure(f"{pattern} with UCX's own hooks is to find what is wrong, and ended with {status}: {said}")


def patched_libc_is_said():
    status, said = run('munmap', STARTING)
    if status != 2 or 'pinl_ucx_start' not in said:
        raise tree.Failure(f'status {status}: {said}')
    status, said = run('libc-munmap', **preloaded())
    if status or 'UCX_MEM_MMAP_HOOK_MODE=none' not in said:
        raise tree.Failure(f'status {status}: {said}')


def main():
    tests = [(pattern, lambda p=pattern: never_stale(p)) for pattern in PATTERNS]
    tests += [(f'{pattern}, started from code', lambda p=pattern: never_stale_by_start(p))
              for pattern in ('hit', 'munmap', 'explicit', 'threads', 'stopped')]
    tests += [(f"{pattern} is wrong with UCX's hooks", lambda p=pattern: is_wrong(p))
              for pattern in ('munmap', 'map-over', 'mremap', 'move-away', 'discard', 'by-another', 'file', 'release', 'libc-text')]
    tests.append(('patched libc is said', patched_libc_is_said))
    return tree.tap(tests)


sys.exit(main())
