#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command and the daemon: their man pages and their help say the same, and a wrong command line is an error.

usage: command.py PINLEASE PINLEASED
"""
import pathlib
import re
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
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
    for arguments in (['nonsense'], ['--nonsense'], ['--ceiling', '0'], ['--max-leases', '1x'], ['--max-bytes', '']):
        result = subprocess.run([PINLEASED, *arguments], capture_output=True, encoding='utf-8', timeout=60, check=False)
        if result.returncode != 64 or not result.stderr or result.stdout:
            raise tree.Failure(f"pinleased {' '.join(arguments)}: {result}")
    result = subprocess.run([PINLEASED, '--socket', '/nonexistent/socket'], capture_output=True, encoding='utf-8', timeout=60, check=False)
    if result.returncode != 1 or "can't listen on /nonexistent/socket" not in result.stderr:
        raise tree.Failure(f'a socket in no directory: {result}')


def wrong_command_lines():
    for arguments in ([], ['nonsense'], ['demo', '--nonsense'], ['sources', 'nonsense']):
        result = subprocess.run([PINLEASE, *arguments], capture_output=True, encoding='utf-8', timeout=60, check=False)
        if result.returncode != 2 or not result.stderr or result.stdout:
            raise tree.Failure(f"pinlease {' '.join(arguments)}: {result}")


def version():
    project = (tree.ROOT / 'meson.build').read_text(encoding='utf-8')
    expected = 'pinlease ' + re.search(r"version: '(.*?)'", project)[1]
    said = tree.run([PINLEASE, '--version']).strip()
    if said != expected:
        raise tree.Failure(f'it says {said!r}, the project is {expected!r}')


def unwritable_output():
    for arguments in (['demo'], ['doctor', '--without'], ['sources']):
        with open('/dev/full', 'wb') as full:
            result = subprocess.run([PINLEASE, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=200, check=False)
        if result.returncode != 2 or b"can't write" not in result.stderr:
            raise tree.Failure(f"pinlease {' '.join(arguments)}: {result}")


def sources():
    said = tree.run([PINLEASE, 'sources'])
    for name in ('uffd', 'files', 'notify'):
        if not re.search(rf'^{name}: (running|missing: \S)', said, re.M):
            raise tree.Failure(f'no line for {name}:\n{said}')


if __name__ == '__main__':
    sys.exit(tree.tap([
        ('the man page has the commands that there are', same_commands),
        ('the man page has the options that there are', same_options),
        ('a wrong command line is an error', wrong_command_lines),
        ("the daemon's man page has the options that there are", daemon_page),
        ('a wrong command line of the daemon is an error', daemon_command_lines),
        ('it says its version', version),
        ("output that can't be written is an error", unwritable_output),
        ('"sources" says of each source whether it runs', sources),
    ]))
