#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks that get stuck in execve(), where whoever looks at them waits for a server: pinleased goes on, and starts again, all the same (I7).

usage: door_execve.py PINLEASED
"""
import contextlib
import ctypes
import errno
import mmap
import os
import pathlib
import socket
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
from door_rig import LIBC, Kept, asked, cut, main, other_actor, said, silent, starts_again, stopped
from hostile import PINLEASED, besides, same
import silent_fs

IO_URING_SETUP = 425
RING = 900  # a number of the holder's

# Changes a file, runs for as long as its change is asked for, and gets stuck in execve(): its mapping is written back there.
EXECS = """
memory = mmap.mmap(int(sys.argv[2]), 4096)
memory[0] = 1
fd = os.open(sys.argv[1], os.O_RDWR)
print('inside', flush=True)
libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096))
until = time.monotonic() + 0.02
while time.monotonic() < until:
    pass
os.execv('/bin/true', ['true'])
"""


def stuck_in_execve():
    """Whoever looks at that task waits for its server."""
    with besides() as (arbiter, good), contextlib.ExitStack() as ends, silent(name='written') as fd, arbiter.client() as holder:
        path = arbiter.file()
        path.chmod(0o666)
        with open(path, 'rb') as file:
            same(holder.lease(file.fileno()).err, 0)
        same(holder.handle().err, 0)
        actor = other_actor(ends, EXECS, path, fd)
        same(said(actor), 'inside')
        holder.released(holder.notice(), whole=1)
        silent_fs.WRITTEN.wait()
        good.is_served()
        holder.unlease()
        with open(path, 'rb') as file:
            while holder.lease(file.fileno(), 2).err:  # as long as the change may be under way
                good.is_served()


def in_execve(ends, arbiter, path, before, last):
    """A holder of nobody's that has done something, and a function that has it do the last thing and get stuck in execve(), where its
    mapping is written back. It is waited for when nobody waits for the silent file any more: at the end of ends."""
    silent_fs.WRITTEN.clear()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        try:
            list(map(os.close, silent_fs.CHANNELS))
            memory = mmap.mmap(os.open(path, os.O_RDWR), 4096)
            os.setresuid(*3 * [65534])
            memory[0] = 1
            client = ac.Client(arbiter.path)
            before(client)
            theirs.send(b'x')
            theirs.recv(1)
            last(client)
            os.execv('/bin/true', ['true'])
        finally:
            theirs.close()
            os._exit(1)
    ends.callback(os.waitpid, pid, 0)
    ends.callback(ours.close)
    theirs.close()
    same(ours.recv(1), b'x')

    def go():
        ours.send(b'x')
        silent_fs.WRITTEN.wait()
    return go


def sends(kind, *fields, fds=()):
    """Without waiting for an answer."""
    return lambda client: client.send(ac.message(kind, *fields, serial=99), fds)


def holder_in_execve(before, last):
    """What a holder has asked for is done when nobody may look at it any more: who behaves waits for nothing."""
    with besides() as (arbiter, good), contextlib.ExitStack() as ends, silent_fs.silent_file(name='written') as silent_path:
        path = arbiter.file()
        path.chmod(0o666)
        file = ends.enter_context(open(path, 'r+b')).fileno()  # pylint: disable=consider-using-with
        go = in_execve(ends, arbiter, silent_path, lambda client: before(client, file), lambda client: last(file)(client))
        with stopped(arbiter):
            go()
        for _ in range(3):
            good.is_served()


def first_lease(then=ac.FAIL):
    return lambda file: sends(ac.LEASE, 1, 0, ac.START, ac.START + ac.SIZE, 0, 0, 1, ac.RECALL, then, 1000, 0, 0, os.getpid(), b'',
                              fds=[file])


def has_a_ring(client, file):
    """And two leases, of which it has named the ring for one."""
    os.dup2(LIBC.syscall(IO_URING_SETUP, 1, ctypes.create_string_buffer(120)), RING)
    for number in (1, 2):
        same(client.lease(file, number).err, 0)
    same(client.ask(ac.HANDLE, 1, 1, RING, 0, 0, 0).err, 0)


def holder_in_execve_at_a_restart():
    """The next pinleased can't look at it, and starts all the same."""
    with Kept() as arbiter, contextlib.ExitStack() as ends, silent_fs.silent_file(name='written') as path, \
            tempfile.NamedTemporaryFile(dir='/var/tmp') as file:
        file.truncate(ac.SIZE)
        os.chmod(file.name, 0o666)
        os.chmod(arbiter.temporary.name, 0o755)
        os.chmod(arbiter.path, 0o666)
        in_execve(ends, arbiter, path, lambda client: same(client.lease(file.fileno()).err, 0), lambda client: None)()
        starts_again(arbiter, file)


def forced_beside_one_in_execve():
    """The worker can't look at who holds the one file, and takes the device of the other's holder off all the same."""
    with ac.Arbiter(PINLEASED, '--ceiling', '2000') as arbiter, contextlib.ExitStack() as ends, \
            silent_fs.silent_file(name='written') as silent_path:
        files = []
        for name in ('one', 'other'):
            arbiter.file(name).chmod(0o666)
            files.append(ends.enter_context(open(arbiter.directory / name, 'r+b')).fileno())  # pylint: disable=consider-using-with
        in_execve(ends, arbiter, silent_path, lambda client: has_a_ring(client, files[0]), lambda client: None)()
        holder = ends.enter_context(arbiter.client())
        ends.callback(os.close, RING)
        has_a_ring(holder, files[1])
        for thread, got in [asked(cut, file) for file in files]:
            thread.join()
            same(got[0] in (0, errno.EBUSY), True)


SILENT_TESTS = [
    ('an actor that gets stuck in execve()', stuck_in_execve),
    ('a holder that gets stuck in execve() with its first lease', lambda: holder_in_execve(lambda client, file: None, first_lease())),
    ('the same, with the policy KILL', lambda: holder_in_execve(lambda client, file: None, first_lease(ac.KILL))),
    ('the same, with a ring that is known', lambda: holder_in_execve(has_a_ring, lambda file: sends(ac.HANDLE, 2, 1, RING, 0, 0, 0))),
    ('the same, at a restart', holder_in_execve_at_a_restart),
    ('a force beside one that is stuck in execve()', forced_beside_one_in_execve),
]

if __name__ == '__main__':
    main(SILENT_TESTS)
