# SPDX-License-Identifier: LGPL-2.1-or-later
"""A client of pinleased in another language, made from docs/protocol.md alone, and an arbiter to talk to.

Nothing here waits for a time: what is waited for comes, or the test's alarm ends it.
"""
import array
import collections
import contextlib
import ctypes
import errno
import os
import pathlib
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

import tree

LIMIT = int(os.environ.get('PINLEASE_TEST_LIMIT', '300'))
PAGE = 4096
PAGES = 16
SIZE = PAGES * PAGE
START = 0x10000000  # an address of the holder's: only he knows what is there

VERSION = 3
HEAD = struct.Struct('=IHHQ')
HELLO, LEASE, HANDLE, UNLEASE, RELEASED, COVER = range(1, 7)
CHANGE, DONE = 11, 12
ALL_TOLD, STILL = 14, 15
TRUNCATE_FILE, CHANGED = 13, 71
COUNT, COUNTED = 16, 72
WELCOME, REPLY, NOTICE = range(65, 68)
BODY = {
    HELLO: struct.Struct('=II32sQ'),
    LEASE: struct.Struct('=QQQQQIIIIIIIi16s'),
    HANDLE: struct.Struct('=QIiIIQ'),
    UNLEASE: struct.Struct('=QII'),
    RELEASED: struct.Struct('=QQQQII'),
    COVER: struct.Struct('='),
    CHANGE: struct.Struct('=IiiIQQ'),
    DONE: struct.Struct('=Q'),
    ALL_TOLD: struct.Struct('='),
    STILL: struct.Struct('=Q'),
    WELCOME: struct.Struct('=IIQQQQQ'),
    TRUNCATE_FILE: struct.Struct('=QqqIi'),
    CHANGED: struct.Struct('=QiI'),
    COUNT: struct.Struct('='),
    COUNTED: struct.Struct('=IIQ'),
    REPLY: struct.Struct('=iIQ216s'),
    NOTICE: struct.Struct('=QQQQQIIIii12sQQQQII'),
}
# What commands ask, and are told.
LIST, RECALL_LEASES, WATCH, ASK_STATUS = range(7, 11)
ENTRY, EVENT, STATUS = range(68, 71)
SOURCE, USER = 90, 91
BODY.update({
    LIST: struct.Struct('=QQiI'),
    RECALL_LEASES: struct.Struct('=QQQQQiIII'),
    WATCH: struct.Struct('=QQiI'),
    ASK_STATUS: struct.Struct('='),
    ENTRY: struct.Struct('=QQQQQQQQiiIIIIIIII16s32s152sQQQQiiII12sIQ'),
    EVENT: struct.Struct('=IIIiQQQQQQQQQQQQiIiiI12s16s32s152s'),
    STATUS: struct.Struct('=16siIQQQQIIIIQQQQQQQQQQQIIIIQ'),
    SOURCE: struct.Struct('=600s'),
    USER: struct.Struct('=IIQQQQ'),
})
WRITE, PINNED, KEEP_NAME = 1, 2, 64
KEEP, RECALL, REFUSE, FOLLOW = range(4)
FAIL, SCRATCH, COPY, KILL = range(4)
TRUNCATE, PUNCH, ZERO, COLLAPSE, INSERT = range(5)
NO_OPERATION = 12
ONE, GRACE, FORCE, NO_WAIT = 1, 2, 4, 8
E_NOTICE, E_QUIESCED, E_FORCED, E_RELEASED, E_ANSWERED, E_REFUSED = range(6)
E_ORPHAN, E_DROPPED, E_LEASED, E_ENDED, E_RECALLED = 7, 11, 32, 33, 34
REMOVE = 10
SUPERVISED, NAMES = 1 << 63, 1 << 61
FAN_CLASS_PRE_CONTENT, FAN_MARK_ADD, FAN_PRE_ACCESS = 8, 1, 0x100000
FORCED, RECALLED, LOST, REFUSED, WEAKER = range(5)
PATIENT = ('--ceiling', '100000')  # ms, of pinleased
TOLD, BEFORE, HELD, REFUSABLE = 1, 2, 4, 8
QUIESCED = 1

Welcome = collections.namedtuple('Welcome', 'version ceiling_ms boot session resumed max_leases max_bytes')
Reply = collections.namedtuple('Reply', 'err value text')
Event = collections.namedtuple('Event', 'what op outcome err time_ns deadline_ns waited_ns lease change start end file_dev '
                               'file_ino file_start file_end bytes pid uid actor_pid actor_tid outside source device program path')
Status = collections.namedtuple('Status', 'version pid ceiling_ms boot since_ns max_leases max_bytes max_connections connections '
                                'holders watchers leases bytes held notices quiesced forced refused answered unconfirmed events_lost '
                                 'outside hold_ms max_notices may_kill after_crash untold')
User = collections.namedtuple('User', 'uid connections leases bytes hold_ns notices')
Notice = collections.namedtuple('Notice', 'lease seq start end deadline_ns what op also pid tid source since_ns gone_ns force_ns '
                                'taken_ns closed pad')


class Gone(Exception):
    """The arbiter has ended the connection."""


def message(kind, *fields, serial=0, flags=0):
    body = BODY[kind].pack(*fields)
    return HEAD.pack(HEAD.size + len(body), kind, flags, serial) + body


def text(field):
    return field[:field.index(0)].decode()


class Client:
    """One connection."""

    def __init__(self, path, hello=True, name=b'python'):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(path))
        self.serial = 0
        self.notices = collections.deque()
        self.welcome = self.hello(name=name) if hello else None

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.close()

    def close(self):
        self.sock.close()

    def send(self, packet, fds=()):
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
        try:
            self.sock.sendmsg([packet], control)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Gone from error

    def receive(self):
        """(type, serial, fields) of the next message."""
        try:
            packet = self.sock.recv(4096)
        except ConnectionResetError as error:  # once, and before what has come till then
            try:
                packet = self.sock.recv(4096)
            except ConnectionResetError:
                raise Gone from error
        if not packet:
            raise Gone
        size, kind, flags, serial = HEAD.unpack_from(packet)
        assert size == len(packet) == HEAD.size + BODY[kind].size and flags == 0, packet
        return kind, serial, BODY[kind].unpack_from(packet, HEAD.size)

    def ask(self, kind, *fields, fds=()):
        """A request, and its answer; what else comes before that is a notice."""
        self.serial += 1
        self.send(message(kind, *fields, serial=self.serial), fds)
        while True:
            got, serial, values = self.receive()
            if got == NOTICE:
                self.notices.append(self.as_notice(values))
                continue
            assert serial == self.serial or (got, serial) == (REPLY, 0), (serial, self.serial)
            if got == REPLY:
                return Reply(values[0], values[2], text(values[3]))
            assert got == WELCOME, got
            return Welcome(*values)

    @staticmethod
    def as_notice(values):
        return Notice(*values[:10], text(values[10]), *values[11:])

    def notice(self):
        if self.notices:
            return self.notices.popleft()
        kind, _, values = self.receive()
        assert kind == NOTICE, kind
        return self.as_notice(values)

    def hello(self, version=VERSION, name=b'python', resume=0, role=0):
        return self.ask(HELLO, version, role, name, resume)

    def cover(self, fd):
        return self.ask(COVER, fds=[fd])

    def lease(self, fd, number=1, start=START, size=SIZE, offset=0, flags=0, policy=RECALL, then=FAIL, grace_ms=60000,
              refuse=0, agent_ms=0, device=b'soft', fds=None):
        return self.ask(LEASE, number, offset, start, start + size, time.monotonic_ns(), flags, 1, policy, then, grace_ms,
                        refuse, agent_ms, os.getpid(), device, fds=[fd] if fds is None else fds)

    def lease_when_free(self, fd, number=1, **lease):
        """What was let go just now may not have been seen to happen."""
        while (reply := self.lease(fd, number, **lease)).err == -errno.EBUSY:
            pass
        return reply

    def handle(self, number=1):
        return self.ask(HANDLE, number, 0, -1, 0, 0, 0)

    def unlease(self, number=1, outcome=0):
        self.send(message(UNLEASE, number, outcome, 0))

    def released(self, notice, start=0, end=0, whole=0, outcome=QUIESCED):
        self.send(message(RELEASED, notice.lease, notice.seq, start, end, whole, outcome))

    def listed(self, kind, *fields):
        """A request that has many answers: the (type, fields) before its REPLY, and that."""
        self.serial += 1
        self.send(message(kind, *fields, serial=self.serial))
        return self.answers()

    def answers(self):
        got = []
        while True:
            kind, serial, values = self.receive()
            if kind == NOTICE:
                self.notices.append(self.as_notice(values))
                continue
            assert serial == self.serial, (serial, self.serial)
            if kind == REPLY:
                return got, Reply(values[0], values[2], text(values[3]))
            got.append((kind, values))

    @staticmethod
    def as_event(values):
        return Event(*values[:21], *map(text, values[21:]))

    def order_recall(self, file=None, start=0, end=0, lease=0, pid=0, flags=0, grace_ms=0):
        """Its answers come when all is over: recalled()."""
        self.serial += 1
        dev, ino = (file.stat().st_dev, file.stat().st_ino) if file else (0, 0)
        self.send(message(RECALL_LEASES, dev, ino, start, end, lease, pid, flags, grace_ms, 0, serial=self.serial))

    def recalled(self):
        """(events, reply)"""
        got, reply = self.answers()
        assert all(kind == EVENT for kind, _ in got), got
        return [self.as_event(values) for _, values in got], reply

    def recall(self, *where, **how):
        self.order_recall(*where, **how)
        return self.recalled()

    def watch(self, file=None, pid=0):
        dev, ino = (file.stat().st_dev, file.stat().st_ino) if file else (0, 0)
        return self.ask(WATCH, dev, ino, pid, 0)

    def event(self):
        kind, _, values = self.receive()
        assert kind == EVENT, kind
        return self.as_event(values)

    def until_event(self, *what):
        """The events up to one of each of `what`."""
        got, left = [], set(what)
        while left:
            got.append(self.event())
            left.discard(got[-1].what)
        return got

    def status(self):
        """(status, sources, users)"""
        got, reply = self.listed(ASK_STATUS)
        assert reply.err == 0 and reply.value == len(got), reply
        status = [values for kind, values in got if kind == STATUS]
        assert len(status) == 1
        return (Status(text(status[0][0]), *status[0][1:]), [text(values[0]) for kind, values in got if kind == SOURCE],
                [User(*values) for kind, values in got if kind == USER])
    def truncate_later(self, fd, number=1, size=0, offset=0, mode=0):
        return self.ask(TRUNCATE_FILE, number, offset, size, mode, os.getpid(), fds=[fd])

    def changed(self):
        """(number, err) of the next CHANGED; there is nothing before it."""
        kind, _, values = self.receive()
        assert kind == CHANGED, kind
        return values[:2]
    def change(self, fd, operation=TRUNCATE, start=0, end=0, actor=0):
        """As a supervisor: its serial. What comes of it is for answer()."""
        self.serial += 1
        self.send(message(CHANGE, operation, actor, actor, 0, start, end, serial=self.serial), [fd])
        return self.serial

    def count_changes(self):
        """What each COUNTED says, and the REPLY."""
        self.serial += 1
        self.send(message(COUNT, serial=self.serial))
        counted = []
        while True:
            kind, serial, values = self.receive()
            assert serial == self.serial and kind in (COUNTED, REPLY), (kind, serial)
            if kind == REPLY:
                return counted, Reply(values[0], values[2], text(values[3]))
            counted.append(values)

    def answer(self, serial):
        kind, got, values = self.receive()
        assert (kind, got) == (REPLY, serial), (kind, got, serial)
        return Reply(values[0], values[2], text(values[3]))

    def done(self, serial):
        self.send(message(DONE, serial))

    def until_hung_up(self):
        """Without reading what has come."""
        poll = select.poll()
        poll.register(self.sock, 0)
        poll.poll()

    def until_gone(self):
        """What comes until the arbiter ends it: it has to."""
        got = []
        with contextlib.suppress(Gone):
            while True:
                got.append(self.receive())
        return got


def kernel_holds_changes():
    """EBADF: it knows the event; EINVAL: it doesn't."""
    libc = ctypes.CDLL(None, use_errno=True)
    group = libc.fanotify_init(FAN_CLASS_PRE_CONTENT, os.O_RDONLY)
    libc.fanotify_mark(group, FAN_MARK_ADD, ctypes.c_uint64(FAN_PRE_ACCESS), -1, None)
    error = ctypes.get_errno()
    os.close(group)
    return error != errno.EINVAL


def skip_unless_changes_are_held():
    if not kernel_holds_changes():
        raise tree.Skip('holding changes of files needs fanotify FAN_PRE_ACCESS, Linux 6.14')


class Actor:
    """Another process, whose changes of files are held: one order a line, one errno back when it is done."""
    PROGRAM = '''
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def one(what, path, a, b):
    try:
        if what == 'truncate':
            os.truncate(path, a)
        elif what == 'cycle':
            os.truncate(path, 0)
            os.truncate(path, a)
        else:
            fd = os.open(path, os.O_RDWR)
            if libc.fallocate(fd, 3, ctypes.c_long(a), ctypes.c_long(b)):
                raise OSError(ctypes.get_errno(), '')
            os.close(fd)
    except OSError as error:
        return error.errno
    return 0
for line in sys.stdin:
    what, path, a, b, times = line.split()
    said = {one(what, path, int(a), int(b)) for _ in range(int(times))}
    print(said.pop() if len(said) == 1 else -1, flush=True)
'''

    def __init__(self):
        skip_unless_changes_are_held()
        # pylint: disable-next=consider-using-with
        self.process = subprocess.Popen([sys.executable, '-c', self.PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)

    def __enter__(self):
        return self

    def __exit__(self, *what):
        if what and what[0]:
            self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def order(self, what, path, start=0, size=0, times=1):
        self.process.stdin.write(f'{what} {path} {start} {size} {times}\n')
        self.process.stdin.flush()

    def join(self):
        return int(self.process.stdout.readline())

    def do(self, *order, **more):
        self.order(*order, **more)
        return self.join()


class Arbiter:
    """pinleased in a process of its own, with a directory for files of ours. It is patient: no answer of a test's is to come too
    late, however slow the machine."""

    def __init__(self, program, *options, before=None, words=(), patient=True):
        # pylint: disable=consider-using-with
        if patient and '--ceiling' not in options:
            options = (*PATIENT, *options)
        self.temporary = tempfile.TemporaryDirectory(prefix='pinlease-', dir='/var/tmp')
        self.directory = pathlib.Path(self.temporary.name)
        self.directory.chmod(0o755)
        self.path = self.directory / 'socket'
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(self.directory / 'ready'))
            self.process = subprocess.Popen([program, *words, '--socket', self.path, *options], preexec_fn=before,
                                            env=dict(os.environ, NOTIFY_SOCKET=str(self.directory / 'ready')))
            assert b'READY=1' in ready.recv(100)

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.process.send_signal(signal.SIGKILL if what[0] else signal.SIGTERM)
        status = self.process.wait()
        self.temporary.cleanup()
        if not what[0]:
            assert status == 0, f'pinleased ended with {status}'

    def client(self, **more):
        return Client(self.path, **more)

    def file(self, name='file'):
        path = self.directory / name
        path.write_bytes(b'O' * SIZE)
        return path

    def count(self, what):
        return len(os.listdir(f'/proc/{self.process.pid}/{what}'))

    def figures(self):
        """Its descriptors and its threads."""
        return self.count('fd'), self.count('task')

    def wait_for_figures(self, figures):
        """No more of each: who is gone is tidied up by a thread of its own, and an event may have been open before."""
        try:
            while any(now > before for now, before in zip(self.figures(), figures)):
                assert self.process.poll() is None
                time.sleep(0.001)
        except TimeoutError as error:
            links = [os.readlink(fd) for fd in pathlib.Path(f'/proc/{self.process.pid}/fd').iterdir()]
            raise tree.Failure(f'{self.figures()} descriptors and threads, {figures} before: {links}') from error


def can_hold():
    """Why files of /var/tmp can't be held, or nothing."""
    where = subprocess.run(['stat', '-f', '-c', '%T', '/var/tmp'], capture_output=True, text=True, check=True).stdout.strip()
    if where not in ('ext2/ext3', 'xfs', 'btrfs'):
        return f'/var/tmp is on {where}, where fanotify holds nothing'
    if os.geteuid():
        return 'holding changes of files needs CAP_SYS_ADMIN'
    return None


def in_one_of(ceilings, function):
    """A test that waits for a ceiling, in which others are to answer: a busy machine needs more than what is quick."""
    for ceiling in ceilings[:-1]:
        try:
            return function(ceiling)
        except TimeoutError:
            raise
        except (tree.Failure, AssertionError, Gone, OSError) as failure:
            print(f'# with a ceiling of {ceiling} ms: {failure!r}', flush=True)
    return function(ceilings[-1])


def in_time(function):
    """A test that waits for what never comes fails alone."""
    def late(*_):
        raise TimeoutError('it waits for what never comes')

    def run():
        signal.signal(signal.SIGALRM, late)
        signal.alarm(LIMIT)
        try:
            function()
        finally:
            signal.alarm(0)
    return run


def main(tests):
    reason = can_hold()
    if reason:
        print(f'1..0 # SKIP {reason}')
        sys.exit(0)
    chosen = [(name, in_time(function)) for name, function in tests if len(sys.argv) < 3 or sys.argv[2] in name]
    sys.exit(tree.tap(chosen))
