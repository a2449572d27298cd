#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: trace.py PINLEASED PINLEASE - who watches is told what happens to leases that he may see, or how much he missed."""
import contextlib
import errno
import json
import os
import pathlib
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import tree

PINLEASED, PINLEASE = sys.argv[1:3]
del sys.argv[2]
NOBODY = 65534
MANY = 3000
DEGRADED, LEAK = 9, 10


def same(got, expected):
    if got != expected:
        raise tree.Failure(f'got {got!r}, expected {expected!r}')


@contextlib.contextmanager
def everybody(*options):
    with ac.Arbiter(PINLEASED, *options) as arbiter, arbiter.client() as holder, \
            arbiter.client() as watcher, ac.Actor() as actor:
        yield arbiter, holder, watcher, actor


def lease(holder, path, number=1, **more):
    with open(path, 'r+b') as file:
        same(holder.lease(file.fileno(), number, start=ac.START * number, **more).err, 0)
    same(holder.handle(number).err, 0)


def whats(events):
    return [event.what for event in events]


# ------------------------------------------------------------------------------------------ the message

def a_life():
    """From a lease's making to its end, in order, with who did what to whom."""
    with everybody() as (arbiter, holder, watcher, actor):
        path = arbiter.file()
        same(watcher.watch().err, 0)
        lease(holder, path)
        made = watcher.event()
        same((made.what, made.lease, made.pid, made.uid, made.path, made.bytes, made.program, made.device),
             (ac.E_LEASED, 1, os.getpid(), 0, str(path), ac.SIZE, 'python', 'soft'))
        actor.order('truncate', path)
        notice = watcher.event()
        same((notice.what, notice.lease, notice.op, notice.pid, notice.actor_pid, notice.source, notice.file_ino),
             (ac.E_NOTICE, 1, ac.TRUNCATE, os.getpid(), actor.process.pid, 'files', path.stat().st_ino))
        holder.released(holder.notice(), whole=1)
        same(actor.join(), 0)
        holder.unlease()
        events = watcher.until_event(ac.E_ENDED)
        same(whats(events), [ac.E_QUIESCED, ac.E_RELEASED, ac.E_ANSWERED, ac.E_ENDED])
        same([(e.lease, e.pid) for e in events], [(1, os.getpid()), (1, os.getpid()), (0, 0), (1, os.getpid())])
        same(events[2].waited_ns > 0, True)


def comes_to_nothing():
    """What its holder couldn't have mapped is not mentioned, but for what has happened to it."""
    with everybody() as (arbiter, holder, watcher, actor):
        path = arbiter.file()
        same(watcher.watch().err, 0)
        with open(path, 'r+b') as file:
            for number in (1, 2):
                same(holder.lease(file.fileno(), number, start=ac.START * number).err, 0)
            holder.unlease(1)
            same(holder.handle(1).err, -errno.ENOENT)  # that has been read
            actor.order('truncate', path)
            notice = holder.notice()
            holder.unlease(2)
            same((notice.lease, actor.join()), (2, 0))
        lease(holder, path, 3)
        events = watcher.until_event(ac.E_LEASED) + watcher.until_event(ac.E_ENDED)
        same([(e.what, e.path) for e in events if e.lease == 2 and e.what in (ac.E_LEASED, ac.E_NOTICE)],
             [(ac.E_LEASED, str(path)), (ac.E_NOTICE, '')])
        same([e.lease for e in events if e.what in (ac.E_LEASED, ac.E_ENDED)], [2, 2])
        same(watcher.until_event(ac.E_LEASED)[-1].lease, 3)


def weak_from_the_start():
    """What nobody sees of a lease is said when it is there, not before."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as holder, arbiter.client() as watcher, \
            os.fdopen(os.memfd_create('weak'), 'r+b') as file:
        same(watcher.watch().err, 0)
        file.truncate(ac.SIZE)
        for number in (1, 2):
            same(holder.lease(file.fileno(), number, start=ac.START * number, policy=ac.KEEP).err, 0)
        holder.unlease(1)
        same(holder.handle(2).err, 0)
        with arbiter.client() as other:
            same(other.status()[0].leases, 1)
        events = [watcher.event() for _ in range(2)]
        same([(e.what, e.lease, e.path) for e in events], [(ac.E_LEASED, 2, '/memfd:weak (deleted)'), (DEGRADED, 2, '')])


def ended_by_exit():
    """The reaper ends leases; their last events still say whose they were."""
    with everybody() as (arbiter, _, watcher, _):
        same(watcher.watch().err, 0)
        with arbiter.client(name=b'short-lived') as other:
            lease(other, arbiter.file(), 7)
        events = watcher.until_event(ac.E_ENDED)
        same((events[-1].lease, events[-1].program), (7, 'short-lived'))


def unanswered():
    """Who is gone has a leak, and has answered nothing."""
    with everybody() as (arbiter, _, watcher, actor):
        path = arbiter.file()
        same(watcher.watch().err, 0)
        with arbiter.client() as other:
            lease(other, path)
            actor.order('truncate', path)
            other.notice()
        same(actor.join(), 0)
        events = watcher.until_event(ac.E_ENDED, ac.E_ANSWERED)
        same(sorted(whats(events)), sorted([ac.E_LEASED, ac.E_NOTICE, LEAK, ac.E_ANSWERED, ac.E_ENDED]))
        with arbiter.client() as command:
            same(command.status()[0].quiesced, 0)


def others_ways():
    with everybody() as (arbiter, holder, watcher, actor):
        path = arbiter.file()
        same(watcher.watch().err, 0)
        lease(holder, path, policy=ac.REFUSE, refuse=1)
        lease(holder, path, 2, grace_ms=1)
        same(actor.do('truncate', path), errno.EBUSY)
        same(watcher.until_event(ac.E_REFUSED)[-1].lease, 1)
        holder.unlease(1)
        with arbiter.client() as command:
            command.recall(path)
        event = watcher.until_event(ac.E_FORCED)[-1]
        same((event.source, event.err, event.lease), ('recall', -errno.EOPNOTSUPP, 2))


def filtered():
    with everybody() as (arbiter, holder, watcher, actor):
        one, two = arbiter.file('one'), arbiter.file('two')
        same(watcher.watch(two).err, 0)
        with arbiter.client() as strange, arbiter.client() as mine:
            same(strange.watch(pid=1).err, 0)
            same(mine.watch(pid=os.getpid()).err, 0)
            lease(holder, one)
            lease(holder, two, 2)
            same(watcher.event().lease, 2)
            same([mine.event().lease, mine.event().lease], [1, 2])
            for path in (one, two):
                actor.order('truncate', path)
                holder.released(holder.notice(), whole=1)
                same(actor.join(), 0)
            same([e.file_ino for e in watcher.until_event(ac.E_ANSWERED)], [two.stat().st_ino] * 4)
            strange.sock.setblocking(False)
            try:
                raise tree.Failure(strange.event())
            except BlockingIOError:
                pass


def same_number():
    """A number's last lease has ended before it is another's."""
    with everybody() as (arbiter, holder, watcher, _):
        path = arbiter.file()
        same(watcher.watch().err, 0)
        with open(path, 'r+b') as file:
            lease(holder, path)
            for _ in range(20):
                holder.unlease()
                same((holder.lease(file.fileno()).err, holder.handle().err), (0, 0))
        same([watcher.event().what for _ in range(41)], [ac.E_LEASED] + [ac.E_ENDED, ac.E_LEASED] * 20)


def before_is_before():
    """Nothing of what happened while nobody watched is told, and leases that ended then harm nobody."""
    with everybody() as (arbiter, holder, watcher, _):
        path = arbiter.file()
        for _ in range(3):
            lease(holder, path, grace_ms=1)
            with arbiter.client() as command:
                command.recall(path)
            holder.unlease()
            same(holder.handle().err, -errno.ENOENT)
        same(watcher.watch().err, 0)
        lease(holder, path)
        same(watcher.event().what, ac.E_LEASED)
        watcher.close()
        holder.unlease()
        with arbiter.client() as other:
            same(other.watch().err, 0)
            lease(holder, path, 2)
            same(other.event().lease, 2)


def slow_reader():
    """He loses events and is told how many; the others and the arbiter don't wait for him."""
    with everybody() as (arbiter, holder, watcher, _):
        path = arbiter.file()
        same(watcher.watch().err, 0)
        with open(path, 'r+b') as file:
            for number in range(1, MANY + 1):
                same(holder.lease(file.fileno(), number, start=ac.START * number, policy=ac.KEEP).err, 0)
                same(holder.handle(number).err, 0)
        with arbiter.client() as other:
            same(other.status()[0].events_lost > 0, True)
        got = watcher.until_event(ac.E_DROPPED)
        same([e.lease for e in got[:-1]], list(range(1, len(got))))
        holder.unlease(1)
        after = watcher.until_event(ac.E_ENDED)
        lost = got[-1].bytes + sum(e.bytes for e in after if e.what == ac.E_DROPPED)
        seen = len(got) - 1 + sum(e.what == ac.E_LEASED for e in after)
        same(lost + seen, MANY)


def one_watch():
    with everybody() as (arbiter, holder, watcher, _):
        same(watcher.watch().err, 0)
        same(watcher.watch().err, -errno.EBUSY)
        with contextlib.ExitStack() as stack:
            others = [stack.enter_context(arbiter.client()) for _ in range(8)]
            same([other.watch().err for other in others], [0] * 7 + [-errno.EDQUOT])
            same(others[0].status()[0].watchers, 8)
        lease(holder, arbiter.file())
        same(watcher.event().what, ac.E_LEASED)


def as_nobody(function):
    """What it returns there."""
    end, start = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(start, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(start)
    with open(end, encoding='utf-8') as file:
        said = file.read()
    os.waitpid(pid, 0)
    return json.loads(said)


def others_leases():
    with everybody() as (arbiter, holder, watcher, _):
        path = arbiter.file()
        path.chmod(0o666)
        same(watcher.watch().err, 0)

        def nobody():
            with arbiter.client() as watching, arbiter.client() as own:
                assert watching.watch().err == 0
                for number, client in ((1, holder), (2, own), (3, holder)):
                    lease(client, path, number)
                own.unlease(2)
                return [(e.what, e.lease) for e in watching.until_event(ac.E_ENDED)]
        same(as_nobody(nobody), [[ac.E_LEASED, 2], [ac.E_ENDED, 2]])
        same([e.lease for e in watcher.until_event(ac.E_ENDED)], [1, 2, 3, 2])


# ------------------------------------------------------------------------------------------ the command

@contextlib.contextmanager
def running(arbiter, *arguments):
    environment = dict(os.environ, PINLEASE_SOCKET=str(arbiter.path))
    with subprocess.Popen([PINLEASE, 'trace', *map(str, arguments)], env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def watched(client):
    while not client.status()[0].watchers:
        pass


def command():
    with everybody() as (arbiter, holder, watcher, actor):
        old, new = arbiter.file('old'), arbiter.file('new')
        lease(holder, old)
        with running(arbiter) as process:
            same(process.stdout.readline().split()[:3], ['TIME', 'PID', 'LEASE'])
            lease(holder, new, 2)
            line = process.stdout.readline()
            same(line.split()[1:], [str(os.getpid()), '2', 'leased', '64K', str(new)])
            actor.order('truncate', old)
            holder.released(holder.notice(), whole=1)
            same(actor.join(), 0)
            lines = [process.stdout.readline() for _ in range(4)]
            same([line.split()[3] for line in lines], ['notice', 'quiesced', 'released', 'goes'])
            same([line.split()[1] for line in lines], [str(os.getpid())] * 3 + [str(actor.process.pid)])
            same(lines[3].split()[-2], 'rest')
            same([line.split()[-1] for line in lines], [str(old)] * 4)
            same('truncate' in lines[0], True)
        watcher.close()


def command_goes_on():
    """The bytes of a change that goes on, and whether they end."""
    with everybody() as (arbiter, holder, watcher, actor):
        path = arbiter.file()
        lease(holder, path)
        with running(arbiter) as human, running(arbiter, '--json') as exact:
            while watcher.status()[0].watchers < 2:
                pass
            human.stdout.readline()
            for order, size, ends in ((('punch', path, ac.PAGE, ac.PAGE), '4.0K', True), (('truncate', path), 'rest', False)):
                actor.order(*order)
                holder.released(holder.notice(), ac.START + ac.PAGE * ends, ac.START + (2 * ac.PAGE if ends else ac.SIZE))
                same(actor.join(), 0)
                line, event = next(line for line in human.stdout if 'goes on' in line), next(
                    event for event in map(json.loads, exact.stdout) if event['event'] == 'goes on')
                same((line.split()[1], line.split()[-2], line.split()[-1]), (str(actor.process.pid), size, str(path)))
                same((event['actor_pid'], event.get('to_end_of_file', False)), (actor.process.pid, not ends))
                same((event['file_start'], event['file_end'] == 2 * ac.PAGE), (ac.PAGE * ends, ends))


def no_actor():
    """A recall by command lets nobody go on: there is no event of that, and it isn't counted."""
    with everybody() as (arbiter, holder, watcher, _):
        path = arbiter.file()
        same(watcher.watch().err, 0)
        lease(holder, path)
        with arbiter.client() as command:
            command.order_recall(path)
            holder.released(holder.notice(), whole=1)
            same(command.recalled()[1].err, 0)
            holder.unlease()
            events = watcher.until_event(ac.E_ENDED)
            same(whats(events), [ac.E_LEASED, ac.E_NOTICE, ac.E_QUIESCED, ac.E_RELEASED, ac.E_ENDED])
            same((events[-1].start, events[-1].end), (ac.START, ac.START + ac.SIZE))
            same(command.status()[0].answered, 0)


def command_json():
    with everybody() as (arbiter, holder, watcher, _):
        path = arbiter.file()
        lease(holder, path)
        with running(arbiter, '--json', '--file', path) as process:
            watched(watcher)
            watcher.order_recall(path, flags=ac.GRACE, grace_ms=30000)
            notice = json.loads(process.stdout.readline())
            wanted = {'event': 'notice', 'by': 'recall', 'lease': 1, 'pid': os.getpid(), 'uid': 0, 'program': 'python',
                      'path': str(path), 'bytes': ac.SIZE}
            same({key: notice.get(key) for key in wanted}, wanted)
            holder.released(holder.notice(), whole=1)
            same(json.loads(process.stdout.readline())['outcome'], 'quiesced')


def command_orphans():
    """What was written to an orphan is not known here, and nothing else is said."""
    with everybody('--ceiling', '100') as (arbiter, holder, watcher, actor):
        path = arbiter.file()
        lease(holder, path, flags=ac.PINNED | ac.WRITE)
        with running(arbiter) as text, running(arbiter, '--json') as process:
            while watcher.status()[0].watchers < 2:
                pass
            same(watcher.watch().err, 0)
            text.stdout.readline()
            same(actor.do('truncate', path), 0)
            last = holder.notice()
            while last.what != ac.LOST:
                last = holder.notice()
            watcher.until_event(ac.E_ORPHAN)
            while watcher.until_event(ac.E_FORCED)[-1].err != -errno.EOPNOTSUPP:
                pass
            holder.released(last, whole=1)
            event = json.loads(process.stdout.readline())
            while event['event'] != 'orphan end':
                event = json.loads(process.stdout.readline())
            same((event['bytes'], event['error'], event['waited_ns'] > 0), (None, 'EOPNOTSUPP', True))
            line = text.stdout.readline()
            while 'orphan end' not in line:
                line = text.stdout.readline()
            same(line.split()[3:9], ['orphan', 'end', 'truncate', '?', 'written', '64K'])


def command_wrong():
    with ac.Arbiter(PINLEASED) as arbiter:
        for arguments, because in ((['--pid', '-1'], 'no process'), (['--file', '/nonexistent'], 'No such'), (['x'], '"x"')):
            with running(arbiter, *arguments) as process:
                out, err = process.communicate()
                same((process.returncode, out, because in err), (2, '', True))
        path, arbiter.path = arbiter.path, '/nonexistent'
        with running(arbiter) as process:
            same('start pinleased' in process.communicate()[1], True)
            same(process.returncode, 2)
        arbiter.path = path


def unwritable():
    """That it can't print is found out at once, not when something happens."""
    with ac.Arbiter(PINLEASED) as arbiter, open('/dev/full', 'wb') as full:
        result = subprocess.run([PINLEASE, 'trace'], env=dict(os.environ, PINLEASE_SOCKET=str(arbiter.path)), stdout=full,
                                stderr=subprocess.PIPE, text=True, check=False)
        same((result.returncode, "can't write" in result.stderr), (2, True))


def command_ends():
    with ac.Arbiter(PINLEASED) as arbiter:
        with running(arbiter) as process:
            process.stdout.readline()
            arbiter.process.terminate()
            same('ended the connection' in process.communicate()[1], True)
            same(process.returncode, 2)


if __name__ == '__main__':
    ac.main([
        ('a lease from its making to its end', a_life),
        ('a lease that comes to nothing', comes_to_nothing),
        ('a lease that is weaker from the start', weak_from_the_start),
        ('a lease that its process leaves', ended_by_exit),
        ('a lease that its process leaves without an answer', unanswered),
        ('refused, forced', others_ways),
        ('by file, by process', filtered),
        ('a number is given again', same_number),
        ('what was before is not told', before_is_before),
        ('who reads slowly is told how much he missed', slow_reader),
        ('one watch on a connection, so many of a user', one_watch),
        ("others' leases are not seen", others_leases),
        ('the command', command),
        ('the command, JSON', command_json),
        ('the command and orphans', command_orphans),
        ('the command, a change that goes on', command_goes_on),
        ('a recall lets nobody go on', no_actor),
        ('the command with wrong arguments', command_wrong),
        ('the command when the arbiter ends', command_ends),
        ("output that can't be written is an error", unwritable),
    ])
