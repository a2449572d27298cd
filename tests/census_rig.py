# SPDX-License-Identifier: LGPL-2.1-or-later
"""For tests of pinlease pins, which are called with PINLEASED PINLEASE [RDMA]: memory, what pins it, and what the command says of it."""
import contextlib
import ctypes
import json
import mmap
import os
import struct
import subprocess
import sys
import time

import tree

PINLEASED, PINLEASE = map(os.path.abspath, sys.argv[1:3])
RDMA = sys.argv[3] if len(sys.argv) > 3 else None
PAGE = 4096
HUGE = 2 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mremap.restype = ctypes.c_void_p
LIBC.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.shmat.restype = ctypes.c_void_p
LIBC.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
SETUP, REGISTER = 425, 427
RING_FDS = 20


def call(result):
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Memory:
    """Mapped and touched; huge: aligned, as one huge page if there is one."""
    def __init__(self, size, fd=-1, offset=0, huge=False, private=False, write=True):
        flags = mmap.MAP_PRIVATE if private or fd < 0 else mmap.MAP_SHARED
        room = size + (HUGE if huge else 0)
        self.start = call(LIBC.mmap(None, room, 3 if write else 1, flags | (mmap.MAP_ANONYMOUS if fd < 0 else 0), fd, offset))
        self.room = (self.start, room)
        if huge:
            self.start = (self.start + HUGE - 1) // HUGE * HUGE
        self.size = size
        LIBC.madvise(self.start, size, mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        for at in range(0, size, PAGE):
            if write:
                ctypes.memset(self.start + at, 1, 1)
            else:
                ctypes.string_at(self.start + at, 1)

    def unmap(self):
        if self.room:
            call(LIBC.munmap(*self.room))
            self.room = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.unmap()


class Ring:
    """An io_uring with these as fixed buffers."""
    def __init__(self, *memories):
        self.fd = call(LIBC.syscall(SETUP, 8, ctypes.byref(ctypes.create_string_buffer(120))))
        parts = b''.join(struct.pack('QQ', start, size) for start, size in memories)
        try:
            call(LIBC.syscall(REGISTER, self.fd, 0, parts, len(memories)))
        except OSError:
            os.close(self.fd)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.fd >= 0:
            os.close(self.fd)


def of(memory):
    return memory.start, memory.size


@contextlib.contextmanager
def memfd(size, name='census', flags=0):
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def spliced(*memories):
    ends = os.pipe()
    try:
        for memory in memories:
            part = struct.pack('QQ', memory.start, memory.size)
            call(LIBC.vmsplice(ends[1], part, 1, 0))
        yield ends
    finally:
        os.close(ends[0])
        os.close(ends[1])


def run(*arguments, **more):
    return subprocess.run([PINLEASE, 'pins', *arguments], capture_output=True, text=True, check=False, timeout=200, **more)


def census(*arguments, pid=None, **more):
    """Rows of this process (or of another), and what is said of the machine."""
    result = run('--json', *arguments, **more)
    if result.returncode or result.stderr:
        raise tree.Failure(str(result))
    said = json.loads(result.stdout)
    machine = said['machine']
    off = abs(machine['pins'] - machine['kernel_pins'])
    if off > machine['acquired_and_released_meanwhile'] or machine['equal'] != (off == 0):
        raise tree.Failure(f"the sum is not the kernel's: {machine}")
    return [row for row in said['pins'] if row['pid'] == (pid or os.getpid())], said['machine']


def only(rows, **wanted):
    if len(rows) != 1:
        raise tree.Failure(f'one row was expected: {json.dumps(rows, indent=1)}')
    for key, value in wanted.items():
        if rows[0][key] != value:
            raise tree.Failure(f'{key} is {rows[0][key]!r}, not {value!r}: {rows[0]}')
    return rows[0]


def bounds(start, size):
    return [{'start': start, 'end': start + size}]


def gone():
    """Buffers of rings are given back late, on Linux 6.1 by a second: then nothing of this process is left."""
    for _ in range(200):
        rows, machine = census()
        if not rows:
            return
        time.sleep(0.05)
    raise tree.Failure(f'still there: {rows} {machine}')


def missing():
    """What the command needs and this machine or build doesn't have, or None."""
    if os.geteuid():
        return 'root'
    if 'no BPF' in run().stderr:
        return 'libbpf, clang and bpftool at build time'
    if not os.path.exists('/sys/kernel/btf/vmlinux'):
        return '/sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)'
    return None


def main(tests):
    """As tree.tap(); all are skipped where something is missing."""
    lacks = missing()

    def skip():
        raise tree.Skip(lacks)
    return tree.tap([(name, skip if lacks else test) for name, test in tests])
