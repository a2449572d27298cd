# SPDX-License-Identifier: LGPL-2.1-or-later
"""For tests of what pinleased is shown or looks at: files that never answer, actors that put them in the place of others, restarts."""
import contextlib
import ctypes
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading

import arbiter_client as ac
import silent_fs
import tree
from hostile import PINLEASED, same

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype, LIBC.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
AS_USER = """
import ctypes, mmap, os, struct, sys, threading, time
libc = ctypes.CDLL(None)
os.setresuid(*3 * [int(sys.argv[3])])
libc.prctl(4, 1)  # PR_SET_DUMPABLE: it looks at itself
"""


@contextlib.contextmanager
def silent(**how):
    """A descriptor whose close() is never answered; ours is closed when it is, by an error. Or see silent_fs.answer()."""
    fd = -1
    try:
        with silent_fs.silent_file(**how) as path:
            fd = os.open(path, os.O_RDWR)
            yield fd
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def asked(function, *arguments):
    """In a thread: [answer] when there is one."""
    got = []
    thread = threading.Thread(target=lambda: got.append(function(*arguments)), daemon=True)
    thread.start()
    return thread, got


def statuses(pid):
    """Of the process's children. Any of its threads, and of them, may end meanwhile."""
    for task in pathlib.Path(f'/proc/{pid}/task').iterdir():
        with contextlib.suppress(OSError):
            for child in (task / 'children').read_text(encoding='ascii').split():
                with contextlib.suppress(OSError):
                    yield pathlib.Path(f'/proc/{child}/status').read_text(encoding='ascii')


def children(arbiter, lookers=False):
    """Those that look at what clients show; or those that look at tasks."""
    return sum(('Name:\tpinl-peek\n' in status) == lookers for status in statuses(arbiter.process.pid))


@contextlib.contextmanager
def stopped(arbiter):
    os.kill(arbiter.process.pid, signal.SIGSTOP)
    same(os.WIFSTOPPED(os.waitpid(arbiter.process.pid, os.WUNTRACED)[1]), True)
    try:
        yield
    finally:
        os.kill(arbiter.process.pid, signal.SIGCONT)


def inside_of_a_call(thread, number):
    while True:
        with open(f'/proc/self/task/{thread.native_id}/syscall', encoding='ascii') as file:
            if file.read().startswith(f'{number} '):
                return


def other_actor(ends, program, path, fd, user=65534, keep=-1):
    """A child to which neither fd nor keep is passed on would close it while nobody here can answer. The actor may wait for the silent
    one itself, so it is only waited for after that: at the end of ends."""
    # pylint: disable-next=consider-using-with
    process = subprocess.Popen([sys.executable, '-c', AS_USER + program, path, str(fd), str(user)], stdout=subprocess.PIPE, text=True,
                               pass_fds=[max(fd, keep)])
    ends.enter_context(process)
    ends.callback(process.kill)
    return process


def said(process):
    return process.stdout.readline().strip()


def cut(fd):
    try:
        os.ftruncate(fd, 0)
    except OSError as error:
        return error.errno
    return 0


class Kept:
    """pinleased, and a service manager that keeps its descriptors."""

    def __init__(self):
        # pylint: disable-next=consider-using-with
        self.temporary = tempfile.TemporaryDirectory(prefix='pinlease-', dir='/var/tmp')
        self.path = pathlib.Path(self.temporary.name) / 'socket'
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(self.temporary.name + '/ready')
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listening.bind(str(self.path))
        self.listening.listen(128)
        self.listening.setblocking(False)
        self.names, self.fds = ['pinleased.socket'], [self.listening.fileno()]

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start(self):
        """All that is kept, as systemd passes it on; until it is ready."""
        self.process = subprocess.Popen(  # pylint: disable=consider-using-with
            ['/bin/sh', '-c', 'LISTEN_PID=$$ exec "$0" --ceiling 100000', PINLEASED], close_fds=False, preexec_fn=self.arrange,
            env=dict(os.environ, NOTIFY_SOCKET=self.temporary.name + '/ready', FDSTORE='8', LISTEN_FDS=str(len(self.fds)),
                     LISTEN_FDNAMES=':'.join(self.names)))
        while True:
            text, fds, _, _ = socket.recv_fds(self.notify, 500, 1)
            said = dict(line.split('=', 1) for line in text.decode().split('\n') if '=' in line)
            if 'FDSTORE' in said:
                self.names.append(said['FDNAME'])
                self.fds += fds
            else:
                list(map(os.close, fds))
            if 'READY' in said:
                return

    def arrange(self):
        high = [os.dup2(fd, 200 + n) for n, fd in enumerate(self.fds)]
        for n, fd in enumerate(high):
            os.dup2(fd, 3 + n)
        os.closerange(3 + len(high), 4096)

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for fd in self.fds[1:]:
            os.close(fd)
        self.listening.close()
        self.notify.close()
        self.temporary.cleanup()


def starts_again(arbiter, file):
    arbiter.process.kill()
    arbiter.process.wait()
    arbiter.start()
    with ac.Client(arbiter.path) as other:
        same(other.cover(file.fileno()).err, 0)


def without_fuse():
    raise tree.Skip('/dev/fuse (CONFIG_FUSE_FS)')


def main(silent_tests, tests=()):
    """Those of silent files need a file system that never answers."""
    can = os.path.exists('/dev/fuse')
    ac.main([*tests, *((name, test if can else without_fuse) for name, test in silent_tests)])
