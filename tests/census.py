#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: census.py PINLEASED PINLEASE [RDMA] - pinlease pins finds what is planted here, and nothing else of this process: by its memory.

Everything is pinned before the command starts, and the machine's sum is the kernel's.
"""
import ctypes
import errno
import mmap
import os
import pathlib
import sys
import tempfile
import types

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import census_rig
from census_rig import HUGE, LIBC, PAGE, Memory, Ring, bounds, call, census, gone, memfd, of, only, spliced
import tree


def private():
    with Memory(16 * PAGE) as memory, Ring(of(memory)):
        rows, machine = census()
        only(rows, device='io_uring', listed=True, memory='anonymous', mapped=True, bytes=16 * PAGE, pins=16,
             ranges=bounds(memory.start, 16 * PAGE), lease=None, program=pathlib.Path(f'/proc/{os.getpid()}/comm').read_text().strip())
        assert rows[0]['class'] == 'revocable' and 'recall' in rows[0]['fitting_policy']
        while not machine['equal']:  # others are at work
            machine = census()[1]
        assert machine['pins'] == machine['kernel_pins'] >= 16, machine
    gone()


def of_a_memfd():
    with memfd(8 * PAGE) as fd, Memory(4 * PAGE, fd, 2 * PAGE) as memory, Ring(of(memory)):
        only(census()[0], device='io_uring', memory='file', path='memfd:census', file_ino=os.fstat(fd).st_ino, mapped=True, bytes=4 * PAGE,
             ranges=bounds(2 * PAGE, 4 * PAGE))
    gone()


def of_a_file():
    """By its path, where it is mounted; and who asks for the file gets it alone. Other file systems' pages can be referenced only."""
    with tempfile.NamedTemporaryFile(dir='/dev/shm') as file, Memory(3 * PAGE) as other:
        os.ftruncate(file.fileno(), 4 * PAGE)
        with Memory(2 * PAGE, file.fileno(), PAGE) as memory, Ring(of(memory), of(other)):
            assert len(census()[0]) == 2
            only(census('--file', file.name)[0], path=file.name, ranges=bounds(PAGE, 2 * PAGE), file_ino=os.stat(file.name).st_ino,
                 file_dev=os.stat(file.name).st_dev)
            name = file.name
            os.rename(name, name + ' b')
            try:
                only(census('--file', name + ' b')[0], path=name + ' b')
            finally:
                os.unlink(name + ' b')
            rows = [row for row in census()[0] if row['memory'] == 'file']
            only(rows, path=name + ' b (deleted)', mapped=True)
            pathlib.Path(name).touch()  # which is removed at the end
    gone()


def allowed(*memories):
    try:
        return Ring(*memories)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise tree.Skip("fixed buffers of a file's mapping (Linux 6.5)") from error


def on_disk():
    """A private mapping of a file on disk: its own pages are pinned, not the file's."""
    with tempfile.NamedTemporaryFile(dir='/var/tmp') as file:
        os.ftruncate(file.fileno(), 4 * PAGE)
        with Memory(4 * PAGE, file.fileno(), private=True) as memory, allowed(of(memory)):
            only(census()[0], memory='anonymous', bytes=4 * PAGE, mapped=True, ranges=bounds(memory.start, 4 * PAGE))
    gone()


def unmapped():
    for file in (False, True):
        with memfd(4 * PAGE) as fd, Memory(4 * PAGE, fd if file else -1) as memory, Ring(of(memory)):
            memory.unmap()
            row = only(census()[0], device='io_uring', mapped=False, bytes=4 * PAGE, pins=4, memory='file' if file else 'anonymous')
            assert row['ranges'] == (bounds(0, 4 * PAGE) if file else bounds(memory.start, 4 * PAGE)), row
    gone()


def moved():
    """Private memory that was moved after it was pinned is shown where it is now."""
    with Memory(4 * PAGE) as memory, Ring(of(memory)):
        to = call(LIBC.mmap(None, 4 * PAGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0))
        call(LIBC.mremap(memory.start, 4 * PAGE, 4 * PAGE, 3, to))  # MREMAP_MAYMOVE | MREMAP_FIXED
        memory.room = (to, 4 * PAGE)
        only(census()[0], mapped=True, pins=4, ranges=bounds(to, 4 * PAGE))
    gone()


def of_a_segment():
    """System V shared memory; the first segment's inode has the number 0."""
    child = os.fork()
    if not child:
        status = 1
        try:
            call(LIBC.unshare(0x08000000))  # CLONE_NEWIPC: so it is the first
            status = 2
            address = call(LIBC.shmat(call(LIBC.shmget(0, 4 * PAGE, 0o1600)), None, 0))
            ctypes.memset(address, 1, 4 * PAGE)
            with spliced(types.SimpleNamespace(start=address, size=2 * PAGE)):
                only(census()[0], device='vmsplice', memory='file', path='SYSV00000000', file_ino=0, mapped=True,
                     ranges=bounds(0, 2 * PAGE))
            status = 0
        except Exception as error:  # pylint: disable=broad-except
            print(f'# {error}', flush=True)
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 1:
        raise tree.Skip('IPC namespaces')
    assert status == 0, status
    gone()


def untouched():
    """Another mapping of the file's bytes that nobody has touched, so that no page table has them: they are mapped all the same."""
    with memfd(4 * PAGE) as fd, Memory(4 * PAGE, fd) as memory, Ring(of(memory)):
        other = call(LIBC.mmap(None, 4 * PAGE, 3, mmap.MAP_SHARED, fd, 0))
        memory.unmap()
        only(census()[0], device='io_uring', mapped=True, ranges=bounds(0, 4 * PAGE))
        LIBC.munmap(other, 2 * PAGE)
        assert sorted((row['mapped'], row['bytes']) for row in census()[0]) == [(False, 2 * PAGE), (True, 2 * PAGE)]
        LIBC.munmap(other, 4 * PAGE)
    gone()


def replaced():
    """Where other pages are mapped now, those that are pinned are not."""
    with memfd(4 * PAGE) as fd, Memory(4 * PAGE) as memory, Memory(4 * PAGE, fd, private=True) as copied, spliced(copied), Ring(of(memory)):
        LIBC.madvise(memory.start + PAGE, 2 * PAGE, mmap.MADV_DONTNEED)
        LIBC.madvise(copied.start, 4 * PAGE, mmap.MADV_DONTNEED)
        for at in range(0, 4 * PAGE, PAGE):
            ctypes.memset(memory.start + at, 2, 1)
            ctypes.memset(copied.start + at, 2, 1)
        rows = census('--kind', 'io_uring')[0]
        rows.sort(key=lambda row: row['mapped'])
        only(rows[:1], mapped=False, ranges=bounds(memory.start + PAGE, 2 * PAGE))
        only(rows[1:], mapped=True, bytes=2 * PAGE)
        only(census('--kind', 'vmsplice')[0], mapped=False, references=4)
    gone()


def cut_off():
    """Pages that the file has let go are nobody's but the device's."""
    with memfd(8 * PAGE) as fd, Memory(8 * PAGE, fd) as memory, Ring(of(memory)):
        os.ftruncate(fd, 5 * PAGE)
        rows = census()[0]
        rows.sort(key=lambda row: row['memory'])
        only(rows[:1], memory='file', mapped=True, ranges=bounds(0, 5 * PAGE))
        only(rows[1:], memory='none', mapped=False, device='io_uring', ranges=bounds(memory.start + 5 * PAGE, 3 * PAGE), pins=3)
    gone()


def huge_pages():
    with Memory(HUGE, huge=True) as memory, Ring(of(memory)):
        row = only(census()[0], memory='anonymous', bytes=HUGE, mapped=True, ranges=bounds(memory.start, HUGE))
        assert 1 <= row['pins'] <= 512, row
        kept = (memory.start, row['pins'])
    gone()
    if kept[1] == 512 and os.uname().release > '6.10':
        raise tree.Skip('transparent huge pages')


def part_of_a_huge_page():
    with Memory(HUGE, huge=True) as memory, Ring((memory.start + 3 * PAGE, 5 * PAGE)):
        only(census()[0], memory='anonymous', bytes=5 * PAGE, mapped=True, ranges=bounds(memory.start + 3 * PAGE, 5 * PAGE))
        memory.unmap()
        only(census()[0], mapped=False, bytes=5 * PAGE, ranges=bounds(memory.start + 3 * PAGE, 5 * PAGE))
    gone()


def parts_of_huge_pages():
    """From the first to the third, neither of them whole: the middle one is one entry of the ring's list."""
    start, size = 3 * PAGE, 2 * HUGE + 2 * PAGE
    with Memory(3 * HUGE, huge=True) as memory, Ring((memory.start + start, size)):
        row = only(census()[0], memory='anonymous', bytes=size, mapped=True, ranges=bounds(memory.start + start, size))
        memory.unmap()
        only(census()[0], mapped=False, bytes=size, pins=row['pins'], ranges=bounds(memory.start + start, size))
    gone()


def hugetlb():
    try:
        with memfd(2 * HUGE, flags=os.MFD_HUGETLB) as fd, Memory(HUGE, fd, HUGE) as memory, Ring(of(memory)):
            only(census()[0], memory='file', bytes=HUGE, mapped=True, ranges=bounds(HUGE, HUGE))
        with memfd(2 * HUGE, flags=os.MFD_HUGETLB) as fd, Memory(HUGE, fd, HUGE, private=True) as memory, Ring(of(memory)):
            only(census()[0], memory='anonymous', bytes=HUGE, mapped=True, ranges=[{'start': memory.start, 'end': memory.start + HUGE}])
    except OSError as error:
        raise tree.Skip('huge pages that are free (vm.nr_hugepages)') from error
    gone()


def many_buffers():
    with Memory(3000 * PAGE) as memory, Ring(*((memory.start + 3 * at * PAGE, PAGE) for at in range(1000))):
        row = only(census()[0], bytes=1000 * PAGE, pins=1000)
        assert len(row['ranges']) == 1000
    gone()


def twice():
    """A page that is pinned twice is one page, and two pins."""
    with Memory(2 * PAGE) as memory, Ring(of(memory), (memory.start, PAGE)):
        only(census()[0], bytes=2 * PAGE, pins=3)
    gone()


TESTS = [
    ('private memory: process, range, sum', private),
    ('a memfd, by the range of the file', of_a_memfd),
    ('a file has its path, also a new or no longer one', of_a_file),
    ('private memory of a file on disk', on_disk),
    ('memory that is no longer mapped', unmapped),
    ('memory that was moved', moved),
    ('a System V segment, the first', of_a_segment),
    ('a file is mapped, though nobody has touched it there', untouched),
    ('memory that other pages are mapped instead of', replaced),
    ('pages that a file has let go', cut_off),
    ('a huge page', huge_pages),
    ('a part of a huge page', part_of_a_huge_page),
    ('parts of huge pages', parts_of_huge_pages),
    ('hugetlb', hugetlb),
    ('a thousand buffers', many_buffers),
    ('a page that is pinned twice', twice),
]


if __name__ == '__main__':
    sys.exit(census_rig.main(TESTS))
