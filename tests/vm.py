#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""vm/run without a machine: what job files mean, and what ends of a job mean. On machines: the jobs vm/jobs/rig-*."""
import dataclasses
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from unittest import mock

sys.dont_write_bytecode = True
sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent), str(pathlib.Path(__file__).resolve().parent.parent / 'vm')]
import job
import kernels
import machine
import tree
import verdict

TESTS = json.loads(pathlib.Path(sys.argv[1], 'meson-info/intro-tests.json').read_text(encoding='utf-8'))
MESON = {test['name']: test for test in TESTS}
EXAMPLE = """
kernels = 6.1 7.2       # two of them
args = hugepages=64
args on 7.2 = quiet
tests = map core
   query
tests on ext4 xfs 6.1 = files* !files_op
command hello on btrfs = echo hello
skip on 6.1 = files*: no FAN_PRE_ACCESS: came with 6.14
timeout = 60
rarely = 6.1
tests rarely = bounds
"""


def same(seen, expected):
    if seen != expected:
        raise tree.Failure(f'{seen}\nnot {expected}')


def bad(text, words):
    try:
        job.steps(job.parse('x', text)[0], MESON)
    except job.Bad as error:
        if words not in str(error):
            raise tree.Failure(f'"{error}" lacks "{words}"') from error
    else:
        raise tree.Failure(f'{text} was taken')


def files():
    old, new = job.parse('x', EXAMPLE)
    same((old.name, new.name, old.timeout), ('x-6.1', 'x-7.2', 60))
    same((old.rarely, new.rarely), (True, False))
    same((old.args, new.args), (['hugepages=64'], ['hugepages=64', 'quiet']))
    same([s.name for s in job.steps(new, MESON)], ['map@tmpfs', 'core@tmpfs', 'query@tmpfs', 'bounds@tmpfs', 'hello@btrfs'])
    same([s.name for one in job.often([old, new]) for s in job.steps(one, MESON)], ['map@tmpfs', 'core@tmpfs', 'query@tmpfs', 'hello@btrfs'])
    same([s.name for s in job.steps(old, MESON)][4:6], ['files@ext4', 'files_arbiter@ext4'])
    same((old.skip, new.skip), ([('files*', 'no FAN_PRE_ACCESS: came with 6.14')], []))
    bad('tests = core', 'no kernels')
    bad('kernels = 6.1\ntests on 7.2 = core', '"7.2" is no kernel of this job')
    bad('kernels = 6.1\ntests = cor', 'no test "cor"')
    bad('kernels = 6.1\nskip = files', 'no reason')
    bad('kernels = 6.1\ncolour = red', 'no setting "colour"')
    bad('kernels = 6.1\ncpus = many', 'x: cpus = many: that is no number')
    bad('kernels = 6.1\ntimeout = soon', 'x: timeout = soon: that is no number')
    bad('kernels = 6.1\ntimeout = 0', 'no number')
    bad('kernels = 6.1\nsetup on 6.1 = dax nosuch', 'there is no vm/setup/nosuch; there are dax, ')
    bad('kernels = 6.1\ncommand = true', 'no name')
    bad('kernels = 6.1\nrarely = 6.1 7.2', 'rarely = 6.1 7.2: "7.2" is no kernel of this job')
    bad('kernels = 6.1\nwhatever', 'what is "whatever"')


def own_jobs():
    """Also of tests that this build lacks because a library is missing."""
    named = set(re.findall(r"'(\w+)'", (tree.ROOT / 'tests/meson.build').read_text(encoding='utf-8')))
    for path in (tree.ROOT / 'vm').glob('*/*.job'):
        for one in job.parse(path.stem, path.read_text(encoding='utf-8')):
            job.select([word for _, word in one.tests], sorted(named | set(MESON)))


def documented():
    """CONTRIBUTING.md has every setting, and its example is one."""
    section = (tree.ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8').split('## Virtual machines\n')[1].split('\n## ')[0]
    example = re.search(r'^A job is a file.*?\n\n((?:    .*\n)+)', section, re.M)[1]
    parsed = job.parse('example', '\n'.join(line[4:] for line in example.splitlines()))
    same([one.kernel for one in parsed], ['6.1', '6.12', '7.2'])
    same((parsed[0].skip[0][0], parsed[1].skip, parsed[0].timeout, len(parsed[0].expect)), ('files*/held*', [], 900, 1))
    settings = {'kernels', 'command'} | {field.name for field in dataclasses.fields(job.Job)} - {'file', 'kernel', 'commands', 'rare_tests'}
    same([name for name in sorted(settings) if not re.search(rf'\b{name}(?: NAME| on [\w. ]+)? += ', example)], [])
    same([word for word in ('vm/build-iommufd', 'vm/optional', 'TAP', 'tmpfs', '`vm/run FILE.job`', '--help') if word not in section], [])


def runner():
    """vm/run as a module."""
    loader = importlib.machinery.SourceFileLoader('vm_run', str(tree.ROOT / 'vm/run'))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader('vm_run', loader))
    loader.exec_module(module)
    return module


def vm_run(*arguments, **environment):
    return subprocess.run([sys.executable, tree.ROOT / 'vm/run', *arguments], env=os.environ | environment, capture_output=True,
                          encoding='utf-8', timeout=tree.HANGS, check=False, cwd=tree.ROOT)


def says(words, arguments, status=1, **environment):
    """One sentence of its own, with these words."""
    result = vm_run(*arguments, **environment)
    said = [line for line in result.stderr.splitlines() if not line.startswith('usage: vm/run')]
    if result.returncode != status or len(said) != 1 or not said[0].startswith('vm/run: ') or words not in said[0]:
        raise tree.Failure(f'vm/run {shlex.join(map(str, arguments))}, lacks "{words}": {result}')


def command_lines():
    """Names and files together, each job once; and what is wrong is said in one sentence."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for file, text in (('x', 'kernels = 6.12 7.2'), ('rig-lost', 'kernels = 6.12'), ('late', 'kernels = 6.12\ntimeout = soon'),
                           ('bare', 'kernels = 6.12\nsetup = nosuch')):
            (folder / f'{file}.job').write_text(text + '\n', encoding='utf-8')
        (folder / 'folder.job').mkdir()
        (folder / 'binary.job').write_bytes(b'kernels = \xff')
        listed = vm_run('--list', 'rig-tests', folder / 'x.job', 'rig-tests-6.12', 'rig-h*', 'vm/jobs/rig-tests.job')
        same(listed.stdout.split(), ['rig-tests-6.12', 'x-6.12', 'x-7.2', 'rig-hang-6.12'])
        (folder / 'often.job').write_text('kernels = 6.12 7.2\nrarely = 6.12\ntests rarely = core\n', encoding='utf-8')
        listed = vm_run('--list', '--often', folder / 'often.job')
        same((listed.stdout.split(), listed.stderr.split()[-2:]), (['often-7.2'], ['often-6.12', 'often-7.2:core@tmpfs']))
        says('rig-lost.job are both job rig-lost-6.12', ['rig-lost', folder / 'rig-lost.job'])
        says('nosuch.job: No such file', ['nosuch.job'])
        says('there is no job "nosuch"; vm/run --list', ['nosuch'])
        says('is no text', [folder / 'binary.job'])
        says('Is a directory', [folder / 'folder.job'])
        says('late: timeout = soon', [folder / 'late.job'])
        says('bare: setup = nosuch', [folder / 'bare.job'])
        for value in ('0', '-1', 'many'):
            says('no number of machines', [f'-j{value}'], status=2)
        with mock.patch.object(kernels, 'cache', lambda: folder / 'x.job'):
            try:
                with kernels.locked(kernels.cache()):
                    raise tree.Failure('a cache in a file')
            except kernels.Failure as failure:
                same(('PINLEASE_CACHE' in str(failure), str(folder / 'x.job') in str(failure)), (True, True))


def help_says():
    text = vm_run('--help').stdout
    lost = [word for word in ('JOB', 'build/vm/', 'console.log', 'qemu.log', 'PINLEASE_CACHE', 'XDG_CACHE_HOME', '-j N', '--list', '--often',
                              '--results FILE', 'scripts/deps vm', 'vm/optional', 'Status:') if word not in text]
    same(lost, [])


def no_tests():
    """A build without tests, and one that isn't made yet: what to do, not that a test isn't there."""
    run = runner()
    with tempfile.TemporaryDirectory() as name, mock.patch.object(run, 'BUILD', pathlib.Path(name)):
        info = pathlib.Path(name) / 'meson-info'
        info.mkdir()
        unbuilt = [{'name': 'core', 'cmd': ['/nonexistent/test_core'], 'env': {}, 'timeout': 1}]
        for tests, words in ((None, 'meson setup build -Dtests=true'), ([], 'meson configure build -Dtests=true && ninja -C build'),
                             (unbuilt, '/nonexistent/test_core is not built: ninja -C build')):
            if tests is not None:
                (info / 'intro-tests.json').write_text(json.dumps(tests), encoding='utf-8')
            try:
                run.plans_of(job.parse('x', 'kernels = 6.1\ntests = core'))
            except job.Bad as error:
                if words not in str(error):
                    raise tree.Failure(f'"{error}" lacks "{words}"') from error
            else:
                raise tree.Failure(f'{tests} was taken')
        (info / 'intro-tests.json').write_text('[]', encoding='utf-8')
        same(len(run.plans_of(job.parse('x', 'kernels = 6.1\ncommand x = true'))[0]), 1)


def end(how='done', left=(('ok 1 - a\n1..1\n', '', '0 1'),), console='[    1.0] all is well\r\n', boots=1, setup=None,
        qemu='', **settings):
    """[failures, notes] of a job whose tests left this."""
    one = job.Job('x', '6.12', **settings)
    records, notes = verdict.judge(one, how, boots, [(f't{n}', result) for n, result in enumerate(left)], console, setup, qemu)
    return [f"{r['name']}: {m[1]}" for r in records for m in re.finditer(r'^not ok \d+ - (.*)$', r['stdout'], re.M)], notes


def ends():
    skip = ('ok 1 - a # SKIP no device\n1..1\n', '', '0 1')
    same(end(), ([], []))
    same(end('lost', [None], boots=3), (['vm: VM LOST: the guest did not come up in 3 boots'], ['3 boots']))
    same(end('lost', [None], boots=3, qemu='one\nno memory\n')[0],
         ['vm: VM LOST: the guest did not come up in 3 boots; QEMU says: no memory'])
    same(end('refused', [None], qemu="'x' is no device\n")[0], ["vm: QEMU did not start; QEMU says: 'x' is no device"])
    same(end(boots=2), ([], ['2 boots']))
    same(end('died', [None, None])[0], ['t0: the guest ended in this test or before it; 1 more were not run'])
    same(end('died')[0], ['vm: died after the last test'])
    same(end('timeout', [None])[0], ['t0: the guest was not through after 900 s in this test or before it; 0 more were not run'])
    same(end(left=[None], setup=('setup rxe', 'no such device'))[0], ['setup rxe: setting up the guest failed'])
    same(end(left=[('not ok 1 - a\n1..1\n', '', '1 1')])[0], ['t0: a'])
    same(end(left=[skip])[0], ['t0: a: skipped (no device), and the job does not expect it'])
    same(end(left=[skip], skip=[('t0/*', 'none there')]), ([], []))
    same(end(skip=[('t0/*', 'none there')]), ([], ['expected to be skipped, and ran: t0/*']))


def kernel_logs():
    for line in ('WARNING: CPU: 0 PID: 7 at mm/gup.c:1 x+0x1/0x2', 'BUG: kernel NULL pointer dereference', 'Oops: 0002 [#1] SMP',
                 'Kernel panic - not syncing: x', 'BUG: KASAN: use-after-free in x', 'INFO: task x:7 blocked for more than 120 seconds.',
                 'rcu: INFO: rcu_preempt self-detected stall on CPU', 'watchdog: BUG: soft lockup - CPU#0 stuck for 22s!'):
        console = f'[    1.0] pinlease-vm: test a\r\n[    2.0] {line}\r\n'
        same(end(console=console)[0], [f'kernel log: {line} (in: test a)'])
        same(end(console=console, allow=[(re.escape(line), 'known')])[0], [])
    for line in ('Command line: rcupdate.rcu_cpu_stall_timeout=120', 'RCU CPU stall warnings timeout set to 120', 'debug: all is well',
                 'rcu: INFO: rcu_preempt self-detected stall on CPU'):  # while it boots
        same(end(console=line)[0], [])
    same(end(console='BUG: kernel NULL pointer dereference')[0], ['kernel log: BUG: kernel NULL pointer dereference (in: booting)'])


def expected():
    records = [verdict.failure('a', 'broken'), verdict.record('b', 'ok 1 - fine\n')]
    for patterns, result in ((['^a: broken$'], 'ok'), ([], 'not'), (['^a', '^c'], 'not'), (['^c'], 'not')):
        same(verdict.as_expected(patterns, records)['stdout'].split()[0], result)


def newest():
    """Of packages' names, the newest of the kernel asked for; no variants, no other versions."""
    class Fake(kernels.Apt):
        def __init__(self):  # pylint: disable=super-init-not-called
            pass

        def run(self, tool, *arguments, **_):
            if arguments[0] == 'show':
                return f'Package: {arguments[-1]}\nVersion: 1\n'
            return '\n'.join(['linux-image-6.1.0-9-amd64', 'linux-image-6.1.0-50-amd64', 'linux-image-6.1.0-60-rt-amd64',
                              'linux-image-6.1.0-60-amd64-dbg', 'linux-image-6.12.9+deb13-amd64', 'linux-image-6.12.10+deb13-amd64',
                              'linux-image-6.12.11+deb13-amd64-unsigned', 'linux-image-6.12.12+deb13-cloud-amd64',
                              'linux-binary-7.2.12+deb13-amd64', 'linux-image-7.2.12+deb13-amd64', 'linux-image-amd64'])
    for pattern, packages in (('6.1', ['linux-image-6.1.0-50-amd64=1']), ('6.12', ['linux-image-6.12.10+deb13-amd64=1']),
                              ('7.2', ['linux-binary-7.2.12+deb13-amd64=1', 'linux-modules-7.2.12+deb13-amd64=1'])):
        same(Fake().newest(pattern)[0], packages)


def offline():
    """Kernels come from the cache, and the mirror is tried once."""
    tried, said = [], []

    def run(_, tool, *arguments, **__):
        tried.append((tool, *arguments))
        raise kernels.Failure('no network')
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, PINLEASE_CACHE=name), \
         mock.patch.object(kernels.Apt, 'run', run), mock.patch.object(kernels, 'mirror', lambda: 'http://mirror.invalid/debian'), \
         mock.patch.object(kernels.Apt, 'unreachable', None):
        for kernel in ('6.1.9-1', '6.1.10-1', '6.12.3-1'):
            (pathlib.Path(name) / 'vm/kernels' / kernel).mkdir(parents=True)
        same([kernels.fetch(pattern, said.append).name for pattern in ('6.1', '6.12')], ['6.1.10-1', '6.12.3-1'])
        same((len(tried), len(said), 'no network' in said[1]), (1, 2, True))
        try:
            kernels.fetch('7.2', said.append)
        except kernels.Failure as failure:
            same('can not be fetched: no network' in str(failure), True)
        else:
            raise tree.Failure('7.2 was there')


QEMU = """#!/bin/sh
echo "$@" >>"$PINLEASE_CACHE/started"
for word; do
	case $word in
	file:*) folder=${word#file:} ;;
	esac
done
[ ! -e "$PINLEASE_CACHE/works" ] || : >"${folder%/*}/done"
"""


def by_kvm(access, works, times=1):
    """[what kvm_works() says, how QEMU was started for that], on a machine where KVM is like this."""
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        (root / 'vm').mkdir()
        (root / 'qemu-system-x86_64').write_text(QEMU, encoding='ascii')
        (root / 'qemu-system-x86_64').chmod(0o755)
        if works:
            (root / 'works').touch()
        with mock.patch.dict(os.environ, PINLEASE_CACHE=name, PATH=f"{name}:{os.environ['PATH']}"), \
             mock.patch('os.access', lambda path, mode: path == '/dev/kvm' and access), \
             mock.patch.object(machine, 'make_initrd', lambda kernel, path: path.touch()):
            for _ in range(times):
                said = machine.kvm_works(root, job.Job('kvm', '6.12'), root / 'job', threading.Event())
        started = root / 'started'
        return said[0], started.read_text(encoding='utf-8').splitlines() if started.exists() else []


def qemu_refuses():
    """It isn't asked three times."""
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        qemu = root / 'qemu-system-x86_64'
        ends = []
        for code in ('echo "no such device" >&2; exit 1', 'kill -ABRT $$'):
            qemu.write_text(f'#!/bin/sh\necho >>{name}/started\n{code}\n', encoding='ascii')
            qemu.chmod(0o755)
            with mock.patch.dict(os.environ, PATH=f"{name}:{os.environ['PATH']}"), \
                 mock.patch.object(machine, 'make_initrd', lambda kernel, path: path.touch()):
                ends.append(machine.run(job.Job('x', '6.12'), root, root / 'job', [], False, threading.Event()))
            ends.append((root / 'job/qemu.log').read_text(encoding='utf-8'))
        same(ends[:2], [(machine.End.REFUSED, 1), 'no such device\n'])
        same((ends[2], len((root / 'started').read_text(encoding='utf-8'))), ((machine.End.LOST, 3), 4))


def kernels_made_here():
    """What Debian has not is made by a command that is named."""
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, PINLEASE_CACHE=name):
        for pattern in ('iommufd', 'nosuch'):
            try:
                kernels.fetch(pattern, print)
            except kernels.Failure as failure:
                same(('vm/build-iommufd makes it' in str(failure), str(failure).count(pattern) > 0), (pattern == 'iommufd', True))
            else:
                raise tree.Failure(f'{pattern} was there')
        made = pathlib.Path(name) / 'vm/kernels/iommufd-7.2.12'
        made.mkdir(parents=True)
        same(kernels.fetch('iommufd', print), made)


def kvm():
    """It is used where it can be opened and a guest comes up by it, which is tried once for each boot of the host."""
    same(by_kvm(False, True), (False, []))
    for works in (True, False):
        said, started = by_kvm(True, works, times=2)
        same((said, len(started), ' -accel kvm -cpu host ' in started[0]), (works, 1, True))
    for use, words in ((True, '-accel kvm -cpu host'), (False, '-accel tcg,thread=multi -cpu max')):
        line = ' '.join(map(str, machine.command(job.Job('x', '6.12'), pathlib.Path('/k'), pathlib.Path('/f'), '/i', use)))
        same((words in line, line.count('-accel')), (True, 1))


if __name__ == '__main__':
    sys.exit(tree.tap([
        ('job files say what they mean', files),
        ("the tree's own jobs can be run", own_jobs),
        ('CONTRIBUTING.md has all settings', documented),
        ('command lines', command_lines),
        ('its help', help_says),
        ('a build without tests', no_tests),
        ('how a job ends', ends),
        ('QEMU that refuses', qemu_refuses),
        ("what in a kernel's log is a complaint", kernel_logs),
        ('failures that are expected, and no others', expected),
        ('the newest kernel', newest),
        ('without the network', offline),
        ('kernels that are made here', kernels_made_here),
        ('KVM where it works', kvm),
    ]))
