#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: supervise_messages.py PINLEASED PINLEASE - what a supervisor says of changes to pinleased: CHANGE, its answer, DONE, and what comes instead."""
import contextlib
import errno
import os
import pathlib
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
from supervise_rig import ALL, PINLEASED, lent, memory, same


@contextlib.contextmanager
def by_hand(*options, **lease):
    """As lent(), with a supervisor that the test is."""
    with lent(*options, **lease) as (arbiter, client, path, fd), arbiter.client() as supervisor:
        yield client, supervisor, path, fd


def cant_lease(client, fd, number, let_go):
    """A change was let go, not before then. That is heeded for a second, and this machine may be busy for longer."""
    err = client.lease(fd, number).err
    same(err, 0 if not err and time.monotonic() > let_go + 1 else -errno.EBUSY)


def messages():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, arbiter.client() as supervisor, memory() as (_, fd):
        same(client.lease(fd).value & ac.SUPERVISED, ac.SUPERVISED)
        same(client.handle().err, 0)
        serial = supervisor.change(fd, actor=os.getppid())
        notice = client.notice()
        same((notice.pid, notice.tid), (os.getppid(), os.getppid()))
        let_go = time.monotonic()
        client.released(notice, whole=1)
        same(supervisor.answer(serial)[:2], (0, 1))
        cant_lease(client, fd, 2, let_go)
        supervisor.done(serial)
        same(supervisor.cover(fd).err, 0)  # so it has been heard
        same(client.lease(fd, 2).err, 0)
        serial = supervisor.change(fd, start=ac.SIZE)  # by then the file may be longer
        same(supervisor.answer(serial)[:2], (0, 1))
        supervisor.done(serial)
        supervisor.done(4711)
        same(supervisor.cover(fd).err, 0)


def told_first():
    """Who sees the change by himself knows what has become of his lease."""
    with by_hand('--ceiling', '100') as (client, supervisor, _, fd):
        same(supervisor.answer(supervisor.change(fd))[:2], (0, 1))
        client.sock.setblocking(False)
        while client.notice().what != ac.LOST:
            pass


def forgotten():
    """A change that is never said to be done keeps nobody out for long."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, arbiter.client() as supervisor, memory() as (_, fd):
        let_go = time.monotonic()
        same(supervisor.answer(supervisor.change(fd))[:2], (0, 1))
        cant_lease(client, fd, 1, let_go)
        same(client.lease_when_free(fd).err, 0)


def withdrawn():
    """A change whose actor is gone, and one whose supervisor is: nobody is told, and the range is free."""
    for gone in (False, True):
        with by_hand() as (client, supervisor, _, fd):
            serial = supervisor.change(fd)
            notice = client.notice()
            if gone:
                supervisor.close()
            else:
                supervisor.done(serial)
                same(supervisor.cover(fd).err, 0)
            client.released(notice, whole=1)
            same(client.lease_when_free(fd, 2).err, 0)
            same(client.handle(2).err, 0)
            if not gone:  # no REPLY
                same(supervisor.cover(fd).err, 0)


def wrong_messages():
    with by_hand(policy=ac.REFUSE, refuse=ALL) as (client, supervisor, path, fd):
        for flags in (os.O_RDONLY, os.O_PATH):
            shown = os.open(path, flags)
            same(supervisor.answer(supervisor.change(shown)).err, -errno.EACCES)
            os.close(shown)
        for wrong in ((5, 0, ac.PAGE), (99, 0, ac.PAGE), (ac.PUNCH, 1, 1), (ac.PUNCH, 2, 1), (ac.TRUNCATE, 1 << 63, 0),
                      (ac.PUNCH, 0, 1 << 63)):
            same(supervisor.answer(supervisor.change(fd, *wrong)).err, -errno.EINVAL)
        same(client.cover(fd).err, 0)
        same(len(client.notices), 0)


def limit():
    """So many changes of one user are under way, and no more."""
    with by_hand() as (client, supervisor, _, fd):
        for _ in range(512):
            supervisor.change(fd)
        same(supervisor.answer(supervisor.change(fd)).err, -errno.EDQUOT)


TESTS = [
    ('CHANGE, REPLY, DONE', messages),
    ('the holder is told before', told_first),
    ('a change that is never done is forgotten', forgotten),
    ('a change that is withdrawn', withdrawn),
    ('changes that make no sense', wrong_messages),
    ('a user\'s changes are limited', limit),
]

if __name__ == '__main__':
    ac.main(TESTS)
