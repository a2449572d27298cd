#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: supervise.py PINLEASED PINLEASE - pinlease run: changes of files in memory wait for leases, and nothing else does."""
import errno
import mmap
import os
import pathlib
import signal
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
from supervise_rig import ALL, PINLEASE, PINLEASED, Supervised, environment, length, lent, memory, run, same, scene
import tree

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
    with lent(policy=ac.RECALL) as (arbiter, client, path, fd):
        with Supervised(arbiter) as actor:
            actor.order('truncate', path, 0)
            notice = client.notice()
            os.kill(notice.pid, signal.SIGKILL)
            same(actor.process.wait(), -signal.SIGKILL)
        same(length(fd), ac.SIZE)
        client.released(notice, whole=1)
        same(client.lease_when_free(fd, 2).err, 0)
        same(client.handle(2).err, 0)


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
    with lent(policy=ac.REFUSE, refuse=ALL) as (arbiter, client, path, fd):
        script = f'import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); os.truncate({str(path)!r}, 0)'
        result = run(sys.executable, '-c', script, arbiter=arbiter)
        assert 'PermissionError' in result.stderr, result
        same(client.cover(fd).err, 0)
        same(len(client.notices), 0)


def free_huge_pages():
    lines = pathlib.Path('/proc/meminfo').read_text(encoding='ascii').splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('HugePages_Free'))


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


TESTS = [(f'{name} is held', held(name)) for name in CUTS] + [
    ('what a lease refuses is EBUSY, and nothing has changed', refused),
    ('what takes no leased page passes', others),
    ('wrong calls are refused by the kernel', wrong_calls),
    ('files are found by other names', names),
    ('many wait at once', many),
    ('who is killed while it waits changes nothing', killed),
    ('without privilege', unprivileged),
    ('who has less than its supervisor', less_than_root),
    ('huge pages', huge),
]

if __name__ == '__main__':
    ac.main(TESTS)
