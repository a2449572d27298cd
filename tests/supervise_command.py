#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: supervise_command.py PINLEASED PINLEASE - pinlease run is its command to whoever calls it, and says what is wrong with its arbiter."""
import contextlib
import errno
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
from supervise_rig import ALL, PINLEASE, PINLEASED, Supervised, environment, length, lent, memory, run, same


def restart(arbiter):
    arbiter.process.wait()
    # pylint: disable-next=consider-using-with
    arbiter.process = subprocess.Popen([PINLEASED, '--socket', arbiter.path])
    while True:
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            return arbiter.client()


def arbiter_killed():
    """Who waits goes on, to the gate if there is one, which is closed then; and the next arbiter is found."""
    with lent() as (arbiter, client, path, fd):
        with Supervised(arbiter) as actor:
            order = actor.order('truncate', path, 4 * ac.PAGE)
            client.notice()
            arbiter.process.kill()
            result = actor.join(order)
            if result != -errno.EBUSY:
                same(result, 0)
            same(length(fd), 4 * ac.PAGE if result == 0 else ac.SIZE)
            with restart(arbiter) as another:
                same(another.lease(fd, size=ac.PAGE, policy=ac.REFUSE, refuse=ALL).err, 0)
                while actor.do('fallocate', path, 3, 0, ac.PAGE) != -errno.EBUSY:
                    pass
        assert 'the connection to pinleased is broken' in actor.said, actor.said


def no_arbiter():
    with memory() as (path, fd):
        with Supervised('/nonexistent/socket') as actor:
            same(actor.do('truncate', path, 0), 0)
            same(actor.do('truncate', path, ac.PAGE), 0)
        same(1 <= actor.said.count("can't reach pinleased") <= 2, True)  # once in a second


def full():
    """Who is refused says why, and all goes on until he is let in."""
    with memory() as (path, fd), ac.Arbiter(PINLEASED, '--max-connections', '1', '--gate', 'no') as arbiter:
        with arbiter.client() as client:
            same(client.lease(fd, policy=ac.REFUSE, refuse=ALL).err, 0)
            with Supervised(arbiter) as actor:
                same(actor.do('truncate', path, ac.PAGE), 0)
                same(actor.do('truncate', path, ac.SIZE), 0)
            refusals = actor.said.count('serves no more connections of this user')  # once in a second
            same((1 <= refusals <= 2, actor.said.count('pinlease run:')), (True, refusals))


@contextlib.contextmanager
def door(said):
    """Who says that to everybody who comes, and closes: the socket's path."""
    with tempfile.TemporaryDirectory(dir='/var/tmp') as directory, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f'{directory}/socket')
        listening.listen()

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    with listening.accept()[0] as one, contextlib.suppress(ConnectionError):
                        one.send(said)
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f'{directory}/socket'
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def refused_at_once():
    """Why is said also when the connection has ended before anything was asked."""
    other, old = "another version's", "isn't this release's pinleased"
    with memory() as (path, _):
        for said, words in ((ac.message(ac.REPLY, -errno.EPROTONOSUPPORT, 0, 0, other.encode()), other),
                            (ac.message(ac.WELCOME, ac.VERSION + 1, *[0] * 6), old), (b'hello', old)):
            with door(said) as arbiter:
                for _ in range(10):
                    result = run('truncate', '-s', '0', path, arbiter=arbiter)
                    same((result.returncode, words in result.stderr, result.stderr.count('pinlease run:')), (0, True, 1))


def status():
    for script, wanted in (('exit 0', 0), ('exit 7', 7), ('kill -TERM $$', -signal.SIGTERM), ('kill -KILL $$', -signal.SIGKILL),
                           ('kill -SEGV $$', -signal.SIGSEGV)):
        same(run('sh', '-c', script).returncode, wanted)
    same(run('/nonexistent/program').returncode, 127)
    same(run('/dev/null').returncode, 126)
    for wrong in ([], ['--wrong', 'true']):
        same(subprocess.run([PINLEASE, 'run', *wrong], capture_output=True, check=False).returncode, 125)
    same(run('cat', input='through').stdout, 'through')


def signals():
    """What is sent to pinlease run is sent to the command. Not bash: a signal just before its `read` waits for a line."""
    script = """
import signal, sys
taken = {signal.SIGUSR1: 'usr1', signal.SIGTERM: 'term'}
signal.pthread_sigmask(signal.SIG_BLOCK, taken)
print('ready', flush=True)
while (got := signal.sigwait(taken)) != signal.SIGTERM:
    print(taken[got], flush=True)
print(taken[got], flush=True)
sys.exit(3)
"""
    with subprocess.Popen([PINLEASE, 'run', '--', sys.executable, '-c', script], env=environment('/nonexistent'),
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        same(process.stdout.readline(), 'ready\n')
        process.send_signal(signal.SIGUSR1)
        same(process.stdout.readline(), 'usr1\n')
        process.send_signal(signal.SIGTERM)
        same(process.stdout.readline(), 'term\n')
        same(process.wait(), 3)


def outlived():
    """Who outlives the command keeps nobody waiting for it, and is supervised."""
    with lent() as (arbiter, client, path, fd), contextlib.ExitStack() as left:
        go = arbiter.directory / 'go'
        os.mkfifo(go)
        left.callback(lambda: os.close(os.open(go, os.O_RDWR | os.O_NONBLOCK)))  # whoever reads it still
        result = run('sh', '-c', f'(read line <{go}; : > {path}) >/dev/null 2>&1 & exit 5', arbiter=arbiter)
        same((result.returncode, result.stderr), (5, ''))
        go.write_text('go\n', encoding='ascii')
        notice = client.notice()
        same((notice.what, notice.op, length(fd)), (ac.RECALLED, ac.TRUNCATE, ac.SIZE))
        client.released(notice, whole=1)
        while length(fd):
            pass


def nested():
    with lent(policy=ac.REFUSE, refuse=ALL) as (arbiter, client, path, fd):
        result = run(PINLEASE, 'run', '--', 'sh', '-c', f': > {path}', arbiter=arbiter)
        assert result.returncode and 'busy' in result.stderr.lower(), result
        same(client.notice().what, ac.REFUSED)
        same(length(fd), ac.SIZE)


def rings():
    with Supervised('/nonexistent', '--no-io-uring') as actor:
        same(actor.do('ring'), -errno.EPERM)
    with Supervised('/nonexistent') as actor:
        same(actor.do('ring'), -errno.EFAULT)
        same(actor.do('ring'), -errno.EFAULT)
    same(actor.said.count('io_uring'), 1)


TESTS = [
    ('the arbiter is killed: who waits goes on', arbiter_killed),
    ('no arbiter: said once, and all goes on', no_arbiter),
    ('no room at the arbiter: why is said once, and all goes on', full),
    ('refused at once: why is said', refused_at_once),
    ('exit status and signals are the command\'s', status),
    ('signals are passed on', signals),
    ('who outlives the command is supervised', outlived),
    ('a run within a run', nested),
    ('rings are said, or forbidden', rings),
]

if __name__ == '__main__':
    ac.main(TESTS)
