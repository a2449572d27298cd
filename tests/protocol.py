#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/protocol.md is enough to speak with pinleased: a client in Python does.

usage: protocol.py PINLEASED
"""
import contextlib
import errno
import os
import pathlib
import socket
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import tree

PINLEASED = sys.argv[1]
ALL = range(ac.START, ac.START + ac.SIZE)
OF_FILES = sum(1 << op for op in (ac.TRUNCATE, ac.PUNCH, ac.ZERO, ac.COLLAPSE, ac.INSERT, 10))  # 10: REMOVE


def same(got, expected):
    if got != expected:
        raise tree.Failure(f'got {got!r}, expected {expected!r}')


@contextlib.contextmanager
def leased(*options, access=os.O_RDWR, **lease):
    """An arbiter, a client with a lease of a file that is good, an actor."""
    with ac.Arbiter(PINLEASED, *options) as arbiter, arbiter.client() as client, ac.Actor() as actor:
        path = arbiter.file()
        fd = os.open(path, access)
        reply = client.lease(fd, **lease)
        os.close(fd)
        same(reply.err, 0)
        same(client.handle().err, 0)
        yield client, path, actor


def still_waits(actor, path):
    same((actor.process.poll(), path.stat().st_size), (None, ac.SIZE))


def recalled(client, first=0, last=ac.PAGES, op=ac.TRUNCATE):
    notice = client.notice()
    same((notice.what, notice.start, notice.end), (ac.RECALLED, ac.START + first * ac.PAGE, ac.START + last * ac.PAGE))
    same(bool(notice.op == op or notice.also >> op & 1), True)
    same(notice.source, 'files')
    return notice


# ---------------------------------------------------------------------------------------- what it says

def welcome():
    with ac.Arbiter(PINLEASED, '--ceiling', '1234', '--max-leases', '7', '--max-bytes', '65536') as arbiter:
        with arbiter.client() as one, arbiter.client() as two:
            same(one.welcome[:2] + one.welcome[4:], (ac.VERSION, 1234, 0, 7, 65536))
            same(two.welcome.boot, one.welcome.boot)


def cover():
    """What fanotify can: a gate would refuse besides."""
    with ac.Arbiter(PINLEASED, '--gate', 'no') as arbiter, arbiter.client() as client:
        with open(arbiter.file(), 'rb') as file:
            reply = client.cover(file.fileno())
            held = ac.TOLD | ac.BEFORE | ac.HELD | ac.REFUSABLE if ac.kernel_holds_changes() else 0
            same((reply.err, reply.value & 15), (0, held))
            same(client.lease(file.fileno()).value, reply.value)


def whole():
    with leased(access=os.O_RDONLY) as (client, path, actor):
        actor.order('truncate', path)
        notice = recalled(client)
        same(notice.pid, actor.process.pid)
        still_waits(actor, path)
        client.released(notice, whole=1)
        same((actor.join(), path.stat().st_size), (0, 0))
        client.unlease()


def partial():
    with leased() as (client, path, actor):
        actor.order('punch', path, 2 * ac.PAGE, ac.PAGE)
        notice = recalled(client, 2, 3, ac.PUNCH)
        still_waits(actor, path)
        client.released(notice, notice.start, notice.end)
        same(actor.join(), 0)
        same(actor.do('punch', path, 2 * ac.PAGE, ac.PAGE), 0)  # that part is leased no more
        actor.order('truncate', path, 3 * ac.PAGE)
        notice = recalled(client, 3)
        client.released(notice, notice.start, notice.end)
        same(actor.join(), 0)
        actor.order('truncate', path)
        notice = recalled(client, 0, 2)
        client.released(notice, whole=1)
        same(actor.join(), 0)


def many_parts():
    """However many there are, what isn't released is guarded."""
    with leased() as (client, path, actor):
        for page in range(0, ac.PAGES, 2):
            actor.order('punch', path, page * ac.PAGE, ac.PAGE)
            client.released(notice := recalled(client, page, page + 1, ac.PUNCH), notice.start, notice.end)
            same(actor.join(), 0)
        for page in range(1, 5, 2):
            actor.order('punch', path, page * ac.PAGE, ac.PAGE)
            client.released(notice := recalled(client, page, page + 1, ac.PUNCH), notice.start, notice.end)
            same(actor.join(), 0)
        actor.order('punch', path, 9 * ac.PAGE, ac.PAGE)
        notice = recalled(client, 9, 10, ac.PUNCH)
        still_waits(actor, path)
        client.released(notice, whole=1)
        same(actor.join(), 0)


def followed():
    with leased(policy=ac.FOLLOW) as (client, path, actor):
        for _ in range(3):
            actor.order('truncate', path)
            notice = recalled(client)
            still_waits(actor, path)
            client.released(notice)
            same((actor.join(), path.stat().st_size), (0, 0))
            os.truncate(path, ac.SIZE)


def seq_grows():
    with leased(policy=ac.FOLLOW) as (client, path, actor):
        seqs = []
        for _ in range(3):
            actor.order('punch', path, 0, ac.PAGE)
            seqs.append(recalled(client, 0, 1, ac.PUNCH))
            client.released(seqs[-1])
            same(actor.join(), 0)
        same(sorted({n.seq for n in seqs}), [n.seq for n in seqs])


def unlease():
    with leased() as (client, path, actor):
        client.unlease()
        same(client.handle().err, -errno.ENOENT)
        same(actor.do('truncate', path), 0)
        os.truncate(path, ac.SIZE)
        with open(path, 'rb') as file:
            same(client.lease_when_free(file.fileno()).err, 0)
        same(client.handle().err, 0)
        actor.order('truncate', path)
        client.released(recalled(client), whole=1)
        same(actor.join(), 0)


def unlease_answers():
    with leased() as (client, path, actor):
        actor.order('truncate', path)
        recalled(client)
        client.unlease()
        same((actor.join(), path.stat().st_size), (0, 0))


def refused():
    with leased(policy=ac.REFUSE, refuse=1 << ac.TRUNCATE) as (client, path, actor):
        same(actor.do('truncate', path), errno.EBUSY)
        notice = client.notice()
        same((notice.what, notice.start, notice.end, notice.pid), (ac.REFUSED, ALL.start, ALL.stop, actor.process.pid))
        same(path.stat().st_size, ac.SIZE)


def weaker():
    """Who comes back with leases that another has taken hears what this one can't refuse, and that nobody is made to wait for
    them; who has just leased knows."""
    with ac.Arbiter(PINLEASED, '--gate', 'no') as arbiter, os.fdopen(os.memfd_create('weaker'), 'r+b') as file:
        file.truncate(ac.SIZE)
        for resume in (1, 0):
            with arbiter.client(hello=False) as client:
                client.hello(resume=resume)
                operations = 1 << ac.TRUNCATE | 1 << ac.PUNCH
                for number in (1, 2):
                    same(client.lease(file.fileno(), number, start=number * ac.START, policy=(ac.REFUSE, ac.RECALL)[number - 1],
                                      refuse=operations if number == 1 else 0).err, 0)
                told = [client.notice() for _ in range(2)] if resume else []
                same(client.handle(9).err, -errno.ENOENT)  # what was to be told has been
                same([(n.what, n.lease, n.start, n.end, n.op, n.also, n.source) for n in (*told, *client.notices)],
                     [(ac.WEAKER, n, n * ac.START, n * ac.START + ac.SIZE, ac.TRUNCATE, also, 'arbiter')
                      for n, also in ((1, operations), (2, OF_FILES))] if resume else [])


def kept():
    with leased(policy=ac.KEEP, flags=ac.PINNED) as (client, path, actor):
        same(actor.do('truncate', path), 0)
        same(client.notice().what, ac.LOST)


def same_number():
    with leased() as (client, path, actor):
        with open(path, 'rb') as file:
            same(client.lease(file.fileno(), then=ac.SCRATCH).err, 0)  # nothing is done
        actor.order('truncate', path)
        client.released(recalled(client), whole=1)
        same(actor.join(), 0)
        same(client.handle().err, -errno.EBUSY)  # it was taken back


def other_range():
    """The number is another lease's now."""
    with leased() as (client, path, actor):
        with open(path, 'rb') as file:
            same(client.lease(file.fileno(), start=ac.START * 2).err, 0)
        same(client.handle().err, 0)
        actor.order('truncate', path)
        notice = client.notice()
        same((notice.start, notice.end), (ac.START * 2, ac.START * 2 + ac.SIZE))
        client.released(notice, whole=1)
        same(actor.join(), 0)


def with_two(arbiter):
    """A connection that has leases 1 and 2, of two files; and the files."""
    files = arbiter.file(), arbiter.file('other')
    client = arbiter.client()
    for number, path in enumerate(files, 1):
        with open(path, 'rb') as shown:
            same(client.lease(shown.fileno(), number).err, 0)
        same(client.handle(number).err, 0)
    return client, *files


@contextlib.contextmanager
def goes_on(arbiter, client, session):
    """Another connection, on which the session goes on when the client's has ended: at once, as its leases stay for a second."""
    with arbiter.client(hello=False) as again:
        client.close()
        welcomed = again.hello(resume=session)
        same((welcomed.resumed, welcomed.session), (1, session))
        yield again


def resumed():
    """Who connects again goes on with what it tells of, and what it doesn't has ended."""
    with ac.Arbiter(PINLEASED) as arbiter, ac.Actor() as actor:
        client, path, other = with_two(arbiter)
        session = client.welcome.session
        with goes_on(arbiter, client, session) as again:
            again.send(ac.message(ac.STILL, 1))
            again.send(ac.message(ac.ALL_TOLD))
            same(again.ask(ac.STILL, 7).err, -errno.ENOENT)
            same(actor.do('truncate', other), 0)
            actor.order('truncate', path)
            again.released(recalled(again), whole=1)
            same(actor.join(), 0)
        with arbiter.client(hello=False) as stranger:
            same(stranger.hello(resume=session + 1).resumed, 0)


def resumed_without_some():
    """Of all that isn't known the first is said; one connection's ALL_TOLD isn't passed over for what another asked."""
    with ac.Arbiter(PINLEASED) as arbiter, ac.Actor() as actor:
        client, path, other = with_two(arbiter)
        session = client.welcome.session
        with goes_on(arbiter, client, session) as once:
            for number in 7, 8, 1:
                once.send(ac.message(ac.STILL, number, serial=number))
            kind, serial, values = once.receive()
            same((kind, serial, values[0]), (ac.REPLY, 7, -errno.ENOENT))
            same(once.handle(1).err, 0)
            with goes_on(arbiter, once, session) as again:
                again.send(ac.message(ac.STILL, 1))
                again.send(ac.message(ac.ALL_TOLD))
                same(actor.do('truncate', other), 0)
                actor.order('truncate', path)
                again.released(recalled(again), whole=1)
                same(actor.join(), 0)


def two_of_a_file():
    with leased() as (client, path, actor):
        with open(path, 'rb') as file:
            same(client.lease(file.fileno(), 2, ac.START * 2).err, 0)
        same(client.handle(2).err, 0)
        actor.order('truncate', path)
        notices = [client.notice(), client.notice()]
        same(sorted(n.lease for n in notices), [1, 2])
        client.released(notices[0], whole=1)
        still_waits(actor, path)
        client.released(notices[1], whole=1)
        same(actor.join(), 0)


def listed():
    with leased() as (client, path, _):
        entries, reply = client.listed(ac.LIST, path.stat().st_dev, path.stat().st_ino, os.getpid(), 0)
        same((reply.err, reply.value, [(kind, values[:2], values[8]) for kind, values in entries]),
             (0, 1, [(ac.ENTRY, (1, ac.START), os.getpid())]))


def recall_leases():
    with leased() as (client, path, _):
        client.order_recall(path)
        notice = client.notice()
        same((notice.what, notice.op, notice.source, notice.pid), (ac.RECALLED, ac.NO_OPERATION, 'recall', os.getpid()))
        client.released(notice, whole=1)
        (event,), reply = client.recalled()
        same((event.what, event.err, event.outcome, event.lease, reply.value), (ac.E_RECALLED, 0, ac.QUIESCED, 1, 1))


def watch():
    with leased() as (client, path, _):
        same(client.watch(path).err, 0)
        client.unlease()
        event = client.event()
        same((event.what, event.lease, event.pid), (ac.E_ENDED, 1, os.getpid()))


def status():
    with leased() as (client, _, _):
        said, sources, users = client.status()
        same((said.boot, said.leases, said.ceiling_ms), (client.welcome.boot, 1, 100000))
        same((sorted(line.split(':')[0] for line in sources), [(user.uid, user.leases) for user in users]), (['files', 'gate'], [(0, 1)]))
def deferred():
    with leased() as (client, path, _):
        with shown(path, os.O_RDWR) as fd:
            same(client.truncate_later(fd, 8).err, 0)
            same(client.truncate_later(fd, 9, ac.PAGE).err, 0)
        notice = client.notice()
        same((notice.source, notice.pid, path.stat().st_size), ('later', os.getpid(), ac.SIZE))
        client.released(notice, whole=1)
        same([client.changed(), client.changed()], [(8, 0), (9, 0)])
        same(path.stat().st_size, ac.PAGE)


def not_deferred():
    """The descriptor is to show the right; and one user keeps so many and no more waiting."""
    with leased() as (client, path, _):
        with shown(path, os.O_RDONLY) as fd:
            same(client.truncate_later(fd).err, -errno.EACCES)
        with os.fdopen(os.memfd_create('x'), 'wb') as memory:
            same(client.truncate_later(memory.fileno()).err, -errno.EOPNOTSUPP)
        with shown(path, os.O_RDWR) as fd:
            for wrong in ({'size': -1}, {'mode': 1}, {'mode': 3}, {'mode': 3, 'size': 1, 'offset': -1}, {'mode': 1 << 31, 'size': 1}):
                same(client.truncate_later(fd, **wrong).err, -errno.EINVAL)
            same({client.truncate_later(fd, n).err for n in range(64)}, {0})
            same(client.truncate_later(fd, 64).err, -errno.EDQUOT)
        client.released(client.notice(), whole=1)
        same([client.changed() for _ in range(64)], [(n, 0) for n in range(64)])


# ---------------------------------------------------------------------------------------------- errors

@contextlib.contextmanager
def shown(path, flags):
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def refuses(client, fd, error, **lease):
    reply = client.lease(fd, **lease)
    same((reply.err, bool(reply.text), reply.value), (-error, True, 0))


def wrong_rights():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client:
        path = arbiter.file()
        with shown(path, os.O_PATH) as fd:
            refuses(client, fd, errno.EACCES)
            same(client.cover(fd).err, -errno.EACCES)
        with shown(path, os.O_RDONLY) as fd:
            refuses(client, fd, errno.EACCES, flags=ac.WRITE)
        with shown(path, os.O_WRONLY) as fd:
            refuses(client, fd, errno.EACCES)
            same(client.lease(fd, flags=ac.WRITE).err, 0)


def reader():
    """Who may not change a file keeps nobody from it, and not for long (R12)."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client, ac.Actor() as actor:
        path = arbiter.file()
        with shown(path, os.O_RDONLY) as fd:
            refuses(client, fd, errno.EACCES, policy=ac.REFUSE, refuse=1 << ac.TRUNCATE)
            same(client.lease(fd, grace_ms=600000).err, 0)
        actor.order('truncate', path)
        notice = client.notice()
        if notice.deadline_ns > time.monotonic_ns() + 1000000000:
            raise tree.Failure(f'a deadline {notice.deadline_ns - time.monotonic_ns()} ns away')
        client.released(notice, whole=1)
        same(actor.join(), 0)
        with shown(path, os.O_RDWR) as fd:
            same(client.lease_when_free(fd, 2, start=ac.START * 2, policy=ac.REFUSE, refuse=1 << ac.TRUNCATE).err, 0)


def names():
    """A file's name is kept for its owner only (R12), and for nobody without a gate."""
    if os.geteuid():
        raise tree.Skip('root')
    with ac.Arbiter(PINLEASED, '--gate', 'no') as arbiter, arbiter.client() as roots:
        arbiter.path.chmod(0o666)
        os.seteuid(65534)
        try:
            client = arbiter.client()
        finally:
            os.seteuid(0)
        with client, shown(arbiter.file(), os.O_RDWR) as fd:
            same(roots.cover(fd).value & ac.NAMES, 0)
            refuses(client, fd, errno.EACCES, policy=ac.KEEP, flags=ac.WRITE | ac.KEEP_NAME)
            os.fchown(fd, 65534, 65534)
            for one in client, roots:
                refuses(one, fd, errno.EOPNOTSUPP, policy=ac.KEEP, flags=ac.WRITE | ac.KEEP_NAME)
            same(client.lease(fd, policy=ac.KEEP, flags=ac.WRITE).err, 0)


def has_a_doorman(arbiter, client):
    """From the first file that is shown on, and pinleased some descriptors more."""
    with open(arbiter.file('door'), 'rb') as file:
        same(client.cover(file.fileno()).err, 0)


def wrong_files():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client:
        has_a_doorman(arbiter, client)
        figures = arbiter.figures()
        left, right = os.pipe()
        with shown('/var/tmp', os.O_RDONLY) as directory, shown('/dev/null', os.O_RDWR) as null, \
                socket.socket(socket.AF_UNIX) as sock:
            for fd in (directory, left, right, null, sock.fileno(), os.eventfd(0), os.pidfd_open(os.getpid())):
                refuses(client, fd, errno.EINVAL)
                same(client.cover(fd).err, -errno.EINVAL)
        arbiter.wait_for_figures(figures)


def memory_file():
    """Regular, but nothing can hold a change of it, and that is said. What to make of it is the holder's affair."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client:
        fd = os.memfd_create('x')
        os.truncate(fd, ac.SIZE)
        same((client.cover(fd).err, client.cover(fd).value & ac.HELD), (0, 0))
        same((client.lease(fd).err, client.lease(fd).value & ac.HELD), (0, 0))
        os.close(fd)


def wrong_numbers():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as client:
        has_a_doorman(arbiter, client)
        figures = arbiter.figures()
        top = 1 << 64
        with shown(arbiter.file(), os.O_RDWR) as fd:
            for lease in ({'size': 0}, {'size': -ac.PAGE}, {'size': 100}, {'start': ac.START + 1},
                          {'start': top - 2 * ac.PAGE, 'size': ac.PAGE}, {'offset': top - ac.PAGE}, {'offset': 1},
                          {'offset': (1 << 63) - ac.PAGE}, {'flags': 4}, {'flags': 1 << 31}, {'policy': 4},
                          {'policy': 1 << 31}, {'then': 4}, {'policy': ac.REFUSE},
                          {'policy': ac.REFUSE, 'refuse': 1 << 31}, {'number': top - 1}):
                try:
                    refuses(client, fd, errno.EINVAL, **lease)
                except tree.Failure as failure:
                    raise tree.Failure(f'{lease}: {failure}') from failure
            same(client.lease(fd, number=top - 2).err, 0)
            same(client.lease(fd, number=0, start=2 * ac.START).err, 0)
            client.unlease(0)
            client.unlease(top - 2)
            client.unlease(top - 1)
            same(client.cover(fd).err, 0)
        arbiter.wait_for_figures((figures[0], arbiter.figures()[1]))


def other_handles():
    """What isn't in the holder's table, or is no ring, is no way to force it; the lease is good without."""
    with leased() as (client, _, _):
        for kind in (1, 2, 3, 4):
            for fd in (-1, 0, 1 << 30, client.sock.fileno()):
                same(client.ask(ac.HANDLE, 1, kind, fd, 0, 0, 0).err, 0)
        same(client.ask(ac.HANDLE, 1, 5, 0, 0, 0, 0).err, -errno.EINVAL)


def other_version():
    with ac.Arbiter(PINLEASED) as arbiter:
        for version in (0, ac.VERSION - 1, ac.VERSION + 1, 1 << 31):
            with arbiter.client(hello=False) as client:
                same(client.hello(version).err, -errno.EPROTONOSUPPORT)
                same(client.until_gone(), [])


def counted():
    with ac.Arbiter(PINLEASED, '--gate', 'no') as arbiter, arbiter.client() as client:
        maps, reply = client.count_changes()
        if reply.err in (-errno.EOPNOTSUPP, -errno.EPERM):
            same((maps, 'count changes' in reply.text), ([], True))
            raise tree.Skip(reply.text)
        same(reply.err, 0)
        same([m[:2] for m in maps], [(0, 0), (1, 0)])
        same((maps[0][2] > 65536, maps[1][2]), (True, 65536))
        maps, reply = client.count_changes()
        same((maps, reply.err, 'this connection' in reply.text), ([], -errno.EBUSY, True))
        with arbiter.client() as other:
            maps, reply = other.count_changes()
            same((maps, reply.err, 'another connection' in reply.text), ([], -errno.EBUSY, True))
            client.close()
            maps, reply = other.count_changes()
            same((len(maps), reply.err), (2, 0))


def limits():
    with ac.Arbiter(PINLEASED, '--max-leases', '3', '--max-bytes', str(2 * ac.SIZE)) as arbiter, \
            arbiter.client() as client, shown(arbiter.file(), os.O_RDWR) as fd:
        for n in range(3):
            same(client.lease(fd, n, ac.START * (n + 1), ac.PAGE).err, 0)
        refuses(client, fd, errno.EDQUOT, number=4, start=ac.START * 5)
        client.unlease(0)
        refuses(client, fd, errno.EDQUOT, number=4, start=ac.START * 5, size=2 * ac.SIZE)
        same(client.lease(fd, 4, ac.START * 5).err, 0)
    with ac.Arbiter(PINLEASED, '--max-leases', '1') as arbiter, arbiter.client() as client, shown(arbiter.file(), os.O_RDWR) as fd:
        same(client.lease(fd).err, 0)
        same('has 1 lease of 65536 bytes' in client.lease(fd, 2, ac.START * 2).text, True)


TESTS = [
    ('HELLO is answered by WELCOME', welcome),
    ('COVER says what LEASE says', cover),
    ('a truncate waits for RELEASED, whole', whole),
    ('a truncate waits for RELEASED, in part', partial),
    ('parts in any number', many_parts),
    ('a truncate waits for RELEASED, followed', followed),
    ("a notice's seq grows", seq_grows),
    ('UNLEASE ends a lease, and its number is free', unlease),
    ('UNLEASE is an answer, too', unlease_answers),
    ('who refuses is told of it', refused),
    ('who refused and does so no more is told of it', weaker),
    ('who keeps is told of it', kept),
    ('a lease told twice is one', same_number),
    ('a number with another range is another lease', other_range),
    ('a connection is resumed', resumed),
    ('a connection is resumed, and not all is known', resumed_without_some),
    ('two leases of a file are two notices, and both are waited for', two_of_a_file),
    ('LIST has an ENTRY for each', listed),
    ('RECALL_LEASES has an EVENT for each', recall_leases),
    ('WATCH has EVENTs from then on', watch),
    ('ASK_STATUS has STATUS, SOURCEs and USERs', status),
    ('TRUNCATE is done when no lease is under it, in order', deferred),
    ('TRUNCATE that is not taken', not_deferred),
    ('a descriptor without the right shows nothing', wrong_rights),
    ('who can only read refuses nothing, and has a short grace', reader),
    ('names', names),
    ('what is no regular file is no lease', wrong_files),
    ('a memory file is told of as what it is', memory_file),
    ('numbers that make no sense are EINVAL', wrong_numbers),
    ('handles that make no sense', other_handles),
    ('another version is refused', other_version),
    ("a user's limits are EDQUOT", limits),
    ('COUNT has two COUNTED, for one connection of a process', counted),
]

if __name__ == '__main__':
    ac.main(TESTS)
