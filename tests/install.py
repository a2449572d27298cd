#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Install into an empty directory and use the result as a stranger would: by pkg-config.

usage: install.py BUILD_DIR C_COMPILER... -- C++_COMPILER...
"""
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import tree

CFLAGS = ['-Wall', '-Wextra', '-Werror']


class Installed:
    """The tree that `meson install` made below `destdir`."""

    def __init__(self, build, destdir):
        self.destdir = destdir
        tree.run(['meson', 'install', '-C', build, '--no-rebuild', '--destdir', destdir])
        options = {o['name']: o['value'] for o in json.loads(tree.run(['meson', 'introspect', '--buildoptions', build]))}
        self.version = json.loads(tree.run(['meson', 'introspect', '--projectinfo', build]))['version']
        self.prefix = pathlib.Path(f"{destdir}{options['prefix']}")
        self.libdir = self.prefix / options['libdir']
        self.include = self.prefix / options['includedir'] / 'pinlease'
        self.pkgconfig = self.libdir / 'pkgconfig'
        self.env = dict(os.environ, PKG_CONFIG_SYSROOT_DIR=str(destdir), LD_LIBRARY_PATH=str(self.libdir))

    def pkg_config(self, *options):
        env = dict(self.env, PKG_CONFIG_PATH=str(self.pkgconfig))
        return tree.run(['pkg-config', *options, 'pinlease'], env=env).split()

    def compile(self, compiler, source, output, static=False, libraries=()):
        link = ['-static', *self.pkg_config('--static', '--libs')] if static else self.pkg_config('--libs')
        tree.run([*compiler, *CFLAGS, *self.pkg_config('--cflags'), str(source), '-x', 'none', '-o', output, *link,
                  *libraries])


class Tests:
    def __init__(self, build, cc, cxx, directory):
        self.cc, self.cxx, self.directory = cc, cxx, directory
        self.tree = Installed(build, directory / 'dest')

    def program(self, language, static):
        compiler = self.cc if language == 'c' else self.cxx
        output = self.directory / f"program-{language}-{'static' if static else 'shared'}"
        self.tree.compile([*compiler, '-x', language], tree.ROOT / 'tests/install.c', str(output), static)
        said = tree.run([str(output)], env=self.tree.env)
        if said != 'ok\n':
            raise tree.Failure(f'the program said {said!r}')

    def examples(self):
        verbs = [lib for lib in self.tree.pkg_config('--static', '--libs') if lib == '-libverbs']
        for source in sorted((tree.ROOT / 'examples').glob('*.c')):
            if verbs or not source.stem.startswith('verbs'):
                self.tree.compile(self.cc, source, str(self.directory / source.stem), libraries=['-luring', *verbs])

    def example_in_cpp(self):
        """What README shows can be pasted into a C++ program, too."""
        shown = re.search(r'```c\n(.*?)\n```', (tree.ROOT / 'README.md').read_text(encoding='utf-8'), re.S)[1]
        source = self.directory / 'example.cpp'
        source.write_text(f"""#include <liburing.h>
#include <pinlease/pinlease.h>
enum {{SIZE = 65536}};
void check(int), show(const char *, int, char *), show_events(pinl_ctx *);
void receive(io_uring *, pinl_device *, char *, uint32_t, const char *);
void example(io_uring &ring, int fd, char *buf)
{{
    pinl_ctx *ctx;
    pinl_device *dev;
    pinl_lease *lease;
    uintptr_t start = (uintptr_t)buf;
    {shown}
}}
""", encoding='utf-8')
        self.tree.compile([*self.cxx, '-std=c++20', '-Wno-missing-field-initializers', '-c'], source,
                          str(self.directory / 'example.o'))

    def headers(self):
        installed = {p.name: p.read_bytes() for p in self.tree.include.iterdir()}
        bridges = [p for p in tree.BRIDGE_HEADERS if p.name in installed]  # what they are for may not be here
        source = {p.name: p.read_bytes() for p in tree.HEADERS + bridges}
        if installed != source:
            raise tree.Failure(f'installed {sorted(installed)}, the tree has {sorted(source)}, or the contents differ')

    def map_is_headers(self):
        nodes, names = tree.mapped_symbols()
        declared = tree.declared_functions()
        if names != declared:
            raise tree.Failure(f'only in the map: {sorted(names - declared)}, only declared: {sorted(declared - names)}')
        if not nodes:
            raise tree.Failure('the map has no version node')

    def exports(self):
        nodes, names = tree.mapped_symbols()
        exported = set()
        for line in tree.run(['nm', '-D', '--defined-only', '--with-symbol-versions',
                              str(self.tree.libdir / 'libpinlease.so')]).splitlines():
            kind, symbol = line.split()[1:3]
            name, _, version = symbol.partition('@@')
            if kind == 'A' and name in nodes:
                continue
            if version not in nodes:
                raise tree.Failure(f'{symbol} has no version of the map')
            exported.add(name)
        if exported != names:
            raise tree.Failure(f'not exported: {sorted(names - exported)}, exported too: {sorted(exported - names)}')

    def static_names(self):
        """A static library can't hide names, so they need our prefix."""
        symbols = tree.run(['nm', '-g', '--defined-only', str(self.tree.libdir / 'libpinlease.a')])
        names = {line.split()[2] for line in symbols.splitlines() if len(line.split()) == 3}
        foreign = {name for name in names if not re.match(r'_*(pinl|pl)_|DW\.ref\.|__odr_asan', name)}
        if foreign:
            raise tree.Failure(f'without prefix pinl_ or pl_: {sorted(foreign)}')

    def libraries(self):
        dynamic = tree.run(['readelf', '-d', str(self.tree.libdir / 'libpinlease.so')])
        if 'SONAME' not in dynamic:
            raise tree.Failure('no SONAME')
        needed = set(re.findall(r'NEEDED.*\[(.*?)\.so', dynamic))
        if not needed <= {'libc', 'liburing', 'libibverbs', 'ld-linux-x86-64', 'ld-linux-aarch64'}:
            raise tree.Failure(f'the library needs {sorted(needed)}')

    def version(self):
        said = self.tree.pkg_config('--modversion')
        if said != [self.tree.version]:
            raise tree.Failure(f'pkg-config says {said}, the project {self.tree.version}')

    def command(self):
        tree.run([str(self.tree.prefix / 'bin/pinlease'), '--help'], env=self.tree.env)

    def manuals(self):
        if not shutil.which('scdoc'):
            return
        wanted = {p.stem for p in (tree.ROOT / 'man').glob('*.scd')}
        for page in (tree.ROOT / 'man').glob('*.3.scd'):
            names = page.read_text().split('# NAME\n')[1].split(' - ')[0]
            wanted |= {f'{name}.3' for name in re.findall(r'pinl_\w+', names)}
        pages = {p.name for p in self.tree.prefix.glob('share/man/man*/*') if p.exists()}
        if wanted != pages:
            raise tree.Failure(f'sources and their names {sorted(wanted)}, installed {sorted(pages)}')

    def all(self):
        return [
            *((f"a {'C' if language == 'c' else 'C++'} program, {'static' if static else 'shared'}",
               lambda language=language, static=static: self.program(language, static))
              for language in ('c', 'c++') for static in (False, True)),
            ('the examples compile against what is installed', self.examples),
            ("the README's example is C++, too", self.example_in_cpp),
            ('the installed headers are those of the tree', self.headers),
            ('the symbol map names what the headers declare', self.map_is_headers),
            ('the shared library exports the symbol map, nothing else', self.exports),
            ('the static library has no names without prefix', self.static_names),
            ('the library needs the C library, liburing and libibverbs only', self.libraries),
            ('pkg-config has the version of the project', self.version),
            ('the command starts', self.command),
            ('every man page is installed, by each of its names', self.manuals),
        ]


def main():
    split = sys.argv.index('--')
    with tempfile.TemporaryDirectory() as directory:
        tests = Tests(sys.argv[1], sys.argv[2:split], sys.argv[split + 1:], pathlib.Path(directory))
        return tree.tap(tests.all())


if __name__ == '__main__':
    sys.exit(main())
