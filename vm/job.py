# SPDX-License-Identifier: LGPL-2.1-or-later
"""Jobs: what runs in which virtual machine. CONTRIBUTING.md has the format; here is what a file becomes.

One Job for each kernel that a file names: its settings, with those `on` other kernels left out.
"""
import dataclasses
import fnmatch
import pathlib
import re

SETUP = pathlib.Path(__file__).resolve().parent / 'setup'

FILE_SYSTEMS = ('tmpfs', 'ext4', 'xfs', 'btrfs')
LINE = re.compile(r'(?P<key>[a-z]+)(?: (?P<name>[\w-]+))??(?: on (?P<where>[\w. -]+?))?\s*=\s*(?P<value>.*)$')


class Bad(Exception):
    pass


@dataclasses.dataclass
class Job:
    file: str                                     # "files" of jobs/files.job
    kernel: str
    cpus: int = 1                                 # QEMU 7.2 with two of them sometimes panics while booting
    memory: str = '2G'
    timeout: int = 900                            # seconds from when the guest is up
    args: list = dataclasses.field(default_factory=list)     # of the kernel
    qemu: list = dataclasses.field(default_factory=list)     # more options of QEMU
    machine: str = 'q35'
    modules: list = dataclasses.field(default_factory=list)
    setup: list = dataclasses.field(default_factory=list)    # scripts of vm/setup, in that order
    env: list = dataclasses.field(default_factory=list)
    tests: list = dataclasses.field(default_factory=list)    # (file system, name or pattern of meson's tests; !pattern)
    commands: list = dataclasses.field(default_factory=list)  # (file system, name, shell)
    skip: list = dataclasses.field(default_factory=list)     # (pattern, reason)
    allow: list = dataclasses.field(default_factory=list)    # (pattern of kernel messages, reason)
    expect: list = dataclasses.field(default_factory=list)   # patterns of failures that the job must have, and no others
    rarely: bool = False                          # vm/run --often leaves the job out
    rare_tests: list = dataclasses.field(default_factory=list)  # those of tests that it leaves out

    @property
    def name(self):
        return f'{self.file}-{self.kernel}'


def reason(value):
    pattern, colon, why = value.partition(': ')
    if not colon:
        raise Bad(f'"{value}" has no reason: PATTERN: REASON')
    return pattern.strip(), why.strip()


def number(key, value):
    if not value.isdecimal() or not int(value):
        raise Bad(f'{key} = {value}: that is no number, 1 or more')
    return int(value)


def scripts(value):
    for name in value.split():
        if not (SETUP / name).is_file():
            raise Bad(f'setup = {name}: there is no vm/setup/{name}; there are {", ".join(sorted(p.name for p in SETUP.iterdir()))}')
    return value.split()


def apply(job, key, name, value, file_systems):
    if key in ('cpus', 'timeout'):
        setattr(job, key, number(key, value))
    elif key == 'rarely':
        job.rarely = job.rarely or job.kernel in value.split()
    elif key == 'setup':
        job.setup += scripts(value)
    elif key in ('memory', 'machine'):
        setattr(job, key, value)
    elif key in ('args', 'qemu', 'modules', 'env'):
        getattr(job, key).extend(value.split())
    elif key == 'expect':
        job.expect.append(value)
    elif key in ('skip', 'allow'):
        getattr(job, key).append(reason(value))
    elif key == 'tests' and name in (None, 'rarely'):
        job.tests += (words := [(fs, word) for fs in file_systems for word in value.split()])
        job.rare_tests += words if name else []
    elif key == 'command' and name:
        job.commands += [(fs, name, value) for fs in file_systems]
    elif key == 'command':
        raise Bad(f'command = {value}: it has no name: command NAME = ...')
    else:
        raise Bad(f'no setting "{key}"')


def often(jobs):
    """Without what is to run rarely."""
    return [dataclasses.replace(job, tests=[test for test in job.tests if test not in job.rare_tests], rare_tests=[])
            for job in jobs if not job.rarely]


def lines(text):
    """Lines without comments; one that begins with a blank goes on."""
    joined = re.sub(r'\n[ \t]+', ' ', re.sub(r'(?m)(^|\s)#.*$', '', text))
    return [line.strip() for line in joined.splitlines() if line.strip()]


def parse(file, text):
    """The jobs of a file."""
    settings = [LINE.match(line) or bad(file, line) for line in lines(text)]
    kernels = [k for m in settings if m['key'] == 'kernels' for k in m['value'].split()]
    if not kernels:
        raise Bad(f'{file}: no kernels')
    for m in settings:
        if m['key'] == 'rarely' and (unknown := set(m['value'].split()) - set(kernels)):
            raise Bad(f'{file}: rarely = {m["value"]}: "{min(unknown)}" is no kernel of this job')
    jobs = []
    for kernel in kernels:
        jobs.append(job := Job(file, kernel))
        for m in settings:
            where = (m['where'] or '').split()
            file_systems = [w for w in where if w in FILE_SYSTEMS]
            on = [w for w in where if w not in FILE_SYSTEMS]
            if unknown := [w for w in on if w not in kernels]:
                raise Bad(f'{file}: "{unknown[0]}" is no kernel of this job and no file system')
            if m['key'] != 'kernels' and (not on or kernel in on):
                try:
                    apply(job, m['key'], m['name'], m['value'], file_systems or ['tmpfs'])
                except Bad as error:
                    raise Bad(f'{file}: {error}') from error
    return jobs


def bad(file, line):
    raise Bad(f'{file}: what is "{line}"?')


@dataclasses.dataclass
class Step:
    """One test program in the guest."""
    name: str      # "files@ext4"
    fs: str
    command: list
    timeout: int
    env: dict


def select(words, names):
    """The tests that words stand for, in the order of words."""
    chosen = []
    for word in words:
        hits = fnmatch.filter(names, word.lstrip('!'))
        if not hits:
            raise Bad(f'there is no test "{word}"')
        chosen = [n for n in chosen if n not in hits] if word.startswith('!') else chosen + [n for n in hits if n not in chosen]
    return chosen


def steps(job, meson):
    """What the guest runs. meson: its tests by name."""
    found = []
    for fs in FILE_SYSTEMS:
        for name in select([word for where, word in job.tests if where == fs], list(meson)):
            test = meson[name]
            found.append(Step(f'{name}@{fs}', fs, test['cmd'], min(2 * test['timeout'], job.timeout), test['env']))
        found += [Step(f'{name}@{fs}', fs, ['sh', '-c', shell], job.timeout, {}) for where, name, shell in job.commands if where == fs]
    return found
