#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The layers: who may include whom.

        tools, examples, bench, bridge  ->  public headers only (bench: and two of tests)
        daemon                  ->  all of lib, proto
        source  ->  proto, which is alone
        source   backend        ->  never each other
             \\   /
             core               ->  neither of them: it knows them by their ops tables
              |
              os                ->  the C library and kernel headers only
"""
import pathlib
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import tree

# A directory below the root, and the directories whose headers its files must not include.
FORBIDDEN = {
    'include': ('lib', 'tools', 'tests', 'examples'),
    'lib/os': ('lib/core', 'lib/cache', 'lib/source', 'lib/backend', 'daemon', 'proto', 'tools', 'tests'),
    'lib/core': ('lib/cache', 'lib/source', 'lib/backend', 'daemon', 'proto', 'tools', 'tests'),
    'lib/cache': ('lib/source', 'lib/backend', 'lib/exporter', 'daemon', 'proto', 'tools', 'tests'),
    'lib/source': ('lib/cache', 'lib/backend', 'daemon', 'tools', 'tests'),
    'lib/exporter': ('lib/cache', 'lib/source', 'lib/backend', 'daemon', 'proto', 'tools', 'tests'),
    'lib/backend': ('lib/cache', 'lib/source', 'daemon', 'proto', 'tools', 'tests'),
    'proto': ('include', 'lib', 'daemon', 'tools', 'tests'),
    'daemon': ('tools', 'tests'),
    'bpf': ('include', 'lib', 'daemon', 'proto', 'tools', 'tests'),
    'tools': ('lib', 'daemon', 'tests'),
    'bridge': ('lib', 'daemon', 'proto', 'tools', 'tests'),
    'examples': ('lib', 'tools', 'tests'),
    'bench': ('lib', 'tools', 'tests'),
}
# How tests open devices; the measurements open the same ones.
ALLOWED = {'bench': ('tests/edu_rig.h', 'tests/verbs_peer.h')}
# The device and event interfaces of the kernel, by the layer that alone speaks them.
SYSTEM = {
    'lib/core': ('liburing.h', 'linux/userfaultfd.h', 'sys/fanotify.h', 'sys/inotify.h'),
}


def below(path, directory):
    return path.is_relative_to(directory)


def target(root, path, quote, name):
    """The file of this project that an #include means, or None for a system header."""
    places = ([path.parent] if quote == '"' else []) + [root / 'lib', root / 'include', root]
    for place in places:
        file = (place / name).resolve()
        if file.is_file():
            return file
    if quote == '"':
        raise tree.Failure(f'{path.name}: "{name}" is nowhere in the tree')
    return None


def violations(root, layer):
    found = []
    for path in sorted((root / layer).rglob('*.[ch]')):
        for line, quote, name in tree.includes(path):
            where = f'{path.relative_to(root)}:{line}: {layer} must not include {name}'
            file = target(root, path, quote, name)
            if file is None:
                if name in SYSTEM.get(layer, ()):
                    found.append(where)
            elif file not in [root / header for header in ALLOWED.get(layer, ())] and \
                    any(below(file, root / directory) for directory in FORBIDDEN[layer]):
                found.append(where)
    return found


def keeps(layer):
    found = violations(tree.ROOT, layer)
    if found:
        raise tree.Failure('\n'.join(found))


def has_files():
    """A moved directory must not make this test empty."""
    empty = [layer for layer in ('include', 'lib/os', 'lib/core', 'lib/source', 'lib/backend', 'proto', 'daemon', 'tools', 'examples')
             if not any((tree.ROOT / layer).rglob('*.[ch]'))]
    if empty:
        raise tree.Failure(f"no C files in {', '.join(empty)}")


def sees_a_violation():
    """The test itself: each way to write a forbidden include is found, an allowed one is not."""
    cases = {
        'lib/core/a.c': '#include "source/uffd.h"\n',
        'lib/core/b.c': '#  include <backend/soft.h>\n',
        'lib/core/c.c': '#include "../backend/soft.h"\n',
        'lib/core/d.c': '#include <liburing.h>\n',
        'lib/os/a.c': '#include "core/ctx.h"\n',
        'lib/backend/a.c': '#include "source/uffd.h"\n',
        'lib/source/a.c': '#include "backend/soft.h"\n',
        'tools/x/a.c': '#include "core/ctx.h"\n',
        'bench/a.c': '#include "../tests/own.h"\n',
        'bench/good.c': '#include "../tests/edu_rig.h"\n',
        'lib/core/good.c': '/* #include "source/uffd.h" */\n#include "core/ctx.h"\n#include <stdio.h>\n',
    }
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory).resolve()
        for name in ('lib/source/uffd.h', 'lib/backend/soft.h', 'lib/core/ctx.h', 'tests/own.h', 'tests/edu_rig.h'):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        for name, text in cases.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding='utf-8')
        found = {v.split(':')[0] for layer in FORBIDDEN for v in violations(root, layer)}
    expected = {name for name in cases if 'good' not in name}
    if found != expected:
        raise tree.Failure(f'found {sorted(found)}, expected {sorted(expected)}')


def main():
    tests = [(f'{layer} includes nothing above or beside it', lambda layer=layer: keeps(layer)) for layer in FORBIDDEN]
    return tree.tap([('a violation is seen', sees_a_violation), ('every layer has files', has_files), *tests])


if __name__ == '__main__':
    sys.exit(main())
