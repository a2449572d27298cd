#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: live.py PINLEASED PINLEASE [RDMA] - pinlease pins --trace and --watch tell of the pins that are made here, while they are made."""
import contextlib
import ctypes
import fcntl
import itertools
import os
import pathlib
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import arbiter_client as ac
import census_rig as cs
from live_command import Live, Missed, anew, again_on, device, expect, held, leaks, missed, patience, read_own, sites
import tree

PAGE, HUGE = cs.PAGE, cs.HUGE
FEW, MANY = 20, 4000
UNREGISTER_BUFFERS = 1


def tell_ring(live):
    with cs.Memory(16 * PAGE) as memory:
        with cs.Ring(cs.of(memory)):
            pin = live.find(start=memory.start, again=again_on(memory))
            expect(pin, device='io_uring', term='long-term', bytes=16 * PAGE, end=memory.start + 16 * PAGE, path=None,
                   program=pathlib.Path('/proc/self/comm').read_text(encoding='utf-8').strip())
            assert pin['site'].startswith('io_'), pin
        release = live.find('release', start=memory.start, again=again_on(memory))
        expect(release, device='io_uring', term='long-term', site=pin['site'])
        assert release['bytes'] >= 16 * PAGE and (live.agains or 0 < release['held_ns'] <= release['time_ns'] - pin['time_ns'] + 10**9), (pin, release)


def a_ring():
    """From the call that pins to the release, with who, what, where and how long; then the sum."""
    with Live('--trace') as live:
        tell_ring(live)
        end = live.end()
    group = device(end, 'io_uring', 'long-term')
    is_of_class(end, 'revocable', device='io_uring', site=sites(end, pid=os.getpid(), device='io_uring')[0]['site'])
    assert not held(end, pid=os.getpid()) or missed(end), end
    assert group['calls'] >= 1 and group['released'] >= 1 and sum(bucket['count'] for bucket in group['histogram']) + group['untimed'] == group['released'], group
    assert end['totals']['longterm_pages'] >= 16 and not leaks(end), end
    assert end['kernel']['acquired'] >= 16 <= end['kernel']['acquired_seen'], end
    assert all(end['cost'][key] > 0 for key in ('pin_runs', 'pin_ns', 'release_runs', 'release_ns', 'own_ns', 'longterm_alone_ns', 'transient_alone_ns')), end
    assert end['cost']['longterm_followed_ns'] > 0 < end['cost']['transient_followed_ns'], end


def is_of_class(end, name, **wanted):
    """A call site is in one class, with its pages, and so are its sites."""
    found = [(one, caller) for one in end['classes'] for caller in one['call_sites'] if all(caller[key] == value for key, value in wanted.items())]
    assert found and {one['class'] for one, _ in found} == {name} and all(one['fitting_policy'] for one, _ in found), (name, wanted, end['classes'])
    for _, caller in found:
        of = [site for site in end['sites'] if all(site[key] == caller[key] for key in ('site', 'device', 'term'))]
        assert {site['class'] for site in of} == {name} and caller['pages'] == sum(site['pages'] for site in of), (caller, of)


def places(*mode):
    """Of what is released only what was pinned: the same buffer twice, and another elsewhere."""
    with cs.Memory(32 * PAGE) as memory, Live('--trace', *mode) as live:
        one, other = (memory.start, 16 * PAGE), (memory.start + 24 * PAGE, 8 * PAGE)
        with cs.Ring(one, one, other):
            for start, size in one, one, other:
                live.find(start=start, end=start + size, again=patience())
        told = 0
        while told < 40 * PAGE:
            said = live.find('release', again=patience())
            told += said['bytes']
            assert any(start <= said['start'] < said['end'] <= start + size for start, size in (one, other)), (said, one, other)
        live.end()


def by_kprobes():
    if not os.path.exists('/sys/bus/event_source/devices/kprobe/type'):
        raise tree.Skip('kprobes')
    with Live('--trace', PINLEASE_BPF_KPROBES='1') as live:
        assert live.start['functions_by_kprobe'] > 3 and not live.start['functions_by_trampoline'], live.start
        tell_ring(live)
        live.end()


def a_file():
    with Live('--trace') as live:
        with cs.memfd(8 * PAGE) as fd, cs.Memory(4 * PAGE, fd, 2 * PAGE) as memory:
            with cs.Ring(cs.of(memory)):
                expect(live.find(path='memfd:census', again=again_on(memory)), device='io_uring', start=2 * PAGE, end=6 * PAGE, file_ino=os.fstat(fd).st_ino)
            assert live.find('release', path='memfd:census', start=2 * PAGE, again=again_on(memory))['bytes'] >= 4 * PAGE
        live.end()


def a_huge_page():
    """The kernel keeps one pin of it or 512: either way it is held until the ring has gone."""
    with cs.Memory(HUGE, huge=True) as memory, Live('--trace') as live:
        with cs.Ring(cs.of(memory)):
            live.find(start=memory.start, bytes=HUGE, again=again_on(memory))
            with cs.Memory(2 * PAGE) as other:
                with cs.Ring(cs.of(other)):
                    live.find(start=other.start, again=again_on(other))
                while (said := live.find('release', again=again_on(other)))['start'] != other.start:
                    assert said['start'] != memory.start or live.agains, said
        assert live.find('release', start=memory.start, again=again_on(memory))['bytes'] >= HUGE
        live.end()


def exactly():
    """Every transient call, and every page of a buffer."""
    with cs.Memory(4 * PAGE) as memory, Live('--trace', '--exact') as live:
        read_own(memory, FEW)
        expect(live.find(term='transient'), device='other', bytes=PAGE, start=memory.start)
        assert live.find('release', term='transient', again=lambda: read_own(memory, 1))['held_ns'] != 0
        tell_ring(live)
        end = live.end()
    group = device(end, 'other', 'transient')
    own, = sites(end, pid=os.getpid(), term='transient')
    is_of_class(end, 'transient', device='other', term='transient', site=own['site'])
    assert group['calls'] >= own['calls'] >= FEW - missed(end) and own['released'] + own['held'] == own['calls'], end
    assert own['held'] <= missed(end), end


def lightly():
    """All are counted, few are followed."""
    with cs.Memory(4 * PAGE) as memory, Live('--trace') as live:
        read_own(memory, MANY)
        end = live.end()
    assert end['totals']['transient_calls'] >= MANY - missed(end), end
    followed = sum(site['calls'] for site in sites(end, pid=os.getpid(), term='transient'))
    assert 0 < followed < MANY / 4, end


def transient_over_longterm():
    """A transient pin of a page that a ring has ends, and the ring's is still there."""
    with cs.Memory(4 * PAGE) as memory, Live('--trace', '--exact') as live:
        with cs.Ring(cs.of(memory)):
            live.find(start=memory.start, term='long-term', again=again_on(memory))
            read_own(memory, FEW)
            live.find('release', term='transient', again=lambda: read_own(memory, 1))
            end = live.end()
    if not live.agains:
        assert held(end, pid=os.getpid(), device='io_uring') == 4 * PAGE and end['held_confirmed'] >= 4, end


def direct_io():
    with tempfile.NamedTemporaryFile(dir='/var/tmp') as file, cs.Memory(4 * PAGE) as memory, Live('--trace', '--exact') as live:
        try:
            fd = os.open(file.name, os.O_RDWR | os.O_DIRECT)
        except OSError as error:
            raise tree.Skip('O_DIRECT') from error
        try:
            for _ in range(FEW):
                os.pwrite(fd, (ctypes.c_char * (2 * PAGE)).from_address(memory.start), 0)
        finally:
            os.close(fd)
        end = live.end()
    if not sites(end, pid=os.getpid(), term='transient'):
        raise tree.Skip('direct I/O that pins (Linux 6.5, a file system on disk)')
    group = device(end, 'direct-io', 'transient')
    assert group['calls'] >= FEW - missed(end) and group['pages'] >= 2 * (FEW - missed(end)), end
    expect(sites(end, pid=os.getpid(), term='transient')[0], device='direct-io')
    is_of_class(end, 'transient', device='direct-io')


def regions():
    if not cs.RDMA or not os.path.isdir('/sys/class/infiniband') or not os.listdir('/sys/class/infiniband'):
        raise tree.Skip('an RDMA device')
    with Live('--trace') as live:
        with subprocess.Popen([cs.RDMA], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            start, size = map(int, holder.stdout.readline().split())
            expect(live.find(pid=holder.pid), device='rdma', term='long-term', start=start)
            holder.communicate('')
        live.find('release', pid=holder.pid)
        end = live.end()
    assert sum(site['pages'] for site in sites(end, pid=holder.pid, device='rdma')) == size // PAGE or missed(end), end


@contextlib.contextmanager
def inherited(memory):
    """A process pins, leaves its ring to a child, and ends. The child ends when the pipe is closed."""
    told, tell = os.pipe()
    kept, let = os.pipe()
    first = os.fork()
    if not first:
        os.close(let)
        with cs.Ring(cs.of(memory)):
            child = os.fork()
            if not child:
                os.close(tell)
                os.read(kept, 1)
                os._exit(0)
            os.write(tell, struct.pack('i', child))
            os._exit(0)
    os.close(tell)
    os.close(kept)
    try:
        yield first, struct.unpack('i', os.read(told, 4))[0]
    finally:
        os.close(told)
        os.close(let)


def leak(*mode):
    """The holder has gone, its pins haven't: it is said, with who has them now; and the census agrees."""
    with cs.Memory(16 * PAGE) as memory, Live('--trace', *mode) as live:
        with inherited(memory) as (holder, heir):
            os.waitpid(holder, 0)
            said = live.find('leak', pid=holder, again=patience())
            expect(said, how='holder gone', confirmed_bytes=16 * PAGE, open_in=heir, bytes=16 * PAGE, start=memory.start, end=memory.start + 16 * PAGE,
                   device='io_uring')
            end = live.end()
    assert [found for found in end['leaks'] if found['pid'] == holder and found['open_in'] == heir], end
    assert sites(end, pid=holder)[0]['holder_gone'] and end['held_confirmed'] >= 1, end
    cs.gone()


@contextlib.contextmanager
def other_holder(memory, gives_back):
    """A process that has the same pages pinned; it ends when the function that is given is called."""
    told, tell = os.pipe()
    kept, let = os.pipe()
    child = os.fork()
    if not child:
        os.close(let)
        with cs.Ring(cs.of(memory)) as ring:
            os.write(tell, b'1')
            os.read(kept, 1)
            if gives_back:
                cs.LIBC.syscall(cs.REGISTER, ring.fd, UNREGISTER_BUFFERS, None, 0)
            os._exit(0)
    os.close(tell)
    os.close(kept)
    ends = [lambda: os.waitpid(child, 0), lambda: os.close(told), lambda: os.close(let)]

    def end():
        while ends:
            ends.pop()()
    try:
        assert os.read(told, 1), 'it could not pin'
        yield child, end
    finally:
        end()


def shared(fd, size):
    """One of two that have a file's pages pinned gives them back: its pins are released, the other's are held."""
    with cs.Memory(size, fd) as memory, Live('--trace') as live, cs.Ring(cs.of(memory)):
        with other_holder(memory, True) as (child, end_it):
            end_it()
            live.find('release', path='memfd:census', pid=child, bytes=size, again=patience())
        end = live.end()
    assert missed(end) or (held(end, pid=os.getpid(), path='memfd:census') == size and not held(end, pid=child)), end
    assert missed(end) or [site['released'] for site in sites(end, pid=os.getpid(), path='memfd:census')] == [0], end


def two_holders():
    with cs.memfd(PAGE) as fd:
        shared(fd, PAGE)


def two_holders_of_a_huge_page():
    if not int(pathlib.Path('/proc/sys/vm/nr_hugepages').read_text(encoding='ascii')):
        raise tree.Skip('huge pages that are free (vm.nr_hugepages)')
    with cs.memfd(HUGE, flags=os.MFD_HUGETLB) as fd:
        shared(fd, HUGE)


def no_leak():
    """A ring is undone by the kernel's own thread; whose of two pins it was can't be told, but neither is a leak."""
    with cs.memfd(PAGE) as fd, cs.Memory(PAGE, fd) as memory, Live('--watch', '--delay', '0.1') as live, cs.Ring(cs.of(memory)):
        with other_holder(memory, False) as (child, end_it):
            for _ in range(50):
                if sites(live.next(), pid=child):
                    break
            else:
                raise Missed('its pin')
            end_it()
        while not all(site['holder_gone'] for site in sites(live.next(), pid=child)):
            pass
        since = time.monotonic()
        while time.monotonic() - since < 3:  # a leak is looked for two seconds after a holder has gone
            live.next()
        end = live.end()
    assert not [found for found in end['leaks'] if found['pid'] in (child, os.getpid())], end


def overlapping():
    """Of two buffers in one huge page one is given back: that one is released, but not timed, as it may be either."""
    with cs.Memory(HUGE, huge=True) as memory, Live('--trace') as live:
        with cs.Ring((memory.start, 16 * PAGE)):
            with cs.Ring((memory.start + 64 * PAGE, 16 * PAGE)):
                pass
            said = live.find('release', again=patience())
            end = live.end()
    if said['held_ns'] is not None and not missed(end):
        raise tree.Skip('a transparent huge page')
    expect(said, device='io_uring', bytes=16 * PAGE, held_ns=None)
    assert missed(end) or held(end, pid=os.getpid()) == 16 * PAGE, end
    assert missed(end) or sum(site['untimed'] for site in sites(end, pid=os.getpid())) == 1, end


def unmapped():
    """Pinned, and no longer mapped by the holder: told at the end."""
    with cs.Memory(16 * PAGE) as memory, cs.Memory(PAGE) as other, Live('--trace') as live:
        with cs.Ring(cs.of(memory), cs.of(other)):
            live.find(start=other.start, again=again_on(other))
            memory.unmap()
            end = live.end()
    if not leaks(end) and missed(end):
        raise tree.Skip('a call that is seen: it was missed, which was counted')
    found, = leaks(end)
    expect(found, how='not mapped', start=memory.start, bytes=16 * PAGE, confirmed_bytes=16 * PAGE, open_in=os.getpid())


def partly_unmapped(first, pages):
    """Only what isn't mapped any more is a leak, whether the first page of the call is among it or not."""
    with cs.memfd(16 * PAGE) as fd, cs.Memory(16 * PAGE, fd) as memory, cs.Memory(PAGE) as other, Live('--trace') as live:
        with cs.Ring(cs.of(memory), cs.of(other)):
            live.find(start=other.start, again=again_on(other))
            cs.call(cs.LIBC.munmap(memory.start + first * PAGE, pages * PAGE))
            end = live.end()
    if not leaks(end) and missed(end):
        raise Missed('its pin')
    found, = leaks(end)
    expect(found, how='not mapped', path='memfd:census', start=0, bytes=16 * PAGE, confirmed_bytes=pages * PAGE)


def lost():
    """More events than there is room for while nobody reads them: as many as are missing are counted, and told where they are missing."""
    with cs.Memory(4 * PAGE) as memory, Live('--trace', '--exact', '--buffer', '4') as live:
        os.kill(live.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, live.process.pid, os.WSTOPPED)
        read_own(memory, MANY)
        os.kill(live.process.pid, signal.SIGCONT)
        live.process.send_signal(signal.SIGINT)
        told, gaps = 0, []
        while (said := live.next())['event'] != 'end':
            if said['event'] == 'lost':
                gaps.append((told, said['events']))
            if said.get('pid') == os.getpid() and said['event'] in ('pin', 'release'):
                told += said['bytes'] // PAGE
    missing = sum(events for _, events in gaps)
    assert gaps and gaps[0][0] > 0 and 2 * MANY - 2 * missed(said) - told <= missing <= said['lost']['events'], (told, gaps, said['lost'])
    assert told < 2 * MANY <= told + said['lost']['events'] + 2 * missed(said), (told, said['lost'])
    assert sites(said, pid=os.getpid(), term='transient')[0]['calls'] >= MANY - missed(said), said


def lost_words():
    """What was lost is said in words that fit its number, and none of what wasn't."""
    with cs.Memory(4 * PAGE) as memory, Live('--trace') as can, \
            subprocess.Popen([cs.PINLEASE, 'pins', '--trace', '--exact', '--buffer', '4'], stdout=subprocess.PIPE, text=True) as command:
        can.end()
        while not command.stdout.readline().split()[-1:] == ['FILE']:
            pass
        os.kill(command.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, command.pid, os.WSTOPPED)
        read_own(memory, FEW * 10)
        os.kill(command.pid, signal.SIGCONT)
        command.send_signal(signal.SIGINT)
        text = command.communicate()[0]
    gap, = re.findall(r'^\d+:\d+:\d+\.\d+ \d+ events lost here, of all processes; ', text, re.M)[:1]
    line, = re.findall(r'^LOST: .*$', text, re.M)
    assert text.index(gap) < text.index(line) and re.match(r'LOST: \d+ events?\b', line) and not re.search(r'\b0 |\b1 \w+s\b', line), line
    assert ('not seen' in line) == bool(re.search(r'^(So HELD, .* may be up to|By the kernel)', text, re.M)), text


def watched():
    """Again and again: what is held now, and for how long it was."""
    def mine(picture):
        return sum(site['held_bytes'] for site in sites(picture, pid=os.getpid(), device='io_uring'))

    with cs.Memory(16 * PAGE) as memory, Live('--watch', '--delay', '0.1') as live:
        with cs.Ring(cs.of(memory)):
            for number in itertools.count(1):
                if mine(picture := live.next()):
                    break
                if number % 50 == 0:
                    again_on(memory)()
            group = device(picture, 'io_uring', 'long-term')
            assert mine(picture) >= 16 * PAGE <= group['held_bytes'] and group['oldest_ns'] > 0, group
        for number in itertools.count(1):
            if not mine(picture := live.next()):
                break
            if number % 50 == 0:
                again_on(memory)()
        assert device(picture, 'io_uring', 'long-term')['histogram'], picture
        live.end()


def leased(*mode):
    """What is held under a lease that pinlease can take back is told apart from one that is kept and from none, of one buffer too; of private memory it isn't known."""
    with ac.Arbiter(cs.PINLEASED) as arbiter, arbiter.client() as client, cs.memfd(8 * PAGE) as fd, cs.Memory(8 * PAGE, fd) as memory, \
            Live('--watch', '--delay', '0.1', *mode, PINLEASE_SOCKET=str(arbiter.path)) as live:
        def mine(picture):
            return [(site['held_bytes'], site['leased_bytes']) for site in sites(picture, pid=os.getpid(), path='memfd:census')]

        with contextlib.ExitStack() as rings:
            for number in itertools.count():
                if number % 50 == 0:  # seldom more than once: a ring is given back late
                    rings.close()
                    rings.enter_context(cs.Ring(cs.of(memory)))
                if mine(live.next()) == [(8 * PAGE, 0)]:
                    break
            assert client.lease(fd, 1, start=memory.start + 2 * PAGE, size=3 * PAGE, policy=ac.RECALL, then=ac.COPY).err == 0
            assert client.handle(1).err == 0
            while mine(picture := live.next()) == [(8 * PAGE, 0)]:
                pass
            assert mine(picture) == [(8 * PAGE, 3 * PAGE)] and device(picture, 'io_uring', 'long-term')['leased_bytes'] == 3 * PAGE, picture
            revocable, = [one for one in picture['classes'] if one['class'] == 'revocable']
            expect(revocable, leased_bytes=3 * PAGE, unleased_bytes=revocable['held_bytes'] - 3 * PAGE)
            assert client.lease(fd, 2, start=memory.start + 6 * PAGE, size=PAGE, offset=6 * PAGE, policy=ac.KEEP).err == 0
            while not sites(picture := live.next(), path='memfd:census', kept_bytes=PAGE):
                pass
            with cs.Memory(2 * PAGE) as private:
                for number in itertools.count():
                    if number % 50 == 0:
                        rings.enter_context(cs.Ring(cs.of(private)))
                    if own := sites(picture := live.next(), pid=os.getpid(), path=None, device='io_uring', holder_gone=False):
                        break
                expect(own[0], leased_bytes=None)
                revocable, = [one for one in picture['classes'] if one['class'] == 'revocable']
                expect(revocable, leased_bytes=3 * PAGE, kept_bytes=PAGE, unleased_bytes=4 * PAGE, lease_unknown_bytes=revocable['held_bytes'] - 8 * PAGE)
        live.end()


def filtered():
    """Only what is asked for is told; the sums are of all."""
    with cs.memfd(PAGE) as one, cs.memfd(PAGE) as other, cs.Memory(PAGE, one) as asked, cs.Memory(PAGE, other) as memory, \
            Live('--trace', '--file', f'/proc/{os.getpid()}/fd/{one}') as of_file, Live('--trace', '--kind', 'rdma', '--pid', str(os.getpid())) as of_none:
        with cs.Ring(cs.of(memory)), cs.Ring(cs.of(asked)):
            asked_ino = os.fstat(one).st_ino
            of_file.find(file_ino=asked_ino, again=again_on(asked))
        ends = of_file.end(), of_none.end()
    assert ends[0]['sites'] and {site['file_ino'] for site in ends[0]['sites']} == {asked_ino}, ends[0]
    assert not ends[1]['sites'] and not ends[1]['devices'], ends[1]
    assert all(end['totals']['longterm_calls'] >= 2 - missed(end) for end in ends), ends


def text_of(*arguments, until):
    """What is printed until this is, and then at the end."""
    with subprocess.Popen([cs.PINLEASE, 'pins', *arguments], stdout=subprocess.PIPE, text=True) as command:
        lines = []
        for line in command.stdout:
            lines.append(line)
            if re.match(until, line):
                command.send_signal(signal.SIGINT)
                break
        rest = command.communicate()[0]
    assert command.returncode == 0, (command.returncode, lines, rest)
    return ''.join(lines) + rest


def pinned_before():
    """What was pinned before is in no picture, which is said with its size; a census at the end finds it beside what came since."""
    with cs.memfd(16 * PAGE) as fd, cs.Memory(16 * PAGE, fd) as memory, cs.Ring(cs.of(memory)), cs.memfd(PAGE) as none:
        asked, own = ['--file', f'/proc/{os.getpid()}/fd/{fd}'], ['--pid', str(os.getpid())]
        with Live('--trace', *asked) as live:
            with cs.Memory(4 * PAGE, fd) as other, cs.Ring(cs.of(other)):
                live.find(bytes=4 * PAGE, again=patience())
                end = live.end()
        expect(end, pinned_before={'pins': 16, 'bytes': 16 * PAGE}, census={'pins': 20, 'bytes': 16 * PAGE})
        assert held(end) == 4 * PAGE, end
        with Live('--watch', '--file', f'/proc/{os.getpid()}/fd/{none}') as live:
            end = live.end()
        expect(end, pinned_before={'pins': 0, 'bytes': 0}, census={'pins': 0, 'bytes': 0})
        text = text_of('--watch', *asked, *own, until='The kernel counts')
    assert text.count('\nNot in this: 64K (16 pins) that were pinned before; ') == 2, text
    assert re.search(r'^In \d+s, of all processes and files: ', text, re.M) and 'The census finds 64K pinned; HELD is 0B, 64K was pinned before.\n' in text, text


def table():
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 30, 80, 0, 0))
    with Live('--trace') as can, subprocess.Popen([cs.PINLEASE, 'pins', '--watch', '--delay', '0.1'], stdout=terminal, stdin=terminal,
                                                 env=dict(os.environ, TERM='vt100')) as command:
        os.close(terminal)
        with cs.Memory(16 * PAGE) as memory, cs.Ring(cs.of(memory)):
            text = b''
            while not re.search(rb'\n *%d \S+ +io_uring +long-term +[1-9]\S+ ' % os.getpid(), text):
                text = (text + os.read(controller, 65536))[-65536:]
                again_on(memory)()
            command.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):
                while part := os.read(controller, 65536):
                    text += part
        can.end()
    os.close(controller)
    last = text.decode().replace('\r', '')
    assert command.returncode == 0 and re.search(r'^revocable +\S+ +\S+ +\S+ recall, then copy, scratch or fail\n +\S+ +\S+ +\S+ +io_\w+, \d+ call', last, re.M), last
    pictures = last.split('\033[H\033[2J')
    assert all(len(line) <= 80 for picture in pictures for line in picture.split('\n')), last
    pictures[-1] = pictures[-1].split('\n\nIn ')[0]  # the last one isn't for a screen
    assert len(pictures) > 1 and all(picture.count('\n') < 30 for picture in pictures[1:]), pictures
    assert re.search(r'^Cost: programs ran at \d+ pins, [\d.]+ us each', last, re.M) and re.search(r'^With all that they take here', last, re.M) and re.search(r'^(Nothing (was|is known to be) lost|LOST:)', last, re.M), last


def refused():
    for arguments, because in ((['--watch', '--trace'], 'exclude'), (['--exact'], '--exact is for --watch and --trace'), (['--trace', '--delay', '1'], '--delay is for --watch'),
                               (['--delay', '1'], '--delay is for --watch'), (['--buffer', '4'], '--buffer is for --trace'), (['--pid', '2147483647'], 'there is no process 2147483647'),
                               (['--trace', '--buffer', '5'], 'power of two'), (['--watch', '--sort', 'pid'], 'census')):
        result = cs.run(*arguments)
        assert result.returncode == 2 and because in result.stderr and not result.stdout, result
    with contextlib.suppress(tree.Skip), Live('--trace') as live:
        live.end()
        return
    result = cs.run('--watch')
    assert result.returncode == 2 and not result.stdout and result.stderr.count('\n') == 1 and 'without --watch or --trace' in result.stderr, result


TESTS = [
    ("a ring's buffer, from pin to release", a_ring),
    ('the same by kprobes', by_kprobes),
    ('where what is released was', anew(places)),
    ('where what is released was, exactly', anew(places, '--exact')),
    ('a file, by its name and range', a_file),
    ('a huge page', a_huge_page),
    ('exactly: every call, every page', exactly),
    ('lightly: all are counted, few followed', lightly),
    ('a transient pin of a long-term one', transient_over_longterm),
    ('direct I/O', direct_io),
    ('memory regions', regions),
    ('a leak: the holder has gone', anew(leak)),
    ('a leak, exactly', anew(leak, '--exact')),
    ('a leak: not mapped any more', unmapped),
    ('a leak: a part of it is not mapped any more', anew(partly_unmapped, 8, 4)),
    ('a leak: the first page is not mapped any more', anew(partly_unmapped, 0, 1)),
    ('two have one page, one gives it back', anew(two_holders)),
    ('two have one huge page, one gives it back', anew(two_holders_of_a_huge_page)),
    ('two have one page, one ends', anew(no_leak)),
    ('two buffers in one huge page', anew(overlapping)),
    ('lost events are counted', lost),
    ('lost events, in words', lost_words),
    ('watched: held, released, for how long', watched),
    ('leased and not', leased),
    ('leased and not, exactly', lambda: leased('--exact')),
    ('of one file, of one kind', filtered),
    ('what was pinned before', anew(pinned_before)),
    ('the table', table),
    ('what is missing is said', refused),
]

if __name__ == '__main__':
    sys.exit(cs.main(TESTS))
