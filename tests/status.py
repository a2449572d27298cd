#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: status.py PINLEASED PINLEASE - pinleased says what it does, has, may give, and can't do."""
import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import socket
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
NOBODY = 65534
HOLDER, COMMAND, SUPERVISOR = range(3)
RESERVED = 16  # pinleased(8)
MINUTE = 60 * 10 ** 9


def same(got, expected):
    if got != expected:
        raise tree.Failure(f'got {got!r}, expected {expected!r}')


@contextlib.contextmanager
def leased(*options, **more):
    with ac.Arbiter(PINLEASED, *options, **more) as arbiter, arbiter.client() as holder:
        path = arbiter.file()
        with open(path, 'r+b') as file:
            for number in (1, 2):
                same(holder.lease(file.fileno(), number, start=ac.START * number).err, 0)
                same(holder.handle(number).err, 0)
        yield arbiter, holder, path


def run(path, *arguments, program=PINLEASE, **more):
    environment = dict(os.environ, PINLEASE_SOCKET=str(path), LD_LIBRARY_PATH=str(pathlib.Path(program).parent))
    result = subprocess.run([program, 'status', *arguments], env=environment, capture_output=True, text=True, check=False, **more)
    return result.returncode, result.stdout, result.stderr


def published(directory):
    """Where another user may run it."""
    shutil.copy(PINLEASE, directory / 'pinlease')
    (directory / 'pinlease').chmod(0o755)
    shutil.copy(next((pathlib.Path(PINLEASE).parent.parent.parent / 'lib').glob('libpinlease.so.0.*.0')), directory / 'libpinlease.so.0')
    return directory / 'pinlease'


def as_nobody(arbiter, **more):
    os.seteuid(NOBODY)
    try:
        return arbiter.client(**more)
    finally:
        os.seteuid(0)


def message():
    with leased('--ceiling', '1234', '--max-leases', '7', '--max-bytes', '1000000', '--max-connections', '9') as (arbiter, holder, _):
        with arbiter.client() as other:
            status, sources, users = other.status()
        same((status.pid, status.ceiling_ms, status.boot), (arbiter.process.pid, 1234, holder.welcome.boot))
        same((status.max_leases, status.max_bytes, status.max_connections), (7, 1000000, 9))
        same((status.connections, status.holders, status.leases, status.bytes), (2, 1, 2, 2 * ac.SIZE))
        same(sorted(line.split(':')[0] for line in sources), ['files', 'gate'])
        same([(user.uid, user.leases, user.bytes) for user in users], [(0, 2, 2 * ac.SIZE)])
        same(users[0].connections, 2)


def limits():
    """All that it was started with, and what a user has used up of it."""
    for given, expected in (((), (3 * 10000, 60000, 1, 2)), (('--ceiling', '7'), (21, 60000, 1, 2)),
                            (('--max-hold', '1234', '--max-notices', '77', '--may-kill', 'no', '--after-crash', 'open'), (1234, 77, 0, 0))):
        with ac.Arbiter(PINLEASED, *given, patient=False) as arbiter, arbiter.client() as client:
            status = client.status()[0]
            same((given, status.hold_ms, status.max_notices, status.may_kill, status.after_crash), (given, *expected))
            got = json.loads(run(arbiter.path, '--json')[1])
            same([got[key] for key in ('max_hold_ms', 'max_notices', 'may_kill', 'after_crash')], [*expected[:2], expected[2] == 1, 'open'])
            out = ' '.join(run(arbiter.path)[1].split())
            for words in (f'hold changes up for {expected[0]} ms of each minute', f'recalled {expected[1]} times a minute',
                          'may kill yes' if expected[2] else 'may kill no',
                          'no service manager keeps the descriptors' if expected[3] else 'after crash open: who waits goes on user'):
                same((words, words in out), (words, True))


def kept():
    """Closed is what it says where a service manager keeps the descriptors, and only there."""
    ac.skip_unless_changes_are_held()
    with tempfile.TemporaryDirectory(dir='/var/tmp') as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f'{directory}/manager')
        environment = dict(os.environ, NOTIFY_SOCKET=f'{directory}/manager', FDSTORE='3')
        process = subprocess.Popen([PINLEASED, '--socket', f'{directory}/socket'], env=environment)  # pylint: disable=consider-using-with
        descriptors, said = [], b''
        try:
            while b'READY=1' not in said:
                said, fds, _, _ = socket.recv_fds(manager, 1000, 1)
                if b'FDSTORE=1' in said:
                    descriptors += fds
                else:
                    list(map(os.close, fds))  # the barrier's
            with ac.Client(f'{directory}/socket') as client:
                same((len(descriptors), client.status()[0].after_crash), (3, 1))
            same(json.loads(run(f'{directory}/socket', '--json')[1])['after_crash'], 'closed')
            same('closed: who waits, and who comes, waits' in run(f'{directory}/socket')[1], True)
        finally:
            process.kill()
            process.wait()
            list(map(os.close, descriptors))


def told_since(holder):
    """The notices that nobody has waited for."""
    same(holder.handle(99).err, -errno.ENOENT)
    return holder.notices


def used_up():
    """Held time and recalls, of the user whose leases they were, and not of others."""
    with leased('--max-hold', '2000', '--max-notices', '10') as (arbiter, holder, path), ac.Actor() as actor, \
            arbiter.client() as other:
        same((other.status()[2][0].hold_ns, other.status()[2][0].notices), (0, 0))
        begun = time.monotonic_ns()
        actor.order('truncate', path)
        notices = [holder.notice(), holder.notice()]
        held = time.monotonic_ns()
        while time.monotonic_ns() < held + 50000000:
            other.status()
        held = time.monotonic_ns() - held
        for notice in notices:
            holder.released(notice, whole=1)
        same(actor.join(), 0)
        user = other.status()[2][0]
        took = time.monotonic_ns() - begun
        told = len(notices) + len(told_since(holder))  # who is slow is told again
        # Both are given back meanwhile, so that they are used up anew in a minute.
        same((told - 1 - took * 10 // MINUTE <= user.notices <= told, held - took * 2000 // 60000 <= user.hold_ns <= took), (True, True))
        got = json.loads(run(arbiter.path, '--json')[1])['users'][0]
        same(('hold_ns' in got, 'notices' in got), (True, True))
        same('of 2000 ms' in run(arbiter.path)[1], True)


def counts():
    with leased() as (arbiter, holder, path), ac.Actor() as actor, arbiter.client() as other:
        actor.order('truncate', path)
        notices = [holder.notice(), holder.notice()]
        same((other.status()[0].held, other.status()[0].notices), (1, 2))
        for notice in notices:
            holder.released(notice, whole=1)
        same(actor.join(), 0)
        status = other.status()[0]
        same((status.held, status.quiesced, status.answered, status.forced), (0, 2, 1, 0))


def who_waits():
    """Whose program stands still finds it, and why; of one who waits for two leases one line."""
    with leased() as (arbiter, holder, path), ac.Actor() as actor:
        same('waits process' in ' '.join(run(arbiter.path)[1].split()), False)
        actor.order('truncate', path)
        notices = [holder.notice(), holder.notice()]
        out = ' '.join(run(arbiter.path)[1].split())
        same((out.count('waits process'), f'waits process {notices[0].pid} ' in out, f': truncate of {path}, for lease ' in out,
              f'({os.getpid()})' in out), (1, True, True, True))
        said = json.loads(run(arbiter.path, '--json')[1])['waits']
        same([(one['pid'], one['source'], one['by'], one['path'], one['holder_pid'], one['waited_ns'] > 0) for one in said],
             [(notices[0].pid, 'files', 'truncate', str(path), os.getpid(), True)])
        for notice in notices:
            holder.released(notice, whole=1)
        same(actor.join(), 0)
        same(json.loads(run(arbiter.path, '--json')[1])['waits'], [])


def waits(arbiter):
    return [one['pid'] for one in json.loads(run(arbiter.path, '--json')[1])['waits']]


def command_leaves(arbiter, path):
    with arbiter.client() as command:
        command.order_recall(path)
        yield os.getpid()


def supervisor_leaves(arbiter, path):
    with arbiter.client() as supervisor, open(path, 'r+b') as file:
        supervisor.change(file.fileno(), actor=os.getpid())
        yield os.getpid()


def actor_is_killed(_, path):
    if not ac.kernel_holds_changes():
        return
    with ac.Actor() as actor:
        actor.order('truncate', path)
        yield actor.process.pid
        actor.process.kill()
        actor.process.wait()


def who_waited():
    """The recall goes on, and who doesn't wait for it any more isn't said to."""
    for begin in (command_leaves, supervisor_leaves, actor_is_killed):
        with leased() as (arbiter, holder, path):
            for pid in begin(arbiter, path):
                holder.notice()
                same((begin.__name__, waits(arbiter)), (begin.__name__, [pid]))
            while waits(arbiter):  # the runner ends what takes too long
                pass
            if holder.status()[0].held:
                said = json.loads(subprocess.run([PINLEASE, 'ps', '--json'], env=dict(os.environ, PINLEASE_SOCKET=str(arbiter.path)),
                                                 capture_output=True, check=True).stdout)
                same((begin.__name__, [one['recall']['waits'] for one in said]), (begin.__name__, [False, False]))


def deferred():
    """Who has left it to pinleased doesn't stand still."""
    ac.skip_unless_changes_are_held()
    with leased() as (arbiter, holder, path), arbiter.client() as caller, open(path, 'r+b') as file:
        same(caller.truncate_later(file.fileno()).err, 0)
        holder.notice()
        same((holder.status()[0].held, waits(arbiter)), (1, []))


def others_wait():
    """Who waits is said to, also behind one who doesn't any more."""
    ac.skip_unless_changes_are_held()
    with leased() as (arbiter, holder, path), arbiter.client() as caller, arbiter.client() as supervisor, open(path, 'r+b') as file:
        same(caller.truncate_later(file.fileno()).err, 0)
        holder.notice()
        supervisor.change(file.fileno(), actor=os.getpid())
        while waits(arbiter) != [os.getpid()]:  # the runner ends what takes too long
            pass
    with leased() as (arbiter, holder, path), ac.Actor() as actor, arbiter.client() as supervisor, open(path, 'r+b') as file:
        actor.order('truncate', path)
        holder.notice()
        supervisor.change(file.fileno(), actor=os.getpid())
        same(waits(arbiter), [actor.process.pid])
        actor.process.kill()
        actor.process.wait()
        while waits(arbiter) != [os.getpid()]:
            pass


def own_use():
    """Another user sees no use but his own."""
    with leased() as (arbiter, _, _):
        end, start = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                with arbiter.client() as client:
                    os.write(start, json.dumps(client.status()[2]).encode())
            finally:
                os._exit(0)
        os.close(start)
        with open(end, encoding='utf-8') as file:
            said = json.load(file)
        os.waitpid(pid, 0)
        same(said, [[NOBODY, 1, 0, 0, 0, 0]])


def one_at_a_time():
    """Like LIST, of which it is one."""
    with leased() as (arbiter, _, path):
        with arbiter.client() as client:
            with open(path, 'rb') as file:
                for number in range(3, 2000):
                    same(client.lease(file.fileno(), number, start=ac.START * number, policy=ac.KEEP).err, 0)
            client.send(ac.message(ac.LIST, 0, 0, 0, 0))
            client.send(ac.message(ac.ASK_STATUS))
            client.until_hung_up()  # the first isn't read meanwhile, so it isn't over
            got = client.until_gone()
            same(any(kind == ac.STATUS for kind, _, _ in got), False)


def command():
    with leased(patient=False) as (arbiter, _, _):
        status, out, err = run(arbiter.path, '--json')
        same((status, err), (0, ''))
        got = json.loads(out)
        wanted = {'pid': arbiter.process.pid, 'leases': 2, 'bytes': 2 * ac.SIZE, 'holders': 1, 'held': 0, 'ceiling_ms': 10000,
                  'max_leases': 100000, 'events_lost': 0}
        same({key: got.get(key) for key in wanted}, wanted)
        same([user['uid'] for user in got['users']], [0])
        held = ac.kernel_holds_changes()
        same(any(('NFS' if held else 'all files') in gap['what'] for gap in got['not_held']), True)
        status, out, err = run(arbiter.path)
        same((status, err, max(map(len, out.splitlines())) <= 80), (0, '', True))
        for words in ('2 of 1 holder, 128K', f"files: {'running' if held else 'missing'}",
                      'NFS' if held else 'any change of', '10000 ms', '0 root: 2 leases'):
            same((words, words in out), (words, True))
        same('1.0T' in out, True)
        same('131072 bytes' in run(arbiter.path, '--bytes')[1], True)


def counted():
    """One is one."""
    with leased('--max-leases', '3', '--max-connections', '9') as (arbiter, holder, path), ac.Actor() as actor:
        with open(path, 'r+b') as file:
            same(holder.lease(file.fileno(), 3, start=ac.START * 3, policy=ac.REFUSE, refuse=1, size=ac.PAGE).err, 0)
        for number in (1, 2):
            holder.unlease(number)
        same(holder.handle(3).err, 0)
        actor.order('truncate', path)
        same(actor.join(), errno.EBUSY)
        out = ' '.join(run(arbiter.path)[1].split())
        for words in ('1 of 1 holder, 4.0K', '0 recalls: ', '1 change refused', '0 changes or recalls held', '0 events lost', 'user 0 root: 1 lease, '):
            same((words, words in out), (words, True))


def sizes():
    for given, expected in (('65536', 1 << 16), ('0x10000', 1 << 16), ('64K', 1 << 16), ('3MiB', 3 << 20), ('1G', 1 << 30),
                            ('2TiB', 2 << 40), ('15E', 15 << 60)):
        with ac.Arbiter(PINLEASED, '--max-bytes', given) as arbiter, arbiter.client() as client:
            same((given, client.welcome.max_bytes), (given, expected))


def log_of(directory):
    """pinleased's standard error goes into a file: what has it do so."""
    return lambda: os.dup2(os.open(f'{directory}/log', os.O_WRONLY | os.O_CREAT), 2)


def without_privilege():
    """What it can't hold or refuse has its reason, here and in the log, and what there is to do about it."""
    drop = ['setpriv', '--bounding-set', '-sys_admin', '--inh-caps', '-sys_admin']
    with tempfile.TemporaryDirectory() as directory, \
            ac.Arbiter(drop[0], before=log_of(directory), words=drop[1:] + [PINLEASED]) as arbiter:
        out = ' '.join(run(arbiter.path)[1].split())
        for words in ('files: missing', 'any change of any file', 'gate: missing: '):
            same((words, words in out), (words, True))
        why = re.search('gate: missing: (.*?)( source | not held )', out)[1]
        said = pathlib.Path(f'{directory}/log').read_text(encoding='utf-8')
        same((f'pinleased: no gate: {why}\n' in said, said), (True, said))
        if 'was built without BPF' not in why:
            same(('CAP_SYS_ADMIN' in why, why), (True, why))


def switched_off():
    """Who has said so can see it; the log is silent of it."""
    with tempfile.TemporaryDirectory() as directory, ac.Arbiter(PINLEASED, '--gate', 'no', before=log_of(directory)) as arbiter:
        same('gate: missing: switched off (--gate no)' in ' '.join(run(arbiter.path)[1].split()), True)
        same('no gate' in pathlib.Path(f'{directory}/log').read_text(encoding='utf-8'), False)
        sources = subprocess.run([PINLEASE, 'sources'], env=dict(os.environ, PINLEASE_SOCKET=str(arbiter.path)), capture_output=True,
                                 text=True, check=True).stdout
        same('gate: missing: switched off (--gate no): changes of files on tmpfs' in sources, True)


def wrong():
    status, out, err = run('/nonexistent')
    same((status, out, 'start pinleased' in err), (2, '', True))
    with ac.Arbiter(PINLEASED) as arbiter:
        status, out, err = run(arbiter.path, 'x')
        same((status, out, '"x"' in err), (2, '', True))


def reserved():
    """Whoever runs it looks at it, however many programs of his own there are; these don't get his commands' places, nor do other users."""
    with ac.Arbiter(PINLEASED, '--max-connections', '3') as arbiter, contextlib.ExitStack() as stack:
        holders = [stack.enter_context(arbiter.client()) for _ in range(3)]
        for role in (HOLDER, SUPERVISOR):
            with arbiter.client(hello=False) as client:
                said = client.hello(role=role)
                same((said.err, 'no more connections' in said.text, client.until_gone()), (-errno.EDQUOT, True, []))
            while holders[0].status()[2][0].connections > len(holders):
                pass
        commands = []
        for _ in range(RESERVED):
            commands.append(stack.enter_context(arbiter.client(hello=False)))
            same(type(commands[-1].hello(role=COMMAND)), ac.Welcome)
            same(commands[-1].status()[2][0].uid, 0)
        with arbiter.client(hello=False) as client:
            same([values[0] for _, _, values in client.until_gone()], [-errno.EDQUOT])
        same((run(arbiter.path)[0], commands[0].status()[0].connections), (2, 3 + RESERVED))
        commands[1].close()
        while commands[0].status()[2][0].connections > 2 + RESERVED:
            pass
        same(run(arbiter.path)[0], 0)
        holders[0].close()
        others = [stack.enter_context(as_nobody(arbiter)) for _ in range(3)]
        with as_nobody(arbiter, hello=False) as client:
            same(([values[0] for _, _, values in client.until_gone()], len(others)), ([-errno.EDQUOT], 3))


def silent():
    """Who has connected and says nothing keeps no command out."""
    with ac.Arbiter(PINLEASED, '--max-connections', '3') as arbiter, contextlib.ExitStack() as stack:
        figures = arbiter.figures()
        said = stack.enter_context(arbiter.client())
        silents = [stack.enter_context(arbiter.client(hello=False)) for _ in range(5 * RESERVED)]
        same(run(arbiter.path)[0], 0)
        same(silents[0].until_gone(), [])
        with arbiter.client(hello=False) as command:
            same(type(command.hello(role=COMMAND)), ac.Welcome)
            same(command.status()[0].connections <= 3 + RESERVED, True)
        same(said.status()[2][0].uid, 0)
        stack.close()
        arbiter.wait_for_figures(figures)


def refused():
    """Who is refused is told why, also when that is sent before the command has said anything."""
    with ac.Arbiter(PINLEASED, '--max-connections', '1') as arbiter, contextlib.ExitStack() as stack:
        stack.enter_context(as_nobody(arbiter))
        program = published(arbiter.directory)
        for _ in range(50):
            status, out, err = run(arbiter.path, program=program, user=NOBODY, group=NOBODY, extra_groups=[])
            same((status, out, 'no more connections of this user' in err, len(err.splitlines())), (2, '', True, 1))
    with ac.Arbiter(PINLEASED) as arbiter, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(arbiter.directory / 'stream'))
        other.listen()
        for path in (arbiter.directory / 'stream', arbiter.path / 'x', '/tmp/' + 200 * 'x'):
            status, out, err = run(path)
            same((status, out, 'PINLEASE_SOCKET' in err), (2, '', True))


if __name__ == '__main__':
    ac.main([
        ('what it is and has', message),
        ('its limits', limits),
        ('what is kept over a crash', kept),
        ('what is used up of them', used_up),
        ('what it has done', counts),
        ('who waits, for whom', who_waits),
        ('and no more when he does not', who_waited),
        ('nor who has had it deferred', deferred),
        ('others who wait behind them are', others_wait),
        ('what others use is root\'s to see', own_use),
        ('one list at a time', one_at_a_time),
        ('the command', command),
        ('the command counts as people do', counted),
        ('sizes have units', sizes),
        ('what it cannot do, and why', without_privilege),
        ('what is switched off is said', switched_off),
        ('what is wrong is said', wrong),
        ('who runs it is not locked out by his own programs', reserved),
        ('nor by who says nothing', silent),
        ('why it is refused is said', refused),
    ])
