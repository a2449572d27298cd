# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests of the source tree and of the installed files share."""
import os
import pathlib
import re
import subprocess
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEADERS = sorted((ROOT / 'include/pinlease').glob('*.h'))
BRIDGE_HEADERS = sorted((ROOT / 'bridge/include/pinlease').glob('*.h'))  # of libraries of their own

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)
COMMENT = re.compile(r'/\*.*?\*/|//[^\n]*', re.S)


HANGS = 500  # seconds; no program that a test runs takes as long, however busy the machine


class Failure(Exception):
    """A test fails with a sentence instead of a traceback."""


class Skip(Exception):
    """A test can't run here; what is missing."""


def run(command, **options):
    """Standard output of a command that must succeed."""
    try:
        result = subprocess.run(command, capture_output=True, encoding='utf-8', errors='replace', check=False, **options)
    except OSError as error:
        raise Failure(f'{command[0]}: {error.strerror}') from error
    if result.returncode:
        raise Failure(f"{' '.join(map(str, command))}: status {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def tap(tests):
    """Run (name, function) pairs; print TAP. The exit status is the number of failures."""
    bad = 0
    for number, (name, function) in enumerate(tests, 1):
        error = skip = None
        try:
            function()
        except Skip as missing:
            skip = str(missing)
            print(f'skip: {skip}')
        except Failure as failure:
            error = str(failure)
        except Exception:  # pylint: disable=broad-except
            error = traceback.format_exc()
        print(f"{'not ok' if error else 'ok'} {number} - {name}{f' # SKIP {skip}' if skip else ''}", flush=True)
        if error:
            bad += 1
            print('\n'.join(f'# {line}' for line in error.splitlines()))
    print(f'1..{len(tests)}', flush=True)
    return min(bad, 99)


def relative(path):
    return os.path.relpath(path, ROOT)


def without_comments(text):
    return COMMENT.sub(lambda comment: '\n' * comment[0].count('\n'), text)


def includes(path):
    """(line, '<' or '"', name) of every #include in a file."""
    text = without_comments(path.read_text(encoding='utf-8'))
    return [(text.count('\n', 0, m.start(1)) + 1, m[1], m[2]) for m in INCLUDE.finditer(text)]


def declared_functions(headers=None):
    """Names of the functions that the public headers declare, those of libpinlease by default."""
    names = set()
    for header in headers or HEADERS:
        text = re.sub(r'^\s*#(?:[^\n]*\\\n)*[^\n]*', '', without_comments(header.read_text(encoding='utf-8')), flags=re.M)
        text = text.replace('extern "C" {', '').replace('\n}\n', '\n')
        while '{' in text:  # members and enumerators are no functions
            shorter = re.sub(r'\{[^{}]*\}', '', text)
            if shorter == text:
                raise Failure(f'{relative(header)}: braces do not match')
            text = shorter
        names.update(re.findall(r'\b(pinl_\w+)\s*\(', text))
    return names


def mapped_symbols():
    """The version node and the global symbols of the linker's symbol map."""
    text = without_comments((ROOT / 'lib/libpinlease.map').read_text(encoding='utf-8'))
    nodes = re.findall(r'(PINLEASE_[\d.]+)\s*\{', text)
    names = re.findall(r'\b(pinl_\w+)\s*;', text)
    if len(names) != len(set(names)):
        raise Failure('lib/libpinlease.map names a symbol twice')
    return nodes, set(names)
