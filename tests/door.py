#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What pinleased is shown, and never gets an answer for: only who shows it waits, and not for long (I7).

usage: door.py PINLEASED
"""
import contextlib
import errno
import os
import pathlib
import socket
import struct
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
from door_rig import asked, children, main, silent, stopped
from hostile import PINLEASED, besides, nobody, same

SILENT = -errno.ETIMEDOUT


def is_shown(ask, *expected):
    """Another user asks this of a silent file; who behaves is served while it isn't known."""
    with besides() as (arbiter, good), silent() as fd, nobody(arbiter) as client:
        thread, got = asked(ask, client, fd)
        good.is_served()
        thread.join()
        same(got[0].err in expected, True)
        good.is_served()
        if got[0].err:
            same(client.until_gone(), [])


def message(ask):
    return lambda: is_shown(ask, SILENT)


def handle(kind):
    """It is named as this for a lease."""
    def ask(client, fd):
        with tempfile.TemporaryFile(dir='/var/tmp') as mine:
            same(client.lease(mine.fileno()).err, 0)
        return client.ask(ac.HANDLE, 1, kind, fd, 0, 0, 0)
    return lambda: is_shown(ask, 0)


def handles_again_and_again():
    """Each may keep a child of pinleased, so it stops asking them: the files for which leases are asked, too."""
    with besides() as (arbiter, good), silent() as fd, nobody(arbiter) as client:
        with tempfile.TemporaryFile(dir='/var/tmp') as mine:
            for number in range(1, 13):
                same(client.lease(mine.fileno(), number, start=ac.START + number * ac.SIZE).err, 0)
        for number in range(1, 13):
            same(client.ask(ac.HANDLE, number, 1, fd, 0, 0, 0).err, 0)
            good.is_served()
        same(children(arbiter) <= 7, True)  # four, and those of the two users who are no trouble


def many():
    """Four of one user's hang, then he is refused; others are served, and so is he when that is over."""
    with besides() as (arbiter, good):
        with silent() as fd, contextlib.ExitStack() as clients:
            waiting = [asked(clients.enter_context(nobody(arbiter)).lease, fd) for _ in range(12)]
            for thread, _ in waiting:
                good.is_served()
                thread.join()
            errors = sorted(got[0].err for _, got in waiting)
            same((errors.count(SILENT), errors.count(-errno.EDQUOT)), (4, 8))
            same(children(arbiter) <= 7, True)
            good.is_served()
        with open(arbiter.file(), 'rb') as file:
            while True:
                with nobody(arbiter) as client, contextlib.suppress(ac.Gone):
                    if client.lease(file.fileno()).err == 0:
                        break


def many_users_hang():
    """One may have many numbers: they have a bound together, too."""
    with besides() as (arbiter, good), silent() as fd, contextlib.ExitStack() as clients:
        waiting = []
        for number in range(70000, 70150):
            os.seteuid(number)
            try:
                waiting += [asked(clients.enter_context(arbiter.client()).lease, fd) for _ in range(3)]
            finally:
                os.seteuid(0)
        for thread, _ in waiting:
            thread.join()
        same({got[0].err for _, got in waiting}, {SILENT, -errno.EDQUOT})
        same(children(arbiter) <= 256 + 16, True)
        good.is_served()


def said_once():
    """However many of a user's hang, the log has one line of it."""
    with tempfile.TemporaryFile(dir='/var/tmp') as log:
        with besides(before=lambda: os.dup2(log.fileno(), 2)) as (arbiter, _), silent() as fd:
            for _ in range(3):
                with nobody(arbiter) as client:
                    same(client.lease(fd).err, SILENT)
        log.seek(0)
        same(log.read().count(b'has shown a file'), 1)


def killed():
    """Whose doorman hangs dies of SIGKILL as ever, and lets all go that it has held."""
    arbiter = ac.Arbiter(PINLEASED)
    try:
        path = arbiter.file()
        # The actor comes first: else it would close the file that nobody can close.
        with ac.Actor() as actor, silent() as fd, arbiter.client() as holder, nobody(arbiter) as client:
            with open(path, 'rb') as file:
                same(holder.lease(file.fileno()).err, 0)
            same(holder.handle().err, 0)
            actor.order('truncate', path)
            holder.notice()
            same(client.lease(fd).err, SILENT)
            same(children(arbiter) > 0, True)
            arbiter.process.kill()
            same((actor.join(), path.stat().st_size), (0, 0))
            holder.until_gone()  # nothing of pinleased's is open in the one that hangs
    finally:
        arbiter.process.kill()
        arbiter.process.wait()
        arbiter.temporary.cleanup()


def not_followed():
    """Nothing is wrong with it but that it is not of this machine's disks."""
    with besides() as (arbiter, _), arbiter.client() as client:
        with open('/proc/self/status', 'rb') as file:
            same(client.cover(file.fileno()).err, -errno.EOPNOTSUPP)
            reply = client.lease(file.fileno())
            same(reply.err, -errno.EOPNOTSUPP)
            same('server' in reply.text, True)
        with open(arbiter.file(), 'rb') as file:
            same(client.lease(file.fileno()).err, 0)


def no_hanging_users(numbers):
    """Each has a connection and is served; what is there for them has a bound."""
    with besides() as (arbiter, good), contextlib.ExitStack() as clients:
        with open(arbiter.file(), 'rb') as file:
            for number in numbers:
                os.seteuid(number)
                try:
                    client = clients.enter_context(arbiter.client())
                finally:
                    os.seteuid(0)
                same(client.lease(file.fileno()).err, 0)
        same(children(arbiter) <= 256 + 16, True)
        good.is_served()


@contextlib.contextmanager
def lingering(number):
    """Sockets whose last close() waits for an hour."""
    with socket.create_server(('127.0.0.1', 0)) as server, contextlib.ExitStack() as ends:
        made = []
        for _ in range(number):
            one = socket.create_connection(server.getsockname())
            ends.enter_context(server.accept()[0])
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while one.send(bytes(1 << 16)):
                    pass
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 3600))
            made.append(one.detach())
        yield made


def last_of_a_socket(before=b''):
    """Before: what ends the connection, so that nothing is read any more."""
    with besides() as (arbiter, good), lingering(3) as fds, nobody(arbiter) as client:
        with stopped(arbiter):  # so that its descriptors are the last
            if before:
                client.send(before)
            for number, fd in enumerate(fds, 1):
                client.send(ac.message(ac.LEASE, number, 0, ac.START, ac.START + ac.SIZE, *[0] * 8, os.getpid(), b''), [fd])
                os.close(fd)
        good.is_served()
        got = client.until_gone()
        same([values[0] for _, _, values in got], [] if before else [SILENT])
        good.is_served()


def last_of_an_empty_packet(before=()):
    """No message at all, yet descriptors come along; an empty packet before it looks like the connection's end."""
    with besides() as (arbiter, good), lingering(1) as fds, nobody(arbiter) as client:
        with stopped(arbiter):
            for packet in before:
                client.send(packet)
            client.send(b'', fds)
            os.close(fds[0])
        same(client.until_gone(), [])
        good.is_served()


def last_of_one_who_is_refused():
    """He has more connections than he may, so that nothing of his is ever read."""
    with besides('--max-connections', '1') as (arbiter, good), lingering(3) as fds, nobody(arbiter):
        with stopped(arbiter):
            refused = [other_user(arbiter) for _ in fds]
            for client, fd in zip(refused, fds):
                client.send(b'', [fd])
                os.close(fd)
        for client in refused:
            same([values[0] for _, _, values in client.until_gone()], [-errno.EDQUOT])
            client.close()
        good.is_served()


def other_user(arbiter):
    """As nobody(), without HELLO."""
    os.seteuid(65534)
    try:
        return arbiter.client(hello=False)
    finally:
        os.seteuid(0)


SILENT_TESTS = [
    ('LEASE of a silent file', message(lambda client, fd: client.lease(fd))),
    ('COVER of a silent file', message(lambda client, fd: client.cover(fd))),
    ('CHANGE of a silent file', message(lambda client, fd: client.answer(client.change(fd)))),
    ('TRUNCATE of a silent file', message(lambda client, fd: client.truncate_later(fd))),
    ('HANDLE naming a silent file as a ring', handle(1)),
    ('HANDLE naming a silent file as a VFIO container', handle(2)),
    ('HANDLE naming a silent file as an RDMA context', handle(4)),
    ('HANDLE again and again', handles_again_and_again),
    ('many of one user hang', many),
    ('many users hang', many_users_hang),
    ('the log has it once', said_once),
    ('killed while one hangs', killed),
]
TESTS = [
    ('file systems that are not watched', not_followed),
    ('many users', lambda: no_hanging_users(range(70000, 70300))),
    ('the last descriptor of a socket that lingers', last_of_a_socket),
    ('the same, left unread', lambda: last_of_a_socket(b'no message')),
    ('the same, in an empty packet', last_of_an_empty_packet),
    ('the same, after an empty packet', lambda: last_of_an_empty_packet([b'', b''])),
    ('the same, of a connection that is refused', last_of_one_who_is_refused),
]

if __name__ == '__main__':
    main(SILENT_TESTS, TESTS)
