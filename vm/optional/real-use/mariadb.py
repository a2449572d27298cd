#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""MariaDB by io_uring and O_DIRECT: nothing is pinned while it is idle; when its disk hangs, what is under way."""
import contextlib
import os
import pathlib
import re
import subprocess
import sys

import scene

DISK = 'real-use'
os.environ['DM_DISABLE_UDEV'] = '1'  # a guest has none: dmsetup makes the device's file itself


@contextlib.contextmanager
def disk():
    """A file system on a disk that can be made to hang; where it is mounted."""
    scene.run('modprobe', '-a', 'loop', 'dm_mod')
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(scene.folder()))
        with open(folder / 'image', 'wb') as image:
            image.truncate(192 << 20)
        loop = scene.run('losetup', '--find', '--show', folder / 'image').strip()
        stack.callback(scene.run, 'losetup', '--detach', loop)
        sectors = scene.run('blockdev', '--getsz', loop).strip()
        scene.run('dmsetup', 'create', DISK, '--table', f'0 {sectors} linear {loop} 0')
        stack.callback(scene.run, 'dmsetup', 'remove', '--retry', DISK)
        place = folder / 'mysql'
        place.mkdir()
        scene.run('mkfs.ext4', '-q', '-F', '-b', '4096', f'/dev/mapper/{DISK}')
        scene.run('mount', f'/dev/mapper/{DISK}', place)
        stack.callback(lambda: scene.until('it can be unmounted', lambda: not subprocess.run(['umount', place], check=False,
                                                                                            capture_output=True).returncode))
        yield place


@contextlib.contextmanager
def hanging():
    scene.run('dmsetup', 'suspend', '--noflush', '--nolockfs', DISK)
    try:
        yield
    finally:
        scene.run('dmsetup', 'resume', DISK)


def server(place):
    return scene.Program('mariadbd', '--no-defaults', '--user=root', f'--datadir={place}', f'--socket={place}/socket', '--skip-networking',
                         '--skip-grant-tables', '--innodb-use-native-aio=1', '--innodb-flush-method=O_DIRECT',
                         '--innodb-buffer-pool-size=16M', '--innodb-log-file-size=8M')


def client(place, words):
    return ['mariadb', '--no-defaults', f'--socket={place}/socket', '-e', words]


def has_ring(program):
    return any('io_uring' in os.readlink(path) for path in pathlib.Path(f'/proc/{program.pid}/fd').iterdir() if path.is_symlink())


def waiting():
    """A page of InnoDB's, or, if it had written those already, the log's; how much of a huge page is pinned isn't known, only how often."""
    return scene.rows_of('mariadbd')


def hang(place, program, page):
    """What is under way while the disk stands still, and that it is over then."""
    with hanging(), scene.Program(*client(place, 'SET GLOBAL innodb_max_dirty_pages_pct = 0; DELETE FROM a.b LIMIT 1')):
        page.parts.append('# The disk hangs now, and MariaDB is told to write what it has changed.')
        rows = scene.until('it waits for the disk', waiting, program, patience=110)
        for row in rows:
            scene.check([row], pid=program.pid, device='other', memory='anonymous', mapped=True)
        page.pins()
    scene.until('nothing of it is pinned any more', lambda: not scene.rows_of('mariadbd'), program)
    page.parts.append('# The disk is back.')
    page.pins()


def works():
    scene.need('mariadbd', 'mariadb', 'mariadb-install-db', 'dmsetup')
    with disk() as place:
        scene.run('mariadb-install-db', '--no-defaults', '--user=root', f'--datadir={place}', '--skip-test-db', '--innodb-log-file-size=8M')
        with server(place) as program:
            scene.until('it answers', lambda: not subprocess.run(client(place, 'SELECT 1'), check=False, capture_output=True).returncode, program)
            if not has_ring(program):
                raise scene.Failure(f'it has no io_uring:\n{program.said()}')
            scene.run(*client(place, "CREATE DATABASE a; USE a; CREATE TABLE b (c TEXT) ENGINE=InnoDB;"
                                     "INSERT INTO b SELECT REPEAT('x', 1000) FROM seq_1_to_3000"))
            scene.run('sync')
            scene.until('nothing of it is pinned any more', lambda: not scene.rows_of('mariadbd'), program)
            page = scene.Page('mariadb')
            page.started(program)
            page.pins()
            with scene.following(program.pid) as watch:
                hang(place, program, page)
                said = watch.end()
            if not re.search(r'^direct-io +transient +[1-9]', said, re.M) or not re.search(r'^ *\d+ mariadbd +direct-io ', said, re.M):
                raise scene.Failure(f"the writes weren't followed:\n{said}")
            page.parts.append(f'$ pinlease pins --watch --exact --pid {program.pid} # from before the disk hung\n{said}')
            page.write()
            scene.run(*client(place, 'SHUTDOWN'))
            program.process.wait(scene.PATIENCE)


if __name__ == '__main__':
    sys.exit(scene.tap([('idle, with a disk that hangs, and after', works)]))
