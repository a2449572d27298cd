# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the scenes share: a program no one here wrote, `pinlease pins` on it, and what must be in its rows.

They run in build/ (or in PINLEASE_BUILD) as root. What pinlease printed is left in $VM/results or ./results, one file for each scene, from which
docs/real-use.md has its pages.
"""
import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / 'tests'))
import tree

BUILD = pathlib.Path(os.environ.get('PINLEASE_BUILD', '.')).resolve()
PINLEASE = BUILD / 'tools/pinlease/pinlease'
RESULTS = pathlib.Path(os.environ.get('VM', '.')).resolve() / 'results'
PATIENCE = 600  # seconds until a program is where it is to be, on an emulated machine
PAGE = 4096
Failure, Skip, tap = tree.Failure, tree.Skip, tree.tap


def need(*programs):
    if lost := [program for program in programs if not shutil.which(program)]:
        raise Skip(f"{', '.join(lost)}: scripts/deps real-use installs what is needed")


@contextlib.contextmanager
def folder():
    """An empty one for a scene, on the file system of the job; by a name that one can read in a page."""
    path = pathlib.Path('/var/tmp/real-use')
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


class Program:
    """It runs until the scene is through; what it says is in a file."""
    def __init__(self, *command, **options):
        self.command = [str(word) for word in command]
        self.log = tempfile.TemporaryFile('w+', encoding='utf-8', errors='replace')  # pylint: disable=consider-using-with
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=self.log, stderr=self.log, start_new_session=True,
                                        **options)
        self.pid = self.process.pid

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def must_run(self):
        if self.process.poll() is not None:
            raise Failure(f"{' '.join(self.command)}: ended with status {self.process.returncode}\n{self.said()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()  # who has children in sessions of their own ends them
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
        self.process.stdin.close()
        self.log.close()


def until(what, ready, *programs, patience=PATIENCE):
    """The first answer of ready() that is something; the programs must not end meanwhile."""
    end = time.monotonic() + patience
    while not (answer := ready()):
        for program in programs:
            program.must_run()
        if time.monotonic() > end:
            raise Failure(f'waited in vain until {what}\n' + '\n'.join(program.said() for program in programs))
        time.sleep(0.2)
    return answer


def run(*command, ok=(0,)):
    """What a command prints."""
    command = [str(word) for word in command]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace', check=False)
    if result.returncode not in ok:
        raise Failure(f"{' '.join(command)}: status {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def census():
    """All rows. That its sum is the kernel's own is what its status says, too."""
    return json.loads(run(PINLEASE, 'pins', '--json'))['pins']


def rows_of(program, device=None):
    """Of a program by its name, as the kernel keeps it: 15 bytes."""
    return [row for row in census() if row['program'] == program[:15] and device in (None, row['device'])]


def check(rows, **wanted):
    """One row, and this is what it says."""
    if len(rows) != 1:
        raise Failure(f'one row was expected: {json.dumps(rows, indent=1)}')
    wrong = [f'{key} is {rows[0].get(key)!r}, not {value!r}' for key, value in wanted.items() if rows[0].get(key) != value]
    if wrong:
        raise Failure('; '.join(wrong) + f': {rows[0]}')
    return rows[0]


@contextlib.contextmanager
def following(pid):
    """`pinlease pins --watch` of a process, each call; .end() has the last picture of it."""
    with Program(PINLEASE, 'pins', '--watch', '--exact', '--delay', 3600, '--pid', pid) as watch:
        until('pins are followed', lambda: '\nIn ' in watch.said(), watch)

        def end():
            watch.process.send_signal(signal.SIGINT)
            if watch.process.wait(PATIENCE):
                raise Failure(f'following ended with {watch.process.returncode}:\n{watch.said()}')
            said = watch.said()
            return said[said.rindex('\nIn ') + 1:]
        watch.end = end
        yield watch


class Page:
    """What an operator sees of a scene, as it is printed."""
    def __init__(self, name):
        self.path, self.parts = RESULTS / f'{name}.txt', []

    def started(self, program):
        self.parts.append(f'$ {shlex.join(program.command)} &\n')

    def show(self, *command):
        """With the program's name only, as one would type it."""
        words = [pathlib.Path(str(command[0])).name, *map(str, command[1:])]
        self.parts.append(f'$ {shlex.join(words)}\n{run(*command)}')

    def pins(self, *arguments):
        self.show(PINLEASE, 'pins', *arguments)

    def account(self, pid):
        """What one had before: sums of the process."""
        self.show('grep', '-E', 'VmLck|VmPin|VmRSS', f'/proc/{pid}/status')

    def write(self):
        RESULTS.mkdir(parents=True, exist_ok=True)
        self.path.write_text('\n'.join(part.rstrip('\n') for part in self.parts) + '\n', encoding='utf-8')


def locked(pid):
    """Bytes that the process has locked or pinned by the kernel's account of RLIMIT_MEMLOCK."""
    status = pathlib.Path(f'/proc/{pid}/status').read_text(encoding='utf-8')
    return {key: int(value.split()[0]) * 1024 for key, _, value in (line.partition(':') for line in status.splitlines())
            if key in ('VmLck', 'VmPin')}


def parent(pid):
    try:
        return int(pathlib.Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').rsplit(')', 1)[1].split()[1])
    except OSError:
        return 0
