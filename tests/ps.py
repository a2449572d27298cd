#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: ps.py PINLEASED PINLEASE - pinlease ps shows what the arbiter knows, to whom it may."""
import json
import os
import pathlib
import shutil
import subprocess
import sys

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


def table():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client:
        path = arbiter.file('f' * 100)
        leases(client, path)
        lines = ps(arbiter).splitlines()
        assert len(lines) == 3 and lines[0].split()[:3] == ['PID', 'PROGRAM', 'DEV'], lines
        assert '4.0K' in lines[1] and lines[1].endswith(str(path)), lines[1]
        assert lines[2] == '1 lease, 4.0K', lines[2]
        assert ' 4096 ' in ps(arbiter, '--bytes')


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
                                   (['--file', '/nonexistent'], 'No such file')):
            result = run(arbiter, *arguments)
            assert result.returncode == 2 and because in result.stderr and not result.stdout, result
        path = arbiter.path
    result = subprocess.run([PINLEASE, 'ps'], env=dict(os.environ, PINLEASE_SOCKET=str(path)), capture_output=True, text=True,
                            check=False)
    assert result.returncode == 2 and 'is pinleased running?' in result.stderr, result


if __name__ == '__main__':
    ac.main([
        ('a lease with all that is known of it', everything),
        ('the table has a line for each lease and one for all', table),
        ('names are shown without what controls a terminal', rude),
        ('by file, by process, sorted', chosen),
        ('a lease that is recalled says so', state),
        ('thousands of leases are listed', many),
        ("who isn't root sees his own leases only", others),
        ('what is wrong is said', wrong),
    ])
