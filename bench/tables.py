# SPDX-License-Identifier: LGPL-2.1-or-later
"""Results as tables, for the terminal and for README.md."""
import dataclasses

SITUATIONS = ['floor', 'other mapping, KEEP', 'other mapping, RECALL', 'same mapping, KEEP', 'same mapping, RECALL',
              'leased, KEEP', 'leased, RECALL']
POLICIES = ['RECALL, answered', 'RECALL, FAIL', 'RECALL, SCRATCH', 'RECALL, COPY', 'REFUSE', 'KEEP', 'FOLLOW']
MEANINGS = {
    'munmap': 'munmap of leased anonymous memory, raw',
    'madvise': 'madvise(MADV_DONTNEED) of leased anonymous memory, raw',
    'pinl_munmap': 'the same by pinl_munmap',
    'pinl_madvise': 'the same by pinl_madvise',
    'ftruncate': 'ftruncate of a leased file on disk, another process',
    'punch': 'hole punch in a leased file on disk, another process',
    'pinl_ftruncate': 'ftruncate by the holder with pinl_ftruncate',
}
PAGES = {'KiB': 1 / 4, 'MiB': 256, 'GiB': 262144}


@dataclasses.dataclass
class Table:
    title: str
    words: str  # what the columns mean
    head: list
    rows: list
    empty = property(lambda self: not self.rows)


def us(ns):
    if ns is None:
        return ''
    return f'{ns / 1000:.{0 if abs(ns) >= 99500 else 1 if abs(ns) >= 9950 else 2}f}'


def times(ratio):
    return '' if ratio is None else f'x{ratio:.{0 if ratio >= 99.5 else 1 if ratio >= 9.95 else 2}f}'


def recall_base(what):
    return what.removeprefix('pinl_')


def recall_row(r, group, what, variant):
    same, across = (group, 'same', what, variant), (group, 'across', what, variant)
    floor = recall_base(what), 'floor', 'actor'
    name = f'{what}: {variant}'
    return [name, us(r.get('p50', *same, 'device')), us(r.get('p99', *same, 'device')),
            us(r.get('p50', *same, 'actor')), us(r.get('p99', *same, 'actor')),
            times(r.ratio((*same, 'actor'), (group, 'same', *floor))),
            us(r.get('p50', *across, 'actor')), times(r.ratio((*across, 'actor'), (group, 'across', *floor)))]


def recalls(r):
    rows = []
    for group in ('recall-mem', 'recall-file'):
        for what in r.whats(group):
            rows += [recall_row(r, group, what, variant) for variant in ['plain', 'floor', *POLICIES]
                     if (group, 'same', what, variant, 'actor') in r.rows]
    return Table('Recall latency', '64 KiB leased, microseconds. Off: from the beginning of the change until the device is off '
                 'the pages (REFUSE: until it is refused; KEEP: until the orphan is told; FOLLOW: until the device is '
                 'invalidated). Back: until the caller goes on. The floor is the same call with a userfaultfd or '
                 'fanotify monitor that reads the event, lets the caller go and does nothing else.',
                 ['', 'off p50', 'off p99', 'back p50', 'back p99', '/ floor', 'other CPU', '/ floor'], rows)


def pages_of(what):
    number, unit = what.split()[-2:]
    return int(number) * PAGES[unit]


def map_row(r, what):
    row = [what]
    for metric in ('map', 'unmap'):
        plain, lease = ('map', 'same', what, 'plain', metric), ('map', 'same', what, 'pinlease', metric)
        more = r.get('p50', *lease) - r.get('p50', *plain)
        row += [us(r.get('p50', *plain)), us(r.get('p50', *lease)), times(r.ratio(lease, plain)), us(more),
                f'{more / pages_of(what):.1f}']
    return row


def maps(r):
    return Table('A lease on a ring', 'Filling and emptying a slot of a buffer table, by itself and as pinl_map_range and '
                 'pinl_unmap_range (RECALL, FAIL). Medians in microseconds; what pinlease adds also in nanoseconds per page.',
                 ['', 'fill', 'map', 'ratio', 'added', 'ns/page', 'clear', 'unmap', 'ratio', 'added', 'ns/page'],
                 [map_row(r, what) for what in r.whats('map')])


def call_rows(r, place):
    for what in r.whats('calls', place):
        plain = ('calls', place, what, 'plain', 'call')
        yield [what + ('' if place == 'same' else ', other CPU'), us(r.get('p50', *plain)),
               *(times(r.ratio(('calls', place, what, s, 'call'), plain)) for s in SITUATIONS)]


def calls(r):
    return Table('munmap and madvise', 'Raw calls of one thread: medians without pinlease in microseconds, then ratios to that: '
                 'a bare userfaultfd on the mapping; a lease in another mapping; a lease on another page of the same mapping; '
                 'the memory itself leased.',
                 ['', 'plain', 'floor', 'other: KEEP', 'RECALL', 'same: KEEP', 'RECALL', 'leased: KEEP', 'RECALL'],
                 [*call_rows(r, 'same'), *call_rows(r, 'across')])


def touch_row(r, what):
    def key(variant, metric):
        return 'touch', 'same', what, variant, metric

    row = [what]
    for metric in ('touch', 'touch again', 'after'):
        row += [f"{r.get('p50', *key('plain', metric)):.0f}", times(r.ratio(key('leased', metric), key('plain', metric)))]
    row.insert(3, times(r.ratio(key('leased', 'lease and touch'), key('plain', 'touch'))))
    return row


def touches(r):
    return Table('First touch of shared file mappings', 'Cached pages, 4 MiB, nanoseconds per page without a lease and ratios with '
                 'one on an on-demand device: the first touch, the same with the time for making the lease, again after the '
                 'page has left the page table (read) or been written back (write), and once more after the lease.',
                 ['', 'first', 'leased', 'and lease', 'again', 'leased', 'after', 'was leased'],
                 [touch_row(r, what) for what in r.whats('touch')])


def file_row(r, place, what):
    plain = ('files', place, what, 'plain', 'call')
    return [what + (' 4 KiB' if what != 'truncate' else '') + ('' if place == 'same' else ', other CPU'), us(r.get('p50', *plain)),
            *(times(r.ratio(('files', place, what, v, 'call'), plain)) for v in ('watched', 'unleased', 'leased'))]


def files(r):
    return Table('Files of other programs (I9)', 'Another process, a file on disk, medians: without pinlease in microseconds, then '
                 'ratios: after pinl_watch_fs with no lease; beside a leased file; on the leased file (truncation beside '
                 'the leased range).', ['', 'plain', 'watched', 'unleased', 'leased'],
                 [file_row(r, place, what) for place in ('same', 'across') for what in r.whats('files', place)])


def reference(r):
    rows = [[f'{what}, {place}', us(r.get('p50', 'reference', place, what, 'plain', 'call'))]
            for place in ('same', 'across') for what in r.whats('reference', place)]
    return Table('For comparison', 'Microseconds: "same" is with both sides on one CPU, as in all tables where nothing else is '
                 'said; "across" on two.', ['', 'median'], rows)


def all_tables(r):
    return [t for t in (reference(r), recalls(r), maps(r), calls(r), touches(r), files(r)) if not t.empty]


def as_text(table):
    lines = [table.head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    out = [table.title]
    for line in lines:
        out.append('  ' + line[0].ljust(widths[0]) + ''.join('  ' + c.rjust(w) for c, w in zip(line[1:], widths[1:])))
    return '\n'.join(out)


def as_markdown(table):
    lines = [table.head, [':--'] + ['--:'] * (len(table.head) - 1), *table.rows]
    return f'### {table.title}\n\n{table.words}\n\n' + '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
