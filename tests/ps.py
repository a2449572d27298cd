#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: ps.py PINLEASED PINLEASE - pinlease ps shows what the arbiter knows, to whom it may."""
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import termios

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import tree

PINLEASED, PINLEASE = sys.argv[1:3]
del sys.argv[2]


def run(arbiter, *arguments, **more):
    return subprocess.run([PINLEASE, 'ps', *arguments], env=dict(os.environ, PINLEASE_SOCKET=str(arbiter.path)),
                          capture_output=True, text=True, check=False, **more)


def ps(arbiter, *arguments, **more):
    result = run(arbiter, *arguments, **more)
    if result.returncode or result.stderr:
        raise tree.Failure(str(result))
    return result.stdout


def on_terminal(arbiter):
    """Its lines on a terminal of 80 columns."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('4H', 25, 80, 0, 0))
    subprocess.run([PINLEASE, 'ps'], env=dict(os.environ, PINLEASE_SOCKET=str(arbiter.path)), stdout=slave, check=True)
    os.close(slave)
    said = b''
    with contextlib.suppress(OSError):
        while more := os.read(master, 4096):
            said += more
    os.close(master)
    return said.decode().splitlines()


def numbers(arbiter, *arguments):
    return [entry['lease'] for entry in json.loads(ps(arbiter, '--json', *arguments))]


def leases(client, *paths):
    for number, path in enumerate(paths, 1):
        with open(path, 'r+b') as file:
            assert client.lease(file.fileno(), number, start=ac.START * number, size=ac.PAGE * number,
                                policy=ac.RECALL, then=ac.COPY).err == 0
        assert client.handle(number).err == 0


def everything():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client:
        path = arbiter.file('some file')
        leases(client, path, path)
        first, second = json.loads(ps(arbiter, '--json'))
        wanted = {'pid': os.getpid(), 'uid': 0, 'program': 'python', 'device': 'soft', 'lease': 1, 'start': ac.START,
                  'bytes': ac.PAGE, 'detached_bytes': 0, 'file_ino': path.stat().st_ino, 'path': str(path), 'policy': 'copy',
                  'state': 'active', 'can_be_forced': False}
        for key, value in wanted.items():
            assert first[key] == value, (key, first[key])
        assert second['lease'] == 2 and second['bytes'] == 2 * ac.PAGE
        client.unlease(1)
        with open(path, 'rb') as file:
            assert client.cover(file.fileno()).err == 0  # so it has been heard
        assert numbers(arbiter) == [2]


def policies():
    """A recall is named after its end."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client:
        path = arbiter.file()
        with open(path, 'r+b') as file:
            for number, then in enumerate((ac.FAIL, ac.SCRATCH, ac.COPY, ac.KILL), 1):
                assert client.lease(file.fileno(), number, start=ac.START * number, then=then).err == 0
            assert client.lease(file.fileno(), 5, start=ac.START * 5, policy=ac.KEEP).err == 0
        assert [entry['policy'] for entry in json.loads(ps(arbiter, '--json'))] == ['fail', 'scratch', 'copy', 'kill', 'keep']


def table():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client:
        path = arbiter.file('f' * 100)
        leases(client, path)
        lines = ps(arbiter).splitlines()
        assert len(lines) == 3 and lines[0].split()[:3] == ['PID', 'PROGRAM', 'DEV'], lines
        assert '4.0K' in lines[1] and lines[1].endswith(str(path)), lines[1]
        assert lines[2] == '1 lease, 4.0K', lines[2]
        lines = ps(arbiter, '--bytes').splitlines()
        assert ' 4096 ' in lines[1] and lines[2] == '1 lease, 4096 bytes', lines


def rude():
    """What a holder chose for a name does nothing to a terminal."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client(name=b'a\x1b[31mb') as client:
        path = arbiter.file('x\x1b[2Jy\nz')
        with open(path, 'r+b') as file:
            assert client.lease(file.fileno(), device=b'\x1b[1m\x07').err == 0
        lines = ps(arbiter).splitlines()
        assert len(lines) == 3 and lines[1].isprintable() and lines[1].endswith('x?[2Jy?z'), lines
        assert json.loads(ps(arbiter, '--json'))[0]['path'] == str(path)


def chosen():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client:
        paths = [arbiter.file(name) for name in 'abc']
        leases(client, *paths)
        assert numbers(arbiter, '--file', str(paths[1])) == [2]
        assert numbers(arbiter, '--pid', str(os.getpid())) == [1, 2, 3]
        assert numbers(arbiter, '--pid', '1') == []
        assert numbers(arbiter, '--sort', 'bytes') == [3, 2, 1]
        assert numbers(arbiter, '--sort', 'age') == [1, 2, 3]


def state():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, ac.Actor() as actor:
        path = arbiter.file()
        leases(client, path)
        actor.order('truncate', path)
        notice = client.notice()
        assert json.loads(ps(arbiter, '--json'))[0]['state'] == 'noticed'
        client.released(notice, whole=1)
        assert actor.join() == 0


def who_waits():
    """For whom a lease is recalled: in the JSON, and in a line below its own."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, ac.Actor() as actor:
        path = arbiter.file('f' * 100)
        leases(client, path)
        before = ps(arbiter).splitlines()
        actor.order('punch', path, 0, ac.PAGE)
        notice = client.notice()
        pid, name = actor.process.pid, pathlib.Path(f'/proc/{actor.process.pid}/comm').read_text(encoding='utf-8').strip()
        recall = json.loads(ps(arbiter, '--json'))[0]['recall']
        wanted = {'actor_pid': pid, 'actor_tid': pid, 'actor': name, 'by': 'punch', 'source': 'files', 'waits': True,
                  'start': ac.START, 'end': ac.START + ac.PAGE, 'bytes': ac.PAGE}
        if recall != wanted:
            raise tree.Failure(f'{recall}, expected {wanted}')
        lines = ps(arbiter).splitlines()
        assert len(lines) == len(before) + 1 and 'noticed' in lines[1], lines
        assert lines[2].strip().startswith(f'waits: punch by {pid} {name}, 4.0K, ') and lines[2].endswith('s left'), lines
        assert max(map(len, on_terminal(arbiter))) <= 80
        client.released(notice, whole=1)
        assert actor.join() == 0
        assert 'recall' not in json.loads(ps(arbiter, '--json'))[0]


def has_ended():
    """Who has had a change deferred need not be there any more."""
    with ac.Arbiter(PINLEASED, '--ceiling', '100000') as arbiter, arbiter.client() as client:
        ac.skip_unless_changes_are_held()
        path = arbiter.file()
        leases(client, path)
        pid = os.fork()
        if not pid:
            with arbiter.client() as caller, open(path, 'r+b') as file:
                os._exit(-caller.truncate_later(file.fileno()).err)
        assert os.waitpid(pid, 0)[1] == 0
        notice = client.notice()
        line = ps(arbiter).splitlines()[2].strip()
        if not line.startswith(f'waits: truncate by {pid} (ended), 4.0K, '):
            raise tree.Failure(line)
        client.released(notice, whole=1)


def asked_for():
    """Recalled by command: who asks is shown as an actor is."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, arbiter.client() as command:
        path = arbiter.file()
        leases(client, path, path)
        for number, flags, waits in ((1, ac.NO_WAIT, False), (2, 0, True)):
            command.order_recall(pid=os.getpid(), lease=number, flags=flags | ac.ONE)
            client.notice()
            recall = json.loads(ps(arbiter, '--json'))[number - 1]['recall']
            got = [recall[key] for key in ('actor_pid', 'by', 'source', 'waits')]
            assert got == [os.getpid(), 'recall', 'recall', waits], recall
            if flags:
                assert command.recalled()[1].err == 0


def among_others():
    """Who waits is shown, also if others don't, whoever was first."""
    for first in (False, True):
        with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, arbiter.client() as command, ac.Actor() as actor:
            path = arbiter.file()
            leases(client, path)
            if first:
                assert command.recall(path, flags=ac.NO_WAIT)[1].err == 0
                client.notice()
            actor.order('truncate', path)
            notice = client.notice()
            if not first:
                assert command.recall(path, flags=ac.NO_WAIT)[1].err == 0
                notice = client.notice()
            recall = json.loads(ps(arbiter, '--json'))[0]['recall']
            got = [recall[key] for key in ('actor_pid', 'by', 'source', 'waits')]
            assert got == [actor.process.pid, 'truncate', 'files', True], recall
            client.released(notice, whole=1)
            assert actor.join() == 0


def part_taken():
    """That a part of an active lease was taken back stands below its line."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, ac.Actor() as actor:
        path = arbiter.file()
        with open(path, 'r+b') as file:
            assert client.lease(file.fileno(), policy=ac.RECALL, then=ac.COPY).err == 0
        assert client.handle().err == 0
        for n in range(2):
            actor.order('punch', path, 4 * n * ac.PAGE, ac.PAGE)
            notice = client.notice()
            client.released(notice, notice.start, notice.end, outcome=4)
            assert actor.join() == 0
        lines = ps(arbiter).splitlines()
        assert len(lines) == 4 and ' active ' in lines[1] and lines[2].split() == '8.0K of it taken back before'.split(), lines
        assert ps(arbiter, '--bytes').splitlines()[2].split() == '8192 bytes of it taken back before'.split()
        assert json.loads(ps(arbiter, '--json'))[0]['detached_bytes'] == 2 * ac.PAGE
        actor.order('truncate', path)
        notice = client.notice()
        assert len(ps(arbiter).splitlines()) == 5
        client.released(notice, whole=1)
        assert actor.join() == 0
        assert len(ps(arbiter).splitlines()) == 3  # all of it: the state says so


def many():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client:
        path = arbiter.file()
        with open(path, 'r+b') as file:
            for number in range(1, 3001):
                assert client.lease(file.fileno(), number, start=ac.START + number * ac.SIZE, policy=ac.KEEP).err == 0
        assert numbers(arbiter) == list(range(1, 3001))


def others():
    """In a place where somebody else may run it."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client:
        leases(client, arbiter.file())
        program = arbiter.directory / 'pinlease'
        shutil.copy(PINLEASE, program)
        program.chmod(0o755)
        library = pathlib.Path(PINLEASE).parent.parent.parent / 'lib'
        shutil.copy(next(library.glob('libpinlease.so.0.*.0')), arbiter.directory / 'libpinlease.so.0')
        environment = dict(os.environ, PINLEASE_SOCKET=str(arbiter.path), LD_LIBRARY_PATH=str(arbiter.directory))
        result = subprocess.run([program, 'ps', '--json'], env=environment, user=65534, group=65534, extra_groups=[],
                                capture_output=True, text=True, check=False)
        assert result.returncode == 0 and json.loads(result.stdout) == [], result


def wrong():
    with ac.Arbiter(PINLEASED) as arbiter:
        for arguments, because in ((['--pid', 'x'], 'no process'), (['--sort', 'x'], 'can\'t sort'), (['x'], '"x"'),
                                   (['--file', '/nonexistent'], 'No such file'), (['--file', '/'], 'regular file')):
            result = run(arbiter, *arguments)
            assert result.returncode == 2 and because in result.stderr and not result.stdout, result
        path = arbiter.path
    result = subprocess.run([PINLEASE, 'ps'], env=dict(os.environ, PINLEASE_SOCKET=str(path)), capture_output=True, text=True,
                            check=False)
    assert result.returncode == 2 and 'start pinleased' in result.stderr, result


if __name__ == '__main__':
    ac.main([
        ('a lease with all that is known of it', everything),
        ('each policy has a name', policies),
        ('the table has a line for each lease and one for all', table),
        ('names are shown without what controls a terminal', rude),
        ('by file, by process, sorted', chosen),
        ('a lease that is recalled says so', state),
        ('who waits for it is said', who_waits),
        ('that he has ended is said', has_ended),
        ('who has asked for it, too', asked_for),
        ('who waits is shown before who does not', among_others),
        ('a part that was taken back is said', part_taken),
        ('thousands of leases are listed', many),
        ("who isn't root sees his own leases only", others),
        ('what is wrong is said', wrong),
    ])
