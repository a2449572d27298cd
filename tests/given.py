#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: given.py PINLEASED PINLEASE - who has no privilege is told what the pinleased that runs gives him, and what it can't know."""
import contextlib
import errno
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import tree

PINLEASED, PINLEASE = sys.argv[1:3]
del sys.argv[2]
NOBODY = 65534
POWERLESS = ['setpriv', '--bounding-set', '-sys_admin', '--inh-caps', '-sys_admin']
RELEASED, NO_LEASE = 0, 3


def same(got, expected):
    if got != expected:
        raise tree.Failure(f'got {got!r}, expected {expected!r}')


@contextlib.contextmanager
def arbiter_with(powers):
    """One that can hold changes, or can't."""
    with ac.Arbiter(PINLEASED) if powers else ac.Arbiter(POWERLESS[0], words=POWERLESS[1:] + [PINLEASED]) as arbiter:
        yield arbiter


def as_nobody(arbiter, *words):
    """From where another user may run it."""
    shutil.copy(PINLEASE, arbiter.directory / 'pinlease')
    (arbiter.directory / 'pinlease').chmod(0o755)
    library = pathlib.Path(PINLEASE).parent.parent.parent / 'lib'
    shutil.copy(next(library.glob('libpinlease.so.0.*.0')), arbiter.directory / 'libpinlease.so.0')
    environment = dict(os.environ, PINLEASE_SOCKET=str(arbiter.path), LD_LIBRARY_PATH=str(arbiter.directory))
    return subprocess.run([arbiter.directory / 'pinlease', *words], env=environment, cwd='/', user=NOBODY, group=NOBODY,
                          extra_groups=[], capture_output=True, text=True, check=False)


def line_of(name, lines):
    (line,) = [line for line in lines if line.startswith(f'{name}:')]
    return line


def sources():
    ac.skip_unless_changes_are_held()
    with arbiter_with(True) as arbiter:
        said = as_nobody(arbiter, 'sources').stdout.splitlines()
        same(line_of('files', said), 'files: by pinleased: changes of files on ext4, XFS and btrfs are seen before they happen, held and refused')
        same(line_of('arbiter', said).startswith('arbiter: running: pinleased watches files'), True)
        socket, arbiter.path = arbiter.path, '/nonexistent'
        said = as_nobody(arbiter, 'sources').stdout.splitlines()
        same(('files: missing' in line_of('files', said), 'run as root' in line_of('files', said)), (True, True))
        arbiter.path = socket


def sources_of_a_powerless_one():
    with arbiter_with(False) as arbiter:
        said = as_nobody(arbiter, 'sources').stdout.splitlines()
        same(line_of('arbiter', said).startswith('arbiter: running, weaker: pinleased holds no change of a file: '), True)
        same('watches files for all' in line_of('arbiter', said), False)
        same('files: missing' in line_of('files', said), True)


def doctor():
    ac.skip_unless_changes_are_held()
    with arbiter_with(True) as arbiter:
        found = json.loads(as_nobody(arbiter, 'doctor', '--json').stdout)
        same('files: by pinleased' in found['sources'], True)
        for facility in found['facilities']:
            if facility['name'].startswith('fanotify'):
                same((facility['here'], 'run as root' in facility['why'], 'pinleased, which runs here' in facility['why']), (False, False, True))
        same([gap['reason'] for gap in found['gaps'] if 'files source is missing' in gap['reason']], [])


def arbiter_line(path):
    environment = dict(os.environ, PINLEASE_SOCKET=str(path))
    result = subprocess.run([PINLEASE, 'sources'], env=environment, capture_output=True, text=True, check=True)
    return line_of('arbiter', result.stdout.splitlines())


def refused():
    """That a pinleased refuses is said in its words, which have the remedy."""
    with ac.Arbiter(PINLEASED, '--max-connections', '1') as arbiter, arbiter.client():
        line = arbiter_line(arbiter.path)
        same(('refuses: ' in line, 'no more connections of this user; close some' in line), (True, True))
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(directory + '/other')
        other.listen()

        def be_another_version():
            client = other.accept()[0]
            client.recv(4096)
            client.send(ac.message(ac.REPLY, -errno.EPROTONOSUPPORT, 0, 0, b'install the same release of both'))
            client.close()
        thread = threading.Thread(target=be_another_version)
        thread.start()
        line = arbiter_line(directory + '/other')
        thread.join()
        same((f"{directory}/other refuses: install the same release of both" in line, 'not supported' in line), (True, False))


# ---------------------------------------------------------------------------------------------- recalls

def recall(arbiter, *words):
    result = subprocess.run([PINLEASE, 'recall', *map(str, words)], env=dict(os.environ, PINLEASE_SOCKET=str(arbiter.path)),
                            capture_output=True, text=True, check=False)
    return result.returncode, "isn't told of leases" in result.stderr, 'CAP_SYS_ADMIN' in result.stderr or 'FAN_PRE_ACCESS' in result.stderr


def unknown_leases():
    """Programs don't tell pinleased of leases of files that it can't hold: that is said where it has none, or may lack some."""
    with arbiter_with(False) as arbiter, arbiter.client() as holder, \
            tempfile.NamedTemporaryFile(dir='/dev/shm') as temporary:
        path, memory = arbiter.file(), temporary.name
        os.truncate(memory, ac.SIZE)
        same(recall(arbiter, '--file', path), (NO_LEASE, True, True))
        same(recall(arbiter, '--lease', '1:1'), (NO_LEASE, True, True))
        same(recall(arbiter, '--file', memory), (NO_LEASE, False, False))
        with open(memory, 'r+b') as file:
            for number in (1, 2):
                same(holder.lease(file.fileno(), number, start=ac.START * number).err, 0)
                same(holder.handle(number).err, 0)
        same(recall(arbiter, '--lease', f'{os.getpid()}:2', '--no-wait'), (RELEASED, False, False))
        same(recall(arbiter, '--file', memory, '--no-wait'), (RELEASED, False, False))
        same(recall(arbiter, '--pid', os.getpid(), '--no-wait'), (RELEASED, True, True))


def known_leases():
    ac.skip_unless_changes_are_held()
    with arbiter_with(True) as arbiter:
        same(recall(arbiter, '--file', arbiter.file()), (NO_LEASE, False, False))
        same(recall(arbiter, '--pid', '1'), (NO_LEASE, False, False))
        status = recall(arbiter, '--file', '/proc/self/status')[:2]
        same(status, (NO_LEASE, True))  # no file system whose files can be leased by pinleased


if __name__ == '__main__':
    ac.main([
        ('sources say what pinleased gives', sources),
        ('sources say what pinleased does not give', sources_of_a_powerless_one),
        ('doctor says what pinleased gives', doctor),
        ('sources say why pinleased gives nothing', refused),
        ('a recall says of what leases pinleased is not told', unknown_leases),
        ('a recall says nothing where it is told of all', known_leases),
    ])
