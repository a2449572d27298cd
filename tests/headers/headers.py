#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each public header compiles alone, twice in one file, and with the others, as C and as C++.

usage: headers.py C_COMPILER... -- C++_COMPILER...
"""
import pathlib
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import tree

WARNINGS = ['-Wall', '-Wextra', '-Werror', '-pedantic']
C_ONLY = ['-Wshadow', '-Wstrict-prototypes', '-Wold-style-definition']
STANDARDS = {'c': ('c99', 'c11', 'c17', 'gnu17'), 'c++': ('c++11', 'c++17', 'c++20')}


def compiles(compiler, language, standard, headers):
    source = ''.join(f'#include <pinlease/{header.name}>\n' for header in headers)
    options = WARNINGS + (C_ONLY if language == 'c' else [])
    tree.run([*compiler, f'-std={standard}', *options, '-fsyntax-only', f'-I{tree.ROOT}/include', f'-I{tree.ROOT}/bridge/include',
              '-x', language, '-'],
             input=source)


def only_public_includes(header):
    for line, quote, name in tree.includes(header):
        if quote == '"' or name.startswith(('core/', 'os/', 'source/', 'backend/')):
            raise tree.Failure(f'line {line}: includes "{name}", which is not installed')


def main():
    split = sys.argv.index('--')
    compilers = {'c': sys.argv[1:split], 'c++': sys.argv[split + 1:]}
    public = tree.HEADERS + tree.BRIDGE_HEADERS
    cases = [(header.name, [header, header]) for header in public]
    cases.append(('all, backwards', public[::-1]))
    tests = [(f'{name} as {standard}', lambda c=compilers[language], l=language, s=standard, h=headers: compiles(c, l, s, h))
             for name, headers in cases for language in STANDARDS for standard in STANDARDS[language]]
    tests += [(f'{h.name} includes nothing private', lambda h=h: only_public_includes(h)) for h in public]
    return tree.tap(tests)


if __name__ == '__main__':
    sys.exit(main())
