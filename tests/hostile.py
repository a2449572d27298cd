#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hostile clients of pinleased: each is let go, or bounded, and who behaves is served all the while (I7).

usage: hostile.py PINLEASED
"""
import contextlib
import errno
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import tree

PINLEASED = sys.argv[1]
NOBODY = 65534
MANY = 2000


def same(got, expected):
    if got != expected:
        raise tree.Failure(f'got {got!r}, expected {expected!r}')


class Good:
    """Somebody who behaves, with a file of his own."""

    def __init__(self, arbiter):
        self.client = arbiter.client()
        self.path = arbiter.file('good')
        self.fd = os.open(self.path, os.O_RDWR)
        self.actor = ac.Actor()

    def close(self):
        self.client.close()
        os.close(self.fd)
        self.actor.__exit__()

    def is_served(self):
        """A lease, a truncate that waits for the answer to its notice, the lease's end."""
        os.truncate(self.path, ac.SIZE)
        same(self.client.lease_when_free(self.fd, flags=ac.WRITE).err, 0)
        same(self.client.handle().err, 0)
        self.actor.order('truncate', self.path)
        notice = self.client.notice()
        same((notice.what, notice.pid, self.path.stat().st_size), (ac.RECALLED, self.actor.process.pid, ac.SIZE))
        self.client.released(notice, whole=1)
        same((self.actor.join(), self.path.stat().st_size), (0, 0))
        self.client.unlease()
        same(self.client.handle().err, -errno.ENOENT)  # that has been read


@contextlib.contextmanager
def besides(*options, before=None):
    """An arbiter that serves somebody good before, meanwhile and after; then nothing is left of the others."""
    with ac.Arbiter(PINLEASED, *options, before=before) as arbiter:
        good = Good(arbiter)
        try:
            good.is_served()
            figures = arbiter.figures()
            yield arbiter, good
            good.is_served()
            arbiter.wait_for_figures(figures)
        finally:
            good.close()


def each_is_let_go(packets):
    """Each packet, on a connection that has said HELLO, with (packet, fds) for more."""
    with besides() as (arbiter, good):
        for packet in packets:
            packet, fds = packet if isinstance(packet, tuple) else (packet, ())
            with arbiter.client() as client:
                with contextlib.suppress(ac.Gone):
                    client.send(packet, fds)
                got = client.until_gone()
                if got:
                    raise tree.Failure(f'{packet[:24]!r} with {len(fds)} descriptors is answered: {got}')
        good.is_served()


# ------------------------------------------------------------------------------------------ messages

def no_hello():
    with besides() as (arbiter, good):
        for kind in (ac.LEASE, ac.HANDLE, ac.UNLEASE, ac.RELEASED, ac.COVER, ac.LIST, ac.RECALL_LEASES, ac.WATCH, ac.ASK_STATUS,
                     ac.COUNT):
            fds = [good.fd] if kind in (ac.LEASE, ac.COVER) else []
            with arbiter.client(hello=False) as client:
                client.send(zeroed(kind), fds)
                same(client.until_gone(), [])
        with arbiter.client(hello=False):
            good.is_served()  # who says nothing at all is in nobody's way


def zeroed(kind):
    return ac.HEAD.pack(ac.HEAD.size + ac.BODY[kind].size, kind, 0, 0) + bytes(ac.BODY[kind].size)


def two_hellos():
    each_is_let_go([zeroed(ac.HELLO)])


def wrong_sizes():
    packets = []
    for kind, body in ac.BODY.items():
        size = ac.HEAD.size + body.size
        for n in (size - 8, size - 1, size + 1, size + 8, 0, 1, 1 << 31, (1 << 32) - 1):
            packets.append(ac.HEAD.pack(n, kind, 0, 0) + bytes(body.size))  # not the packet's
            if ac.HEAD.size <= n < 4096:
                packets.append(ac.HEAD.pack(n, kind, 0, 0) + bytes(n - ac.HEAD.size))  # the packet's, not the type's
    packets += [bytes(n) for n in (1, 4, 8, 15, 16, 17, 4096, 100000)]
    each_is_let_go(packets)


def wrong_types():
    each_is_let_go([ac.HEAD.pack(16, kind, 0, 0) for kind in (0, 11, 63, 64, 71, 255, 256, 32768, 65535)])


def arbiters_types():
    each_is_let_go([zeroed(kind) for kind in (ac.WELCOME, ac.REPLY, ac.NOTICE, ac.ENTRY, ac.EVENT, ac.STATUS, ac.SOURCE, ac.USER,
                                               ac.COUNTED)])


def unknown_flags():
    each_is_let_go([ac.HEAD.pack(32, ac.UNLEASE, flags, 0) + bytes(16) for flags in (1, 32768)])


def no_ends():
    with open('/dev/null', 'rb') as null:
        each_is_let_go([(ac.message(ac.LEASE, *[0] * 13, b'd' * 16), [null.fileno()])])
    with besides() as (arbiter, _), arbiter.client(hello=False) as client:
        client.send(ac.message(ac.HELLO, 2, 0, b'n' * 32, 0))
        same(client.until_gone(), [])


def descriptors():
    with open('/dev/null', 'rb') as null:
        fd = null.fileno()
        each_is_let_go([(zeroed(ac.LEASE), [fd] * n) for n in (0, 2, 4, 5, 253)] +
                       [(zeroed(ac.COVER), [fd] * n) for n in (0, 2, 4, 5, 253)] +
                       [(zeroed(kind), [fd] * n) for kind in (ac.HELLO, ac.UNLEASE, ac.NOTICE, 7, ac.COUNT) for n in (1, 4, 253)
                        if kind in ac.BODY] + [(b'x', [fd] * 253)])


def other_descriptors():
    """They are looked at, refused, and closed: the other end sees it."""
    with besides() as (arbiter, good), arbiter.client() as client:
        for make in (os.pipe, lambda: [s.detach() for s in socket.socketpair()]):
            kept, given = make()
            same(client.lease(given).err, -errno.EINVAL)
            os.close(given)
            with open(kept, 'rb') as end:
                same(end.read(), b'')  # nobody has the other one
        given = client.sock.fileno()
        same(client.lease(given).err, -errno.EINVAL)
        same(client.lease(os.open('/proc/self/mem', os.O_RDWR), flags=ac.WRITE).err in (0, -errno.EOPNOTSUPP, -errno.EINVAL), True)
        good.is_served()


def counts_without_end():
    """Again and again, and gone before it is answered; then what it took is free."""
    with ac.Arbiter(PINLEASED, '--gate', 'no') as arbiter, arbiter.client() as first, contextlib.closing(Good(arbiter)) as good:
        good.is_served()
        counted = first.count_changes()[1].err  # from then on there is a thread more
        figures = arbiter.figures()
        for _ in range(50):
            with arbiter.client() as client:
                for _ in range(20):
                    client.send(ac.message(ac.COUNT))
            with arbiter.client() as client:
                client.send(ac.message(ac.COUNT))
                client.send(zeroed(ac.COVER))  # without a descriptor: let go
        good.is_served()
        arbiter.wait_for_figures(figures)
        same(first.count_changes()[1].err, counted or -errno.EBUSY)


# ------------------------------------------------------------------------------------------- numbers

def others_numbers():
    """Nobody's recall is answered, nor lease ended, by another connection."""
    with besides() as (arbiter, good), arbiter.client() as client, ac.Actor() as actor:
        path = arbiter.file('kept')
        with open(path, 'r+b') as file, arbiter.client() as holder:
            same(holder.lease(file.fileno()).err, 0)
            same(holder.handle().err, 0)
            actor.order('truncate', path)
            notice = holder.notice()
            client.released(notice, whole=1)
            client.released(notice, notice.start, notice.end)
            client.released(notice)
            client.unlease(1)
            same(client.handle(1).err, -errno.ENOENT)
            same(client.cover(file.fileno()).err, 0)  # it has read all that
            good.is_served()
            same(path.stat().st_size, ac.SIZE)
            holder.released(notice, whole=1)
            same(actor.join(), 0)
            holder.unlease()


def wrong_answers():
    start, end, page = ac.START, ac.START + ac.SIZE, ac.PAGE
    top = (1 << 64) - page
    with besides() as (arbiter, good):
        for fields in ((start - page, end, 0, 1), (start, end + page, 0, 1), (end, start, 0, 1), (0, top, 0, 1), (0, page, 0, 1),
                       (start, start, 0, 1), (start + 1, start + 2, 0, 1), (start, end, 0, 5), (start, end, 1, 1 << 31)):
            with arbiter.client() as client:
                same(client.lease_when_free(good.fd).err, 0)
                same(client.handle().err, 0)
                client.send(ac.message(ac.RELEASED, 1, 1, *fields))
                same((fields, client.until_gone()), (fields, []))


def answers_before_they_are_asked():
    with besides() as (arbiter, good), arbiter.client() as client, ac.Actor() as actor:
        path = arbiter.file('early')
        with open(path, 'rb') as file:
            same(client.lease(file.fileno()).err, 0)
            same(client.handle().err, 0)
            for seq in range(1000):
                client.send(ac.message(ac.RELEASED, 1, seq, 0, 0, 0, 1))
                client.send(ac.message(ac.RELEASED, 1, (1 << 64) - 1 - seq, ac.START, ac.START + ac.PAGE, 0, 1))
            actor.order('truncate', path)
            notice = client.notice()
            for seq in (0, notice.seq - 1, notice.seq + 1, (1 << 64) - 1) * 100:
                client.send(ac.message(ac.RELEASED, 1, seq, 0, 0, 0, 1))
            same(client.cover(file.fileno()).err, 0)
            same(path.stat().st_size, ac.SIZE)
            client.released(notice, whole=1)
            same(actor.join(), 0)
            client.unlease()


# ---------------------------------------------------------------------------------------------- masses

def nobody(arbiter):
    """Another user's connection."""
    os.seteuid(NOBODY)
    try:
        return arbiter.client()
    finally:
        os.seteuid(0)

def thousands_of_connections():
    """One user's, of whom the limit lets in some; another's go on, and it is his again when they are gone."""
    with besides('--max-connections', '100') as (arbiter, good):
        clients, served = [], 0
        for _ in range(MANY):
            os.seteuid(NOBODY)
            try:
                clients.append(arbiter.client(hello=False))
            finally:
                os.seteuid(0)
            try:
                served += isinstance(clients[-1].hello(), ac.Welcome)
            except ac.Gone:
                pass
        same(served, 100)
        good.is_served()
        for client in clients:
            client.close()


def no_descriptors_left():
    """Where they run out, who comes is turned away at once, and who is there goes on."""
    few = (100, 100)
    with besides('--max-connections', '1000', before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, few)) as (arbiter, _):
        figures, clients, gone = arbiter.figures(), [], 0
        for _ in range(200):
            clients.append(arbiter.client(hello=False))
            try:
                gone += not isinstance(clients[-1].hello(), ac.Welcome)
            except ac.Gone:
                gone += 1
        same(gone > 100, True)
        for client in clients:
            client.close()
        arbiter.wait_for_figures(figures)


def shares_of_descriptors():
    """One user leases file after file: when few descriptors are left he gets no more, and another does."""
    few = (200, 200)
    with besides(before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, few)) as (arbiter, good):
        with nobody(arbiter) as client:
            error = 0
            for n in range(1, 201):
                with open(arbiter.file(f'file-{n}'), 'rb') as file:
                    error = client.lease(file.fileno(), n, start=n * ac.START).err
                if error:
                    break
            same(error, -errno.EDQUOT)
            for _ in range(5):
                with arbiter.client() as other, open(arbiter.file(), 'rb') as file:
                    same(other.lease(file.fileno()).err, 0)
            good.is_served()


BLOCKED = '''
import errno, os, sys, threading
threading.stack_size(65536)
path, n = sys.argv[1], int(sys.argv[2])
os.setuid(int(sys.argv[3]))
left, lock, refused = [n], threading.Lock(), threading.Event()
def one():
    try:
        os.truncate(path, 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            refused.set()
for _ in range(n):
    threading.Thread(target=one, daemon=True).start()
refused.wait()
print('refused', flush=True)
sys.stdin.read()
os._exit(0)
'''


def all_places_for_changes():
    """Who keeps a thousand actors waiting on his own file is refused more; others' changes are held still."""
    with besides() as (arbiter, good), nobody(arbiter) as client:
        path = arbiter.file('crowd')
        os.chmod(path, 0o666)
        with open(path, 'rb') as file:
            same(client.lease(file.fileno(), grace_ms=600000).err, 0)
            same(client.handle().err, 0)
        with subprocess.Popen([sys.executable, '-c', BLOCKED, str(path), '1100', str(NOBODY)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as crowd:
            same(crowd.stdout.readline(), 'refused\n')
            good.is_served()
            client.close()  # lets all go
            crowd.communicate()


def many_leave_at_once():
    """Whether they are about to end is asked of all of them at once: a dead holder's actor waits for none of that."""
    with besides() as (arbiter, good), ac.Actor() as actor:
        path = arbiter.file('dead')
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            with arbiter.client() as client:
                with open(path, 'rb') as file:
                    same(client.lease(file.fileno()).err, 0)
                    same(client.handle().err, 0)
                os.write(theirs, b'.')
                signal.pause()
        os.read(ours, 1)
        clients = [arbiter.client() for _ in range(300)]
        for client in clients:
            same(client.lease_when_free(good.fd).err, 0)
        actor.order('truncate', path)
        for client in clients:
            client.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        same(actor.join(), 0)
        os.close(ours)
        os.close(theirs)


def recalled(client, actor, path):
    """The least and the most time that a lease of a minute's grace may have been given: when it was is not known exactly."""
    with open(path, 'r+b') as file:
        os.truncate(path, ac.SIZE)
        same(client.lease_when_free(file.fileno(), grace_ms=60000).err, 0)
        same(client.handle().err, 0)
    before = time.monotonic_ns()
    actor.order('truncate', path)
    notice = client.notice()
    return notice, notice.deadline_ns - time.monotonic_ns(), notice.deadline_ns - before


def answered(client, actor, notice):
    client.released(notice, whole=1)
    same(actor.join(), 0)
    client.unlease()


def holds_others_up():
    """Who has used up his time of a minute has the least grace there is; others have theirs."""
    ms = 1000000
    with besides('--max-hold', '3000') as (arbiter, _), nobody(arbiter) as client, ac.Actor() as actor:
        path = arbiter.file('held')
        notice, least, _ = recalled(client, actor, path)
        same(least <= 3000 * ms, True)
        while time.monotonic_ns() < notice.deadline_ns + 50 * ms:
            time.sleep(0.01)
        used_up = time.monotonic_ns()
        answered(client, actor, client.notice())  # told again, as nothing has come of the force
        notice, least, _ = recalled(client, actor, path)
        same(least <= 50 * ms + (time.monotonic_ns() - used_up) * 3000 // 60000, True)  # all of it is his again in a minute
        answered(client, actor, notice)
        with arbiter.client() as other:
            notice, _, most = recalled(other, actor, path)
            same(most > 500 * ms, True)
            answered(other, actor, notice)


def makes_leases_to_be_recalled():
    with besides('--max-notices', '20') as (arbiter, _), nobody(arbiter) as client, ac.Actor() as actor:
        path = arbiter.file('again')
        begun = time.monotonic()
        for _ in range(20):
            answered(client, actor, recalled(client, actor, path)[0])
        with open(path, 'r+b') as file:
            while not client.lease_when_free(file.fileno()).err:  # as a third of a minute may give one back
                same(time.monotonic() > begun + 3, True)
                client.unlease()
                answered(client, actor, recalled(client, actor, path)[0])
            same(client.lease(file.fileno()).err, -errno.EDQUOT)


def size_of(change):
    return ac.SIZE if change == 'cycle' else 0


def who_never_reads(change, policy, error, what, **lease):
    """He keeps what fits in his socket, and one notice for each lease; when he reads, the last one is there."""
    with besides() as (arbiter, good), arbiter.client() as client:
        path = arbiter.file('unread')
        with open(path, 'r+b') as file:
            same(client.lease(file.fileno(), policy=policy, **lease).err, 0)
            same(client.handle().err, 0)
        with ac.Actor() as actor:
            for _ in range(10):
                same(actor.do(change, path, size_of(change), times=1000), error)
                good.is_served()
            pid = actor.process.pid
        with ac.Actor() as last:
            same(last.do(change, path, size_of(change)), error)
            notices = [client.notice()]
            while notices[-1].pid != last.process.pid:
                if len(notices) % 20 == 0:
                    same(client.handle(2).err, -errno.ENOENT)  # an answer comes through in between
                notices.append(client.notice())
        same({(n.lease, n.what, n.pid in (pid, last.process.pid)) for n in notices}, {(1, what, True)})
        same([n.seq for n in notices], sorted(n.seq for n in notices))
        same(len(notices) < 10000, True)
        if what == ac.REFUSED:  # what he wasn't told of is counted
            with arbiter.client() as other:
                status = other.status()[0]
            same((status.refused - status.untold, status.refused), (len(notices), 10001))


def refuses_and_never_reads():
    who_never_reads('truncate', ac.REFUSE, errno.EBUSY, ac.REFUSED, refuse=1)


def keeps_and_never_reads():
    who_never_reads('cycle', ac.KEEP, 0, ac.LOST, flags=ac.PINNED)


def never_reads_replies():
    with besides() as (arbiter, good), arbiter.client() as client:
        try:
            for _ in range(10000):
                client.sock.sendmsg([zeroed(ac.COVER)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, good.fd.to_bytes(4, sys.byteorder))])
            raise tree.Failure('he may leave 10000 replies unread')
        except (BrokenPipeError, ConnectionResetError):
            pass


def floods():
    """He has his share of the loop, no more."""
    with besides() as (arbiter, good), arbiter.client() as client:
        stop = threading.Event()
        done = []

        def flood():
            with open(arbiter.file('flood'), 'rb') as file:
                while not stop.is_set():
                    client.cover(file.fileno())
                    done.append((client.lease(file.fileno()).err, client.handle().err))
                    client.unlease()
        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for _ in range(100):
                good.is_served()
        finally:
            stop.set()
            thread.join()
        same(set(done), {(0, 0)})


# ------------------------------------------------------------------------------------- half of one

def half_closed():
    with besides() as (arbiter, good):
        with arbiter.client() as client:
            client.sock.shutdown(socket.SHUT_WR)
            same(client.until_gone(), [])
        with arbiter.client() as client:
            client.sock.shutdown(socket.SHUT_RD)
            with contextlib.suppress(ac.Gone):
                while True:
                    client.send(zeroed(ac.COVER), [good.fd])


def half_closed_with_a_lease():
    """Who can't hear a notice can't answer it: he is gone, though he lives."""
    with besides() as (arbiter, _), arbiter.client() as client, ac.Actor() as actor:
        path = arbiter.file('half')
        with open(path, 'rb') as file:
            same(client.lease(file.fileno()).err, 0)
            same(client.handle().err, 0)
        client.sock.shutdown(socket.SHUT_RD)
        same(actor.do('truncate', path), 0)


def stopped(ceiling):
    """He holds for the ceiling and a grace, and only who changes his file."""
    with besides('--ceiling', str(ceiling), '--max-hold', '3600000') as (arbiter, good), ac.Actor() as actor:
        path = arbiter.file('stopped')
        pid = os.fork()
        if not pid:
            with arbiter.client() as client, open(path, 'rb') as file:
                same(client.lease(file.fileno()).err, 0)
                same(client.handle().err, 0)
                os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        try:
            same(os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]), True)
            actor.order('truncate', path)
            for _ in range(10):
                good.is_served()
            same(actor.join(), 0)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


TESTS = [
    ('no HELLO', no_hello),
    ('HELLO twice', two_hellos),
    ("sizes that aren't the packet's or the type's", wrong_sizes),
    ("types that don't exist", wrong_types),
    ("the arbiter's own types", arbiters_types),
    ("flags that aren't known", unknown_flags),
    ('strings without end', no_ends),
    ('too few descriptors, and too many', descriptors),
    ('descriptors of other kinds', other_descriptors),
    ('counts without end', counts_without_end),
    ("answers for others' leases", others_numbers),
    ('answers that make no sense', wrong_answers),
    ('answers before they are asked for', answers_before_they_are_asked),
    (f'{MANY} connections of one user', thousands_of_connections),
    ('no descriptors left', no_descriptors_left),
    ('leases file after file', shares_of_descriptors),
    ('keeps a thousand changes waiting', all_places_for_changes),
    ('300 leave at once and live', many_leave_at_once),
    ('never reads that it refused, 10000 times', refuses_and_never_reads),
    ('never reads what it lost, 10000 times', keeps_and_never_reads),
    ('never reads replies', never_reads_replies),
    ('floods', floods),
    ('holds others up for too long', holds_others_up),
    ('makes leases for them to be recalled', makes_leases_to_be_recalled),
    ('half-closed', half_closed),
    ('half-closed, with a lease', half_closed_with_a_lease),
    ('stopped', lambda: ac.in_one_of((300, 3000, 20000), stopped)),
]

if __name__ == '__main__':
    resource.setrlimit(resource.RLIMIT_NOFILE, (MANY * 2, MANY * 2))
    ac.main(TESTS)
