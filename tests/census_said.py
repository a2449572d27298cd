#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: census_said.py PINLEASED PINLEASE - pinlease pins says what is leased of what it finds, shows what it is asked for, and says what is missing."""
import contextlib
import errno
import fcntl
import json
import os
import pathlib
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import census_rig
from census_rig import PAGE, PINLEASE, PINLEASED, Memory, Ring, bounds, census, gone, memfd, of, only, run, spliced
import tree


@contextlib.contextmanager
def of_a_client():
    """A memfd, mapped and pinned; an arbiter's client, who may lease it; and the environment in which the command asks that arbiter."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, memfd(8 * PAGE) as fd, Memory(8 * PAGE, fd) as memory, \
            Ring(of(memory)):
        environment = dict(os.environ, PINLEASE_SOCKET=str(arbiter.path))
        yield client, fd, memory, environment


def leased():
    """With a lease, and the part without: told apart."""
    with of_a_client() as (client, fd, memory, environment):
        rows, machine = census(env=environment)
        only(rows, lease=None, bytes=8 * PAGE)
        assert machine['leases_known'] and not census()[1]['leases_known']
        assert client.lease(fd, 1, start=memory.start + 2 * PAGE, size=3 * PAGE, policy=ac.RECALL, then=ac.COPY).err == 0
        assert client.handle(1).err == 0
        rows = sorted(census(env=environment)[0], key=lambda row: row['lease'] or '')
        only(rows[:1], lease=None, bytes=5 * PAGE)
        only(rows[1:], lease='copy', bytes=3 * PAGE, ranges=bounds(2 * PAGE, 3 * PAGE))
        assert sum(row['pins'] for row in rows) == 8, rows
    gone()


def kept():
    """What its holder was promised to keep is leased, but nothing that pinlease can take back."""
    with of_a_client() as (client, fd, memory, environment):
        assert client.lease(fd, 1, start=memory.start, size=2 * PAGE, policy=ac.KEEP).err == 0
        assert client.lease(fd, 2, start=memory.start + 2 * PAGE, size=3 * PAGE, offset=2 * PAGE, policy=ac.RECALL, then=ac.COPY).err == 0
        rows = {row['lease']: row['can_take_back'] for row in census(env=environment)[0]}
        assert rows == {'keep': False, 'copy': True, None: None}, rows
        said = run('--pid', str(os.getpid()), env=environment).stdout
        assert re.search('take it back now: 12K;\nleased, but kept by policy: 8.0K; not leased, but of a kind that could be: 12K', said), said
    gone()


def private_leases():
    """Nobody is told of leases of private memory, so whether it is leased isn't known."""
    with ac.Arbiter(PINLEASED) as arbiter, Memory(8 * PAGE) as memory, memfd(2 * PAGE) as fd, Memory(2 * PAGE, fd) as shared, \
            Ring(of(memory), of(shared)):
        environment = dict(os.environ, PINLEASE_SOCKET=str(arbiter.path))
        rows = {row['memory']: (row['lease'], row['lease_known']) for row in census(env=environment)[0]}
        assert rows == {'anonymous': (None, False), 'file': (None, True)}, rows
        said = run('--pid', str(os.getpid()), env=environment).stdout
        assert re.search(r'yes +\? .*private memory\n', said) and re.search(r'yes +- .*memfd:census\n', said), said
        assert "of a kind that could be: 8.0K.\nPrivate memory of such kinds, whose leases pinleased isn't told of: 32K.\n" in said, said
    gone()


def chosen():
    with Memory(4 * PAGE) as memory, memfd(8 * PAGE) as fd, Memory(8 * PAGE, fd) as file, Ring(of(memory), of(file)), spliced(memory):
        assert len(census()[0]) == 3
        assert [row['device'] for row in census('--kind', 'vmsplice')[0]] == ['vmsplice']
        assert not census('--kind', 'rdma')[0] and not json.loads(run('--json', '--pid', '1').stdout)['pins']
        assert len(census('--pid', str(os.getpid()))[0]) == 3
        for key in ('bytes', 'pins'):
            sizes = [row['bytes'] for row in census('--sort', key)[0]]
            assert sizes == sorted(sizes, reverse=True), sizes
    gone()


def table():
    with tempfile.NamedTemporaryFile(dir='/dev/shm', prefix=60 * 'x') as file:
        os.ftruncate(file.fileno(), 4 * PAGE)
        with Memory(4 * PAGE, file.fileno()) as memory, Ring(of(memory)), Memory(PAGE) as other, spliced(other):
            controller, terminal = pty.openpty()
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
            with subprocess.Popen([PINLEASE, 'pins', '--pid', str(os.getpid())], stdout=terminal, stdin=terminal) as command:
                os.close(terminal)
                text = b''
                with contextlib.suppress(OSError):
                    while part := os.read(controller, 4096):
                        text += part
                os.close(controller)
            lines = text.decode().replace('\r', '').splitlines()
            if command.returncode or max(map(len, lines)) > 80:
                raise tree.Failure('\n'.join(['the table:', *lines]))
            assert re.match(rf' *{os.getpid()} \S+ +io_uring +16K +4 yes +\? +0-16K \.\.\.x+\S*$', lines[1]), lines
            assert re.search(r' vmsplice +4.0K .* \.\.\. private memory$', lines[2]), lines
            assert re.search(r'^io_uring +16K +\? +4 revocable +recall', '\n'.join(lines), re.M), lines
            assert re.search(r'The kernel counts (\d+) pins?; found: (\1\.|\d+, while)', '\n'.join(lines)), lines
            assert re.search(r' ms in all\.$', lines[-1]), lines
            assert re.search(r' io_uring +16384 ', run('--bytes').stdout)
    gone()


@contextlib.contextmanager
def called(name):
    file = pathlib.Path('/proc/self/comm')
    before = file.read_text(encoding='utf-8')
    file.write_bytes(name)
    try:
        yield
    finally:
        file.write_text(before, encoding='utf-8')


def rude():
    """Anybody may name his program and his files."""
    with called(b'a\x1b[2J\nb'), memfd(PAGE, 'c\x1b[2Jd') as fd, Memory(PAGE, fd) as memory, Ring(of(memory)):
        said = run('--pid', str(os.getpid())).stdout
        assert '\x1b' not in said and ' a?[2J' in said and 'memfd:c?[2Jd' in said, said
        assert only(census()[0])['path'] == 'memfd:c\x1b[2Jd'
    with called(b'a\xc2\x9b2Jb\x90'), memfd(PAGE, 'c\x9d0;d') as fd, Memory(PAGE, fd) as memory, Ring(of(memory)):
        said = run('--pid', str(os.getpid())).stdout
        assert '\x9b' not in said and '\x9d' not in said and 'a??2Jb?' in said and 'memfd:c??0;d' in said, said
    with called(b'a\xe2\x82b\x90c'), memfd(PAGE, 'd') as fd, Memory(PAGE, fd) as memory, Ring(of(memory)):
        assert only(census()[0])['program'] == 'a\ufffd\ufffdb\ufffdc'
    gone()


def refused():
    """Where something is missing, one sentence says what, and what to do."""
    for name in ('bpf', 'perfmon'):
        if not shutil.which('setpriv'):
            raise tree.Skip('setpriv (util-linux)')
        result = subprocess.run(['setpriv', f'--bounding-set=-{name}', PINLEASE, 'pins'], capture_output=True, text=True, check=False)
        assert result.returncode == 2 and not result.stdout and result.stderr.count('\n') == 1, result
        assert f'this root has no CAP_{name.upper()} (' in result.stderr and 'on the host' in result.stderr, result
    result = subprocess.run(['setpriv', '--reuid=65534', '--clear-groups', PINLEASE, 'pins'], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and 'CAP_BPF' in result.stderr and 'run it as root' in result.stderr, result
    with Memory(200 * PAGE) as memory, Ring(*((memory.start + at, PAGE) for at in range(0, 200 * PAGE, 2 * PAGE))), open('/dev/full', 'wb') as full:
        result = subprocess.run([PINLEASE, 'pins', '--json'], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2 and os.strerror(errno.ENOSPC) in result.stderr, result
    for arguments, because in ((['--kind', 'x'], 'no kind'), (['--sort', 'x'], "can't sort"), (['--pid', 'x'], 'no process'), (['--pid', '2147483647'], 'there is no process 2147483647'), (['x'], '"x"')):
        result = run(*arguments)
        assert result.returncode == 2 and because in result.stderr and not result.stdout, result


def in_a_container():
    """There the numbers of processes are others than the kernel's."""
    for words in (['unshare', '-fp'], ['unshare', '-fp', '--mount-proc']):
        if subprocess.run([*words, 'true'], capture_output=True, check=False).returncode:
            raise tree.Skip('PID namespaces (unshare)')
        result = subprocess.run([*words, PINLEASE, 'pins'], capture_output=True, text=True, check=False)
        assert result.returncode == 2 and 'another PID namespace' in result.stderr and '--pid=host' in result.stderr, result


def nothing_left():
    def programs():
        said = subprocess.run(['bpftool', '-j', 'prog', 'show'], capture_output=True, text=True, check=False, env=dict(os.environ, PATH='/usr/sbin:/sbin:' + os.environ['PATH']))
        return {program['id'] for program in json.loads(said.stdout) if program.get('name') in ('scan', 'peek', 'files', 'vmas', 'tasks')}
    if not shutil.which('bpftool', path='/usr/sbin:/usr/bin:/sbin:/bin'):
        raise tree.Skip('bpftool')
    before = programs()
    census()
    for _ in range(200):  # they go a little after the process
        if programs() <= before:
            return
        time.sleep(0.05)
    raise tree.Failure(f'left in the kernel: {programs() - before}')


TESTS = [
    ('leased and not', leased),
    ('leased, but kept', kept),
    ('leased or not, who knows', private_leases),
    ('by process, by kind, sorted', chosen),
    ('the table', table),
    ('names are shown without what controls a terminal', rude),
    ('what is missing is said', refused),
    ('a container is told apart', in_a_container),
    ('nothing is left in the kernel', nothing_left),
]


if __name__ == '__main__':
    sys.exit(census_rig.main(TESTS))
