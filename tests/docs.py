#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the documents say about the tree is true, and the tree has what every file of it must have."""
import fnmatch
import pathlib
import re
import subprocess
import sys
import textwrap

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import tree

DOCUMENTS = [tree.ROOT / 'README.md', tree.ROOT / 'CONTRIBUTING.md', *sorted((tree.ROOT / 'docs').glob('*.md'))]
DIRECTORIES = ('bench', 'bpf', 'bridge', 'daemon', 'dist', 'examples', 'include', 'lib', 'man', 'model', 'proto', 'scripts', 'tests', 'tools', 'vm')


def read(path):
    return path.read_text(encoding='utf-8')


def readme_example():
    source = re.search(r'/\* README: begin \*/\n(.*?)\n\s*/\* README: end \*/', read(tree.ROOT / 'examples/uring-lease.c'), re.S)
    shown = re.search(r'```c\n(.*?)\n```', read(tree.ROOT / 'README.md'), re.S)
    expected = textwrap.dedent(source[1]).expandtabs(8)
    if shown[1].expandtabs(8) != expected:
        raise tree.Failure(f'README.md differs from examples/uring-lease.c; it must show:\n{expected}')


def links():
    bad = []
    for document in DOCUMENTS:
        for target in re.findall(r'\]\(([^)#\s]+)', read(document)):
            if '://' not in target and not (document.parent / target).exists():
                bad.append(f'{tree.relative(document)}: {target}')
    if bad:
        raise tree.Failure('no such file:\n' + '\n'.join(bad))


def readme_tree():
    block = read(tree.ROOT / 'README.md').split('## The tree\n')[1].split('\n## ')[0]
    places = [place for line in block.splitlines() if line.startswith('    ')
              for place in re.findall(r'[\w./-]+/(?=[\s,]|$)', line[:24])]
    missing = [place for place in places if not (tree.ROOT / place).is_dir()]
    if missing or len(places) < 8:
        raise tree.Failure(f'README names {places}; missing: {missing}')


def spdx():
    files = [tree.ROOT / 'Makefile', tree.ROOT / '.ci/run', tree.ROOT / 'meson.build']
    for directory in DIRECTORIES:
        files += (f for f in (tree.ROOT / directory).rglob('*') if f.is_file() and '__pycache__' not in f.parts)
    bad = [tree.relative(f) for f in files
           if not re.search(r'SPDX-License-Identifier: (LGPL-2\.1|GPL-2\.0)-or-later', f.read_bytes()[:300].decode('utf-8', 'replace'))]
    if bad:
        raise tree.Failure('no SPDX line in: ' + ', '.join(sorted(bad)))


def licences():
    for name in ('LGPL-2.1-or-later', 'GPL-2.0-or-later'):
        if 'GENERAL PUBLIC LICENSE' not in read(tree.ROOT / f'LICENSES/{name}.txt'):
            raise tree.Failure(f'LICENSES/{name}.txt is not the licence')


def manual_names():
    """Every library function a man page or document names exists."""
    known = tree.declared_functions(tree.HEADERS + tree.BRIDGE_HEADERS)
    bad = []
    for page in [*(tree.ROOT / 'man').glob('*.scd'), *DOCUMENTS]:
        named = set(re.findall(r'\b(pinl_\w+)\*?\*?\(\)', read(page).replace('\\_', '_')))
        bad += [f'{tree.relative(page)}: {name}()' for name in sorted(named - known)]
    if bad:
        raise tree.Failure('no such function:\n' + '\n'.join(bad))


def manual_pages():
    """A page of section 3 has the functions of its NAME in its SYNOPSIS and says what their errors are; functions with a section have a page."""
    bad, known = [], set()
    for path in (tree.ROOT / 'man').glob('*.3.scd'):
        known.update(re.findall(r'pinl_\w+', read(path).split('# NAME\n')[1].split(' - ')[0]))
    for path in sorted((tree.ROOT / 'man').glob('*.3.scd')):
        parts = dict(re.findall(r'^# ([A-Z ]+)\n(.*?)(?=^# |\Z)', read(path), re.M | re.S))
        missing = {'NAME', 'SYNOPSIS', 'DESCRIPTION', 'RETURN VALUE', 'ERRORS', 'SEE ALSO'} - set(parts)
        bad += [f'{tree.relative(path)}: no {part}' for part in sorted(missing)]
        names = re.findall(r'pinl_\w+', parts.get('NAME', '').split(' - ')[0])
        bad += [f'{tree.relative(path)}: {name} is not in its SYNOPSIS' for name in names if f'{name}(' not in parts.get('SYNOPSIS', '')]
        bad += [f'{tree.relative(path)}: no error in its ERRORS'] * ('*-E' not in parts.get('ERRORS', ''))
    for path in (tree.ROOT / 'man').glob('*.scd'):
        bad += [f'{tree.relative(path)}: no page has {name}' for name in re.findall(r'\*(pinl_\w+)\*\(3\)', read(path)) if name not in known]
    if bad:
        raise tree.Failure('\n'.join(bad))


def test_functions():
    tests = set()
    for path in (tree.ROOT / 'tests').glob('*.c'):
        tests.update(re.findall(r'^(?:static )?void (\w+)\(void \*\*state\)|^ISOLATED\((\w+)\)', read(path), re.M))
    return {name for pair in tests for name in pair if name}


def threats():
    """Every test that docs/threat-model.md names exists, and a threat without one is said to be open or to be only reasoned."""
    tests, shown = test_functions(), False
    bad = []
    for line in read(tree.ROOT / 'docs/threat-model.md').splitlines():
        row = line.split('|')
        shown = line.startswith('|') and (shown or row[-2].strip() == 'shown by')
        if not shown or row[-2].strip() in ('shown by', '---'):
            continue
        named = re.findall(r'`([\w/]+)`', row[-2])
        bad += [name for name in named if name.split('/')[-1] not in tests and not (tree.ROOT / f'tests/{name}.py').exists()
                and not (tree.ROOT / f'tests/test_{name}.c').exists()]
        if not named and '**open**' not in line.lower() and not re.search(r'reasoning|test', row[-2]):
            bad.append(row[1])
    if bad:
        raise tree.Failure('not there, or nothing shows it: ' + ', '.join(bad))


def promises():
    """Every test and function that docs/promises.md names exists. A word alone is a program or one more test."""
    tests = test_functions()
    library = ''.join(read(path) for path in (tree.ROOT / 'lib').rglob('*.c'))
    rows = [line.split('|') for line in read(tree.ROOT / 'docs/promises.md').splitlines() if line.startswith('|')][2:]
    bad, count = [], 0
    for row in rows:
        for name in re.findall(r'`([\w/*]+)`', row[-2]):
            program, *rest = name.split('/')
            known = (tree.ROOT / f'tests/test_{program}.c').exists()
            if not (known and (not rest or fnmatch.filter(tests, rest[-1])) or not rest and program in tests):
                bad.append(name)
            count += 1
        bad += [f'{name}()' for name in re.findall(r'`(\w\w+)\(\)`', ''.join(row[:-2]))
                if not re.search(rf'\b\w*{name}\(', library)]
    if bad or count < 40:
        raise tree.Failure(f'docs/promises.md names {count} tests; not there: ' + ', '.join(bad))


def file_operations():
    said = subprocess.run([tree.ROOT / 'scripts/file-operations', '--check'], capture_output=True, text=True, check=True).stdout
    if not said.startswith('ok 1'):
        raise tree.Failure(said)


def protocol_numbers():
    """The numbers that docs/protocol.md has are the header's."""
    header = tree.COMMENT.sub('', read(tree.ROOT / 'include/pinlease/pinlease.h'))
    rows = re.findall(r'^\| `enum (\w+)` \| (.*) \|$', read(tree.ROOT / 'docs/protocol.md'), re.M)
    bad = []
    for name, numbers in rows:
        constants = re.findall(r'\w+', re.search(rf'enum {name} {{(.*?)}}', header, re.S)[1])
        expected = [f'{number} {constant.split("_")[-1]}' for number, constant in enumerate(constants)]
        bad += [f'{name}: {", ".join(expected)}'] * (numbers.split(', ') != expected)
    if bad or len(rows) < 5:
        raise tree.Failure(f'docs/protocol.md has {len(rows)} tables of numbers; it must have\n' + '\n'.join(bad))


if __name__ == '__main__':
    sys.exit(tree.tap([
        ("the README's example is the one that is built", readme_example),
        ('links lead to files', links),
        ("the README's tree is the tree", readme_tree),
        ('every source file has its SPDX line', spdx),
        ('the licence texts are there', licences),
        ('functions named in documents exist', manual_names),
        ('pages of functions are whole', manual_pages),
        ('numbers in the protocol are the header\'s', protocol_numbers),
        ('tests and functions that the promises name exist', promises),
        ('README has the table of docs/file-operations.md', file_operations),
        ('tests that the threat model names exist', threats),
    ]))
