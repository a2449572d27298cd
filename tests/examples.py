#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run the examples: each exits with 0 and prints the lines that the comment at its top promises after
"Prints:", in that order; "..." stands for anything. 77 stands for a skip, as in tests.

usage: examples.py PROGRAM...    one alone, or all
"""
import pathlib
import re
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import tree


def promised(source):
    text = source.read_text(encoding='utf-8')
    block = re.search(r'\* Prints:\n((?: \*\t.*\n)+)', text)
    if not block:
        raise tree.Failure(f'{source.name} has no "Prints:" in its first comment')
    return [line[3:] for line in block[1].splitlines()]


def example(program):
    result = subprocess.run([program], capture_output=True, encoding='utf-8', timeout=tree.HANGS, check=False)
    if result.returncode == 77:
        raise tree.Skip(result.stdout.removeprefix('skip: ').strip())
    said = f'status {result.returncode}\n{result.stdout}{result.stderr}'
    if result.returncode and 'no source here tells' in said or re.search("kernel 6[.].*this kernel doesn't", said):
        raise tree.Skip(said.splitlines()[1])  # refused with its reason
    if result.returncode:
        raise tree.Failure(said)
    lines = iter(result.stdout.splitlines())
    for want in promised(tree.ROOT / 'examples' / f'{pathlib.Path(program).name}.c'):
        pattern = '.*'.join(map(re.escape, want.split('...')))
        if not any(re.fullmatch(pattern, line) for line in lines):
            raise tree.Failure(f'no line "{want}" where it should come\n{said}')


def forgets(program):
    """An allocator that says nothing is what pool-memory is about."""
    said = subprocess.run([program, 'forget'], capture_output=True, encoding='utf-8', timeout=tree.HANGS, check=False)
    wrong = re.search(r': (\d+) were sent', said.stdout)
    if not wrong and 'no source here tells' in said.stderr:
        raise tree.Skip(said.stderr.strip())
    if not wrong or int(wrong[1]) < 100:
        raise tree.Failure(said.stdout + said.stderr)


def all_are_run():
    sources = {source.stem for source in (tree.ROOT / 'examples').glob('*.c')}
    programs = {pathlib.Path(program).name for program in sys.argv[1:]}
    if sources - {'verbs-peer'} != programs - {'verbs-peer'}:  # which needs libibverbs
        raise tree.Failure(f'sources {sorted(sources)}, run {sorted(programs)}')


if __name__ == '__main__':
    sys.exit(tree.tap([*([('every example is run', all_are_run)] if len(sys.argv) > 2 else []),
                       *((pathlib.Path(p).name, lambda p=p: example(p)) for p in sys.argv[1:]),
                       *(('pool-memory forget', lambda p=p: forgets(p)) for p in sys.argv[1:] if p.endswith('pool-memory'))]))
