#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: top.py PINLEASED PINLEASE - pinlease top on a terminal of 80x24, and where there is none."""
import contextlib
import fcntl
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import termios
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import tree

PINLEASED, PINLEASE = sys.argv[1:3]
del sys.argv[2]
ROWS, COLUMNS = 24, 80


def same(got, expected):
    if got != expected:
        raise tree.Failure(f'got {got!r}, expected {expected!r}')


def pattern(word):
    return re.escape(word) if isinstance(word, str) else word


class Screen:
    """As much of a vt100 as is used; what it doesn't know is an error."""
    SEQUENCE = re.compile(rb'\x1b\[([?\d;]*)([A-Za-z])|\x1b([()].|[=>78MDEH])|([\x00-\x1f])|([^\x00-\x1f\x1b]+)')

    def __init__(self, rows, columns):
        self.rows, self.columns = rows, columns
        self.lines = [[' '] * columns for _ in range(rows)]
        self.row = self.column = 0
        self.rest = b''

    def text(self):
        return [''.join(line).rstrip() for line in self.lines]

    def feed(self, data):
        data = self.rest + data
        at = 0
        while at < len(data):
            match = self.SEQUENCE.match(data, at)
            if not match:
                break
            at = match.end()
            if match[2]:
                self.control(match[2].decode(), [int(n or 0) for n in match[1].lstrip(b'?').split(b';')])
            elif match[4]:
                self.character(match[4])
            elif match[5]:
                self.put(match[5].decode())
            elif match[3] == b'M':
                self.row = max(0, self.row - 1)
        self.rest = data[at:]

    def put(self, text):
        for letter in text:
            self.column = min(self.column, self.columns - 1)
            self.lines[self.row][self.column] = letter
            self.column += 1

    def character(self, which):
        if which == b'\r':
            self.column = 0
        elif which == b'\n':
            self.row = min(self.row + 1, self.rows - 1)
        elif which == b'\b':
            self.column -= 1
        elif which == b'\t':
            self.column = (self.column // 8 + 1) * 8
        else:
            assert which in b'\x00\x0e\x0f\x07', which

    def control(self, letter, numbers):
        first = max(1, numbers[0])
        if letter == 'H':
            self.row, self.column = first - 1, max(1, (numbers + [1])[1]) - 1
        elif letter == 'J':
            same(numbers[0], 0)
            self.erase(self.row, self.column, self.rows)
        elif letter == 'K':
            if numbers[0] == 1:
                self.lines[self.row][:self.column + 1] = [' '] * (self.column + 1)
            else:
                self.erase(self.row, self.column, self.row + 1)
        elif letter in 'ABCD':
            self.row += {'A': -first, 'B': first}.get(letter, 0)
            self.column += {'D': -first, 'C': first}.get(letter, 0)
        else:
            assert letter in 'mrhl', letter

    def erase(self, row, column, end):
        for n in range(row, end):
            self.lines[n][column if n == row else 0:] = [' '] * (self.columns - (column if n == row else 0))


class Top:
    """pinlease top on a terminal."""

    def __init__(self, arbiter, *arguments, term='vt100', rows=ROWS, columns=COLUMNS):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
        self.echoed = self.echoes()
        environment = dict(os.environ, PINLEASE_SOCKET=str(arbiter.path), TERM=term)
        for name in ('LINES', 'COLUMNS'):
            environment.pop(name, None)
        # pylint: disable-next=consider-using-with
        self.process = subprocess.Popen([PINLEASE, 'top', *arguments], env=environment, stdin=slave, stdout=slave,
                                        stderr=subprocess.PIPE, start_new_session=True)
        os.close(slave)
        self.screen = Screen(rows, columns)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        if self.master >= 0:
            os.close(self.master)

    def read(self):
        try:
            data = os.read(self.master, 65536)
        except OSError:  # its other end is closed
            data = b''
        self.screen.feed(data)
        return data

    def until(self, *words):
        """The screen that has all of these."""
        try:
            while not all(any(re.search(word, line) for line in self.screen.text()) for word in map(pattern, words)):
                if not self.read():
                    raise tree.Failure(f'it ended: {self.process.communicate()[1]} {self.screen.text()}')
        except TimeoutError as error:
            raise tree.Failure('\n'.join([f'no {words}', *self.screen.text()])) from error
        return self.screen.text()

    def echoes(self):
        return termios.tcgetattr(self.master)[3] & termios.ECHO

    def press(self, key):
        os.write(self.master, key)

    def end(self):
        while self.read():
            pass
        return self.process.wait()


@contextlib.contextmanager
def leased(files=2, **more):
    with ac.Arbiter(PINLEASED) as arbiter, arbiter.client() as holder, ac.Actor() as actor:
        paths = [arbiter.file(f'file{n}') for n in range(files)]
        for number, path in enumerate(paths, 1):
            with open(path, 'r+b') as file:
                same(holder.lease(file.fileno(), number, start=ac.START * number, flags=ac.PINNED * (number == 1),
                                  size=ac.PAGE * number, **more).err, 0)
            same(holder.handle(number).err, 0)
        yield arbiter, holder, paths, actor


def keys():
    with leased() as (arbiter, _, paths, _):
        with Top(arbiter, '--delay', '3600') as top:
            lines = top.until('HOLDER', f'{os.getpid()} python', 'q quit')
            same((len(lines), max(map(len, lines)) <= COLUMNS), (ROWS, True))
            same('2 leases of 1 holder, 12K' in lines[0], True)
            same([line.split()[:3] for line in lines if line.endswith('python')], [['2', '12K', '4.0K']])
            top.press(b'f')
            lines = top.until('FILE', str(paths[0]), str(paths[1]))
            same([line.split()[1:3] for line in lines if '/file' in line], [['8.0K', '0B'], ['4.0K', '4.0K']])
            top.press(b'd')
            top.until('DEVICE', 'soft')
            top.press(b'b')
            top.until(' 12288 ')
            top.press(b'-')
            top.until('every 1800.0s')
            top.press(b'h')
            top.until('HOLDER')
            top.press(b'q')
            same(top.end(), 0)


def recalls():
    with leased(grace_ms=90000) as (arbiter, holder, paths, actor):
        with Top(arbiter, '--delay', '3600', '--by', 'file') as top:
            top.until('q quit')
            before = time.monotonic_ns()
            actor.order('truncate', paths[1])
            notice = holder.notice()
            top.press(b' ')
            recall = re.compile(r' 2 +8.0K +(\d+\.\d)s .*file1$')
            (left,) = [float(match[1]) * 1e9 for match in map(recall.search, top.until('RECALLED', '1 now', recall)) if match]
            same(notice.deadline_ns - time.monotonic_ns() - 1e8 < left < notice.deadline_ns - before + 1e8, True)
            holder.released(notice, whole=1)
            same(actor.join(), 0)
            top.press(b' ')
            top.until('0 now')


def part():
    """The size is that of what is recalled, not of all that is leased; and who waits stands below."""
    with leased(grace_ms=90000) as (arbiter, holder, paths, actor):
        actor.order('punch', paths[1], ac.PAGE, ac.PAGE)
        notice = holder.notice()
        lines = run(arbiter.path, '--once')[1]
        at = next(n for n, line in enumerate(lines) if line.endswith('file1'))
        same((lines[at].split()[2:4], lines[at + 1].split()[:4]), (['2', '4.0K'], ['waits:', 'punch', 'by', str(actor.process.pid)]))
        holder.released(notice, whole=1)
        same(actor.join(), 0)


def crowd():
    """More than a terminal has lines, and a narrow one."""
    with leased(files=40) as (arbiter, holder, paths, actor):
        for path in paths[:30]:
            actor.order('truncate', path)
            holder.released(holder.notice(), whole=1) if path in paths[:2] else holder.notice()
            if path not in paths[:2]:
                break
            same(actor.join(), 0)
        for rows, columns in ((24, 80), (6, 20), (3, 10), (50, 200)):
            with Top(arbiter, '--by', 'file', '--delay', '3600', rows=rows, columns=columns) as top:
                lines = top.until('h hold', 'pinlease t')
                same(len(lines), rows)
                top.press(b'q')
                same(top.end(), 0)
        holder.unlease(3)
        same(actor.join(), 0)


def refreshed():
    with leased() as (arbiter, holder, _, _):
        with Top(arbiter, '--delay', '0.1') as top:
            top.until('2 leases')
            holder.unlease(1)
            top.until(': 1 lease of 1 holder, ')
            holder.unlease(2)
            top.until('0 leases')


def arbiter_goes():
    with ac.Arbiter(PINLEASED) as arbiter:
        with Top(arbiter, '--delay', '0.1') as top:
            top.until('0 leases')
            arbiter.process.terminate()
            top.until("can't ask pinleased")
            top.press(b'q')
            same(top.end(), 0)


def terminal_goes():
    """It doesn't spin on a terminal that isn't there any more, nor stay."""
    with leased() as (arbiter, _, _, _):
        with Top(arbiter, '--delay', '3600') as top:
            top.until('q quit')
            os.close(top.master)
            top.master = -1
            top.process.wait()


def interrupted():
    """The terminal is as before."""
    with leased() as (arbiter, _, _, _):
        with Top(arbiter, '--delay', '3600') as top:
            top.until('q quit')
            same(top.echoes() != top.echoed, True)
            top.process.terminate()
            top.end()
            same(top.echoes(), top.echoed)


def dumb():
    with leased() as (arbiter, _, paths, _):
        for term in ('dumb', '', 'nonexistent'):
            with Top(arbiter, '--by', 'file', term=term) as top:
                said = b''
                while data := top.read():
                    said += data
                same((term, top.process.wait(), b'\x1b' in said), (term, 0, False))
                same(all(path.name.encode() in said for path in paths), True)


def run(path, *arguments):
    result = subprocess.run([PINLEASE, 'top', *arguments], env=dict(os.environ, PINLEASE_SOCKET=str(path)), capture_output=True,
                            text=True, stdin=subprocess.DEVNULL, check=False)
    return result.returncode, result.stdout.splitlines(), result.stderr


def batch():
    with leased(files=40) as (arbiter, _, paths, _):
        status, lines, err = run(arbiter.path, '--by', 'file')
        same((status, err), (0, ''))
        same(sum(str(path) == line.split()[-1] for path in paths for line in lines[4:]), 40)
        same(run(arbiter.path, '--once', '--bytes')[1][4].split()[:3], ['40', str(820 * ac.PAGE), '4096'])


def wrong():
    with ac.Arbiter(PINLEASED) as arbiter:
        same(run(arbiter.path, '--once')[0], 0)
        for arguments, because in ((['--by', 'x'], "can't add up"), (['--delay', '0'], 'no number of seconds'),
                                   (['--delay', 'nan'], 'no number'), (['--delay', '1e9'], 'no number'), (['x'], '"x"')):
            status, lines, err = run(arbiter.path, *arguments)
            same((arguments, status, lines, because in err), (arguments, 2, [], True))
    status, lines, err = run('/nonexistent')
    same((status, lines, 'start pinleased' in err), (2, [], True))


if __name__ == '__main__':
    ac.main([
        ('80x24, and its keys', keys),
        ('what is being recalled, and how long yet', recalls),
        ('what of a lease is being recalled', part),
        ('more than fits, terminals of any size', crowd),
        ('it looks again', refreshed),
        ('the arbiter goes', arbiter_goes),
        ('the terminal goes', terminal_goes),
        ('interrupted, it leaves the terminal as it was', interrupted),
        ('a terminal that can do nothing gets one picture', dumb),
        ('no terminal gets one picture', batch),
        ('what is wrong is said', wrong),
    ])
