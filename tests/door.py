#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What pinleased is shown, and never gets an answer for: only who shows it waits, and not for long (I7).

usage: door.py PINLEASED
"""
import contextlib
import ctypes
import errno
import mmap
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import silent_fs
import tree
from hostile import PINLEASED, besides, nobody, same

SILENT = -errno.ETIMEDOUT
COPY_FILE_RANGE, FTRUNCATE, IO_URING_SETUP = 326, 77, 425
MAP_FIXED = 0x10
RING = 900  # a number of the holder's
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype, LIBC.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


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


def is_shown(ask, *expected):
    """Another user asks this of a silent file; who behaves is served while it isn't known."""
    with besides() as (arbiter, good), silent() as fd, nobody(arbiter) as client:
        thread, got = asked(ask, client, fd)
        good.is_served()
        thread.join()
        same(got[0].err in expected, True)
        good.is_served()
        if got[0].err:
            same(client.until_gone(), [])


def message(ask):
    return lambda: is_shown(ask, SILENT)


def handle(client, fd):
    with tempfile.TemporaryFile(dir='/var/tmp') as mine:
        same(client.lease(mine.fileno()).err, 0)
    return client.ask(ac.HANDLE, 1, 1, fd, 0, 0, 0)


def space(client, fd, kind=2):
    with tempfile.TemporaryFile(dir='/var/tmp') as mine:
        same(client.lease(mine.fileno()).err, 0)
    return client.ask(ac.HANDLE, 1, kind, fd, 0, 0, 0)


def handles_again_and_again():
    """Each may keep a child of pinleased, so it stops asking them: the files for which leases are asked, too."""
    with besides() as (arbiter, good), silent() as fd, nobody(arbiter) as client:
        with tempfile.TemporaryFile(dir='/var/tmp') as mine:
            for number in range(1, 13):
                same(client.lease(mine.fileno(), number, start=ac.START + number * ac.SIZE).err, 0)
        for number in range(1, 13):
            same(client.ask(ac.HANDLE, number, 1, fd, 0, 0, 0).err, 0)
            good.is_served()
        same(children(arbiter) <= 7, True)  # four, and those of the two users who are no trouble


def not_followed():
    """Nothing is wrong with it but that it is not of this machine's disks."""
    with besides() as (arbiter, _), arbiter.client() as client:
        with open('/proc/self/status', 'rb') as file:
            same(client.cover(file.fileno()).err, -errno.EOPNOTSUPP)
            reply = client.lease(file.fileno())
            same(reply.err, -errno.EOPNOTSUPP)
            same('server' in reply.text, True)
        with open(arbiter.file(), 'rb') as file:
            same(client.lease(file.fileno()).err, 0)


def many():
    """Four of one user's hang, then he is refused; others are served, and so is he when that is over."""
    with besides() as (arbiter, good):
        with silent() as fd, contextlib.ExitStack() as clients:
            waiting = [asked(clients.enter_context(nobody(arbiter)).lease, fd) for _ in range(12)]
            for thread, _ in waiting:
                good.is_served()
                thread.join()
            errors = sorted(got[0].err for _, got in waiting)
            same((errors.count(SILENT), errors.count(-errno.EDQUOT)), (4, 8))
            same(children(arbiter) <= 7, True)
            good.is_served()
        with open(arbiter.file(), 'rb') as file:
            while True:
                with nobody(arbiter) as client, contextlib.suppress(ac.Gone):
                    if client.lease(file.fileno()).err == 0:
                        break


def killed():
    """Whose doorman hangs dies of SIGKILL as ever, and lets all go that it has held."""
    arbiter = ac.Arbiter(PINLEASED)
    try:
        path = arbiter.file()
        # The actor comes first: else it would close the file that nobody can close.
        with ac.Actor() as actor, silent() as fd, arbiter.client() as holder, nobody(arbiter) as client:
            with open(path, 'rb') as file:
                same(holder.lease(file.fileno()).err, 0)
            same(holder.handle().err, 0)
            actor.order('truncate', path)
            holder.notice()
            same(client.lease(fd).err, SILENT)
            same(children(arbiter) > 0, True)
            arbiter.process.kill()
            same((actor.join(), path.stat().st_size), (0, 0))
            holder.until_gone()  # nothing of pinleased's is open in the one that hangs
    finally:
        arbiter.process.kill()
        arbiter.process.wait()
        arbiter.temporary.cleanup()


@contextlib.contextmanager
def lingering(number):
    """Sockets whose last close() waits for an hour."""
    with socket.create_server(('127.0.0.1', 0)) as server, contextlib.ExitStack() as ends:
        made = []
        for _ in range(number):
            one = socket.create_connection(server.getsockname())
            ends.enter_context(server.accept()[0])
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while one.send(bytes(1 << 16)):
                    pass
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 3600))
            made.append(one.detach())
        yield made


@contextlib.contextmanager
def stopped(arbiter):
    os.kill(arbiter.process.pid, signal.SIGSTOP)
    same(os.WIFSTOPPED(os.waitpid(arbiter.process.pid, os.WUNTRACED)[1]), True)
    try:
        yield
    finally:
        os.kill(arbiter.process.pid, signal.SIGCONT)


def last_of_a_socket(before=b''):
    """Before: what ends the connection, so that nothing is read any more."""
    with besides() as (arbiter, good), lingering(3) as fds, nobody(arbiter) as client:
        with stopped(arbiter):  # so that its descriptors are the last
            if before:
                client.send(before)
            for number, fd in enumerate(fds, 1):
                client.send(ac.message(ac.LEASE, number, 0, ac.START, ac.START + ac.SIZE, *[0] * 8, os.getpid(), b''), [fd])
                os.close(fd)
        good.is_served()
        got = client.until_gone()
        same([values[0] for _, _, values in got], [] if before else [SILENT])
        good.is_served()


def last_of_an_empty_packet(before=()):
    """No message at all, yet descriptors come along; an empty packet before it looks like the connection's end."""
    with besides() as (arbiter, good), lingering(1) as fds, nobody(arbiter) as client:
        with stopped(arbiter):
            for packet in before:
                client.send(packet)
            client.send(b'', fds)
            os.close(fds[0])
        same(client.until_gone(), [])
        good.is_served()


def last_of_one_who_is_refused():
    """He has more connections than he may, so that nothing of his is ever read."""
    with besides('--max-connections', '1') as (arbiter, good), lingering(3) as fds, nobody(arbiter):
        with stopped(arbiter):
            refused = [other_user(arbiter) for _ in fds]
            for client, fd in zip(refused, fds):
                client.send(b'', [fd])
                os.close(fd)
        for client in refused:
            same([values[0] for _, _, values in client.until_gone()], [-errno.EDQUOT])
            client.close()
        good.is_served()


def other_user(arbiter):
    """As nobody(), without HELLO."""
    os.seteuid(65534)
    try:
        return arbiter.client(hello=False)
    finally:
        os.seteuid(0)


def said_once():
    """However many of a user's hang, the log has one line of it."""
    with tempfile.TemporaryFile(dir='/var/tmp') as log:
        with besides(before=lambda: os.dup2(log.fileno(), 2)) as (arbiter, _), silent() as fd:
            for _ in range(3):
                with nobody(arbiter) as client:
                    same(client.lease(fd).err, SILENT)
        log.seek(0)
        same(log.read().count(b'has shown a file'), 1)


def no_hanging_users(numbers):
    """Each has a connection and is served; what is there for them has a bound."""
    with besides() as (arbiter, good), contextlib.ExitStack() as clients:
        with open(arbiter.file(), 'rb') as file:
            for number in numbers:
                os.seteuid(number)
                try:
                    client = clients.enter_context(arbiter.client())
                finally:
                    os.seteuid(0)
                same(client.lease(file.fileno()).err, 0)
        same(children(arbiter) <= 256 + 16, True)
        good.is_served()


def many_users_hang():
    """One may have many numbers: they have a bound together, too."""
    with besides() as (arbiter, good), silent() as fd, contextlib.ExitStack() as clients:
        waiting = []
        for number in range(70000, 70150):
            os.seteuid(number)
            try:
                waiting += [asked(clients.enter_context(arbiter.client()).lease, fd) for _ in range(3)]
            finally:
                os.seteuid(0)
        for thread, _ in waiting:
            thread.join()
        same({got[0].err for _, got in waiting}, {SILENT, -errno.EDQUOT})
        same(children(arbiter) <= 256 + 16, True)
        good.is_served()


def inside_of_a_call(thread, number):
    while True:
        with open(f'/proc/self/task/{thread.native_id}/syscall', encoding='ascii') as file:
            if file.read().startswith(f'{number} '):
                return


def another_file_by_now():
    """Where an actor's copy goes to is a silent file when pinleased looks at it: nobody asks that."""
    with besides() as (arbiter, good), silent(valid=0) as fd, arbiter.client() as holder:
        with open(arbiter.file('from'), 'rb') as source, open(arbiter.file('to'), 'r+b', buffering=0) as to:
            same(holder.lease(source.fileno()).err, 0)
            same(holder.handle().err, 0)
            with stopped(arbiter):
                thread, got = asked(os.copy_file_range, source.fileno(), to.fileno(), ac.PAGE)
                inside_of_a_call(thread, COPY_FILE_RANGE)
                os.dup2(fd, to.fileno())
            thread.join()
            same(got, [ac.PAGE])
            good.is_served()


# Is in openat2 with one thread, puts a silent page in the place of its flags with the other.
OPENS = """
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
at = libc.mmap(None, 4096, 3, 0x22, -1, 0)
ctypes.memmove(at, struct.pack('3Q', os.O_RDONLY, 0, 0), 24)
path, silent = os.fsencode(sys.argv[1]), int(sys.argv[2])
got = []
def opens():
    got.append(libc.syscall(437, -100, path, ctypes.c_void_p(at), ctypes.c_size_t(24)) >= 0)
thread = threading.Thread(target=opens)
thread.start()
if silent >= 0:
    while not open(f'/proc/self/task/{thread.native_id}/syscall').read().startswith('437 '):
        pass
    libc.mmap(at, 4096, 1, 0x12, silent, 0)
print('inside', flush=True)
thread.join()
print(got[0], flush=True)
"""

# Changes a file, runs for as long as its change is asked for, and gets stuck in execve(): its mapping is written back there.
EXECS = """
memory = mmap.mmap(int(sys.argv[2]), 4096)
memory[0] = 1
fd = os.open(sys.argv[1], os.O_RDWR)
print('inside', flush=True)
libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096))
until = time.monotonic() + 0.02
while time.monotonic() < until:
    pass
os.execv('/bin/true', ['true'])
"""


AS_USER = """
import ctypes, mmap, os, struct, sys, threading, time
libc = ctypes.CDLL(None)
os.setresuid(*3 * [int(sys.argv[3])])
libc.prctl(4, 1)  # PR_SET_DUMPABLE: it looks at itself
"""


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


def flags_that_cannot_be_read():
    """What openat2 was to do is in a silent page by now: its user's opens are taken for changes, and others wait for nothing."""
    with besides() as (arbiter, good), contextlib.ExitStack() as ends, silent(valid=0) as fd, arbiter.client() as holder:
        path = arbiter.file()
        for number in range(1, 7):
            with open(path, 'rb') as file:
                same(holder.lease_when_free(file.fileno(), number).err, 0)
            same(holder.handle(number).err, 0)
            with stopped(arbiter):
                actor = other_actor(ends, OPENS, path, fd)
                same(said(actor), 'inside')
            good.is_served()
            reader = other_actor(ends, OPENS, path, -1, 65533, fd)  # whose flags can be read, so that nobody is recalled
            same((said(reader), said(reader)), ('inside', 'True'))
            notice = holder.notice()
            same((notice.what, notice.lease), (ac.RECALLED, number))
            holder.released(notice, whole=1)
            same(said(actor), 'True')
            holder.unlease(number)
        same(children(arbiter, True) <= 3, True)  # the gate's that hangs, one that doesn't, and the main loop's


def stuck_in_execve():
    """Whoever looks at that task waits for its server."""
    with besides() as (arbiter, good), contextlib.ExitStack() as ends, silent(name='written') as fd, arbiter.client() as holder:
        path = arbiter.file()
        path.chmod(0o666)
        with open(path, 'rb') as file:
            same(holder.lease(file.fileno()).err, 0)
        same(holder.handle().err, 0)
        actor = other_actor(ends, EXECS, path, fd)
        same(said(actor), 'inside')
        holder.released(holder.notice(), whole=1)
        silent_fs.WRITTEN.wait()
        good.is_served()
        holder.unlease()
        with open(path, 'rb') as file:
            while holder.lease(file.fileno(), 2).err:  # as long as the change may be under way
                good.is_served()


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

    def end(self):
        self.process.kill()
        self.process.wait()
        for fd in self.fds[1:]:
            os.close(fd)
        self.listening.close()
        self.notify.close()
        self.temporary.cleanup()


def wait_for_look(pid):
    """Of the gate's child, which then waits for the silent page; it may be over before it is seen, on a busy machine."""
    until = time.monotonic() + 5
    while time.monotonic() < until and not any('Name:\tpinl-peek\n' in status and 'State:\tD' in status for status in statuses(pid)):
        pass


def cut(fd):
    try:
        os.ftruncate(fd, 0)
    except OSError as error:
        return error.errno
    return 0


def killed_while_it_looks(arbiter):
    """Events that were read and not looked at: one of the silent page, and a cut by what is a silent file by now."""
    with contextlib.ExitStack() as ends, silent(valid=0) as fd, tempfile.NamedTemporaryFile(dir='/var/tmp') as file, \
            ac.Client(arbiter.path) as holder:
        file.truncate(ac.SIZE)
        os.chmod(file.name, 0o666)
        same(holder.lease(file.fileno()).err, 0)
        same(holder.handle().err, 0)
        to = os.open(file.name, os.O_RDWR)
        ends.callback(os.close, to)
        with stopped(arbiter):
            actor = other_actor(ends, OPENS, file.name, fd)
            same(said(actor), 'inside')
            thread, got = asked(cut, to)
            inside_of_a_call(thread, FTRUNCATE)
            os.dup2(fd, to)
        wait_for_look(arbiter.process.pid)
        arbiter.process.kill()
        arbiter.process.wait()
        arbiter.start()
        with ac.Client(arbiter.path) as other:
            same(other.cover(file.fileno()).err, 0)
        thread.join()
        same(got[0] in (0, errno.EBUSY), True)
        return got[0]  # else it came too late, after the look


def looked_for_at_a_restart():
    arbiter = Kept()
    try:
        arbiter.start()
        while not killed_while_it_looks(arbiter):
            pass
    finally:
        arbiter.end()


def starts_again(arbiter, file):
    arbiter.process.kill()
    arbiter.process.wait()
    arbiter.start()
    with ac.Client(arbiter.path) as other:
        same(other.cover(file.fileno()).err, 0)


def silent_mapping():
    """Where the next pinleased looks for a holder's file is a silent one by now: it starts all the same."""
    arbiter = Kept()
    start = LIBC.mmap(None, ac.SIZE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)  # a place where nothing of Python's is
    try:
        arbiter.start()
        with silent(valid=0) as fd, tempfile.NamedTemporaryFile(dir='/var/tmp') as file, ac.Client(arbiter.path) as holder:
            file.truncate(ac.SIZE)
            same(holder.lease(file.fileno(), start=start).err, 0)
            same(LIBC.mmap(start, ac.SIZE, mmap.PROT_READ, mmap.MAP_PRIVATE | MAP_FIXED, fd, 0), start)
            starts_again(arbiter, file)
    finally:
        LIBC.munmap(start, ac.SIZE)
        arbiter.end()


def in_execve(ends, arbiter, path, before, last):
    """A holder of nobody's that has done something, and a function that has it do the last thing and get stuck in execve(), where its
    mapping is written back. It is waited for when nobody waits for the silent file any more: at the end of ends."""
    silent_fs.WRITTEN.clear()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        try:
            list(map(os.close, silent_fs.CHANNELS))
            memory = mmap.mmap(os.open(path, os.O_RDWR), 4096)
            os.setresuid(*3 * [65534])
            memory[0] = 1
            client = ac.Client(arbiter.path)
            before(client)
            theirs.send(b'x')
            theirs.recv(1)
            last(client)
            os.execv('/bin/true', ['true'])
        finally:
            theirs.close()
            os._exit(1)
    ends.callback(os.waitpid, pid, 0)
    ends.callback(ours.close)
    theirs.close()
    same(ours.recv(1), b'x')

    def go():
        ours.send(b'x')
        silent_fs.WRITTEN.wait()
    return go


def sends(kind, *fields, fds=()):
    """Without waiting for an answer."""
    return lambda client: client.send(ac.message(kind, *fields, serial=99), fds)


def holder_in_execve(before, last):
    """What a holder has asked for is done when nobody may look at it any more: who behaves waits for nothing."""
    with besides() as (arbiter, good), contextlib.ExitStack() as ends, silent_fs.silent_file(name='written') as silent_path:
        path = arbiter.file()
        path.chmod(0o666)
        file = ends.enter_context(open(path, 'r+b')).fileno()  # pylint: disable=consider-using-with
        go = in_execve(ends, arbiter, silent_path, lambda client: before(client, file), lambda client: last(file)(client))
        with stopped(arbiter):
            go()
        for _ in range(3):
            good.is_served()


def first_lease(then=ac.FAIL):
    return lambda file: sends(ac.LEASE, 1, 0, ac.START, ac.START + ac.SIZE, 0, 0, 1, ac.RECALL, then, 1000, 0, 0, os.getpid(), b'',
                              fds=[file])


def has_a_ring(client, file):
    """And two leases, of which it has named the ring for one."""
    os.dup2(LIBC.syscall(IO_URING_SETUP, 1, ctypes.create_string_buffer(120)), RING)
    for number in (1, 2):
        same(client.lease(file, number).err, 0)
    same(client.ask(ac.HANDLE, 1, 1, RING, 0, 0, 0).err, 0)


def holder_in_execve_at_a_restart():
    """The next pinleased can't look at it, and starts all the same."""
    arbiter = Kept()
    try:
        arbiter.start()
        with contextlib.ExitStack() as ends, silent_fs.silent_file(name='written') as path, \
                tempfile.NamedTemporaryFile(dir='/var/tmp') as file:
            file.truncate(ac.SIZE)
            os.chmod(file.name, 0o666)
            os.chmod(arbiter.temporary.name, 0o755)
            os.chmod(arbiter.path, 0o666)
            in_execve(ends, arbiter, path, lambda client: same(client.lease(file.fileno()).err, 0), lambda client: None)()
            starts_again(arbiter, file)
    finally:
        arbiter.end()


def forced_beside_one_in_execve():
    """The worker can't look at who holds the one file, and takes the device of the other's holder off all the same."""
    with ac.Arbiter(PINLEASED, '--ceiling', '2000') as arbiter, contextlib.ExitStack() as ends, \
            silent_fs.silent_file(name='written') as silent_path:
        files = []
        for name in ('one', 'other'):
            arbiter.file(name).chmod(0o666)
            files.append(ends.enter_context(open(arbiter.directory / name, 'r+b')).fileno())  # pylint: disable=consider-using-with
        in_execve(ends, arbiter, silent_path, lambda client: has_a_ring(client, files[0]), lambda client: None)()
        holder = ends.enter_context(arbiter.client())
        ends.callback(os.close, RING)
        has_a_ring(holder, files[1])
        for thread, got in [asked(cut, file) for file in files]:
            thread.join()
            same(got[0] in (0, errno.EBUSY), True)


SILENT_TESTS = [
    ('LEASE of a silent file', message(lambda client, fd: client.lease(fd))),
    ('COVER of a silent file', message(lambda client, fd: client.cover(fd))),
    ('CHANGE of a silent file', message(lambda client, fd: client.answer(client.change(fd)))),
    ('TRUNCATE of a silent file', message(lambda client, fd: client.truncate_later(fd))),
    ('HANDLE naming a silent file as a ring', lambda: is_shown(handle, 0)),
    ('HANDLE naming a silent file as a VFIO container', lambda: is_shown(space, 0)),
    ('HANDLE naming a silent file as an RDMA context', lambda: is_shown(lambda client, fd: space(client, fd, 4), 0)),
    ('HANDLE again and again', handles_again_and_again),
    ('many of one user hang', many),
    ('many users hang', many_users_hang),
    ('the log has it once', said_once),
    ('a copy to what is a silent file by now', another_file_by_now),
    ('an openat2 whose flags are in a silent page by now', flags_that_cannot_be_read),
    ('an actor that gets stuck in execve()', stuck_in_execve),
    ('a holder that gets stuck in execve() with its first lease', lambda: holder_in_execve(lambda client, file: None, first_lease())),
    ('the same, with the policy KILL', lambda: holder_in_execve(lambda client, file: None, first_lease(ac.KILL))),
    ('the same, with a ring that is known', lambda: holder_in_execve(has_a_ring, lambda file: sends(ac.HANDLE, 2, 1, RING, 0, 0, 0))),
    ('the same, at a restart', holder_in_execve_at_a_restart),
    ('a force beside one that is stuck in execve()', forced_beside_one_in_execve),
    ('a file to be cut that is a silent one at a restart', looked_for_at_a_restart),
    ('a leased mapping that is of a silent file by now', silent_mapping),
    ('killed while one hangs', killed),
]
TESTS = [
    ('file systems that are not watched', not_followed),
    ('many users', lambda: no_hanging_users(range(70000, 70300))),
    ('the last descriptor of a socket that lingers', last_of_a_socket),
    ('the same, left unread', lambda: last_of_a_socket(b'no message')),
    ('the same, in an empty packet', last_of_an_empty_packet),
    ('the same, after an empty packet', lambda: last_of_an_empty_packet([b'', b''])),
    ('the same, of a connection that is refused', last_of_one_who_is_refused),
]

if __name__ == '__main__':
    ac.main(TESTS + (SILENT_TESTS if os.path.exists('/dev/fuse') else []))
