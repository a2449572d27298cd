#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The units of pinleased: systemd takes them, and with what they give and leave pinleased can do its work.

usage: unit.py SERVICE SOCKET PINLEASED TEST_ARBITER
"""
import contextlib
import errno
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import tree
from arbiter_client import VERSION

SERVICE, SOCKET, PINLEASED, TEST_ARBITER = map(os.path.abspath, sys.argv[1:])
AS_UNIT = str(tree.ROOT / 'tests/as-unit')
CAPABILITIES = ('CAP_SYS_ADMIN', 'CAP_SYS_PTRACE', 'CAP_DAC_READ_SEARCH', 'CAP_KILL')
EXPOSURE = 25  # tenths, of what systemd-analyze calls 10; what is left is what holding and forcing need
USER = 64998
PAGE = 4096
HELLO, LEASE, HANDLE, RELEASED, COVER, REPLY, NOTICE = 1, 2, 3, 5, 6, 66, 67


def needs(program):
    if not shutil.which(program):
        raise tree.Skip(program)


def needs_root():
    if os.geteuid():
        raise tree.Skip('root')
    needs('systemd-analyze')  # knows what groups of system calls are


# ---------------------------------------------------------------------------------------------- systemd's own view

@contextlib.contextmanager
def units():
    """As installed, but for the program, which systemd looks for."""
    with tempfile.TemporaryDirectory() as directory:
        text = pathlib.Path(SERVICE).read_text(encoding='utf-8')
        service = pathlib.Path(directory, 'pinleased.service')
        service.write_text(re.sub(r'^ExecStart=.*', f'ExecStart={PINLEASED}', text, flags=re.M), encoding='utf-8')
        yield [str(service), shutil.copy(SOCKET, directory)]


def verified():
    needs('systemd-analyze')
    with units() as paths:
        result = subprocess.run(['systemd-analyze', '--man=no', 'verify', *paths], capture_output=True, encoding='utf-8', check=False)
    if result.returncode or 'pinleased' in result.stderr:
        raise tree.Failure(result.stdout + result.stderr)


def exposed():
    needs('systemd-analyze')
    with units() as paths:
        tree.run(['systemd-analyze', 'security', '--offline=yes', '--no-pager', f'--threshold={EXPOSURE}', paths[0]])


def same_socket():
    header = (tree.ROOT / 'proto/messages.h').read_text(encoding='utf-8')
    path = re.search(r'#define PL_PROTO_PATH\s+"(.*)"', header)[1]
    if f'ListenSequentialPacket={path}\n' not in pathlib.Path(SOCKET).read_text(encoding='utf-8'):
        raise tree.Failure(f'the unit listens elsewhere than on {path}')


def nothing_stays():
    """What the service makes for what is pinned goes with the socket, which is stopped after it, and not at a restart."""
    made = re.findall(r'^ExecStartPre=.*/mkdir .* (/\S+)$', pathlib.Path(SERVICE).read_text(encoding='utf-8'), re.M)
    removed = re.findall(r'^ExecStopPost=-(.* )(/\S+)$', pathlib.Path(SOCKET).read_text(encoding='utf-8'), re.M)
    if len(made) != 1 or [path for _, path in removed] != made:
        raise tree.Failure(f'the service makes {made}, the socket removes {removed}')
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, 'pins')
        (path / '17-4').mkdir(parents=True)
        (path / '17-4/state').touch()
        for _ in range(2):
            tree.run([*removed[0][0].split(), str(path)])
        if path.exists():
            raise tree.Failure('what is pinned is there still')


# ------------------------------------------------------------------------------------------- pinleased as the unit has it

class Arbiter:
    def __init__(self, program=PINLEASED, **environment):
        self.directory = tempfile.mkdtemp(prefix='pinlease-unit-', dir='/var/tmp')
        os.chmod(self.directory, 0o711)
        self.path = self.directory + '/socket'
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(self.directory + '/notify')
        self.environment = dict(os.environ, AS_UNIT=SERVICE, AS_UNIT_PROGRAM=program, AS_UNIT_STRICT='1',
                                NOTIFY_SOCKET=self.directory + '/notify', **environment)

    def __enter__(self):
        self.process = subprocess.Popen([AS_UNIT, '--socket', self.path, '--ceiling', '60000'], env=self.environment)
        try:
            self.hear('READY=1')
        except BaseException:
            self.__exit__()
            raise
        return self

    def hear(self, expected):
        said = []
        with open(os.pidfd_open(self.process.pid), 'rb') as its_end:
            while expected not in said:
                heard, _, _ = select.select([self.notify, its_end], [], [], tree.HANGS)
                if self.notify not in heard:
                    raise tree.Failure(f'no {expected}')
                said = self.notify.recv(4096).decode().split('\n')

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(tree.HANGS)
        self.notify.close()
        left = os.path.exists(self.path)
        shutil.rmtree(self.directory)
        if status or not left:
            raise tree.Failure(f'it ended with {status}, and its socket is {"there" if left else "gone"}')


def activated():
    """READY=1 when it can be talked to, pings while it runs; the socket is systemd's and stays."""
    needs_root()
    with Arbiter(WATCHDOG_USEC='200000') as arbiter:
        for _ in range(3):
            arbiter.hear('WATCHDOG=1')
        Client(arbiter.path)


def whole_tests():
    """Every system call that the unit doesn't allow is deadly here. The holders are root's."""
    needs_root()
    environment = dict(os.environ, PINLEASED=AS_UNIT, AS_UNIT=SERVICE, AS_UNIT_PROGRAM=PINLEASED, AS_UNIT_STRICT='1')
    tree.run([TEST_ARBITER], env=environment, timeout=tree.HANGS)
    for name in ('test_restart', 'test_kill', 'test_later'):
        tree.run([str(pathlib.Path(TEST_ARBITER).with_name(name))], env=environment, timeout=tree.HANGS)
    for name in ('test_files', 'test_traps_file'):  # every way there is to change a file
        tree.run([str(tree.ROOT / 'tests/with-arbiter'), AS_UNIT, str(pathlib.Path(TEST_ARBITER).with_name(name))],
                 env=environment, timeout=tree.HANGS)


# -------------------------------------------------------------------------------------------------------- a small client

class Client:
    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(tree.HANGS)
        self.sock.connect(path)
        self.send(HELLO, struct.pack('II32sQ', VERSION, 0, b'unit.py', 0))
        self.sock.recv(512)

    def send(self, kind, body=b'', fds=()):
        socket.send_fds(self.sock, [struct.pack('IHHQ', 16 + len(body), kind, 0, 7) + body], fds)

    def wait(self, kind):
        while (packet := self.sock.recv(512)):
            if struct.unpack_from('IH', packet)[1] == kind:
                return packet
        raise tree.Failure('the connection has ended')

    def value(self):
        err, _, value = struct.unpack_from('iIQ', self.wait(REPLY), 16)
        if err:
            raise tree.Failure(os.strerror(-err))
        return value

    def cover(self, fd):
        self.send(COVER, fds=[fd])
        return self.value()

    def lease(self, fd, then=None):
        """A page at 1 MiB of an on-demand device; recalled, by FAIL unless told otherwise, after a minute."""
        base = 1 << 20
        then = FAIL if then is None else then
        self.send(LEASE, struct.pack('QQQQQIIIIIIIi16s', 1, 0, base, base + PAGE, 0, 1, 1, RECALL, then, 60000, 0, 0, os.getpid(),
                                     b'soft'), [fd])
        self.value()
        self.send(HANDLE, struct.pack('QIiIIQ', 1, 0, -1, 0, 0, 0))
        self.value()

    def release(self, notice):
        seq, start, end = struct.unpack_from('QQQ', notice, 24)
        self.send(RELEASED, struct.pack('QQQQII', 1, seq, start, end, 1, 0))


def enumerator(name):
    """The value of a public enumerator, all of which count from 0."""
    header = tree.without_comments((tree.ROOT / 'include/pinlease/pinlease.h').read_text(encoding='utf-8'))
    for body in re.findall(r'\benum \w+ \{([^}]*)\}', header):
        names = [word.strip() for word in body.split(',')]
        if name in names:
            return names.index(name)
    raise tree.Failure(f'no {name}')


RECALL, FAIL, KILL = enumerator('PINL_RECALL'), enumerator('PINL_THEN_FAIL'), enumerator('PINL_THEN_KILL')


@contextlib.contextmanager
def private_file():
    """Of an ordinary user's, that nobody else may read; opened after its file system is watched."""
    with tempfile.TemporaryDirectory(prefix='pinlease-unit-', dir='/var/tmp') as directory:
        os.chown(directory, USER, USER)
        path = directory + '/file'
        with open(path, 'wb') as file:
            file.write(b'O' * PAGE)
        os.chown(path, USER, USER)
        os.chmod(path, 0o600)
        yield path


def as_user(function, *arguments):
    """In a child."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            if os.getuid() != USER:
                os.setgroups([])
                os.setresgid(USER, USER, USER)
                os.setresuid(USER, USER, USER)
            function(*arguments)
            status = 0
        except tree.Failure as failure:
            print(f'# {failure}', flush=True)
        except Exception:  # pylint: disable=broad-except
            print('# ' + traceback.format_exc().replace('\n', '\n# '), flush=True)
        finally:
            os._exit(status)
    return pid


def done(pid):
    if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise tree.Failure(f'it ended with {status}')


def look(path):
    with open(path, 'rb'):
        pass


def hold_truncation(sock, path, opens_recall):
    """A lease: another's open is no change of it, and a truncation waits for the answer."""
    client = Client(sock)
    with open(path, 'r+b') as file:
        if not client.cover(file.fileno()):
            raise tree.Failure('changes of the file would not be held')
        client.lease(file.fileno())
    if not opens_recall:
        done(as_user(look, path))
    actor = as_user(look if opens_recall else lambda name: os.truncate(name, 0), path)
    notice = client.wait(NOTICE)
    if os.waitpid(actor, os.WNOHANG)[0] or os.stat(path).st_size != PAGE:
        raise tree.Failure('it was not held')
    client.release(notice)
    done(actor)
    if os.stat(path).st_size != (PAGE if opens_recall else 0):
        raise tree.Failure('it has another size')


def held():
    needs_root()
    with private_file() as path, Arbiter() as arbiter:
        done(as_user(hold_truncation, arbiter.path, path, False))


def covered(sock, path):
    with open(path, 'r+b') as file:
        if Client(sock).cover(file.fileno()):
            raise tree.Failure('a change of the file is said to be held')


def without_admin():
    needs_root()
    with private_file() as path, Arbiter(AS_UNIT_WITHOUT='CAP_SYS_ADMIN') as arbiter:
        done(as_user(covered, arbiter.path, path))


def without_ptrace():
    needs_root()
    with private_file() as path, Arbiter(AS_UNIT_WITHOUT='CAP_SYS_PTRACE') as arbiter:
        done(as_user(hold_truncation, arbiter.path, path, True))


def without_search():
    needs_root()
    with private_file() as path, Arbiter(AS_UNIT_WITHOUT='CAP_DAC_READ_SEARCH') as arbiter:
        done(as_user(covered, arbiter.path, path))


def refused_to_kill(sock, path):
    with open(path, 'r+b') as file:
        try:
            Client(sock).lease(file.fileno(), KILL)
        except tree.Failure as failure:
            if os.strerror(errno.EOPNOTSUPP) in str(failure):
                return
    raise tree.Failure('a policy is accepted that can not be kept')


def without_kill():
    needs_root()
    with private_file() as path, Arbiter(AS_UNIT_WITHOUT='CAP_KILL') as arbiter:
        done(as_user(refused_to_kill, arbiter.path, path))


def no_more():
    unit = pathlib.Path(SERVICE).read_text(encoding='utf-8')
    for name in ('CapabilityBoundingSet', 'AmbientCapabilities'):
        if set(re.findall(rf'^{name}=(.*)', unit, re.M)[0].split()) != set(CAPABILITIES):
            raise tree.Failure(f'{name} has others than those tried here')


if __name__ == '__main__':
    sys.exit(tree.tap([
        ('systemd takes the units', verified),
        (f'systemd-analyze finds no more exposed than {EXPOSURE / 10}', exposed),
        ('the socket is where programs look for it', same_socket),
        ('when the socket is stopped nothing stays pinned', nothing_stays),
        ('started by its socket it says that it is ready and alive', activated),
        ('with nothing but what the unit gives it holds the truncation of a private file', held),
        ('with nothing but what the unit gives it passes the tests of the arbiter and of files', whole_tests),
        ('without CAP_SYS_ADMIN it holds nothing, and says so', without_admin),
        ('without CAP_SYS_PTRACE an open is taken for a change', without_ptrace),
        ('without CAP_DAC_READ_SEARCH it holds no private file', without_search),
        ('without CAP_KILL it accepts no policy KILL', without_kill),
        ('the unit gives no other capabilities', no_more),
    ]))
