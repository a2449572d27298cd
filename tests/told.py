#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: told.py PINLEASED PINLEASE - what a holder says of a recall is what others are told, and what it can't know it is told."""
import contextlib
import errno
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import tree

PINLEASED, PINLEASE = sys.argv[1:3]
del sys.argv[2]
ORPHAN_END, DEGRADED = 8, 9
ACTIVE, RELEASED = 0, 3


def same(got, expected):
    if got != expected:
        raise tree.Failure(f'got {got!r}, expected {expected!r}')


def lease(holder, path, **more):
    with open(path, 'r+b') as file:
        same(holder.lease(file.fileno(), **more).err, 0)
    same(holder.handle().err, 0)


@contextlib.contextmanager
def watched(*options, **more):
    """An arbiter, a holder with a lease, who watches, who changes, the file."""
    with ac.Arbiter(PINLEASED, *options) as arbiter, arbiter.client() as holder, \
            arbiter.client() as watcher, ac.Actor() as actor:
        path = arbiter.file()
        lease(holder, path, **more)
        same(watcher.watch().err, 0)
        yield arbiter, holder, watcher, actor, path


def status(arbiter):
    with arbiter.client() as command:
        return command.status()[0]


def entry(arbiter):
    """(state, detached, orphaned) of the only lease."""
    with arbiter.client() as command:
        got = command.listed(ac.LIST, 0, 0, 0, 0)[0]
    same(len(got), 1)
    return got[0][1][16], got[0][1][7], got[0][1][22]


# ------------------------------------------------------------------------------------------------ who has done it

def outcomes():
    for outcome, what in ((ac.QUIESCED, ac.E_QUIESCED), (2, ac.E_FORCED), (3, ac.E_FORCED), (4, ac.E_FORCED)):
        with watched() as (arbiter, holder, watcher, actor, path):
            actor.order('truncate', path)
            holder.released(holder.notice(), whole=1, outcome=outcome)
            same(actor.join(), 0)
            event = watcher.until_event(what)[-1]
            same((event.outcome, event.outside), (outcome, 0))
            now, forced = status(arbiter), what == ac.E_FORCED
            same((now.quiesced, now.forced, now.outside), (not forced, forced, 0))


def ended_after_force():
    """What the library has forced its program may end before that is told."""
    for how, outcome in (({}, ac.QUIESCED), *[({'outcome': 4}, 4)] * 20):
        with watched() as (arbiter, holder, watcher, _, path), arbiter.client() as command:
            command.order_recall(path)
            holder.notice()
            holder.unlease(**how)
            events, _ = command.recalled()
            same([(e.err, e.outcome, e.outside) for e in events], [(0, outcome, 0)])
            whats = [event.what for event in watcher.until_event(ac.E_ENDED)]
            same((ac.E_FORCED in whats, ac.E_QUIESCED in whats), (outcome > 1, outcome == 1))
            now = status(arbiter)
            same((now.quiesced, now.forced), (outcome == 1, outcome > 1))


def wrong_outcomes():
    with watched() as (_, holder, *_):
        holder.unlease(outcome=5)
        holder.until_gone()


def command():
    """`pinlease trace` and `status` count it as what it was."""
    with watched() as (arbiter, holder, _, actor, path):
        environment = dict(os.environ, PINLEASE_SOCKET=str(arbiter.path))
        with subprocess.Popen([PINLEASE, 'trace'], env=environment, stdout=subprocess.PIPE, text=True) as trace:
            trace.stdout.readline()
            while status(arbiter).watchers < 2:
                pass
            actor.order('truncate', path)
            holder.released(holder.notice(), whole=1, outcome=3)
            same(actor.join(), 0)
            lines = [trace.stdout.readline().split()[3:6] for _ in range(2)]
            trace.kill()
        same(lines[1], ['forced', 'truncate', 'scratch'])
        said = subprocess.run([PINLEASE, 'status'], env=environment, capture_output=True, text=True, check=True).stdout
        for words in ('0 quiesced', '1 forced (0 from outside)', "0 times a device wasn't known to be off"):
            same((words, words in ' '.join(said.split())), (words, True))


# ------------------------------------------------------------------------------------------------ in vain

def in_vain():
    """What can't be forced is told of again, as the same recall; what is left is the time until the actor goes on."""
    ceiling = 100000 * 1000000
    before = time.monotonic_ns()
    with watched('--ceiling', '100000', grace_ms=1) as (arbiter, holder, watcher, actor, path):
        actor.order('truncate', path)
        first = watcher.until_event(ac.E_NOTICE)[-1]
        again = watcher.until_event(ac.E_FORCED, ac.E_NOTICE)[-1]
        same((again.what, again.change), (ac.E_NOTICE, first.change))
        with arbiter.client() as command:
            deadline = command.listed(ac.LIST, 0, 0, 0, 0)[0][0][1][21]
        same((again.deadline_ns, before + 2 * ceiling <= deadline <= first.time_ns + 2 * ceiling), (deadline, True))
        same(status(arbiter).notices, 1)
        holder.unlease()
        same(actor.join(), 0)


# ------------------------------------------------------------------------------------------------ unasked

def unasked():
    """After a restart: what of a lease is off its device already."""
    with watched() as (arbiter, holder, watcher, actor, path):
        part = ac.START + 2 * ac.PAGE
        holder.send(ac.message(ac.RELEASED, 1, 0, part, part + ac.PAGE, 0, 3))
        same(holder.handle(1).err, -errno.EBUSY)  # some of it is lost: it has been heard
        same(entry(arbiter), (ACTIVE, ac.PAGE, 0))
        holder.send(ac.message(ac.RELEASED, 1, 0, 0, 0, 1, 4))
        same([(e.what, e.outcome) for e in watcher.until_event(ac.E_RELEASED)], [(ac.E_FORCED, 4), (ac.E_RELEASED, 4)])
        same(entry(arbiter)[0], RELEASED)
        same(actor.do('truncate', path), 0)
        same(len(holder.notices), 0)
        now = status(arbiter)
        same((now.notices, now.quiesced, now.forced), (1, 0, 1))


def unasked_in_a_recall():
    """It is the answer, too."""
    with watched() as (_, holder, watcher, actor, path):
        actor.order('truncate', path)
        holder.notice()
        holder.send(ac.message(ac.RELEASED, 1, 0, 0, 0, 1, ac.QUIESCED))
        same(actor.join(), 0)
        same(watcher.until_event(ac.E_QUIESCED)[-1].outcome, ac.QUIESCED)


def unasked_again():
    """As often as one likes, to no effect but one."""
    with watched() as (arbiter, holder, *_):
        for _ in range(100):
            for n in range(0, ac.PAGES, 2):
                holder.send(ac.message(ac.RELEASED, 1, 0, ac.START + n * ac.PAGE, ac.START + (n + 1) * ac.PAGE, 0, 3))
        same(holder.handle(1).err, -errno.EBUSY)
        same(entry(arbiter), (ACTIVE, 8 * ac.PAGE, 0))
        for _ in range(100):
            holder.send(ac.message(ac.RELEASED, 1, 0, 0, 0, 1, 2))
        while entry(arbiter)[0] != RELEASED:
            pass
        now = status(arbiter)
        same((now.notices, now.forced), (1, 1))


# ------------------------------------------------------------------------------------------------ let go

def let_go():
    """Who doesn't answer is told when the change was let go, and the pages are orphans until he does."""
    with watched('--ceiling', '100', flags=ac.PINNED | ac.WRITE) as (arbiter, holder, watcher, actor, path):
        before = time.monotonic_ns()
        same(actor.do('truncate', path), 0)
        after = time.monotonic_ns()
        notice = holder.notice()
        same((notice.what, notice.gone_ns, before < notice.since_ns < after), (ac.RECALLED, 0, True))
        last = holder.notice()
        while last.what != ac.LOST:
            last = holder.notice()
        same((last.seq, last.start, last.end), (notice.seq, ac.START, ac.START + ac.SIZE))
        same((last.since_ns, last.since_ns < last.gone_ns < after), (notice.since_ns, True))
        whats = [event.what for event in watcher.until_event(ac.E_ORPHAN, DEGRADED)]
        event = watcher.until_event(ac.E_FORCED)[-1]
        while event.what != ac.E_FORCED or event.err != -errno.EOPNOTSUPP:
            event = watcher.event()
            whats.append(event.what)
        same(ORPHAN_END in whats, False)
        same((entry(arbiter)[2], status(arbiter).forced), (ac.SIZE, 0))
        holder.released(last, whole=1, outcome=2)
        whats = [event.what for event in watcher.until_event(ORPHAN_END, ac.E_RELEASED)]
        same(entry(arbiter), (RELEASED, 0, 0))
        same(status(arbiter).forced, 1)


def let_go_in_part():
    """A part that is answered late is off, too."""
    with watched('--ceiling', '100', flags=ac.PINNED | ac.WRITE) as (arbiter, holder, watcher, actor, path):
        same(actor.do('truncate', path, ac.SIZE // 2), 0)
        last = holder.notice()
        while last.what != ac.LOST:
            last = holder.notice()
        watcher.until_event(DEGRADED)
        while entry(arbiter)[0] != ACTIVE:
            pass
        holder.released(last, last.start, last.end, outcome=3)
        watcher.until_event(ORPHAN_END, ac.E_RELEASED)
        same(entry(arbiter), (ACTIVE, ac.SIZE // 2, 0))


def let_go_at_the_end():
    """So it is when pinleased ends, as nobody keeps who waits."""
    with watched(flags=ac.PINNED | ac.WRITE) as (arbiter, holder, watcher, actor, path):
        actor.order('truncate', path)
        notice = holder.notice()
        arbiter.process.send_signal(signal.SIGTERM)
        events = watcher.until_event(ac.E_ANSWERED)
        while events[-1].change != notice.seq:
            events += watcher.until_event(ac.E_ANSWERED)
        same([(e.what, e.err) for e in events if e.change == notice.seq],
             [(ac.E_NOTICE, 0), (DEGRADED, -errno.EINTR), (ac.E_ANSWERED, 0)])
        last = holder.notice()
        same((last.what, last.seq, last.since_ns, last.gone_ns > notice.since_ns), (ac.LOST, notice.seq, notice.since_ns, True))
        same(actor.join(), 0)


def not_pinned():
    """An on-demand device has no page that the file has let go."""
    with watched('--ceiling', '100') as (arbiter, holder, watcher, actor, path):
        same(actor.do('truncate', path), 0)
        while holder.notice().what != ac.LOST:
            pass
        holder.released(ac.Notice(1, 0, *[0] * 8, '', *[0] * 6), whole=1)
        whats = [event.what for event in watcher.until_event(ac.E_RELEASED)]
        same((ac.E_ORPHAN in whats, DEGRADED in whats), (False, True))


def logging_to(file, *options):
    """An arbiter with this for its journal."""
    return ac.Arbiter('sh', *options, words=('-c', f'exec "$0" "$@" 2>{file.name}', PINLEASED))


def log():
    """The journal says that a lease can't be forced, and when that has mattered. Only one that is pinned may have pages of its own."""
    for flags in (0, ac.PINNED):
        journal(flags)


def log_at_the_end():
    """The journal says what pinleased leaves, when it ends."""
    with tempfile.NamedTemporaryFile('r') as log_file:
        with logging_to(log_file) as arbiter, arbiter.client() as holder, ac.Actor() as actor:
            path = arbiter.file()
            lease(holder, path, flags=ac.PINNED)
            actor.order('truncate', path)
            holder.notice()
            arbiter.process.send_signal(signal.SIGTERM)
            same(actor.join(), 0)
            arbiter.process.wait()
        lines = [line for line in log_file.read().splitlines() if 'a change was let go although lease 1' in line]
    same((len(lines), 'is on the file: pinleased ends; it may have pages' in lines[0]), (1, True))


def log_of_a_kill():
    """What becomes of who can't be forced is his policy's affair."""
    with tempfile.NamedTemporaryFile('r') as log_file:
        with logging_to(log_file) as arbiter, arbiter.client() as holder:
            lease(holder, arbiter.file(), then=ac.KILL)
        lines = [line for line in log_file.read().splitlines() if "lease 1 of python" in line and "can't be forced" in line]
    same((len(lines), 'it is killed, as the lease\'s policy says' in lines[0], 'twice the ceiling' in lines[0]), (1, True, False))


def journal(flags):
    """The ceiling is enough for what there is to do with the keeper's lease."""
    with tempfile.NamedTemporaryFile('r') as log_file:
        with logging_to(log_file, '--ceiling', '500') as arbiter, \
                arbiter.client() as holder, arbiter.client() as keeper, ac.Actor() as actor:
            path = arbiter.file()
            lease(keeper, path, policy=ac.KEEP, flags=ac.PINNED)
            for number in (1, 2):
                with open(path, 'r+b') as file:
                    same(holder.lease(file.fileno(), number, start=ac.START * number, flags=flags).err, 0)
                same(holder.handle(number).err, 0)
            for _ in range(2):
                same(actor.do('truncate', path), 0)
                path.write_bytes(b'O' * ac.SIZE)
        lines = log_file.read().splitlines()
    me = f'of python ({os.getpid()}) '
    same(len([line for line in lines if f'lease 1 {me}can\'t be forced from outside: its device "soft"' in line]), 1)
    let_gone = [line for line in lines if 'a change was let go' in line and me in line]
    same((len(let_gone), 'it may have pages' in let_gone[0]), (1, flags == ac.PINNED))
    same(len([line for line in lines if me in line and 'forced' in line]), 1)


# ------------------------------------------------------------------------------------------------ times

def own_deadline():
    """The holder's library has what it asks for, or half of what there is; and by force all of it."""
    ms = 1000000
    for ceiling, how, least, most in (('100000', {'flags': ac.GRACE, 'grace_ms': 50000}, 1000, 1000), ('1000', {}, 0, 500),
                                      ('400', {}, 0, 200), ('1000', {'flags': ac.GRACE, 'grace_ms': 100}, 900, 1 << 40),
                                      ('1000', {'flags': ac.FORCE}, 1000, 1 << 40), ('400', {'flags': ac.FORCE}, 400, 1 << 40)):
        with watched('--ceiling', ceiling, agent_ms=1000) as (arbiter, holder, _, _, path), arbiter.client() as command:
            command.order_recall(path, **how)
            notice = holder.notice()
            agent = notice.deadline_ns - notice.force_ns
            same((how, least * ms <= agent <= most * ms), (how, True))
            holder.released(notice, whole=1)
            command.recalled()


if __name__ == '__main__':
    ac.main([
        ('the holder, or its library', outcomes),
        ('ended after a force', ended_after_force),
        ('no such outcome', wrong_outcomes),
        ('the commands', command),
        ('a force in vain', in_vain),
        ('a lease is told with what is off its device', unasked),
        ('that is an answer', unasked_in_a_recall),
        ('that is said over and over', unasked_again),
        ('a change is let go', let_go),
        ('a change of a part is let go', let_go_in_part),
        ('pinleased ends in a recall', let_go_at_the_end),
        ('no orphans without pins', not_pinned),
        ('what the journal has', log),
        ('what the journal has at the end', log_at_the_end),
        ('what the journal has of a lease with KILL', log_of_a_kill),
        ("the library's own deadline", own_deadline),
    ])
