#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: census_holders.py PINLEASED PINLEASE [RDMA] - pinlease pins finds what is planted here: by who has it pinned, and by what device.

Everything is pinned before the command starts, and the machine's sum is the kernel's.
"""
import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import census_rig
from census_rig import HUGE, LIBC, PAGE, RDMA, REGISTER, RING_FDS, SETUP, Memory, Ring, bounds, call, census, gone, memfd, of, only, run, spliced
import tree


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


TESTS = [
    ('memory of a process whose first thread has ended', first_thread_ended),
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
]


if __name__ == '__main__':
    sys.exit(census_rig.main(TESTS))
