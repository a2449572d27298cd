#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: recall.py PINLEASED PINLEASE - leases are recalled because somebody says so, and he hears what became of each."""
import contextlib
import errno
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import tree

PINLEASED, PINLEASE = sys.argv[1:3]
del sys.argv[2]
NOBODY = 65534
MANY = 1500
RELEASED, NOT_TAKEN, CANT_START, NO_LEASE, NOT_ALLOWED = range(5)


def same(got, expected):
    if got != expected:
        raise tree.Failure(f'got {got!r}, expected {expected!r}')


@contextlib.contextmanager
def leased(*options, leases=1, **lease):
    """An arbiter, a holder with leases of a file each, a command, the files."""
    with ac.Arbiter(PINLEASED, *options) as arbiter, arbiter.client() as holder, \
            arbiter.client() as command:
        paths = [arbiter.file(f'file{n}') for n in range(leases)]
        for number, path in enumerate(paths, 1):
            with open(path, 'r+b') as file:
                same(holder.lease(file.fileno(), number, start=ac.START * number, **lease).err, 0)
            same(holder.handle(number).err, 0)
        yield arbiter, holder, command, paths


def told(holder, lease=1, first=0, last=ac.PAGES):
    """The notice of a recall that nothing but a command's wish has caused."""
    notice = holder.notice()
    start = ac.START * lease
    same((notice.what, notice.op, notice.also, notice.source, notice.lease),
         (ac.RECALLED, ac.NO_OPERATION, 0, 'recall', lease))
    same((notice.start, notice.end), (start + first * ac.PAGE, start + last * ac.PAGE))
    return notice


def one(recalled, **wanted):
    events, reply = recalled
    same((len(events), reply.err, reply.value), (1, 0, 1))
    same({key: getattr(events[0], key) for key in wanted}, wanted)
    return events[0]


@contextlib.contextmanager
def crowd(**lease):
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as holder, arbiter.client() as command:
        path = arbiter.file()
        with open(path, 'r+b') as file:
            for number in range(1, MANY + 1):
                same(holder.lease(file.fileno(), number, start=ac.START * number, **lease).err, 0)
        yield arbiter, holder, command, path


# ------------------------------------------------------------------------------------------ the message

def answered():
    with leased() as (_, holder, command, (path,)):
        command.order_recall(path)
        notice = told(holder)
        same(notice.pid, os.getpid())
        holder.released(notice, whole=1, outcome=3)
        one(command.recalled(), what=ac.E_RECALLED, err=0, outcome=3, outside=0, lease=1, pid=os.getpid(), path=str(path),
            file_ino=path.stat().st_ino, bytes=ac.SIZE)
        same(path.stat().st_size, ac.SIZE)  # nothing has happened to the file
        same(command.recall(path)[1].value, 0)  # it is gone


def unlease_answers():
    with leased() as (_, holder, command, (path,)):
        command.order_recall(path)
        told(holder)
        holder.unlease()
        one(command.recalled(), err=0, outcome=1)


def which():
    with leased(leases=3) as (_, holder, command, paths):
        command.order_recall(paths[1])
        holder.released(told(holder, 2), whole=1)
        one(command.recalled(), lease=2)
        command.order_recall(pid=os.getpid(), lease=3, flags=ac.ONE)
        holder.released(told(holder, 3), whole=1)
        one(command.recalled(), lease=3)
        same(command.recall(pid=os.getpid(), lease=7, flags=ac.ONE)[1].value, 0)
        same(command.recall(pid=1)[1].value, 0)
        command.order_recall(pid=os.getpid())
        holder.released(told(holder, 1), whole=1)
        one(command.recalled(), lease=1)


def only_that_one():
    """Another lease of the same bytes isn't touched, and new ones are made meanwhile."""
    with leased() as (_, holder, command, (path,)):
        with open(path, 'r+b') as file:
            same(holder.lease(file.fileno(), 2, start=ac.START * 2).err, 0)
            same(holder.handle(2).err, 0)
            command.order_recall(pid=os.getpid(), lease=2, flags=ac.ONE)
            notice = told(holder, 2)
            same(holder.lease(file.fileno(), 3, start=ac.START * 3).err, 0)
            holder.released(notice, whole=1)
            one(command.recalled(), lease=2)
        same(len(holder.notices), 0)
        same(sorted(values[0] for _, values in command.listed(ac.LIST, 0, 0, 0, 0)[0] if values[16] == 0), [1, 3])


def part():
    with leased() as (_, holder, command, (path,)):
        command.order_recall(path, 2 * ac.PAGE, 3 * ac.PAGE)
        notice = told(holder, 1, 2, 3)
        holder.released(notice, notice.start, notice.end, outcome=3)
        one(command.recalled(), err=0, outcome=3)
        same(command.recall(path, ac.SIZE, 2 * ac.SIZE)[1].value, 0)


def parts_of_an_answer():
    """Who answers bit by bit has his deadline for all of them."""
    with leased() as (_, holder, command, (path,)):
        command.order_recall(path)
        notice = told(holder)
        holder.released(notice, notice.start, notice.start + ac.PAGE)
        again = holder.notice()
        same((again.source, again.start, again.deadline_ns), ('recall', notice.start + ac.PAGE, notice.deadline_ns))
        holder.released(again, whole=1)
        one(command.recalled(), err=0)


def graces():
    """What is asked for, with the holder's own time to force, and never beyond the ceiling."""
    for how, most in (({'flags': ac.GRACE, 'grace_ms': 20000}, 20000), ({'flags': ac.GRACE, 'grace_ms': (1 << 32) - 1}, 50000),
                      ({}, 50000), ({'flags': ac.FORCE}, 0)):
        with leased('--ceiling', '50000', grace_ms=3600000) as (_, holder, command, (path,)):
            before = time.monotonic_ns()
            command.order_recall(path, **how)
            notice = told(holder)
            after = time.monotonic_ns()
            same((how, before <= notice.deadline_ns - most * 1000000 <= after), (how, True))
            holder.released(notice, whole=1)
            command.recalled()


def not_followed():
    """A holder whose device can't be taken off says so by an empty answer."""
    with leased() as (_, holder, command, (path,)):
        command.order_recall(path)
        holder.released(told(holder))
        one(command.recalled(), err=-errno.EOPNOTSUPP, outcome=0)


def no_answer():
    """The device can't be reached from outside: said at the deadline, and an answer that comes later counts."""
    with leased(grace_ms=50) as (_, holder, command, (path,)):
        command.order_recall(path)
        notice = told(holder)
        one(command.recalled(), err=-errno.EOPNOTSUPP, outcome=0)
        holder.released(notice, whole=1)
        while command.recall(path)[1].value:
            pass


def policies():
    """Only RECALL is recalled without force."""
    for policy, more in ((ac.KEEP, {}), (ac.REFUSE, {'refuse': 1}), (ac.FOLLOW, {})):
        with leased(policy=policy, agent_ms=60000, **more) as (_, holder, command, (path,)):
            one(command.recall(path), err=-errno.EPERM)
            command.order_recall(path, flags=ac.FORCE)
            holder.released(told(holder), whole=1)
            one(command.recalled(), err=0)


def no_waiting():
    with leased() as (_, holder, command, (path,)):
        one(command.recall(path, flags=ac.NO_WAIT), err=0, outcome=0)
        notice = told(holder)
        with ac.Actor() as actor:
            actor.order('truncate', path)
            again = holder.notice()
            same(again.source, 'files')
            holder.released(again, whole=1)
            same(actor.join(), 0)
        same(again.seq > notice.seq, True)


def both():
    """A change of the file and a recall of its lease are over together."""
    with leased() as (_, holder, command, (path,)), ac.Actor() as actor:
        actor.order('truncate', path)
        same(holder.notice().source, 'files')
        command.order_recall(path)
        notice = told(holder)
        same(path.stat().st_size, ac.SIZE)
        holder.released(notice, whole=1)
        same(actor.join(), 0)
        one(command.recalled(), err=0)


def many():
    """More than are under way at a time."""
    with crowd() as (_, holder, command, path):
        command.order_recall(path)
        for _ in range(100):
            holder.released(holder.notice(), whole=1)
        got = []
        reader = threading.Thread(target=lambda: got.append(command.recalled()))
        reader.start()
        for _ in range(MANY - 100):
            holder.released(holder.notice(), whole=1)
        reader.join()
        events, reply = got[0]
        same((reply.value, sorted(e.lease for e in events)), (MANY, list(range(1, MANY + 1))))
        same({(e.err, e.outcome) for e in events}, {(0, 1)})


def late_reader():
    """Who doesn't read what becomes of his recall is waited for by nobody, and misses nothing."""
    with crowd(policy=ac.KEEP) as (arbiter, _, command, path):
        command.order_recall(path)
        with arbiter.client() as other:
            for _ in range(100):
                same(other.status()[0].leases, MANY)
        events, reply = command.recalled()
        same((reply.value, [e.lease for e in events], {e.err for e in events}), (MANY, list(range(1, MANY + 1)), {-errno.EPERM}))


def asker_leaves():
    with leased(leases=3) as (arbiter, holder, command, paths):
        figures = arbiter.figures()
        with arbiter.client() as other:
            other.order_recall(pid=os.getpid())
            notices = [holder.notice() for _ in range(3)]
        for notice in notices:
            holder.released(notice, whole=1)
        while command.recall(paths[0])[1].value:
            pass
        arbiter.wait_for_figures(figures)


def holder_leaves():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as command:
        path = arbiter.file()
        with arbiter.client() as holder:
            with open(path, 'r+b') as file:
                same(holder.lease(file.fileno()).err, 0)
            same(holder.handle().err, 0)
            command.order_recall(path)
            told(holder)
        one(command.recalled(), err=0, outcome=0)
        same(command.status()[0].quiesced, 0)  # he hasn't answered


def holders_leave_on_the_way():
    """A recall goes on where others are, whoever it was at."""
    with crowd(policy=ac.KEEP) as (arbiter, holder, command, path), contextlib.ExitStack() as stack:
        others = [stack.enter_context(arbiter.client()) for _ in range(3)]
        for other in others:
            with open(path, 'r+b') as file:
                for number in range(1, 400):
                    same(other.lease(file.fileno(), number, start=ac.START * number, policy=ac.KEEP).err, 0)
        command.order_recall(path)
        with arbiter.client() as asking:
            for _ in range(30):
                asking.status()
            for client in (holder, *others):
                client.close()
            while asking.status()[0].holders:
                pass
        events, reply = command.recalled()
        same((reply.err, reply.value), (0, len(events)))


def a_leaver_ends():
    """A recall that is at a holder without a connection goes on when that one has ended."""
    with crowd(policy=ac.KEEP) as (arbiter, holder, command, path), arbiter.client() as asking:
        holder.close()
        while asking.status()[0].connections > 2:
            pass
        command.order_recall(path)
        while asking.status()[0].holders:
            pass
        same(command.recalled()[1].err, 0)


def arbiter_ends():
    """It leaves nobody and nothing behind."""
    with leased() as (_, holder, command, (path,)):
        command.order_recall(path)
        told(holder)


# ---------------------------------------------------------------------------------------------- hostile

def nonsense():
    with leased() as (_, holder, command, (path,)):
        top = (1 << 64) - 1
        for how in ({}, {'flags': ac.ONE}, {'pid': -1}, {'pid': 1, 'flags': 16}, {'pid': 1, 'flags': 1 << 31},
                    {'file': path, 'flags': ac.GRACE | ac.FORCE}, {'file': path, 'start': 2, 'end': 2},
                    {'file': path, 'start': 3, 'end': 2}):
            events, reply = command.recall(**how)
            same((events, reply.err, bool(reply.text)), ([], -errno.EINVAL, True))
        for how in ({'pid': os.getpid(), 'lease': top, 'flags': ac.ONE}, {'file': path, 'start': top - 1, 'end': top},
                    {'file': path, 'start': top}, {'pid': (1 << 31) - 1}):
            events, reply = command.recall(**how)
            same((events, reply.err, reply.value), ([], 0, 0))
        same(len(holder.notices), 0)


def one_at_a_time():
    with leased() as (arbiter, holder, command, (path,)):
        command.order_recall(path)
        notice = told(holder)
        same(command.recall(path)[1].err, -errno.EBUSY)
        others = [arbiter.client() for _ in range(4)]
        for other in others[:3]:
            other.order_recall(path)
            notice = told(holder)
        same(others[3].recall(path)[1].err, -errno.EBUSY)
        holder.released(notice, whole=1)
        for other in others[:3]:
            one(other.recalled(), err=0)
        for other in others:
            other.close()


def as_nobody(arbiter):
    """A client of another user's."""
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            with arbiter.client() as client:
                os.write(ready[1], b'1' if client.recall(arbiter.directory / 'file0')[1].value == 0
                         and client.recall(pid=os.getppid())[1].err == -errno.EPERM
                         and client.recall(pid=os.getppid(), lease=1, flags=ac.ONE | ac.FORCE)[1].err == -errno.EPERM else b'0')
        finally:
            os._exit(0)
    os.close(ready[1])
    said = os.read(ready[0], 1)
    os.waitpid(pid, 0)
    for fd in (ready[0], *done):
        os.close(fd)
    return said


def others_leases():
    with leased() as (arbiter, holder, command, (path,)):
        same(as_nobody(arbiter), b'1')
        same(len(holder.notices), 0)
        command.order_recall(path)
        holder.released(told(holder), whole=1)
        one(command.recalled(), err=0)


# ------------------------------------------------------------------------------------------ the command

@contextlib.contextmanager
def running(arbiter, *arguments):
    environment = dict(os.environ, PINLEASE_SOCKET=str(arbiter.path))
    with subprocess.Popen([PINLEASE, 'recall', *map(str, arguments)], env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        yield process


def result(process):
    """Without what is said on kernels that hold no change (tests/given.py)."""
    out, err = process.communicate()
    return process.returncode, out.splitlines(), ''.join(line for line in err.splitlines(True) if "isn't told of leases" not in line)


def run(arbiter, *arguments):
    with running(arbiter, *arguments) as process:
        return result(process)


def command_line():
    with leased() as (arbiter, holder, _, (path,)):
        with running(arbiter, '--file', path) as process:
            holder.released(told(holder), whole=1)
            status, lines, err = result(process)
        same((status, err, len(lines)), (RELEASED, '', 2))
        same(lines[1].split()[0:4:3] + lines[1].split()[5:], [str(os.getpid()), '64K', 'quiesced', str(path)])
        holder.unlease()
        with open(path, 'rb') as file:
            same(holder.cover(file.fileno()).err, 0)  # so it has been heard
        status, lines, err = run(arbiter, '--file', path)
        same((status, lines, 'no such lease' in err), (NO_LEASE, [], True))


def command_again():
    """What is released already is no error, and no more than what was asked for is meant by it."""
    with leased(leases=2) as (arbiter, holder, _, paths):
        pid = os.getpid()
        with running(arbiter, '--pid', pid) as process:
            for number in (1, 2):
                holder.released(told(holder, number), whole=1)
            same(result(process)[0], RELEASED)
        same(run(arbiter, '--pid', pid), (RELEASED, ['2 leases already released'], ''))
        for arguments in (['--lease', f'{pid}:2'], ['--file', paths[0], '--range', f'{ac.SIZE - 1}-'],
                          ['--file', paths[1], '--pid', pid, '--no-wait']):
            same((arguments, run(arbiter, *arguments)), (arguments, (RELEASED, ['1 lease already released'], '')))
        for arguments in (['--lease', f'{pid}:3'], ['--file', paths[0], '--range', f'{ac.SIZE}-'], ['--pid', '1']):
            same((arguments, run(arbiter, *arguments)[0]), (arguments, NO_LEASE))
        with open(paths[0], 'r+b') as file:
            same(holder.lease(file.fileno(), 3, start=ac.START * 3).err, 0)
        same(holder.handle(3).err, 0)
        with running(arbiter, '--file', paths[0]) as process:
            holder.released(told(holder, 3), whole=1)
            status, lines, err = result(process)
        same((status, len(lines), 'quiesced' in lines[1]), (RELEASED, 2, True))


def command_gone():
    """A holder that ends hasn't answered, but its lease is over."""
    with leased() as (arbiter, _, _, (path,)):
        end, start = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                with arbiter.client() as holder:
                    with open(path, 'r+b') as file:
                        same((holder.lease(file.fileno()).err, holder.handle().err), (0, 0))
                    os.write(start, b'1')
                    holder.notice()
                    signal.pause()
            finally:
                os._exit(1)
        os.close(start)
        same(os.read(end, 1), b'1')
        os.close(end)
        with running(arbiter, '--pid', pid) as process, arbiter.client() as other:
            while not other.status()[0].notices:
                pass
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            status, lines, err = result(process)
        same((status, len(lines), ' holder gone ' in lines[1], err), (RELEASED, 2, True, ''))


def command_policy():
    with leased(policy=ac.KEEP, agent_ms=60000) as (arbiter, holder, _, (path,)):
        status, lines, err = run(arbiter, '--lease', f'{os.getpid()}:1', '--bytes')
        same((status, 'kept by policy' in lines[1], ' 65536 ' in lines[1], '--force' in err), (NOT_ALLOWED, True, True, True))
        with running(arbiter, '--pid', os.getpid(), '--force') as process:
            holder.released(told(holder), whole=1, outcome=4)
            status, lines, err = result(process)
        same((status, 'forced to a copy' in lines[1], err), (RELEASED, True, ''))


def command_part():
    """The size is that of what was asked for, in whole pages; errors are for all of it."""
    with leased() as (arbiter, holder, _, (path,)):
        holder.unlease()
        for number, words, first, last, outcome, size in ((2, '8193-16384', 2, 4, 4, '8.0K'), (3, '61441-', 15, 16, 3, '4.0K'),
                                                          (4, '0-1', 0, 1, 2, '64K'), (5, '4096-9000000', 1, 16, 1, '60K')):
            with open(path, 'r+b') as file:
                same(holder.lease(file.fileno(), number, start=ac.START * number).err, 0)
            same(holder.handle(number).err, 0)
            with running(arbiter, '--file', path, '--range', words, '--grace', '60000') as process:
                notice = told(holder, number, first, last)
                holder.released(notice, notice.start, notice.end, whole=outcome == 2, outcome=outcome)
                status, lines, err = result(process)
            same((status, err, [line.split()[2:4] for line in lines[1:]]), (RELEASED, '', [[str(number), size]]))
            holder.unlease(number)


def command_fails():
    with leased() as (arbiter, holder, _, (path,)):
        status, lines, err = run(arbiter, '--file', path, '--range', '0-4096', '--grace', '1')
        same((status, 'NOT FORCED' in lines[1], 'not released: 1 of 1 lease;' in err), (NOT_TAKEN, True, True))
        told(holder, 1, 0, 1)
        same(run(arbiter, '--file', path, '--no-wait')[0], RELEASED)


def command_wrong():
    with leased() as (arbiter, _, _, (path,)):
        for arguments, because in (([], 'say which'), (['--pid', '0'], 'no process'), (['--pid', '-1'], 'no process'),
                                   (['--pid', '99999999999'], 'no process'), (['--lease', '1'], 'PID:NUMBER'),
                                   (['--lease', '1:'], 'PID:NUMBER'), (['--lease', '1:-1'], 'PID:NUMBER'),
                                   (['--lease', '1:99999999999999999999'], 'PID:NUMBER'), (['--pid', '1', '--range', '0-1'], 'of a --file'),
                                   (['--lease', '1:1', '--pid', '2'], 'one lease'), (['--pid', '2', '--lease', '1:1'], 'one lease'),
                                   (['--lease', '1:1', '--file', path], 'one lease'), (['--file', '/dev/null'], 'regular file'),
                                   (['--file', path, '--range', '1-1'], 'not empty'), (['--file', path, '--range', '5'], 'START-END'),
                                   (['--file', path, '--range', '-5-7'], 'START-END'), (['--file', path, '--grace', 'x'], 'milliseconds'),
                                   (['--file', path, '--grace', '4294967296'], 'milliseconds'),
                                   (['--file', path, '--wait', '--no-wait'], 'not both'), (['--file', path, '-n', '-w'], 'not both'),
                                   (['--file', path, '--grace', '1', '--force'], 'without'), (['--file', '/nonexistent'], 'No such'),
                                   (['x'], '"x"')):
            status, lines, err = run(arbiter, *arguments)
            same((arguments, status, lines, because in err), (arguments, CANT_START, [], True))
        socket = arbiter.path
        arbiter.path = '/nonexistent'
        status, lines, err = run(arbiter, '--pid', '1')
        same((status, lines, 'start pinleased' in err), (CANT_START, [], True))
        arbiter.path = socket


def command_killed():
    """The arbiter ends while a command waits."""
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as holder:
        path = arbiter.file()
        with open(path, 'r+b') as file:
            same(holder.lease(file.fileno()).err, 0)
        with running(arbiter, '--file', path) as process:
            told(holder)
            arbiter.process.send_signal(signal.SIGTERM)
            status, lines, err = result(process)
            same((status, lines, 'ended the connection' in err), (CANT_START, [], True))


if __name__ == '__main__':
    ac.main([
        ("a holder's answer ends a recall", answered),
        ("a lease's end does, too", unlease_answers),
        ('by file, by process, by number', which),
        ('other leases of the same bytes are not concerned', only_that_one),
        ('a part of a file', part),
        ('an answer in parts', parts_of_an_answer),
        ('a grace that is asked for', graces),
        ('what its holder cannot take off is said', not_followed),
        ('what cannot be forced is said, and a late answer counts', no_answer),
        ('other policies than RECALL need force', policies),
        ('not waited for', no_waiting),
        ('a change and a recall', both),
        ('thousands', many),
        ('an asker that reads late', late_reader),
        ('the asker leaves', asker_leaves),
        ('the holder leaves', holder_leaves),
        ('holders leave on the way', holders_leave_on_the_way),
        ('a holder without a connection ends on the way', a_leaver_ends),
        ('the arbiter ends', arbiter_ends),
        ('what makes no sense is EINVAL', nonsense),
        ('so many recalls of one user and no more', one_at_a_time),
        ("others' leases are not recalled", others_leases),
        ('the command says what happened', command_line),
        ('the command when all is released already', command_again),
        ('the command when a holder ends', command_gone),
        ('the command and policies', command_policy),
        ('the command and a part of a lease', command_part),
        ('the command when a lease stays', command_fails),
        ('the command with wrong arguments', command_wrong),
        ('the command when the arbiter ends', command_killed),
    ])
