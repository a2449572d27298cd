#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command: its man page and its help say the same, and a wrong command line is an error.

usage: command.py PINLEASE
"""
import pathlib
import re
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import tree

PINLEASE = sys.argv[1]
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
    with open('/dev/full', 'wb') as full:
        status = subprocess.run([PINLEASE, 'sources'], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    if status.returncode != 2 or not status.stderr:
        raise tree.Failure(str(status))


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
        ('it says its version', version),
        ("output that can't be written is an error", unwritable_output),
        ('"sources" says of each source whether it runs', sources),
    ]))
