#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: status.py PINLEASED PINLEASE - pinleased says what it does, has, may give, and can't do."""
import contextlib
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


def same(got, expected):
    if got != expected:
        raise tree.Failure(f'got {got!r}, expected {expected!r}')


@contextlib.contextmanager
def leased(*options):
    with ac.Arbiter(PINLEASED, *options) as arbiter, arbiter.client() as holder:
        path = arbiter.file()
        with open(path, 'r+b') as file:
            for number in (1, 2):
                same(holder.lease(file.fileno(), number, start=ac.START * number).err, 0)
                same(holder.handle(number).err, 0)
        yield arbiter, holder, path


def run(path, *arguments):
    result = subprocess.run([PINLEASE, 'status', *arguments], env=dict(os.environ, PINLEASE_SOCKET=str(path)),
                            capture_output=True, text=True, check=False)
    return result.returncode, result.stdout, result.stderr


def message():
    with leased('--ceiling', '1234', '--max-leases', '7', '--max-bytes', '1000000', '--max-connections', '9') as (arbiter, holder, _):
        with arbiter.client() as other:
            status, sources, users = other.status()
        same((status.pid, status.ceiling_ms, status.boot), (arbiter.process.pid, 1234, holder.welcome.boot))
        same((status.max_leases, status.max_bytes, status.max_connections), (7, 1000000, 9))
        same((status.connections, status.holders, status.leases, status.bytes), (2, 1, 2, 2 * ac.SIZE))
        same([line.split(':')[0] for line in sources], ['files'])
        same([(user.uid, user.leases, user.bytes) for user in users], [(0, 2, 2 * ac.SIZE)])
        same(users[0].connections, 2)


def counts():
    with leased('--ceiling', '100000') as (arbiter, holder, path), ac.Actor() as actor, arbiter.client() as other:
        actor.order('truncate', path)
        notices = [holder.notice(), holder.notice()]
        same((other.status()[0].held, other.status()[0].notices), (1, 2))
        for notice in notices:
            holder.released(notice, whole=1)
        same(actor.join(), 0)
        status = other.status()[0]
        same((status.held, status.quiesced, status.answered, status.forced), (0, 2, 1, 0))


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
        same(said, [[NOBODY, 1, 0, 0]])


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
    with leased() as (arbiter, _, _):
        status, out, err = run(arbiter.path, '--json')
        same((status, err), (0, ''))
        got = json.loads(out)
        wanted = {'pid': arbiter.process.pid, 'leases': 2, 'bytes': 2 * ac.SIZE, 'holders': 1, 'held': 0, 'ceiling_ms': 10000,
                  'max_leases': 100000, 'events_lost': 0}
        same({key: got.get(key) for key in wanted}, wanted)
        same([user['uid'] for user in got['users']], [0])
        same(any('tmpfs' in gap['what'] for gap in got['not_held']), True)
        status, out, err = run(arbiter.path)
        same((status, err, max(map(len, out.splitlines())) <= 80), (0, '', True))
        for words in ('2 of 1 holder, 128K', 'files: running', 'tmpfs', '10000 ms', '0 root: 2 leases'):
            same((words, words in out), (words, True))
        same('131072 bytes' in run(arbiter.path, '--bytes')[1], True)


def without_privilege():
    """What it can't hold has its reason."""
    drop = ['setpriv', '--bounding-set', '-sys_admin', '--inh-caps', '-sys_admin']
    with ac.Arbiter(drop[0], before=None, words=drop[1:] + [PINLEASED]) as arbiter:
        out = run(arbiter.path)[1]
        for words in ('files: missing', 'any change of any file'):
            same((words, words in out), (words, True))


def wrong():
    status, out, err = run('/nonexistent')
    same((status, out, 'is pinleased running?' in err), (2, '', True))
    with ac.Arbiter(PINLEASED) as arbiter:
        status, out, err = run(arbiter.path, 'x')
        same((status, out, '"x"' in err), (2, '', True))


if __name__ == '__main__':
    ac.main([
        ('what it is and has', message),
        ('what it has done', counts),
        ('what others use is root\'s to see', own_use),
        ('one list at a time', one_at_a_time),
        ('the command', command),
        ('what it cannot do, and why', without_privilege),
        ('what is wrong is said', wrong),
    ])
