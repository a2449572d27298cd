# SPDX-License-Identifier: LGPL-2.1-or-later
"""One virtual machine: what it boots from, what it shares, and how it ended.

The guest sees the host's / read-only, so that programs built here run there; a folder of its own is the only thing it
can write to, and how the host hears of it: `up`, N.out, N.err and N.status of each test, `done`.
"""
import enum
import lzma
import os
import pathlib
import shlex
import shutil
import subprocess
import tempfile
import time

import kernels

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
BOOTS = 3
UP_WITHIN = 240  # seconds; it is 5 to 10 on an idle machine
TOOLS = ('qemu-system-x86_64', 'busybox', 'cpio', 'setpriv', '/sbin/modprobe', '/sbin/depmod')
EARLY = ('virtio_pci', 'virtio_iommu', '9p', '9pnet_virtio')


class End(enum.Enum):
    DONE = 'done'          # the guest went through its plan, or says where setting up failed
    LOST = 'lost'          # it never said that it was up
    REFUSED = 'refused'    # QEMU itself didn't want to; it says why in qemu.log, and would again
    DIED = 'died'          # up, and gone before it was through
    TIMEOUT = 'timeout'
    STOPPED = 'stopped'    # somebody wants this runner to end


def find_tools():
    if lost := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise kernels.Failure(f"there is no {', '.join(lost)}: scripts/deps vm installs what is needed")


def early_modules(kernel):
    """The files of the modules without which nothing can be mounted."""
    [release] = os.listdir(kernel / 'lib/modules')
    files = []
    for module in EARLY:  # not every kernel has all of them, and some have them built in
        out = subprocess.run(['/sbin/modprobe', '-C', '/dev/null', '-d', kernel, '-S', release, '--show-depends', module],
                             capture_output=True, text=True, check=False).stdout
        files += [line.split()[1] for line in out.splitlines() if line.startswith('insmod ')]
    return list(dict.fromkeys(files))


def make_initrd(kernel, path):
    """Busybox, the first modules and vm/init, packed."""
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        root = pathlib.Path(name) / 'root'
        for folder in ('bin', 'dev', 'proc', 'sys', 'root', 'modules'):
            (root / folder).mkdir(parents=True)
        shutil.copy(shutil.which('busybox'), root / 'bin/busybox')
        shutil.copy(HERE / 'init', root / 'init')
        for number, file in enumerate(map(pathlib.Path, early_modules(kernel))):
            content = file.read_bytes()
            (root / f'modules/{number:02}-{file.stem}').write_bytes(lzma.decompress(content) if file.suffix == '.xz' else content)
        packed = pathlib.Path(name) / 'initrd'
        with open(packed, 'wb') as out:
            subprocess.run('find . | cpio -o -H newc -R 0:0 --quiet', shell=True, cwd=root, stdout=out, check=True)
        os.rename(packed, path)


def plan(job, steps):
    """The shell script that the guest runs."""
    lines = [f'must "modprobe {m}" modprobe {m}' for m in job.modules]
    lines += [f'export {shlex.quote(e)}' for e in job.env] + [f'setup {s}' for s in job.setup]
    fs = None
    for number, step in enumerate(steps):
        if step.fs != fs:
            lines += [f'off {number - 1}.fs'] * (fs is not None) + [f'on {step.fs}']
            fs = step.fs
        env = [f'{key}={value}' for key, value in step.env.items()]
        lines.append(shlex.join(['t', str(number), step.name, str(step.timeout), *(['env', *env] if env else []), *step.command]))
    lines += [f'off {len(steps) - 1}.fs'] * (fs is not None)
    return '\n'.join(lines) + '\n'


def share(tag, path, mode=',readonly=on'):
    path = str(path).replace(',', ',,')
    return ['-fsdev', f'local,id={tag},path={path},security_model=none,multidevs=remap{mode}',
            '-device', f'virtio-9p-pci,fsdev={tag},mount_tag={tag}']


def command(job, kernel, folder, initrd, kvm):
    counts = '-icount' in job.qemu  # instructions are the guest's time: only where they are emulated, one after the other
    accel = ['-accel', 'kvm', '-cpu', 'host'] if kvm and not counts else ['-accel', 'tcg,thread=' + ('single' if counts else 'multi'), '-cpu', 'max']
    # no_timer_check: a busy machine that emulates fails the kernel's test of its timer, which is deadly where there is an IOMMU.
    append = ' '.join(['console=ttyS0 loglevel=7 panic=-1 printk.devkmsg=on watchdog_thresh=60 no_timer_check',
                       'rcupdate.rcu_cpu_stall_timeout=300', *job.args])
    return ['setpriv', '--pdeathsig', 'KILL', 'qemu-system-x86_64', '-M', job.machine, *accel, '-m', job.memory,
            '-smp', str(job.cpus), '-nodefaults', '-display', 'none', '-no-reboot', '-serial', f'file:{folder}/console.log',
            '-kernel', str(kernel / 'vmlinuz'), '-initrd', str(initrd), *share('host', '/'), *share('kernel', kernel),
            *share('src', ROOT), *share('work', folder, ''), *job.qemu, '-append', append]


def wait(qemu, folder, job, stop):
    """How the machine ended; it may still run."""
    began, up = time.monotonic(), False
    while True:
        ended = qemu.poll() is not None
        if not up and (folder / 'up').exists():
            began, up = time.monotonic(), True
        if (folder / 'done').exists() or (folder / 'setup.name').exists():
            return End.DONE
        if ended:
            return End.DIED if up else End.REFUSED if qemu.returncode > 0 else End.LOST
        if stop.is_set():
            return End.STOPPED
        if time.monotonic() - began > (job.timeout if up else UP_WITHIN):
            return End.TIMEOUT if up else End.LOST
        time.sleep(0.2)


def boot(job, kernel, folder, initrd, kvm, stop):
    with open(folder / 'qemu.log', 'wb') as log, \
         subprocess.Popen(command(job, kernel, folder, initrd, kvm), stdin=subprocess.DEVNULL, stdout=log, stderr=log) as qemu:
        try:
            end = wait(qemu, folder, job, stop)
            if end is End.DONE:
                try:
                    qemu.wait(20)  # for the end of the kernel's log
                except subprocess.TimeoutExpired:
                    pass
        finally:
            qemu.kill()
    return end


def run(job, kernel, folder, steps, kvm, stop):
    """(End, how many boots it took); what is in folder then is of the last boot, and the consoles of those before."""
    for number in range(1, BOOTS + 1):
        consoles = {p.name: p.read_bytes() for p in folder.glob('console*.log')} if number > 1 else {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, content in consoles.items():
            (folder / name.replace('console.log', f'console-{number - 1}.log')).write_bytes(content)
        (folder / 'src').write_text(str(ROOT), encoding='utf-8')
        (folder / 'plan').write_text(plan(job, steps), encoding='utf-8')
        initrd = folder / 'initrd'
        make_initrd(kernel, initrd)
        end = boot(job, kernel, folder, initrd, kvm, stop)
        initrd.unlink()
        if end is not End.LOST:
            break
    return end, number


def kvm_works(kernel, job, folder, stop):
    """Whether a guest comes up by KVM, found out once for each boot of this machine; else why not."""
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        return False, '/dev/kvm can not be opened'
    now = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text(encoding='utf-8').strip()
    known = kernels.cache() / 'kvm'
    if not known.exists() or known.read_text(encoding='utf-8').split()[0] != now:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'src').write_text(str(ROOT), encoding='utf-8')
        (folder / 'plan').touch()
        make_initrd(kernel, folder / 'initrd')
        end = boot(job, kernel, folder, folder / 'initrd', True, stop)
        if end is not End.STOPPED:
            known.write_text(f"{now} {'yes' if end is End.DONE else 'no'}\n", encoding='utf-8')
        shutil.rmtree(folder)
    works = known.read_text(encoding='utf-8').split()[1] == 'yes' if known.exists() else False
    return works, 'no guest came up by KVM'
