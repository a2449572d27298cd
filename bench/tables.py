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


CACHE = 'cache-hit'
CACHE_BASES = {'call': 'munmap', 'touch': None}  # without any cache; None: the same
CACHE_METRICS = (('hit', 'ns'), ('average', 'ns'), ('p99.9', 'ns'), ('insert', 'ns'), ('call', 'us'), ('touch', 'ns'), ('bytes', 'bytes'), ('idle', 'us'))
CACHE_WORDS = {'average': ', average', 'p99.9': ', 99.9 %', 'touch': ': first touch of a page', 'bytes': ', bytes',
               'idle': ": processor's time in a second"}
HUGE_CACHE = 'huge-cache'


def cache_row(r, group, place, what, metric, unit):
    mine, ucx, without = ((group, place, what, variant, metric) for variant in ('pinlease', 'UCX', 'UCX without locks'))
    base = (group, place, what, 'plain', metric)
    if base not in r.rows:
        base = (CACHE, place, CACHE_BASES.get(metric), 'plain', metric)

    def number(key):
        return '' if r.get('p50', *key) is None else us(r.get('p50', *key)) if unit == 'us' else f"{r.get('p50', *key):.1f}"

    ucx_ratio = None if metric == 'idle' else r.ratio(mine, ucx)  # of next to nothing there is none
    return [what + CACHE_WORDS.get(metric, '') + ('' if place == 'same' else ', two CPUs'), number(mine), number(ucx), times(ucx_ratio),
            times(r.ratio(mine, without)), times(r.ratio(mine, base)) if metric in CACHE_BASES else '']


def cache_shown(place, what, metric):
    """The sizes in between are in the plot, and what one thread does is the same in both places."""
    if what.split()[-1] in ('10', '100', '10000'):
        return False
    return place == 'same' or what.startswith('2') or metric not in ('hit', 'insert')


def cache(r):
    rows = [cache_row(r, group, place, what, metric, unit) for metric, unit in CACHE_METRICS
            for place in ('same', 'across') for group in (CACHE, HUGE_CACHE) for what in r.whats(group, place)
            if (group, place, what, 'pinlease', metric) in r.rows and cache_shown(place, what, metric)]
    return Table('The registration cache', 'Get and put by a device that does nothing, nanoseconds: of one address, or of any of N, by one or two '
                 'threads; while nothing else happens, or another thread maps, looks up and unmaps; the first of each page ("insert"). munmap of a page, '
                 'microseconds, with so many others cached, and its ratio to the same without a cache. First touches of pages beside a '
                 'cached one, and what a registration takes. UCX is Debian 12\'s 1.13.1, with its hooks and locks as they are by default, and once more with nothing '
                 'in their place ("no locks").', ['', 'pinlease', 'UCX', '/ UCX', '/ no locks', '/ plain'], rows)


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


def file_row(r, place, what, group='files', variants=('watched', 'unleased', 'leased')):
    plain = (group, place, what, 'plain', 'call')
    return [what + (' 4 KiB' if what != 'truncate' else '') + ('' if place == 'same' else ', other CPU'), us(r.get('p50', *plain)),
            *(times(r.ratio((group, place, what, v, 'call'), plain)) for v in variants)]


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


def arbiter_hold(r):
    rows = [recall_row(r, 'arbiter-hold', what, variant) for what in r.whats('arbiter-hold')
            for variant in ('plain', 'floor', 'one process', 'pinleased')]
    return Table('pinleased: from hold to release', 'ftruncate of a leased file on disk by another process, 64 KiB pinned by a ring, '
                 'answered at once by the holder\'s callback; microseconds. One process: held by the holder\'s own library. '
                 'Columns as for recall latency.',
                 ['', 'off p50', 'off p99', 'back p50', 'back p99', '/ floor', 'other CPU', '/ floor'], rows)


def arbiter_file_row(r, place, what):
    row = file_row(r, place, what, 'arbiter-files', ('running', 'unleased', 'leased'))
    plain, beside = (r.get('p50', 'arbiter-files', place, what, v, 'call') for v in ('plain', 'unleased'))
    return row[:4] + [us(beside - plain)] + row[4:]


def arbiter_files(r):
    return Table('pinleased: files of other programs', 'A process with a file of its own, medians: without pinleased in microseconds, then '
                 'ratios: pinleased runs and nothing is leased; another process has leased another file of the file system, also as a '
                 'difference in microseconds; on the leased file, beside the leased range.',
                 ['', 'plain', 'running', 'unleased', 'added', 'leased'],
                 [arbiter_file_row(r, place, what) for place in ('same', 'across') for what in r.whats('arbiter-files', place)])


def arbiter_force(r):
    floor = 'arbiter-hold', 'same', 'ftruncate', 'floor', 'actor'
    rows = []
    for what in r.whats('arbiter-force'):
        for variant in ('FAIL', 'SCRATCH', 'FAIL, large tables'):
            key = 'arbiter-force', 'same', what, variant, 'late'
            rows.append([variant, us(r.get('p50', *key)), us(r.get('p99', *key)), times(r.ratio(key, floor))])
    return Table('pinleased: force of a stopped holder', 'ftruncate of a file whose holder, a ring, is stopped by SIGSTOP: from the deadline '
                 'until the actor goes on, microseconds. Large tables: the holder has another ring, of 16384 slots. '
                 'The floor is that of "from hold to release".',
                 ['', 'late p50', 'late p99', '/ floor'], rows)


def arbiter_fair(r):
    rows = []
    for what in r.whats('arbiter-fair'):
        for variant in ('floor', 'pinleased'):
            own, longest, all_, floor = (('arbiter-fair', 'same', what, *key) for key in (
                (variant, 'own'), (variant, 'longest'), (variant, 'all'), ('floor', 'all')))
            rows.append([variant, us(r.get('p50', *own)), us(r.get('p99', *own)), us(r.get('p50', *longest)), times(r.ratio(longest, own)),
                         us(r.get('p50', *all_)), us(r.get('p99', *all_)), times(r.ratio(all_, floor, 'p99'))])
    return Table('pinleased: many held at once', '100 actors held on 100 leased files, answered in order when all are there; microseconds '
                 'from the answer for one until its actor goes on, and from the first answer. The floor is a fanotify group that '
                 'reads all events, then allows them in order.',
                 ['', 'own p50', 'own p99', 'longest', '/ p50', 'all p50', 'all p99', '/ floor'], rows)


def arbiter_many(r):
    rows = []
    for what in r.whats('arbiter-many'):
        def key(variant, metric, what=what):
            return 'arbiter-many', 'same', what, variant, metric

        for metric, words in (('lease', 'lease, us'), ('release', 'release, us'), ('memory', 'memory, KB')):
            rows.append([f'{what}: {words}', us(r.get('p50', *key('alone', metric))), us(r.get('p50', *key('pinleased', metric))),
                         times(r.ratio(key('pinleased', metric), key('alone', metric)))])
        for metric, words in (('restart', 'known again, ms'), ('told', 'and told again, ms')):
            rows.append([f'{what}: {words}', '', us(r.get('p50', *key('pinleased', metric)) / 1000), ''])
        rows.append([f'{what}: known again, us each, / lease', '', us(r.get('p50', *key('pinleased', 'restart each'))),
                     times(r.ratio(key('pinleased', 'restart each'), key('pinleased', 'lease')))])
    return Table('pinleased: many leases', 'Ten leases of a page on each file, soft device, one holder: time per lease and per release, memory '
                 'per lease (kilobytes of 1000; alone: of the library for itself, a tenth of the files; pinleased: of pinleased), and '
                 'from kill -9 of pinleased until the next one knows all of them, and until the holder has told it so.',
                 ['', 'alone', 'pinleased', 'ratio'], rows)


DEVICES = ('device-ring', 'device-verbs', 'device-vfio', 'device-iommufd')


def device_revoke_row(r, group, what, variant):
    def key(metric, v=variant):
        return group, 'same', what, v, metric

    landed, watched = (sum(r.rows[key(m)]['p50']) for m in ('landed', 'watched'))
    return [f'{what}: {variant}', us(r.get('p50', *key('off'))), us(r.get('p99', *key('off'))), us(r.get('p50', *key('back'))),
            us(r.get('p99', *key('back'))), *(times(r.ratio(key('back'), key('back', v))) if variant == 'load' else '' for v in ('idle', 'plain')),
            f'{landed / 1024:.0f}', f'{watched / 1024:.0f}']


def device_revokes(r):
    rows = [device_revoke_row(r, group, what, variant) for group in DEVICES for what in r.whats(group)
            for variant in ('plain', 'idle', 'load') if (group, 'same', what, variant, 'landed') in r.rows]
    return Table('Devices: taken back', 'ftruncate of a leased memfd by the holder (pinl_ftruncate; RECALL, FAIL), microseconds: device off the '
                 'pages, and back, as for recall latency; idle, and while the device writes to the lease. After the call the pages, pinned '
                 'by a witness, are poisoned: KiB that landed in them from then on, of those watched. Plain: without the library, in the '
                 'same load. Leases: soft, uring, vfio, iommufd 64 KiB, verbs 1 MiB.',
                 ['', 'off p50', 'off p99', 'back p50', 'back p99', '/ idle', '/ plain', 'landed', 'watched'], rows)


def device_map_row(r, group, what):
    row = [what]
    for metric in ('map', 'unmap'):
        mine, base = ((group, 'same', what, v, metric) for v in ('pinlease', 'plain'))
        row += [us(r.get('p50', *base)), us(r.get('p50', *mine)), times(r.ratio(mine, base))]
    return row


def device_maps(r):
    rows = [device_map_row(r, group, what) for group in DEVICES for what in r.whats(group)
            if (group, 'same', what, 'plain', 'map') in r.rows]
    return Table('Devices: making a lease', 'The bare registration and its end (ibv_reg_mr and ibv_dereg_mr, VFIO_IOMMU_MAP_DMA and '
                 'UNMAP_DMA, IOMMU_IOAS_MAP and UNMAP), and as pinl_map_range and pinl_unmap_range, in turn. Medians in microseconds.',
                 ['', 'plain map', 'lease', 'ratio', 'plain unmap', 'unmap', 'ratio'], rows)


def pins_row(r, what, metric, words):
    nobody, *followed = (('pins', 'same', what, variant, metric) for variant in ('nobody', 'light', 'kprobes', 'exact'))
    row = [f'{what}{words}', us(r.get('p50', *nobody))]
    for key in followed:
        row += [us(r.get('p50', *key) - r.get('p50', *nobody)) if key in r.rows else '', times(r.ratio(key, nobody))]
    return row


def pins(r):
    rows = [pins_row(r, what, metric, words) for what in r.whats('pins') for metric, words in (('pin', ''), ('release', ': released'))
            if ('pins', 'same', what, 'exact', metric) in r.rows]
    return Table('Pins that are followed', 'Calls of a program that pins while `pinlease pins --watch` follows all pins of the machine, on Linux 7.2: '
                 'alone, then what light following adds (by trampolines, by kprobes) and exact following, and the ratios. Thousands of instructions where QEMU counts them (`-icount shift=0`), else '
                 'microseconds. Buffers of 4 KiB pages; of reads the mean of 256.',
                 ['', 'alone', 'light adds', 'ratio', 'kprobes add', 'ratio', 'exact adds', 'ratio'], rows)


def all_tables(r):
    return [t for t in (reference(r), recalls(r), maps(r), calls(r), cache(r), touches(r), files(r), arbiter_hold(r), arbiter_files(r),
                        arbiter_force(r), arbiter_fair(r), arbiter_many(r), device_revokes(r), device_maps(r), pins(r)) if not t.empty]


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
