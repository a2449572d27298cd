#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is exchanged for a silent file before pinleased looks at it, or before the next one does: nobody asks that file (I7).

usage: door_exchanged.py PINLEASED
"""
import contextlib
import errno
import mmap
import os
import pathlib
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
from door_rig import LIBC, Kept, asked, children, cut, inside_of_a_call, main, other_actor, said, silent, starts_again, statuses, stopped
from hostile import besides, same

COPY_FILE_RANGE, FTRUNCATE = 326, 77
MAP_FIXED = 0x10

# Is in openat2 with one thread, puts a silent page in the place of its flags with the other.
OPENS = """
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
at = libc.mmap(None, 4096, 3, 0x22, -1, 0)
ctypes.memmove(at, struct.pack('3Q', os.O_RDONLY, 0, 0), 24)
path, silent = os.fsencode(sys.argv[1]), int(sys.argv[2])
got = []
def opens():
    got.append(libc.syscall(437, -100, path, ctypes.c_void_p(at), ctypes.c_size_t(24)) >= 0)
thread = threading.Thread(target=opens)
thread.start()
if silent >= 0:
    while not open(f'/proc/self/task/{thread.native_id}/syscall').read().startswith('437 '):
        pass
    libc.mmap(at, 4096, 1, 0x12, silent, 0)
print('inside', flush=True)
thread.join()
print(got[0], flush=True)
"""


def another_file_by_now():
    """Where an actor's copy goes to is a silent file when pinleased looks at it: nobody asks that."""
    with besides() as (arbiter, good), silent(valid=0) as fd, arbiter.client() as holder:
        with open(arbiter.file('from'), 'rb') as source, open(arbiter.file('to'), 'r+b', buffering=0) as to:
            same(holder.lease(source.fileno()).err, 0)
            same(holder.handle().err, 0)
            with stopped(arbiter):
                thread, got = asked(os.copy_file_range, source.fileno(), to.fileno(), ac.PAGE)
                inside_of_a_call(thread, COPY_FILE_RANGE)
                os.dup2(fd, to.fileno())
            thread.join()
            same(got, [ac.PAGE])
            good.is_served()


def flags_that_cannot_be_read():
    """What openat2 was to do is in a silent page by now: its user's opens are taken for changes, and others wait for nothing."""
    with besides() as (arbiter, good), contextlib.ExitStack() as ends, silent(valid=0) as fd, arbiter.client() as holder:
        path = arbiter.file()
        for number in range(1, 7):
            with open(path, 'rb') as file:
                same(holder.lease_when_free(file.fileno(), number).err, 0)
            same(holder.handle(number).err, 0)
            with stopped(arbiter):
                actor = other_actor(ends, OPENS, path, fd)
                same(said(actor), 'inside')
            good.is_served()
            reader = other_actor(ends, OPENS, path, -1, 65533, fd)  # whose flags can be read, so that nobody is recalled
            same((said(reader), said(reader)), ('inside', 'True'))
            notice = holder.notice()
            same((notice.what, notice.lease), (ac.RECALLED, number))
            holder.released(notice, whole=1)
            same(said(actor), 'True')
            holder.unlease(number)
        same(children(arbiter, True) <= 3, True)  # the gate's that hangs, one that doesn't, and the main loop's


def wait_for_look(pid):
    """Of the gate's child, which then waits for the silent page; it may be over before it is seen, on a busy machine."""
    until = time.monotonic() + 5
    while time.monotonic() < until and not any('Name:\tpinl-peek\n' in status and 'State:\tD' in status for status in statuses(pid)):
        pass


def killed_while_it_looks(arbiter):
    """Events that were read and not looked at: one of the silent page, and a cut by what is a silent file by now."""
    with contextlib.ExitStack() as ends, silent(valid=0) as fd, tempfile.NamedTemporaryFile(dir='/var/tmp') as file, \
            ac.Client(arbiter.path) as holder:
        file.truncate(ac.SIZE)
        os.chmod(file.name, 0o666)
        same(holder.lease(file.fileno()).err, 0)
        same(holder.handle().err, 0)
        to = os.open(file.name, os.O_RDWR)
        ends.callback(os.close, to)
        with stopped(arbiter):
            actor = other_actor(ends, OPENS, file.name, fd)
            same(said(actor), 'inside')
            thread, got = asked(cut, to)
            inside_of_a_call(thread, FTRUNCATE)
            os.dup2(fd, to)
        wait_for_look(arbiter.process.pid)
        arbiter.process.kill()
        arbiter.process.wait()
        arbiter.start()
        with ac.Client(arbiter.path) as other:
            same(other.cover(file.fileno()).err, 0)
        thread.join()
        same(got[0] in (0, errno.EBUSY), True)
        return got[0]  # else it came too late, after the look


def looked_for_at_a_restart():
    with Kept() as arbiter:
        while not killed_while_it_looks(arbiter):
            pass


def silent_mapping():
    """Where the next pinleased looks for a holder's file is a silent one by now: it starts all the same."""
    start = LIBC.mmap(None, ac.SIZE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)  # a place where nothing of Python's is
    try:
        with Kept() as arbiter, silent(valid=0) as fd, tempfile.NamedTemporaryFile(dir='/var/tmp') as file, \
                ac.Client(arbiter.path) as holder:
            file.truncate(ac.SIZE)
            same(holder.lease(file.fileno(), start=start).err, 0)
            same(LIBC.mmap(start, ac.SIZE, mmap.PROT_READ, mmap.MAP_PRIVATE | MAP_FIXED, fd, 0), start)
            starts_again(arbiter, file)
    finally:
        LIBC.munmap(start, ac.SIZE)


SILENT_TESTS = [
    ('a copy to what is a silent file by now', another_file_by_now),
    ('an openat2 whose flags are in a silent page by now', flags_that_cannot_be_read),
    ('a file to be cut that is a silent one at a restart', looked_for_at_a_restart),
    ('a leased mapping that is of a silent file by now', silent_mapping),
]

if __name__ == '__main__':
    main(SILENT_TESTS)
