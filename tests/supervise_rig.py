# SPDX-License-Identifier: LGPL-2.1-or-later
"""For tests of pinlease run, which are called with PINLEASED PINLEASE: a process that is supervised and takes orders, and leases in its way."""
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import arbiter_client as ac
import tree

PINLEASED, PINLEASE = sys.argv[1:3]
del sys.argv[2]
ALL = 1 << ac.TRUNCATE | 1 << ac.PUNCH | 1 << ac.ZERO | 1 << ac.COLLAPSE | 1 << ac.INSERT | 1 << ac.REMOVE
PROGRAM = r'''
import ctypes, json, mmap, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
long = ctypes.c_long
def call(*values):
    return -ctypes.get_errno() if libc.syscall(*map(long, values)) < 0 else 0
def on(path, function):
    fd = os.open(path, os.O_RDWR)
    try:
        return function(fd)
    finally:
        os.close(fd)
kept = []
def text(path):
    kept.append(ctypes.create_string_buffer(path.encode()))
    return ctypes.addressof(kept[-1])
def remove(path, start, size):
    def do(fd):
        with mmap.mmap(fd, 0) as memory:
            libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
            at = ctypes.c_char.from_buffer(memory)
            result = libc.madvise(ctypes.addressof(at) + start, size, 9)
            del at
            return -ctypes.get_errno() if result else 0
    return on(path, do)
def space(path, request, start, size):
    argument = ctypes.create_string_buffer(b''.join(n.to_bytes(k, 'little') for n, k in ((0, 8), (start, 8), (size, 8), (0, 24))))
    return on(path, lambda fd: call(16, fd, request, ctypes.addressof(argument)))
def how(path, flags):
    argument = ctypes.create_string_buffer(flags.to_bytes(8, 'little') + bytes(16))
    return call(437, -100, text(path), ctypes.addressof(argument), 24)
def int80(*values):
    """A call by the table of 32-bit programs: push rbx; mov eax, edi; mov ebx, esi; mov ecx, edx; int 0x80; pop rbx; ret"""
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(bytes.fromhex('53 89f8 89f3 89d1 cd80 5b c3'))
    function = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int] * 3)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    return min(function(*values), 0)
ORDERS = {
    'truncate': lambda path, size: call(76, text(path), size),
    'ftruncate': lambda path, size: on(path, lambda fd: call(77, fd, size)),
    'fallocate': lambda path, mode, start, size: on(path, lambda fd: call(285, fd, mode, start, size)),
    'open': lambda path, flags: call(2, text(path), flags, 0o600),
    'openat': lambda path, flags: call(257, -100, text(path), flags, 0o600),
    'openat2': how,
    'creat': lambda path: call(85, text(path), 0o600),
    'remove': remove,
    'space': space,
    'int80_ftruncate': lambda path, size: on(path, lambda fd: int80(93, fd, size)),
    'self': lambda path, size: on(path, lambda fd: call(76, text(f'/proc/self/fd/{fd}'), size)),
    'dev': lambda path, size: on(path, lambda fd: call(76, text(f'/dev/fd/{fd}'), size)),
    'cd': lambda path: os.chdir(path) or 0,
    'chroot': lambda path: os.chroot(path) or 0,
    'ring': lambda: call(425, 0, 0),
    'pid': os.getpid,
}
lock = threading.Lock()
def one(number, what, values):
    result = ORDERS[what](*values)
    with lock:
        print(json.dumps([number, result]), flush=True)
for line in sys.stdin:
    number, what, *values = json.loads(line)
    threading.Thread(target=one, args=(number, what, values)).start()
'''


def same(got, wanted):
    if got != wanted:
        raise tree.Failure(f'{got}, not {wanted}')


def length(fd):
    return os.fstat(fd).st_size


def environment(arbiter, **more):
    path = arbiter if isinstance(arbiter, str) else str(arbiter.path)
    return dict(os.environ, PINLEASE_SOCKET=path, **more)


class Supervised:
    """A process under pinlease run. Each order has a thread of its own there; the answers come as they come."""

    def __init__(self, arbiter, *options, **more):
        # pylint: disable-next=consider-using-with
        self.process = subprocess.Popen([PINLEASE, 'run', *options, '--', sys.executable, '-c', PROGRAM], text=True,
                                        env=environment(arbiter), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, **more)
        self.number = 0
        self.results = {}
        self.said = ''

    def __enter__(self):
        return self

    def __exit__(self, *what):
        if what[0]:
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                os.kill(self.do('pid'), signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.said = self.process.stderr.read()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()

    def order(self, *what):
        self.number += 1
        self.process.stdin.write(json.dumps([self.number, *map(lambda v: v if isinstance(v, (int, str)) else str(v), what)]) + '\n')
        self.process.stdin.flush()
        return self.number

    def join(self, number):
        while number not in self.results:
            line = self.process.stdout.readline()
            assert line, 'it has ended'
            got, value = json.loads(line)
            self.results[got] = value
        return self.results.pop(number)

    def do(self, *what):
        return self.join(self.order(*what))


def run(*arguments, options=(), arbiter='/nonexistent', **more):
    return subprocess.run([PINLEASE, 'run', *options, '--', *arguments], env=environment(arbiter), capture_output=True, text=True,
                          check=False, **more)


@contextlib.contextmanager
def memory(name='run', pages=ac.PAGES):
    """A file of tmpfs: its path and a descriptor."""
    path = pathlib.Path(f'/dev/shm/pinlease-{name}-{os.getpid()}')
    path.write_bytes(b'O' * pages * ac.PAGE)
    fd = os.open(path, os.O_RDWR)
    try:
        yield path, fd
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def lent(*options, **lease):
    """An arbiter, and a client's lease of a file in memory, which can be recalled."""
    with ac.Arbiter(PINLEASED, *options) as arbiter, arbiter.client() as client, memory() as (path, fd):
        same(client.lease(fd, **lease).err, 0)
        same(client.handle().err, 0)
        yield arbiter, client, path, fd


@contextlib.contextmanager
def scene(*options, **lease):
    """As lent(), and a supervised process."""
    with lent(**lease) as (arbiter, client, path, fd), Supervised(arbiter, *options) as actor:
        yield client, actor, path, fd
