#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command and the daemon: their man pages and their help say the same, and a wrong command line is an error.

usage: command.py PINLEASE PINLEASED
"""
import contextlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import tree

PINLEASE, PINLEASED = sys.argv[1:]
GENERAL = {'--help', '--usage', '--version'}  # argp's own


def page():
    return (tree.ROOT / 'man/pinlease.1.scd').read_text(encoding='utf-8')


def commands():
    listed = tree.run([PINLEASE, '--help']).split('Commands:\n')[1].split('\n\n')[0]
    return {line.split()[0] for line in listed.splitlines()}


def options(text):
    return set(re.findall(r'--[a-z][a-z-]*', text)) - GENERAL


def same_commands():
    documented = set(re.findall(r'\*pinlease ([a-z]\w*)\*', page().split('# DESCRIPTION')[0]))
    if documented != commands():
        raise tree.Failure(f'the man page has {sorted(documented)}, the help {sorted(commands())}')


def same_options():
    helped = set().union(*(options(tree.run([PINLEASE, command, '--help'])) for command in commands()))
    if options(page()) != helped:
        raise tree.Failure(f'the man page has {sorted(options(page()))}, the help {sorted(helped)}')


def daemon_page():
    """Options, their short forms and their defaults."""
    manual = (tree.ROOT / 'man/pinleased.8.scd').read_text(encoding='utf-8')
    text = tree.run([PINLEASED, '--help'])
    helped = re.findall(r'^  -(\w), --([a-z-]+)=(\w+)', text, re.M)
    documented = re.findall(r'^\*--([a-z-]+)\* _(\w+)_, \*-(\w)\*\n((?:\t.*\n)+)', manual, re.M)
    if sorted((short, name, value) for name, value, short, _ in documented) != sorted(helped) or not helped:
        raise tree.Failure(f'the man page has {documented}, the help {helped}')
    if options(manual.split('# OPTIONS')[0]) != {f'--{name}' for _, name, _ in helped}:
        raise tree.Failure('the synopsis has other options')
    defaults = dict(zip((name for _, name, _ in helped), re.findall(r'\[(.*?)\]', re.sub(r'\s+', ' ', text.split('-?')[0]).split('Mandatory')[0])[-len(helped):]))
    for name, _, _, described in documented:
        if defaults[name] not in described:
            raise tree.Failure(f'--{name}: the default is {defaults[name]}, the man page says: {described}')


def daemon_command_lines():
    """Each is refused, and what is wrong with it is named."""
    for arguments in (['--max-bytes', '1X'], ['--max-bytes', '1GB'], ['--max-bytes', '1Gi'], ['--max-bytes', 'G'], ['--max-bytes', '0G'],
                      ['--max-bytes', '16E'], ['--max-bytes', '1G1'], ['--max-leases', '1K'], ['--ceiling', '1K'], ['--gate-keeps', '9999'], ['--gate-keeps', '0'], ['--gate', 'relative'], ['nonsense'], ['--nonsense'], ['--ceiling', '0'], ['--ceiling', '-5'], ['--ceiling', '86400001'], ['--ceiling', '4294967297'],
                      ['--max-bytes', '99999999999999999999'], ['--max-notices', '4294967297'], ['--max-leases', '1x'], ['--max-leases', ' 1'],
                      ['--max-bytes', ''], ['--max-bytes', '0x'], ['--after-crash', 'maybe'], ['--may-kill', '']):
        result = subprocess.run([PINLEASED, *arguments], capture_output=True, encoding='utf-8', timeout=tree.HANGS, check=False)
        wrong = arguments[0] if len(arguments) > 1 else arguments[0].strip('-')
        if arguments[0] == '--gate-keeps' and 'from 10000 to' not in result.stderr.splitlines()[0]:
            raise tree.Failure(f'the least is not said: {result.stderr}')
        if result.returncode != 64 or wrong not in result.stderr.splitlines()[0] or result.stdout:
            raise tree.Failure(f"pinleased {' '.join(arguments)}: {result}")


def cant_listen(path, why):
    result = subprocess.run([PINLEASED, '--socket', path], capture_output=True, encoding='utf-8', timeout=tree.HANGS, check=False)
    said = [line for line in result.stderr.splitlines() if "can't listen on" in line]
    if result.returncode != 1 or len(said) != 1 or f'"{path}"' not in said[0] or why not in said[0] or '--socket' not in said[0]:
        raise tree.Failure(f'a socket at {path}: {result}')


def nothing_is_removed():
    """What stands where pinleased is to listen stays, unless it is a socket that nobody has any more."""
    cant_listen('/nonexistent/socket', 'No such file')
    cant_listen('', 'No such file')
    cant_listen('/tmp/' + 200 * 'x', 'too long')
    with tempfile.TemporaryDirectory() as directory:
        path = directory + '/there'
        cant_listen(directory, 'exists')
        pathlib.Path(path).write_text('precious', encoding='utf-8')
        cant_listen(path, 'exists')
        os.symlink('there', directory + '/link')
        cant_listen(directory + '/link', 'exists')
        if pathlib.Path(directory, 'link').read_text(encoding='utf-8') != 'precious':
            raise tree.Failure('the file has been removed')
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            with socket.socket(socket.AF_UNIX, kind) as other:
                other.bind(f'{directory}/{int(kind)}')
                if kind != socket.SOCK_DGRAM:
                    other.listen()
                inode = os.lstat(other.getsockname()).st_ino
                cant_listen(other.getsockname(), 'in use')
                if os.lstat(other.getsockname()).st_ino != inode:
                    raise tree.Failure(f"another program's socket of type {kind} has been removed")


@contextlib.contextmanager
def running(path, *options, said=None):
    """A daemon that listens on path; what it says goes into the list `said`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(path + '.ready')
        ready.settimeout(tree.HANGS)
        environment = dict(os.environ, NOTIFY_SOCKET=path + '.ready')
        environment.pop('FDSTORE', None)
        with subprocess.Popen([PINLEASED, '--socket', path, *options], env=environment, stderr=subprocess.PIPE, text=True) as daemon:
            try:
                ready.recv(100)
                yield
            finally:
                daemon.terminate()
            if said is not None:
                said.append(daemon.stderr.read())
        if daemon.returncode:
            raise tree.Failure(f'it ended with {daemon.returncode}')


def old_socket():
    with tempfile.TemporaryDirectory() as directory:
        path = directory + '/socket'
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
            dead.bind(path)
        with running(path):
            cant_listen(path, 'in use')


def given(*sockets):
    """A daemon that is passed these, as systemd does it, by a shell that knows its own number."""
    fds = [sock.fileno() for sock in sockets]
    script = f'LISTEN_PID=$$ LISTEN_FDS={len(fds)} exec "$0" "$@"'
    moves = ' '.join(f'{3 + i}<&{fd}' for i, fd in enumerate(fds))
    return ['bash', '-c', f'exec {moves}; {script}', PINLEASED], fds


def wrong_sockets():
    """What is passed must be a socket that clients can connect to."""
    with tempfile.TemporaryDirectory() as directory, open('/dev/null', 'rb') as null, socket.socket(socket.AF_UNIX) as stream, \
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf:
        stream.bind(directory + '/stream')
        stream.listen()
        deaf.bind(directory + '/deaf')
        for what in (null, stream, deaf):
            words, fds = given(what)
            result = subprocess.run(words, pass_fds=fds, capture_output=True, encoding='utf-8', timeout=tree.HANGS, check=False)
            if result.returncode != 1 or 'ListenSequentialPacket' not in result.stderr:
                raise tree.Failure(f'{what}: {result}')


def demo_with_daemon():
    """What nobody waits for is told by the daemon all the same, if not before the actor goes on. Other rows depend on the machine's load."""
    with tempfile.TemporaryDirectory(dir='/var/tmp') as directory, running(directory + '/socket'):
        result = subprocess.run([PINLEASE, 'demo', '--dir', directory], env=dict(os.environ, PINLEASE_SOCKET=directory + '/socket'),
                                capture_output=True, encoding='utf-8', timeout=tree.HANGS, check=False)
    rows = re.findall(r'second process, (\w+) \.\.\. (\w+)', result.stdout + result.stderr)
    if not {'KEEP', 'REFUSE'} <= {policy for policy, _ in rows} or any(row in rows for row in (('KEEP', 'FAILED'), ('REFUSE', 'FAILED'))):
        raise tree.Failure(result.stdout + result.stderr)


def keeps_nothing():
    """Without a service manager that keeps descriptors `closed` can't be kept, which isn't silent."""
    for options, expected in (([], True), (['--after-crash', 'closed'], True), (['--after-crash', 'open'], False)):
        said = []
        with tempfile.TemporaryDirectory() as directory, running(directory + '/socket', *options, said=said):
            pass
        if ('keeps its descriptors' in said[0]) != expected:
            raise tree.Failure(f'pinleased {options} says {said}')


def leavers():
    """Who closes its connection and stays is named; of its own end the daemon says how many it leaves."""
    said = []
    with tempfile.TemporaryDirectory(dir='/var/tmp') as directory, open(directory + '/file', 'w+b') as file, \
            contextlib.ExitStack() as later, running(directory + '/socket', said=said):
        file.truncate(ac.SIZE)
        stays = later.enter_context(ac.Client(directory + '/socket'))
        with ac.Client(directory + '/socket', name=b'leaver') as leaves:
            errors = [client.lease(file.fileno()).err for client in (stays, leaves)]
        while stays.status()[2][0].leases > 1:
            time.sleep(0.01)
    lines = [line for line in said[0].splitlines() if 'no longer guarded' in line]
    if errors != [0, 0] or len(lines) != 2 or f'leaver ({os.getpid()}) has closed its connection' not in lines[0] or \
            lines[1] != 'pinleased: ends: files are no longer guarded for 1 holder with leases':
        raise tree.Failure(f'{errors} {said[0]}')


def wrong_command_lines():
    """Each with a sentence; what can be named instead is in it."""
    for arguments, words in (([], 'no command'), (['nonsense'], 'nonsense'), (['demo', '--nonsense'], 'nonsense'), (['sources', 'nonsense'], 'sources: '),
                             (['pins', '--kind', 'nonsense'], 'io_uring'), (['pins', '--sort', 'nonsense'], 'bytes')):
        result = subprocess.run([PINLEASE, *arguments], capture_output=True, encoding='utf-8', timeout=tree.HANGS, check=False)
        if result.returncode != 2 or words not in result.stderr.splitlines()[0] or not result.stderr.startswith('pinlease') or result.stdout:
            raise tree.Failure(f"pinlease {' '.join(arguments)}: {result}")


def own_name():
    """An error and its remedy name what can be run again: ps alone is another program."""
    for command in commands():
        result = subprocess.run([PINLEASE, command, '--nonsense'], capture_output=True, encoding='utf-8', timeout=tree.HANGS, check=False)
        if not result.stderr.startswith(f'pinlease {command}: ') or f"`pinlease {command} --help'" not in ' '.join(result.stderr.split()):
            raise tree.Failure(f'{command}: {result.stderr}')


def version():
    project = (tree.ROOT / 'meson.build').read_text(encoding='utf-8')
    for program in (PINLEASE, PINLEASED):
        expected = f'{pathlib.Path(program).name} ' + re.search(r"version: '(.*?)'", project)[1]
        said = tree.run([program, '--version']).strip()
        if said != expected:
            raise tree.Failure(f'it says {said!r}, the project is {expected!r}')


def unwritable_output():
    for arguments in (['demo'], ['doctor', '--without'], ['sources']):
        with open('/dev/full', 'wb') as full:
            result = subprocess.run([PINLEASE, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=tree.HANGS, check=False)
        if result.returncode != 2 or b"can't write" not in result.stderr:
            raise tree.Failure(f"pinlease {' '.join(arguments)}: {result}")


def sources():
    said = tree.run([PINLEASE, 'sources'])
    for name in ('uffd', 'files', 'notify'):
        if not re.search(rf'^{name}: (running|by pinleased: \S|missing: \S)', said, re.M):
            raise tree.Failure(f'no line for {name}:\n{said}')


if __name__ == '__main__':
    sys.exit(tree.tap([
        ('the man page has the commands that there are', same_commands),
        ('the man page has the options that there are', same_options),
        ('a wrong command line is an error', wrong_command_lines),
        ('an error names the command that it is about', own_name),
        ("the daemon's man page has the options that there are", daemon_page),
        ('a wrong command line of the daemon is an error', daemon_command_lines),
        ('the daemon removes nothing that is in the way of its socket', nothing_is_removed),
        ('the daemon takes the place of a socket that nobody listens on', old_socket),
        ('the daemon takes no socket of another kind from the service manager', wrong_sockets),
        ('the daemon says that nothing is kept over its death', keeps_nothing),
        ('the daemon says whom it guards no longer', leavers),
        ('the demo where a daemon runs', demo_with_daemon),
        ('they say their version', version),
        ("output that can't be written is an error", unwritable_output),
        ('"sources" says of each source whether it runs', sources),
    ]))
