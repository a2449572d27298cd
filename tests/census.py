#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: census.py PINLEASED PINLEASE [RDMA] - pinlease pins finds what is planted here, and nothing else of this process.

Everything is pinned before the command starts, and the machine's sum is the kernel's.
"""
import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import pathlib
import pty
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import types

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import tree

PINLEASED, PINLEASE = map(os.path.abspath, sys.argv[1:3])
RDMA = sys.argv[3] if len(sys.argv) > 3 else None
PAGE = 4096
HUGE = 2 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mremap.restype = ctypes.c_void_p
LIBC.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.shmat.restype = ctypes.c_void_p
LIBC.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
SETUP, REGISTER = 425, 427
RING_FDS = 20


def call(result):
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Memory:
    """Mapped and touched; huge: aligned, as one huge page if there is one."""
    def __init__(self, size, fd=-1, offset=0, huge=False, private=False, write=True):
        flags = mmap.MAP_PRIVATE if private or fd < 0 else mmap.MAP_SHARED
        room = size + (HUGE if huge else 0)
        self.start = call(LIBC.mmap(None, room, 3 if write else 1, flags | (mmap.MAP_ANONYMOUS if fd < 0 else 0), fd, offset))
        self.room = (self.start, room)
        if huge:
            self.start = (self.start + HUGE - 1) // HUGE * HUGE
        self.size = size
        LIBC.madvise(self.start, size, mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        for at in range(0, size, PAGE):
            if write:
                ctypes.memset(self.start + at, 1, 1)
            else:
                ctypes.string_at(self.start + at, 1)

    def unmap(self):
        if self.room:
            call(LIBC.munmap(*self.room))
            self.room = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.unmap()


class Ring:
    """An io_uring with these as fixed buffers."""
    def __init__(self, *memories):
        self.fd = call(LIBC.syscall(SETUP, 8, ctypes.byref(ctypes.create_string_buffer(120))))
        parts = b''.join(struct.pack('QQ', start, size) for start, size in memories)
        try:
            call(LIBC.syscall(REGISTER, self.fd, 0, parts, len(memories)))
        except OSError:
            os.close(self.fd)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.fd >= 0:
            os.close(self.fd)


def of(memory):
    return memory.start, memory.size


@contextlib.contextmanager
def memfd(size, name='census', flags=0):
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def run(*arguments, **more):
    return subprocess.run([PINLEASE, 'pins', *arguments], capture_output=True, text=True, check=False, timeout=200, **more)


def census(*arguments, pid=None, **more):
    """Rows of this process (or of another), and what is said of the machine."""
    result = run('--json', *arguments, **more)
    if result.returncode or result.stderr:
        raise tree.Failure(str(result))
    said = json.loads(result.stdout)
    machine = said['machine']
    off = abs(machine['pins'] - machine['kernel_pins'])
    if off > machine['acquired_and_released_meanwhile'] or machine['equal'] != (off == 0):
        raise tree.Failure(f"the sum is not the kernel's: {machine}")
    return [row for row in said['pins'] if row['pid'] == (pid or os.getpid())], said['machine']


def only(rows, **wanted):
    if len(rows) != 1:
        raise tree.Failure(f'one row was expected: {json.dumps(rows, indent=1)}')
    for key, value in wanted.items():
        if rows[0][key] != value:
            raise tree.Failure(f'{key} is {rows[0][key]!r}, not {value!r}: {rows[0]}')
    return rows[0]


def bounds(start, size):
    return [{'start': start, 'end': start + size}]


def gone():
    """Buffers of rings are given back late, on Linux 6.1 by a second: then nothing of this process is left."""
    for _ in range(200):
        rows, machine = census()
        if not rows:
            return
        time.sleep(0.05)
    raise tree.Failure(f'still there: {rows} {machine}')


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


@contextlib.contextmanager
def headless():
    """A process with a fixed buffer whose first thread has ended; its memory, and its number."""
    with Memory(4 * PAGE) as memory:
        started, end = os.pipe(), os.pipe()
        child = os.fork()
        if not child:
            Ring(of(memory))

            def rest():
                while b'Z' not in pathlib.Path(f'/proc/{os.getpid()}/stat').read_bytes().rpartition(b')')[2][:3]:
                    time.sleep(0.01)
                os.write(started[1], b'y')
                os.close(end[1])
                os.read(end[0], 1)
                os._exit(0)
            threading.Thread(target=rest).start()
            LIBC.syscall(60 if os.uname().machine == 'x86_64' else 93, 0)  # exit: of this thread
        try:
            os.read(started[0], 1)
            yield memory, child
        finally:
            for fd in started + end:
                os.close(fd)
            os.waitpid(child, 0)


def first_thread_ended():
    with headless() as (memory, child):
        only(census(pid=child)[0], device='io_uring', mapped=True, pins=4, ranges=bounds(memory.start, 4 * PAGE))


def moved():
    """Private memory that was moved after it was pinned is shown where it is now."""
    with Memory(4 * PAGE) as memory, Ring(of(memory)):
        to = call(LIBC.mmap(None, 4 * PAGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0))
        call(LIBC.mremap(memory.start, 4 * PAGE, 4 * PAGE, 3, to))  # MREMAP_MAYMOVE | MREMAP_FIXED
        memory.room = (to, 4 * PAGE)
        only(census()[0], mapped=True, pins=4, ranges=bounds(to, 4 * PAGE))
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


def parts_of_huge_pages():
    """From the first to the third, neither of them whole: the middle one is one entry of the ring's list."""
    start, size = 3 * PAGE, 2 * HUGE + 2 * PAGE
    with Memory(3 * HUGE, huge=True) as memory, Ring((memory.start + start, size)):
        row = only(census()[0], memory='anonymous', bytes=size, mapped=True, ranges=bounds(memory.start + start, size))
        memory.unmap()
        only(census()[0], mapped=False, bytes=size, pins=row['pins'], ranges=bounds(memory.start + start, size))
    gone()


def part_of_a_huge_page():
    with Memory(HUGE, huge=True) as memory, Ring((memory.start + 3 * PAGE, 5 * PAGE)):
        only(census()[0], memory='anonymous', bytes=5 * PAGE, mapped=True, ranges=bounds(memory.start + 3 * PAGE, 5 * PAGE))
        memory.unmap()
        only(census()[0], mapped=False, bytes=5 * PAGE, ranges=bounds(memory.start + 3 * PAGE, 5 * PAGE))
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


def two_processes():
    """What is inherited is pinned once, by the process that made it: the other one has copies of the pages."""
    with Memory(4 * PAGE) as memory, Ring(of(memory)):
        pipe = os.pipe()
        child = os.fork()
        if not child:
            os.close(pipe[1])
            os.read(pipe[0], 1)
            os._exit(0)
        try:
            result = json.loads(run('--json').stdout)
            rows = [row for row in result['pins'] if row['pid'] in (child, os.getpid())]
            only(rows, pid=os.getpid(), pins=4, mapped=True)
        finally:
            os.close(pipe[1])
            os.close(pipe[0])
            os.waitpid(child, 0)
    gone()


def held_by_several():
    """Who of several has a ring is told of all: it frees nothing to end one of them."""
    with Memory(4 * PAGE) as memory, Memory(PAGE) as other:
        pipe, children = os.pipe(), []
        with Ring(of(memory)):
            for _ in range(2):
                children.append(os.fork())
                if not children[-1]:
                    memory.unmap()
                    os.close(pipe[1])
                    os.read(pipe[0], 1)
                    os._exit(0)
        try:
            with Ring(of(other)):
                only(census()[0], open_in=[os.getpid()], bytes=PAGE)
                row = only(json.loads(run('--json', '--pid', str(children[0])).stdout)['pins'], open_in=sorted(children), mapped=False, bytes=4 * PAGE)
                assert row['pid'] in children, row
                assert only(json.loads(run('--json', '--pid', str(children[1])).stdout)['pins']) == row
                said = run('--pid', str(children[0])).stdout
                assert re.search(rf'^ *{row["pid"]} {re.escape(row["program"][:7])} \+1 +io_uring +16K ', said, re.M), said
        finally:
            os.close(pipe[1])
            os.close(pipe[0])
            for child in children:
                os.waitpid(child, 0)
    gone()


@contextlib.contextmanager
def coming_and_going(memory):
    """Processes that pin it and end, one after the other."""
    pipe = os.pipe()
    os.set_blocking(pipe[0], False)
    child = os.fork()
    if not child:
        os.close(pipe[1])
        while True:
            with contextlib.suppress(BlockingIOError):
                os._exit(len(os.read(pipe[0], 1)))
            if not (short := os.fork()):
                Ring(of(memory))
                os._exit(0)
            os.waitpid(short, 0)
    try:
        yield
    finally:
        os.close(pipe[1])
        os.close(pipe[0])
        os.waitpid(child, 0)


def going():
    """What is on its way out while the census looks is no row of nobody's: a second look doesn't find it, and it is counted."""
    gone_meanwhile = 0
    with Memory(256 * PAGE) as memory, coming_and_going(memory):
        for _ in range(100):
            said = json.loads(run('--json').stdout)
            shown = sum(row['pins'] for row in said['pins'])
            gone_meanwhile = said['machine']['gone_meanwhile']
            assert shown + gone_meanwhile == said['machine']['pins'], said
            if gone_meanwhile:
                return
    raise tree.Failure('nothing has gone meanwhile, in a hundred censuses')


def shared_memory():
    """What two lines have is one memory."""
    with memfd(16 * PAGE) as fd, Memory(16 * PAGE, fd) as memory, spliced(types.SimpleNamespace(start=memory.start, size=4 * PAGE)), \
            Ring(of(memory)):
        only(census('--kind', 'io_uring')[0], bytes=16 * PAGE)
        only(census('--kind', 'vmsplice')[0], bytes=4 * PAGE)
        assert census('--pid', str(os.getpid()))[1]['shown_bytes'] == 16 * PAGE
        said = run('--pid', str(os.getpid())).stdout
        assert 'Shown: 16 pins and 4 plain references, 64K (by lines 80K: some is in several).' in said, said
    gone()


def without_descriptor():
    """A ring that is only mapped, or only registered with its task."""
    with Memory(4 * PAGE) as memory:
        with Ring(of(memory)) as ring:
            mapped = call(LIBC.mmap(None, PAGE, 3, mmap.MAP_SHARED, ring.fd, 0))
            os.close(ring.fd)
            ring.fd = -1
            only(census()[0], device='io_uring', listed=True, pins=4, mapped=True)
            LIBC.munmap(mapped, PAGE)
        gone()
        with Ring(of(memory)) as ring:
            slot = struct.pack('IIQ', 0xffffffff, 0, ring.fd)
            slot = ctypes.create_string_buffer(slot, len(slot))
            call(LIBC.syscall(REGISTER, ring.fd, RING_FDS, slot, 1))
            number = struct.unpack('IIQ', slot.raw)[0]
            second = call(LIBC.syscall(SETUP, 8, ctypes.byref(ctypes.create_string_buffer(120))))
            os.close(ring.fd)
            ring.fd = -1
            try:
                only(census()[0], device='io_uring', listed=True, pins=4, mapped=True)
            finally:
                call(LIBC.syscall(REGISTER, second, 21, struct.pack('IIQ', number, 0, 0), 1))
                os.close(second)
    gone()


@contextlib.contextmanager
def spliced(*memories):
    ends = os.pipe()
    try:
        for memory in memories:
            part = struct.pack('QQ', memory.start, memory.size)
            call(LIBC.vmsplice(ends[1], part, 1, 0))
        yield ends
    finally:
        os.close(ends[0])
        os.close(ends[1])


def references():
    """Pages in a pipe are no pins by the kernel's count, and found all the same: private ones, and of a file on disk."""
    with tempfile.NamedTemporaryFile(dir='/var/tmp') as file, Memory(3 * PAGE) as memory:
        os.write(file.fileno(), bytes(4 * PAGE))
        with Memory(2 * PAGE, file.fileno(), PAGE) as shared, spliced(memory, shared) as ends:
            rows = census()[0]
            rows.sort(key=lambda row: row['memory'])
            only(rows[:1], device='vmsplice', listed=True, memory='anonymous', bytes=3 * PAGE, references=3, pins=0,
                 ranges=bounds(memory.start, 3 * PAGE))
            only(rows[1:], device='vmsplice', memory='file', references=2, ranges=bounds(PAGE, 2 * PAGE))
            assert rows[0]['class'] == 'transient', rows
            assert 'Shown: 0 pins and 5 plain references, 20K.' in run('--pid', str(os.getpid())).stdout
            memory.unmap()
            assert {row['memory']: row['mapped'] for row in census()[0]} == {'anonymous': False, 'file': True}
            os.read(ends[0], 3 * PAGE)
            only(census()[0], memory='file')
            os.read(ends[0], 2 * PAGE)
            assert not census()[0]


def socket_area():
    size = 8 * PAGE
    try:
        area = socket.socket(44, socket.SOCK_RAW)
    except OSError as error:
        raise tree.Skip('AF_XDP') from error
    with area, Memory(size) as memory:
        area.setsockopt(283, 4, struct.pack('QQIIII', memory.start, size, PAGE, 0, 0, 0)[:24 + 4])
        row = only(census()[0], device='af_xdp', listed=True, bytes=size, pins=8, mapped=True, ranges=bounds(memory.start, size))
        assert row['class'] == 'not at all'
        memory.unmap()
        only(census()[0], device='af_xdp', bytes=size, mapped=False, ranges_of='machine')
        assert re.search(r' NO +\? +physical [0-9a-f]+-[0-9a-f/]+ private memory\n', run('--kind', 'af_xdp').stdout)
    gone()


def dmabuf():
    size = 4 * PAGE
    if not os.path.exists('/dev/udmabuf'):
        raise tree.Skip('/dev/udmabuf (CONFIG_UDMABUF)')
    with memfd(8 * PAGE) as fd, open('/dev/udmabuf', 'rb', buffering=0) as device:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        buffer = fcntl.ioctl(device, 0x40187542, bytearray(struct.pack('IIQQ', fd, 1, PAGE, size)))
        try:
            row = only(census()[0], device='dma-buf', listed=True, memory='file', bytes=size, mapped=False, ranges=bounds(PAGE, size))
            assert row['pins'] + row['references'] == 4, row
        finally:
            os.close(buffer)
    gone()


def regions():
    """Memory regions of another process, which then unmaps the memory."""
    if not RDMA or not os.path.isdir('/sys/class/infiniband') or not os.listdir('/sys/class/infiniband'):
        raise tree.Skip('an RDMA device')
    with subprocess.Popen([RDMA], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        start, size = map(int, holder.stdout.readline().split())
        row = only(census(pid=holder.pid)[0], device='rdma', listed=True, memory='anonymous', mapped=True, bytes=size, pins=size // PAGE,
                   ranges=bounds(start, size))
        assert row['class'] == 'revocable'
        print('u', file=holder.stdin, flush=True)
        holder.stdout.readline()
        only(census(pid=holder.pid)[0], device='rdma', listed=True, mapped=False, bytes=size, ranges=bounds(start, size))
        holder.communicate('')
        assert holder.returncode == 0


@contextlib.contextmanager
def container():
    """Of VFIO, with the job's device."""
    group = os.environ.get('PINLEASE_TEST_VFIO')
    if not group or not os.path.exists('/dev/vfio/vfio'):
        raise tree.Skip('a VFIO group (PINLEASE_TEST_VFIO)')
    with open('/dev/vfio/vfio', 'r+b', buffering=0) as file, open(f'/dev/vfio/{group}', 'r+b', buffering=0) as member:
        fcntl.ioctl(member, 0x3b68, struct.pack('i', file.fileno()))  # VFIO_GROUP_SET_CONTAINER
        fcntl.ioctl(file, 0x3b66, 3)  # VFIO_SET_IOMMU, type 1
        yield lambda start, iova, size: fcntl.ioctl(file, 0x3b71, struct.pack('IIQQQ', 32, 3, start, iova, size))  # VFIO_IOMMU_MAP_DMA


def device_memory():
    """What is mapped for a VFIO device, also a part of a huge page; another pin of that process isn't."""
    with memfd(8 * PAGE) as fd, Memory(8 * PAGE, fd) as file, Memory(HUGE, huge=True) as huge, Memory(4 * PAGE) as other:
        with container() as map_dma, Ring(of(other)):
            map_dma(file.start + PAGE, 0, 4 * PAGE)
            map_dma(huge.start + 3 * PAGE, HUGE, 5 * PAGE)
            rows = sorted(census()[0], key=lambda row: (row['device'], row['memory']))
            only(rows[:1], device='io_uring', bytes=4 * PAGE)
            only(rows[1:2], device='vfio', listed=True, memory='anonymous', mapped=True, pins=5, bytes=5 * PAGE,
                 ranges=bounds(huge.start + 3 * PAGE, 5 * PAGE))
            only(rows[2:], device='vfio', listed=True, memory='file', mapped=True, pins=4, ranges=bounds(PAGE, 4 * PAGE))
            file.unmap()
            rows = json.loads(run('--json', '--kind', 'other').stdout)['pins']
            only([row for row in rows if row.get('path') == 'memfd:census'], pid=None, mapped=False, pins=4, ranges=bounds(PAGE, 4 * PAGE))
    gone()


def leased():
    """With a lease, and the part without: told apart."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, memfd(8 * PAGE) as fd, Memory(8 * PAGE, fd) as memory, \
            Ring(of(memory)):
        environment = dict(os.environ, PINLEASE_SOCKET=str(arbiter.path))
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
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, memfd(8 * PAGE) as fd, Memory(8 * PAGE, fd) as memory, \
            Ring(of(memory)):
        environment = dict(os.environ, PINLEASE_SOCKET=str(arbiter.path))
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


def main():
    missing = None
    if os.geteuid():
        missing = 'root'
    elif 'no BPF' in run().stderr:
        missing = 'libbpf, clang and bpftool at build time'
    elif not os.path.exists('/sys/kernel/btf/vmlinux'):
        missing = '/sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)'
    tests = [
        ('private memory: process, range, sum', private),
        ('a memfd, by the range of the file', of_a_memfd),
        ('a file has its path, also a new or no longer one', of_a_file),
        ('private memory of a file on disk', on_disk),
        ('memory that is no longer mapped', unmapped),
        ('memory of a process whose first thread has ended', first_thread_ended),
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
        ('an inherited ring', two_processes),
        ('a ring that several have', held_by_several),
        ('pins of processes that come and go', going),
        ('memory that is in two lines', shared_memory),
        ('a ring without a descriptor', without_descriptor),
        ('plain references in a pipe', references),
        ("an AF_XDP socket's area", socket_area),
        ('a udmabuf', dmabuf),
        ('memory regions', regions),
        ('memory that is mapped for a VFIO device', device_memory),
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

    def skip():
        raise tree.Skip(missing)
    return tree.tap([(name, skip if missing else test) for name, test in tests])


if __name__ == '__main__':
    sys.exit(main())
