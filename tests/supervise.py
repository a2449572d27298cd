#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: supervise.py PINLEASED PINLEASE - pinlease run: changes of files in memory wait for leases, and nothing else does."""
import contextlib
import errno
import json
import mmap
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
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
def scene(*options, **lease):
    """An arbiter, a lease of a file in memory, and a supervised process."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, memory() as (path, fd):
        same(client.lease(fd, **lease).err, 0)
        same(client.handle().err, 0)
        with Supervised(arbiter, *options) as actor:
            yield client, actor, path, fd


def same(got, wanted):
    if got != wanted:
        raise tree.Failure(f'{got}, not {wanted}')


def length(fd):
    return os.fstat(fd).st_size


CUTS = {  # order, what the notice says: operation and pages
    'truncate': (['truncate', 4 * ac.PAGE], ac.TRUNCATE, 4, ac.PAGES),
    'ftruncate': (['ftruncate', 5 * ac.PAGE], ac.TRUNCATE, 5, ac.PAGES),
    'open': (['open', os.O_RDWR | os.O_TRUNC], ac.TRUNCATE, 0, ac.PAGES),
    'openat': (['openat', os.O_WRONLY | os.O_CREAT | os.O_TRUNC], ac.TRUNCATE, 0, ac.PAGES),
    'openat2': (['openat2', os.O_WRONLY | os.O_TRUNC], ac.TRUNCATE, 0, ac.PAGES),
    'creat': (['creat'], ac.TRUNCATE, 0, ac.PAGES),
    'punch': (['fallocate', 3, 2 * ac.PAGE, 3 * ac.PAGE], ac.PUNCH, 2, 5),
    'MADV_REMOVE': (['remove', 3 * ac.PAGE, ac.PAGE], ac.REMOVE, 3, 4),
    'FS_IOC_UNRESVSP': (['space', 0x4030582b, ac.PAGE, ac.PAGE], ac.PUNCH, 1, 2),
    'truncate of /proc/self/fd': (['self', 3 * ac.PAGE], ac.TRUNCATE, 3, ac.PAGES),
    'truncate of /dev/fd': (['dev', 3 * ac.PAGE], ac.TRUNCATE, 3, ac.PAGES),
    'ftruncate of 32 bits': (['int80_ftruncate', ac.PAGE], ac.TRUNCATE, 1, ac.PAGES),
}


def blocks(fd):
    st = os.fstat(fd)
    return st.st_size, st.st_blocks


def held(name):
    (what, *values), operation, first, last = CUTS[name]

    def test():
        with scene() as (client, actor, path, fd):
            before = blocks(fd)
            order = actor.order(what, path, *values)
            notice = client.notice()
            same((notice.op, notice.start, notice.end, notice.what, notice.source),
                 (operation, ac.START + first * ac.PAGE, ac.START + last * ac.PAGE, ac.RECALLED, 'seccomp'))
            same(notice.pid, actor.do('pid'))
            same(blocks(fd), before)
            client.released(notice, whole=1)
            same(actor.join(order), 0)
            assert blocks(fd) < before, blocks(fd)
    return test


def refused():
    with scene(policy=ac.REFUSE, refuse=ALL) as (client, actor, path, fd):
        before = blocks(fd)
        for (what, *values), operation, *_ in CUTS.values():
            same(actor.do(what, path, *values), -errno.EBUSY)
            notice = client.notice()
            same((notice.what, notice.op, notice.source), (ac.REFUSED, operation, 'seccomp'))
        same(blocks(fd), before)


def others():
    """The lease has pages 4 to 7. What is beside it, what takes nothing, and other files don't wait."""
    with scene(offset=4 * ac.PAGE, size=4 * ac.PAGE) as (client, actor, path, fd), memory('other') as (other, _):
        for order in (['fallocate', path, 3, 0, 4 * ac.PAGE], ['fallocate', path, 3, 8 * ac.PAGE, ac.PAGE],
                      ['fallocate', path, 3, 4 * ac.PAGE + 1, ac.PAGE - 1], ['fallocate', path, 0, 0, ac.SIZE],
                      ['remove', path, 8 * ac.PAGE, ac.PAGE], ['truncate', path, 8 * ac.PAGE], ['ftruncate', path, ac.SIZE],
                      ['open', path, os.O_RDWR], ['openat2', path, os.O_RDWR],
                      ['truncate', other, 0], ['creat', other], ['fallocate', other, 3, 0, ac.SIZE], ['remove', path, 0, ac.PAGE]):
            result = actor.do(*order)
            if result:
                raise tree.Failure(f'{order}: {result}')
        same(client.cover(fd).err, 0)  # whatever it was told, it was told before
        same(len(client.notices), 0)
        same(length(fd), ac.SIZE)


def wrong_calls():
    """What the kernel refuses, it refuses as ever."""
    with scene() as (client, actor, path, fd):
        same(actor.do('truncate', path, -1), -errno.EINVAL)
        same(actor.do('fallocate', path, 3, -1, 5), -errno.EINVAL)
        same(actor.do('fallocate', path, 3, 0, 0), -errno.EINVAL)
        same(actor.do('truncate', '/dev/shm/pinlease-none', 0), -errno.ENOENT)
        same(actor.do('open', path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_TRUNC), -errno.EEXIST)
        same(actor.do('open', '/dev/shm', os.O_WRONLY | os.O_TRUNC), -errno.EISDIR)
        same(actor.do('open', '/dev/null', os.O_WRONLY | os.O_TRUNC), 0)
        same(client.cover(fd).err, 0)
        same(len(client.notices), 0)


def names():
    """By other names: relative, a link, its own descriptor, a memfd of another process."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, memory() as (path, fd), Supervised(arbiter) as actor:
        nameless = os.memfd_create('x')
        os.truncate(nameless, ac.SIZE)
        link = pathlib.Path(f'{path}.link')
        link.symlink_to(path)
        rooted = pathlib.Path(f'{path}.rooted')
        rooted.symlink_to(f'/{path.name}')
        same(actor.do('cd', '/dev/shm'), 0)
        try:
            for number, name in enumerate((path.name, link, link.name, f'/proc/{os.getpid()}/fd/{nameless}', f'/{path.name}',
                                           f'/{rooted.name}'), 1):
                if number == 5:
                    same(actor.do('chroot', '/dev/shm'), 0)
                same(client.lease_when_free(nameless if '/fd/' in str(name) else fd, number).err, 0)
                same(client.handle(number).err, 0)
                order = actor.order('truncate', name, 0)
                notice = client.notice()
                same(notice.lease, number)
                client.released(notice, whole=1)
                same(actor.join(order), 0)
                os.truncate(fd, ac.SIZE)
        finally:
            link.unlink()
            rooted.unlink()
            os.close(nameless)


def many():
    """Many wait at once; another is served meanwhile."""
    with scene() as (client, actor, path, fd), memory('other') as (other, _):
        orders = [actor.order('ftruncate', path, 0) for _ in range(50)]
        notice = client.notice()
        same(actor.do('truncate', other, 0), 0)
        for _ in orders[1:]:
            notice = client.notice()
        same(length(fd), ac.SIZE)
        client.released(notice, whole=1)
        same({actor.join(order) for order in orders}, {0})


def killed():
    """Nothing has changed, and nobody is kept from the range by it."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, memory() as (path, fd):
        same(client.lease(fd, policy=ac.RECALL).err, 0)
        same(client.handle().err, 0)
        with Supervised(arbiter) as actor:
            actor.order('truncate', path, 0)
            notice = client.notice()
            os.kill(notice.pid, signal.SIGKILL)
            same(actor.process.wait(), -signal.SIGKILL)
        same(length(fd), ac.SIZE)
        client.released(notice, whole=1)
        same(client.lease_when_free(fd, 2).err, 0)
        same(client.handle(2).err, 0)


def restart(arbiter):
    arbiter.process.wait()
    # pylint: disable-next=consider-using-with
    arbiter.process = subprocess.Popen([PINLEASED, '--socket', arbiter.path])
    while True:
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            return arbiter.client()


def arbiter_killed():
    """Who waits goes on, to the gate if there is one, which is closed then; and the next arbiter is found."""
    with memory() as (path, fd), ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client:
        same(client.lease(fd).err, 0)
        same(client.handle().err, 0)
        with Supervised(arbiter) as actor:
            order = actor.order('truncate', path, 4 * ac.PAGE)
            client.notice()
            arbiter.process.kill()
            result = actor.join(order)
            if result != -errno.EBUSY:
                same(result, 0)
            same(length(fd), 4 * ac.PAGE if result == 0 else ac.SIZE)
            with restart(arbiter) as another:
                same(another.lease(fd, size=ac.PAGE, policy=ac.REFUSE, refuse=ALL).err, 0)
                while actor.do('fallocate', path, 3, 0, ac.PAGE) != -errno.EBUSY:
                    pass
        assert 'the connection to pinleased is broken' in actor.said, actor.said


def no_arbiter():
    with memory() as (path, fd):
        with Supervised('/nonexistent/socket') as actor:
            same(actor.do('truncate', path, 0), 0)
            same(actor.do('truncate', path, ac.PAGE), 0)
        same(1 <= actor.said.count("can't reach pinleased") <= 2, True)  # once in a second


def full():
    """Who is refused says why, and all goes on until he is let in."""
    with memory() as (path, fd), ac.Arbiter(PINLEASED, '--max-connections', '1', '--gate', 'no') as arbiter:
        with arbiter.client() as client:
            same(client.lease(fd, policy=ac.REFUSE, refuse=ALL).err, 0)
            with Supervised(arbiter) as actor:
                same(actor.do('truncate', path, ac.PAGE), 0)
                same(actor.do('truncate', path, ac.SIZE), 0)
            refusals = actor.said.count('serves no more connections of this user')  # once in a second
            same((1 <= refusals <= 2, actor.said.count('pinlease run:')), (True, refusals))


@contextlib.contextmanager
def door(said):
    """Who says that to everybody who comes, and closes: the socket's path."""
    with tempfile.TemporaryDirectory(dir='/var/tmp') as directory, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f'{directory}/socket')
        listening.listen()

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    with listening.accept()[0] as one, contextlib.suppress(ConnectionError):
                        one.send(said)
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f'{directory}/socket'
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def refused_at_once():
    """Why is said also when the connection has ended before anything was asked."""
    other, old = "another version's", "isn't this release's pinleased"
    with memory() as (path, _):
        for said, words in ((ac.message(ac.REPLY, -errno.EPROTONOSUPPORT, 0, 0, other.encode()), other),
                            (ac.message(ac.WELCOME, ac.VERSION + 1, *[0] * 6), old), (b'hello', old)):
            with door(said) as arbiter:
                for _ in range(10):
                    result = run('truncate', '-s', '0', path, arbiter=arbiter)
                    same((result.returncode, words in result.stderr, result.stderr.count('pinlease run:')), (0, True, 1))


def run(*arguments, options=(), arbiter='/nonexistent', **more):
    return subprocess.run([PINLEASE, 'run', *options, '--', *arguments], env=environment(arbiter), capture_output=True, text=True,
                          check=False, **more)


def status():
    for script, wanted in (('exit 0', 0), ('exit 7', 7), ('kill -TERM $$', -signal.SIGTERM), ('kill -KILL $$', -signal.SIGKILL),
                           ('kill -SEGV $$', -signal.SIGSEGV)):
        same(run('sh', '-c', script).returncode, wanted)
    same(run('/nonexistent/program').returncode, 127)
    same(run('/dev/null').returncode, 126)
    for wrong in ([], ['--wrong', 'true']):
        same(subprocess.run([PINLEASE, 'run', *wrong], capture_output=True, check=False).returncode, 125)
    same(run('cat', input='through').stdout, 'through')


def signals():
    """What is sent to pinlease run is sent to the command. Not bash: a signal just before its `read` waits for a line."""
    script = """
import signal, sys
taken = {signal.SIGUSR1: 'usr1', signal.SIGTERM: 'term'}
signal.pthread_sigmask(signal.SIG_BLOCK, taken)
print('ready', flush=True)
while (got := signal.sigwait(taken)) != signal.SIGTERM:
    print(taken[got], flush=True)
print(taken[got], flush=True)
sys.exit(3)
"""
    with subprocess.Popen([PINLEASE, 'run', '--', sys.executable, '-c', script], env=environment('/nonexistent'),
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        same(process.stdout.readline(), 'ready\n')
        process.send_signal(signal.SIGUSR1)
        same(process.stdout.readline(), 'usr1\n')
        process.send_signal(signal.SIGTERM)
        same(process.stdout.readline(), 'term\n')
        same(process.wait(), 3)


def outlived():
    """Who outlives the command keeps nobody waiting for it, and is supervised."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, memory() as (path, fd), contextlib.ExitStack() as left:
        same(client.lease(fd).err, 0)
        same(client.handle().err, 0)
        go = arbiter.directory / 'go'
        os.mkfifo(go)
        left.callback(lambda: os.close(os.open(go, os.O_RDWR | os.O_NONBLOCK)))  # whoever reads it still
        result = run('sh', '-c', f'(read line <{go}; : > {path}) >/dev/null 2>&1 & exit 5', arbiter=arbiter)
        same((result.returncode, result.stderr), (5, ''))
        go.write_text('go\n', encoding='ascii')
        notice = client.notice()
        same((notice.what, notice.op, length(fd)), (ac.RECALLED, ac.TRUNCATE, ac.SIZE))
        client.released(notice, whole=1)
        while length(fd):
            pass


def nested():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, memory() as (path, fd):
        same(client.lease(fd, policy=ac.REFUSE, refuse=ALL).err, 0)
        result = run(PINLEASE, 'run', '--', 'sh', '-c', f': > {path}', arbiter=arbiter)
        assert result.returncode and 'busy' in result.stderr.lower(), result
        same(client.notice().what, ac.REFUSED)
        same(length(fd), ac.SIZE)


def rings():
    with Supervised('/nonexistent', '--no-io-uring') as actor:
        same(actor.do('ring'), -errno.EPERM)
    with Supervised('/nonexistent') as actor:
        same(actor.do('ring'), -errno.EFAULT)
        same(actor.do('ring'), -errno.EFAULT)
    same(actor.said.count('io_uring'), 1)


def unprivileged():
    """Any user's commands wait, for leases of others too; what the user can't cut recalls nobody's lease."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, memory() as (path, fd), memory('closed') as (closed, other):
        program = arbiter.directory / 'pinlease'
        program.write_bytes(pathlib.Path(PINLEASE).read_bytes())
        library = next((pathlib.Path(PINLEASE).parent.parent.parent / 'lib').glob('libpinlease.so.0.*.0'))
        (arbiter.directory / 'libpinlease.so.0').write_bytes(library.read_bytes())
        program.chmod(0o755)
        path.chmod(0o666)
        for number, descriptor in ((1, fd), (2, other)):
            same(client.lease(descriptor, number).err, 0)
            same(client.handle(number).err, 0)
        script = f'truncate -s 0 {closed}; truncate -s 0 {path}'
        with subprocess.Popen([program, 'run', 'sh', '-c', script], user=65534, group=65534, extra_groups=[],
                              env=environment(arbiter, LD_LIBRARY_PATH=str(arbiter.directory)), stderr=subprocess.PIPE) as process:
            notice = client.notice()
            same(notice.lease, 1)
            client.released(notice, whole=1)
            assert b'ermission denied' in process.stderr.read()
            same(process.wait(), 0)
        same((length(fd), length(other)), (0, ac.SIZE))


def less_than_root():
    """A root's supervisor looks with the rights of who changes."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, memory() as (path, fd):
        same(client.lease(fd, policy=ac.REFUSE, refuse=ALL).err, 0)
        script = f'import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); os.truncate({str(path)!r}, 0)'
        result = run(sys.executable, '-c', script, arbiter=arbiter)
        assert 'PermissionError' in result.stderr, result
        same(client.cover(fd).err, 0)
        same(len(client.notices), 0)


# ---- the messages ----

def cant_lease(client, fd, number, let_go):
    """A change was let go, not before then. That is heeded for a second, and this machine may be busy for longer."""
    err = client.lease(fd, number).err
    same(err, 0 if not err and time.monotonic() > let_go + 1 else -errno.EBUSY)


def messages():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, arbiter.client() as supervisor, memory() as (_, fd):
        same(client.lease(fd).value & ac.SUPERVISED, ac.SUPERVISED)
        same(client.handle().err, 0)
        serial = supervisor.change(fd, actor=os.getppid())
        notice = client.notice()
        same((notice.pid, notice.tid), (os.getppid(), os.getppid()))
        let_go = time.monotonic()
        client.released(notice, whole=1)
        same(supervisor.answer(serial)[:2], (0, 1))
        cant_lease(client, fd, 2, let_go)
        supervisor.done(serial)
        same(supervisor.cover(fd).err, 0)  # so it has been heard
        same(client.lease(fd, 2).err, 0)
        serial = supervisor.change(fd, start=ac.SIZE)  # by then the file may be longer
        same(supervisor.answer(serial)[:2], (0, 1))
        supervisor.done(serial)
        supervisor.done(4711)
        same(supervisor.cover(fd).err, 0)


def told_first():
    """Who sees the change by himself knows what has become of his lease."""
    with ac.Arbiter(PINLEASED, '--ceiling', '100') as arbiter, arbiter.client() as client, arbiter.client() as supervisor, \
            memory() as (_, fd):
        same(client.lease(fd).err, 0)
        same(client.handle().err, 0)
        same(supervisor.answer(supervisor.change(fd))[:2], (0, 1))
        client.sock.setblocking(False)
        while client.notice().what != ac.LOST:
            pass


def forgotten():
    """A change that is never said to be done keeps nobody out for long."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, arbiter.client() as supervisor, memory() as (_, fd):
        let_go = time.monotonic()
        same(supervisor.answer(supervisor.change(fd))[:2], (0, 1))
        cant_lease(client, fd, 1, let_go)
        same(client.lease_when_free(fd).err, 0)


def withdrawn():
    """A change whose actor is gone, and one whose supervisor is: nobody is told, and the range is free."""
    for gone in (False, True):
        with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, arbiter.client() as supervisor, memory() as (_, fd):
            same(client.lease(fd).err, 0)
            same(client.handle().err, 0)
            serial = supervisor.change(fd)
            notice = client.notice()
            if gone:
                supervisor.close()
            else:
                supervisor.done(serial)
                same(supervisor.cover(fd).err, 0)
            client.released(notice, whole=1)
            same(client.lease_when_free(fd, 2).err, 0)
            same(client.handle(2).err, 0)
            if not gone:  # no REPLY
                same(supervisor.cover(fd).err, 0)


def huge():
    """Pages are huge ones: a part of one stays."""
    if free_huge_pages() < 2:
        raise tree.Skip('two free huge pages (vm.nr_hugepages)')
    size = 2 << 20
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, Supervised(arbiter) as actor:
        fd = os.memfd_create('huge', os.MFD_HUGETLB)
        try:
            os.truncate(fd, 2 * size)
            with mmap.mmap(fd, 2 * size) as data:
                data[0] = data[size] = 1
                same(client.lease(fd, size=2 * size).err, 0)
                same(client.handle().err, 0)
                path = f'/proc/{os.getpid()}/fd/{fd}'
                same(actor.do('fallocate', path, 3, size, size // 2), 0)
                order = actor.order('fallocate', path, 3, size, size)
                notice = client.notice()
                same((notice.op, notice.start, notice.end), (ac.PUNCH, ac.START + size, ac.START + 2 * size))
                client.released(notice, whole=1)
                same(actor.join(order), 0)
        finally:
            os.close(fd)


def free_huge_pages():
    lines = pathlib.Path('/proc/meminfo').read_text(encoding='ascii').splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('HugePages_Free'))


def wrong_messages():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, arbiter.client() as supervisor, memory() as (path, fd):
        same(client.lease(fd, policy=ac.REFUSE, refuse=ALL).err, 0)
        for flags in (os.O_RDONLY, os.O_PATH):
            shown = os.open(path, flags)
            same(supervisor.answer(supervisor.change(shown)).err, -errno.EACCES)
            os.close(shown)
        for wrong in ((5, 0, ac.PAGE), (99, 0, ac.PAGE), (ac.PUNCH, 1, 1), (ac.PUNCH, 2, 1), (ac.TRUNCATE, 1 << 63, 0),
                      (ac.PUNCH, 0, 1 << 63)):
            same(supervisor.answer(supervisor.change(fd, *wrong)).err, -errno.EINVAL)
        same(client.cover(fd).err, 0)
        same(len(client.notices), 0)


def limit():
    """So many changes of one user are under way, and no more."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, arbiter.client() as supervisor, memory() as (_, fd):
        same(client.lease(fd).err, 0)
        same(client.handle().err, 0)
        for _ in range(512):
            supervisor.change(fd)
        same(supervisor.answer(supervisor.change(fd)).err, -errno.EDQUOT)


TESTS = [(f'{name} is held', held(name)) for name in CUTS] + [
    ('what a lease refuses is EBUSY, and nothing has changed', refused),
    ('what takes no leased page passes', others),
    ('wrong calls are refused by the kernel', wrong_calls),
    ('files are found by other names', names),
    ('many wait at once', many),
    ('who is killed while it waits changes nothing', killed),
    ('the arbiter is killed: who waits goes on', arbiter_killed),
    ('no arbiter: said once, and all goes on', no_arbiter),
    ('no room at the arbiter: why is said once, and all goes on', full),
    ('refused at once: why is said', refused_at_once),
    ('exit status and signals are the command\'s', status),
    ('signals are passed on', signals),
    ('who outlives the command is supervised', outlived),
    ('a run within a run', nested),
    ('rings are said, or forbidden', rings),
    ('without privilege', unprivileged),
    ('who has less than its supervisor', less_than_root),
    ('CHANGE, REPLY, DONE', messages),
    ('the holder is told before', told_first),
    ('a change that is never done is forgotten', forgotten),
    ('a change that is withdrawn', withdrawn),
    ('changes that make no sense', wrong_messages),
    ('a user\'s changes are limited', limit),
    ('huge pages', huge),
]

if __name__ == '__main__':
    ac.main(TESTS)
