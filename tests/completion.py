#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: completion.py PINLEASED PINLEASE - shells complete what the command takes, and what pinleased has."""
import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import tree

PINLEASED, PINLEASE = map(os.path.abspath, sys.argv[1:3])
del sys.argv[2]
BASH = tree.ROOT / 'dist/completion/pinlease.bash'
ZSH = tree.ROOT / 'dist/completion/_pinlease'
GENERAL = {'--help', '--usage', '--version'}


def same(got, expected):
    if got != expected:
        raise tree.Failure(f'got {got!r}, expected {expected!r}')


def complete(line, directory='/', socket='/nonexistent'):
    """As bash does it at the end of the line."""
    program = f'''set -eu
. {BASH}
[[ $(complete -p pinlease) == *_pinlease* ]]
COMP_LINE=$1 COMP_POINT=${{#1}}
cd "$2"
_pinlease 2>&1
printf '%s\\n' "${{COMPREPLY[@]}}"
'''
    environment = dict(os.environ, PINLEASE_SOCKET=str(socket), PATH=f'{pathlib.Path(PINLEASE).parent}:{os.environ["PATH"]}')
    result = subprocess.run(['bash', '-c', program, 'bash', line, str(directory)], env=environment, capture_output=True, text=True,
                            check=False)
    same((result.returncode, result.stderr), (0, ''))
    return set(result.stdout.split())


def commands():
    listed = tree.run([PINLEASE, '--help']).split('Commands:\n')[1].split('\n\n')[0]
    return {line.split()[0] for line in listed.splitlines()}


def options(command):
    return set(re.findall(r'(--[a-z][a-z-]*=?)', re.sub(r'(?m)^ {20,}.*', '', tree.run([PINLEASE, command, '--help'])).split('\n\n')[0]
                          + re.sub(r'(?m)(^ .{25}).*', r'\1', tree.run([PINLEASE, command, '--help']))))


def words():
    same(complete('pinlease '), commands() | GENERAL)
    same(complete('pinlease st'), {'status'})
    same(complete('pinlease x'), set())


def every_option():
    for command in commands():
        same((command, complete(f'pinlease {command} --')), (command, options(command)))
    same(complete('pinlease recall --no-wait --fo'), {'--force'})
    same(complete('pinlease ps --pid 1 --so'), {'--sort='})


def every_option_of_zsh():
    text = ZSH.read_text(encoding='utf-8')
    for command in commands():
        described = re.search(rf"^\t\t{command}\) (.*?);;$", text, re.M | re.S)
        found = set(re.findall(r'--[a-z][a-z-]*=?(?=\[|\}|,)', described[1])) if described else set()
        same((command, found), (command, options(command) - GENERAL))
        same(f"{command}:" in text, True)
    if shutil.which('zsh'):
        tree.run(['zsh', '-n', str(ZSH)])


def values():
    same(complete('pinlease ps --sort '), {'pid', 'age', 'bytes'})
    same(complete('pinlease ps --sort=b'), {'bytes'})
    same(complete('pinlease top --by f'), {'file'})
    same(complete('pinlease recall --grace '), set())
    same('lo' in complete('pinlease p2p l'), os.path.exists('/sys/class/net/lo'))
    same(complete('pinlease recall --pid '), set())  # no pinleased


def files():
    with contextlib.ExitStack() as stack:
        arbiter = stack.enter_context(ac.Arbiter(PINLEASED))
        arbiter.file('some file')
        (arbiter.directory / 'directory').mkdir()
        same(complete('pinlease recall --file s', arbiter.directory), {'some', 'file', 'socket'})
        same(complete('pinlease trace --file=d', arbiter.directory), {'directory'})
        same(complete('pinlease doctor --dir ', arbiter.directory), {'directory'})


def leases():
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client(name=b'"pid":7,') as client:
        path = arbiter.file('"pid":8,')
        with open(path, 'r+b') as file:
            for number in (3, 40):
                same(client.lease(file.fileno(), number, start=ac.START * number).err, 0)
        pid = str(os.getpid())
        same(complete('pinlease recall --pid ', socket=arbiter.path), {pid})
        same(complete('pinlease recall --lease ', socket=arbiter.path), {f'{pid}:3', f'{pid}:40'})
        same(complete(f'pinlease recall --lease {pid}:4', socket=arbiter.path), {'40'})  # bash has the rest
        same(complete(f'pinlease recall -l {pid[:-1]}', socket=arbiter.path), {f'{pid}:3', f'{pid}:40'})


if __name__ == '__main__':
    ac.main([
        ('commands', words),
        ("every command's options, as its help has them", every_option),
        ('the same for zsh', every_option_of_zsh),
        ('words that options take', values),
        ('files', files),
        ('processes and leases', leases),
    ])
