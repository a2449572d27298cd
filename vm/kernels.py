# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian's kernels, by apt's own client in folders of our own: the system's lists and sources stay as they are.

A kernel is a folder of the cache named after its package's version, with `vmlinuz` and `lib/modules`. It gets that name
when it is complete and is never written to again. Two kinds of package: linux-image-* has both, and from 7.x on
linux-binary-* and linux-modules-* have one each.
"""
import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

SUITES = ('bookworm', 'trixie', 'trixie-backports')
KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'
LISTS_LAST = 24 * 3600  # seconds
UNUSED_LAST = 30 * 24 * 3600
# What the guests need of a kernel's modules, below kernel/; drivers of real hardware are most of it.
MODULES = [*(f'{name}/' for name in ('arch', 'block', 'crypto', 'fs', 'lib', 'mm', 'net', 'virt')),
           *(f'drivers/{name}/' for name in (
               'acpi', 'block', 'char', 'dax', 'dma-buf', 'infiniband/core', 'infiniband/sw', 'iommu', 'md', 'nvdimm', 'nvme',
               'pci', 'uio', 'vfio', 'vhost', 'virt', 'virtio')),
           'drivers/net/']


class Failure(Exception):
    pass


def cache():
    base = os.environ.get('PINLEASE_CACHE')
    if not base:
        base = os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'pinlease')
    return pathlib.Path(base).absolute() / 'vm'


def numbers(text):
    return [int(n) for n in re.findall(r'\d+', text)]


@contextlib.contextmanager
def locked(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / 'lock', 'w', encoding='utf-8')  # pylint: disable=consider-using-with
    except OSError as error:
        raise Failure(f'kernels can not be kept in {folder} ({error.strerror}): set PINLEASE_CACHE to a folder that can be '
                      'written to') from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def mirror():
    """Where this system gets Debian's packages from."""
    out = subprocess.run(['apt-get', 'indextargets', '--format', '$(REPO_URI) $(RELEASE) $(COMPONENT)', 'Created-By: Packages'],
                         capture_output=True, text=True, check=False).stdout
    for line in out.splitlines():
        uri, release, component = (line.split() + ['', ''])[:3]
        if component == 'main' and not release.endswith(('-security', '/updates')):
            return uri
    raise Failure("apt has no source of Debian's component main")


class Apt:
    """apt-get and apt-cache with lists and sources of our own."""
    unreachable = None  # the Failure: who has waited for the mirror in vain doesn't again for the next kernel

    def __init__(self, folder):
        self.folder = folder
        (folder / 'lists/partial').mkdir(parents=True, exist_ok=True)
        (folder / 'archives/partial').mkdir(parents=True, exist_ok=True)
        (folder / 'status').touch()
        settings = {
            'Dir::State': folder, 'Dir::State::lists': folder / 'lists', 'Dir::State::status': folder / 'status',
            'Dir::Cache': folder, 'Dir::Cache::archives': folder / 'archives', 'Dir::Etc::sourcelist': folder / 'sources.list',
            'Dir::Etc::sourceparts': '/dev/null', 'Dir::Etc::preferences': '/dev/null', 'Dir::Etc::preferencesparts': '/dev/null',
            'APT::Architecture': 'amd64', 'APT::Architectures': 'amd64', 'APT::Sandbox::User': 'root', 'Acquire::Languages': 'none'}
        self.options = [word for key, value in settings.items() for word in ('-o', f'{key}={value}')]

    def run(self, tool, *arguments, **options):
        result = subprocess.run([tool, *self.options, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                check=False, **options)
        if result.returncode:
            lines = (result.stderr or result.stdout).strip().splitlines()
            why = [line for line in lines if 'Failed to fetch' in line] or lines[-1:]
            raise Failure(f"{tool} {' '.join(arguments)}: {' '.join(why[:1])}")
        return result.stdout

    def update(self):
        """Fetch the lists of packages when they are old."""
        key = f'[arch=amd64 signed-by={KEYRING}]' if os.path.exists(KEYRING) else '[arch=amd64]'
        sources = ''.join(f'deb {key} {mirror()} {suite} main\n' for suite in SUITES)
        path, stamp = self.folder / 'sources.list', self.folder / 'updated'
        if stamp.exists() and path.read_text(encoding='utf-8') == sources and time.time() - stamp.stat().st_mtime < LISTS_LAST:
            return
        if Apt.unreachable:
            raise Apt.unreachable
        path.write_text(sources, encoding='utf-8')
        try:
            self.run('apt-get', '-q', '--error-on=any', 'update')
        except Failure as failure:
            Apt.unreachable = failure
            raise
        stamp.touch()

    def newest(self, pattern):
        """[package=version...] of the newest kernel that pattern stands for, and the version."""
        name = re.compile(rf'linux-(image|binary)-({re.escape(pattern)}(?!\d)[\d.]*(\+[a-z]+\d*)*(-\d+)?-amd64)$')
        found = [m for m in map(name.match, self.run('apt-cache', 'pkgnames', 'linux-').split()) if m]
        if not found:
            raise Failure(f'no kernel {pattern} in {", ".join(SUITES)}')
        best = max(found, key=lambda m: (numbers(m[2]), m[1] == 'binary'))
        packages = [f'linux-image-{best[2]}'] if best[1] == 'image' else [f'linux-binary-{best[2]}', f'linux-modules-{best[2]}']
        version = re.search(r'^Version: (.*)$', self.run('apt-cache', 'show', '--no-all-versions', best[0]), re.M)[1]
        return [f'{package}={version}' for package in packages], version


def wanted(path):
    return any(path.startswith(p) and (p != 'drivers/net/' or '/' not in path[len(p):]) for p in MODULES)


def take(unpacked, folder):
    """The kernel and the modules we want out of an unpacked package."""
    [image] = [*unpacked.glob('boot/vmlinuz-*'), *unpacked.glob('usr/lib/modules/*/vmlinuz')]
    shutil.move(image, folder / 'vmlinuz')
    [modules] = [p for p in (*unpacked.glob('lib/modules/*'), *unpacked.glob('usr/lib/modules/*')) if (p / 'kernel').is_dir()]
    for path in [p for p in (modules / 'kernel').rglob('*.ko*') if not wanted(str(p.relative_to(modules / 'kernel')))]:
        path.unlink()
    (folder / 'lib/modules').mkdir(parents=True)
    shutil.move(modules, folder / 'lib/modules' / modules.name)
    # Modules that need one we left out are named here; nobody loads them.
    subprocess.run(['/sbin/depmod', '-b', folder, modules.name], check=True, stderr=subprocess.DEVNULL)


def download(apt, packages, target):
    """Whole or not at all: made elsewhere, then renamed."""
    with tempfile.TemporaryDirectory(prefix='new-', dir=target.parent) as name:
        work, new = pathlib.Path(name), pathlib.Path(name) / 'kernel'
        new.mkdir()
        apt.run('apt-get', '-q', 'download', *packages, cwd=work)  # apt compares with the signed lists
        for package in work.glob('*.deb'):
            subprocess.run(['dpkg', '-x', package, work / 'unpacked'], check=True)
        take(work / 'unpacked', new)
        for path in (p for p in new.rglob('*') if p.is_file()):  # so that a crash doesn't leave an empty file
            with open(path, 'rb') as file:
                os.fsync(file.fileno())
        os.rename(new, target)


def cached(folder, pattern):
    names = [p for p in folder.glob('*') if re.match(rf'{re.escape(pattern)}(?!\d)', p.name)]
    return sorted(names, key=lambda p: numbers(p.name))


def made_here(pattern, folder):
    """One that is no package of Debian's."""
    found = cached(folder, pattern)
    if not found:
        raise Failure(f'kernel {pattern} is not in {folder}, and Debian has none of that name; ' + (
            'vm/build-iommufd makes it, once, in half an hour' if pattern == 'iommufd' else 'there are 6.1, 6.12, 7.2 and iommufd'))
    os.utime(found[-1])
    return found[-1]


def fetch(pattern, say):
    """The folder of the newest kernel called pattern ("6.12"); without the network the newest there is."""
    folder = cache() / 'kernels'
    if not pattern[0].isdecimal():
        return made_here(pattern, folder)
    with locked(cache()):
        folder.mkdir(exist_ok=True)
        try:
            apt = Apt(cache() / 'apt')
            apt.update()
            packages, version = apt.newest(pattern)
            target = folder / version
            if not target.exists():
                say(f'kernel {pattern}: fetching {version}')
                download(apt, packages, target)
        except Failure as failure:
            if not cached(folder, pattern):
                raise Failure(f'kernel {pattern} is not in {folder} and can not be fetched: {failure}') from failure
            target = cached(folder, pattern)[-1]
            say(f'kernel {pattern}: using {target.name} from the cache, because {failure}')
        os.utime(target)
        for old in cached(folder, pattern):
            if old != target and time.time() - old.stat().st_mtime > UNUSED_LAST:
                shutil.rmtree(old)
    return target
