# SPDX-License-Identifier: LGPL-2.1-or-later
"""pinlease pins --trace and --watch as a test sees them: what they say, and what to do when a call was missed."""
import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess

import census_rig as cs
import tree

PAGE = cs.PAGE
PROCESS_VM_READV = 310
PATIENCE = 20  # seconds for an event to come; then what was missed is done again


class Live:
    """Follows, as JSON; the first line says that it does. A call can be missed, which is counted: what was waited for is then done again."""
    def __init__(self, *arguments, **environment):
        self.process = subprocess.Popen([cs.PINLEASE, 'pins', '--json', *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env=dict(os.environ, **environment))
        self.got, self.agains = b'', 0
        try:
            self.start = self.next()
        except BaseException:
            self.process.kill()
            self.process.communicate()
            raise

    def next(self, again=None):
        pipe = self.process.stdout.fileno()
        while b'\n' not in self.got:
            if again and not select.select([pipe], [], [], PATIENCE)[0]:
                self.agains += 1
                again()
                continue
            part = os.read(pipe, 65536)
            if not part:
                self.ended()
            self.got += part
        line, _, self.got = self.got.partition(b'\n')
        return json.loads(line)

    def ended(self):
        said = self.process.communicate()[1]
        if b'lets no program follow' in said:
            raise tree.Skip('programs that follow functions of the kernel (BPF trampolines or kprobes)')
        raise tree.Failure(f'it ended with {self.process.returncode}: {said}')

    def find(self, event='pin', again=None, **wanted):
        wanted.setdefault('pid', os.getpid())
        while True:
            said = self.next(again)
            if said['event'] == event and all(said.get(key) == value for key, value in wanted.items()):
                return said

    def end(self):
        self.process.send_signal(signal.SIGINT)
        while (said := self.next())['event'] != 'end':
            pass
        rest, errors = self.process.communicate()
        if self.process.returncode or rest or errors or self.got:
            raise tree.Failure(f'it ended with {self.process.returncode}: {rest} {errors}')
        return said

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def expect(said, **wanted):
    for key, value in wanted.items():
        if said[key] != value:
            raise tree.Failure(f'{key} is {said[key]!r}, not {value!r}: {said}')


def device(picture, name, term):
    found = [group for group in picture['devices'] if (group['device'], group['term']) == (name, term)]
    if len(found) != 1:
        raise tree.Failure(f'no {term} {name}: {picture}')
    return found[0]


def sites(picture, **wanted):
    return [site for site in picture['sites'] if all(site.get(key) == value for key, value in wanted.items())]


def read_own(memory, times):
    """process_vm_readv() pins what it reads from as long as it copies."""
    there, here = ((ctypes.c_ulong * 2)(memory.start + at, PAGE) for at in (0, PAGE))
    for _ in range(times):
        cs.call(cs.LIBC.syscall(PROCESS_VM_READV, os.getpid(), here, 1, there, 1, ctypes.c_long(0)))


def again_on(memory):
    def register():
        with cs.Ring(cs.of(memory)):
            pass
    return register


def missed(end):
    return end['lost']['calls'] + end['lost']['releases']


def held(end, **wanted):
    return sum(site['held_bytes'] for site in sites(end, **wanted))


def leaks(end):
    return [found for found in end['leaks'] if found['pid'] == os.getpid()]


class Missed(tree.Failure):
    """A call was not seen, which happens: all is done anew."""


def patience():
    rounds = iter(range(6))

    def again():
        if next(rounds, None) is None:
            raise Missed('what was waited for is not told')
    return again


def anew(test, *arguments):
    def tries():
        for _ in range(2):
            with contextlib.suppress(Missed):
                return test(*arguments)
        return test(*arguments)
    return tries
