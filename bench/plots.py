# SPDX-License-Identifier: LGPL-2.1-or-later
"""Results as SVG. Colours follow the reader's light or dark scheme; nothing is loaded from anywhere."""
import math
from html import escape

import tables

STYLE = '''
:root{color-scheme:light dark;--bg:#ffffff;--fg:#1b1f24;--soft:#57606a;--line:#d5dae1;--a:#2f74d0;--b:#b8327f;--c:#1a7f37;--floor:#c4281c}
@media(prefers-color-scheme:dark){:root{--bg:#0f1318;--fg:#e3e8ee;--soft:#98a3b0;--line:#333c47;--a:#5a9bf0;--b:#f27ab8;--c:#4cc26b;--floor:#ff7b6e}}
svg{background:var(--bg)}text{font:12px system-ui,sans-serif;fill:var(--fg)}.bg{fill:var(--bg)}
.soft{fill:var(--soft)}.head{font-weight:600;font-size:13px}.title{font-weight:600;font-size:16px}.end{text-anchor:end}.mid{text-anchor:middle}
.grid{stroke:var(--line);stroke-width:1}.floor{stroke:var(--floor);stroke-width:1.5;stroke-dasharray:4 3}.floortext{fill:var(--floor)}
.span{stroke:var(--a);stroke-width:2;opacity:.45}.back{fill:var(--a)}.off{stroke:var(--b);stroke-width:3}
.curve{fill:none;stroke-width:2}.plain{stroke-dasharray:5 4;opacity:.75}
.k0{stroke:var(--a)}.k1{stroke:var(--b)}.k2{stroke:var(--c)}.f0{fill:var(--a)}.f1{fill:var(--b)}.f2{fill:var(--c)}
'''.strip()


def text(x, y, words, kind=''):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>'


def line(x1, y1, x2, y2, kind):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def document(width, height, title, parts):
    return '\n'.join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
                      f'role="img" aria-label="{escape(title)}">', '<!-- SPDX-License-Identifier: LGPL-2.1-or-later -->',
                      f'<style>{STYLE}</style>', f'<rect class="bg" width="{width}" height="{height}"/>', *parts, '</svg>', ''])


class Log:
    """A logarithmic axis from `low` to `high`, in whole decades, onto [start, end)."""

    def __init__(self, low, high, start, end):
        self.low, self.high = math.floor(math.log10(low)), math.ceil(math.log10(high))
        self.start, self.end = start, end

    def __call__(self, value):
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def decades(self):
        return [10.0 ** e for e in range(self.low, self.high + 1)]


def unit(ns):
    for size, name in ((1e9, 's'), (1e6, 'ms'), (1e3, 'us')):
        if ns >= size:
            return f'{ns / size:g} {name}'.replace('us', '\u00b5s')
    return f'{ns:g} ns'


def recall_groups(r):
    """(group, what, [variant])"""
    for group in ('recall-mem', 'recall-file'):
        for what in r.whats(group):
            variants = [v for v in ['plain', *tables.POLICIES] if (group, 'same', what, v, 'actor') in r.rows]
            yield group, what, variants


def recall_line(r, x, y, key):
    back, worst, off = r.get('p50', *key, 'actor'), r.get('p99', *key, 'actor'), r.get('p50', *key, 'device')
    parts = [text(222, y + 4, key[3], 'end'), line(x(back), y, x(worst), y, 'span'),
             f'<circle cx="{x(back):.1f}" cy="{y:.1f}" r="4.5" class="back"/>']
    if off:
        parts.append(line(x(off), y - 6, x(off), y + 6, 'off'))
    return parts


def recall(r):
    groups = list(recall_groups(r))
    values = [v for k, rounds in r.rows.items() if k[0].startswith('recall') and k[1] == 'same' for v in rounds['p50'] + rounds['p99']]
    height = 120 + sum(34 + 20 * len(g[2]) for g in groups)
    x = Log(min(values), max(values), 235, 850)
    parts = [text(20, 28, 'Recall of 64 KiB, everything on one CPU', 'title'),
             '<circle cx="26" cy="48" r="4.5" class="back"/>', text(36, 52, 'caller goes on, median, and to the 99th percentile'),
             line(370, 42, 370, 54, 'off'), text(379, 52, 'device is off, median'),
             line(540, 48, 562, 48, 'floor'), text(569, 52, 'bare userfaultfd or fanotify round trip', 'floortext')]
    for decade in x.decades():
        parts += [line(x(decade), 84, x(decade), height - 20, 'grid'), text(x(decade), 78, unit(decade), 'soft mid')]
    y = 104
    for group, what, variants in groups:
        parts.append(text(20, y, tables.MEANINGS[what], 'head'))
        floor = r.get('p50', group, 'same', tables.recall_base(what), 'floor', 'actor')
        if floor:
            parts.append(line(x(floor), y + 8, x(floor), y + 12 + 20 * len(variants), 'floor'))
        for i, variant in enumerate(variants):
            parts += recall_line(r, x, y + 20 + 20 * i, (group, 'same', what, variant))
        y += 34 + 20 * len(variants)
    return document(880, height, 'Recall latency', parts)


def curve(points, kind):
    return f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}" class="curve {kind}"/>'


def map_panel(r, metric, left, y, plain_name, lease_name):
    kinds = list(dict.fromkeys(' '.join(what.split()[:-2]) for what in r.whats('map')))
    sizes = sorted({tables.pages_of(what) * 4096 for what in r.whats('map')})
    step = 310 / max(len(sizes) - 1, 1)
    x = {size: left + 10 + i * step for i, size in enumerate(sizes)}
    parts = [text(left, 78, f'{plain_name} (dashed) and {lease_name}', 'head')]
    for decade in y.decades():
        parts += [line(left, y(decade), left + 330, y(decade), 'grid'), text(left - 6, y(decade) + 4, unit(decade), 'soft end')]
    labels = {tables.pages_of(what) * 4096: ' '.join(what.split()[-2:]) for what in r.whats('map')}
    parts += [text(x[size], y.start + 20, label, 'soft mid') for size, label in labels.items()]
    for i, kind in enumerate(kinds):
        whats = [w for w in r.whats('map') if ' '.join(w.split()[:-2]) == kind]
        for variant in ('plain', 'pinlease'):
            points = [(x[tables.pages_of(w) * 4096], y(r.get('p50', 'map', 'same', w, variant, metric))) for w in whats]
            parts.append(curve(points, f'k{i} {"plain" if variant == "plain" else ""}'))
            if variant == 'pinlease':
                parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" class="f{i}"/>' for a, b in points]
    return parts


def maps(r):
    values = [v for k, rounds in r.rows.items() if k[0] == 'map' for v in rounds['p50']]
    y = Log(min(values), max(values), 410, 100)
    kinds = list(dict.fromkeys(' '.join(what.split()[:-2]) for what in r.whats('map')))
    parts = [text(20, 28, 'A slot of a ring\u2019s buffer table, by itself and as a lease', 'title')]
    for i, kind in enumerate(kinds):
        parts += [line(26 + 150 * i, 48, 50 + 150 * i, 48, f'curve k{i}'), text(58 + 150 * i, 52, kind)]
    parts += map_panel(r, 'map', 70, y, 'fill', 'pinl_map_range')
    parts += map_panel(r, 'unmap', 490, y, 'clear', 'pinl_unmap_range')
    return document(860, 450, 'Leases on a ring', parts)


def cache_points(r, what, variant, metric):
    """(registrations, ns) of all sizes measured"""
    found = {int(key[2].split()[-1]): r.get('p50', *key) for key in r.rows
             if key[0] in (tables.CACHE, tables.HUGE_CACHE) and key[1] == 'same' and key[2].startswith(what) and key[3:] == (variant, metric)}
    return sorted(found.items())


CACHE_CURVES = (('1 thread, random of', 'hit', 'hit, any of N', 0), ('1 thread, same of', 'hit', 'hit, the same', 1), ('insert', 'insert', 'insert', 2))


def cache(r):
    curves = {(what, variant): cache_points(r, what, variant, metric) for what, metric, _, _ in CACHE_CURVES for variant in ('pinlease', 'UCX')}
    values = [ns for points in curves.values() for _, ns in points]
    sizes = [n for points in curves.values() for n, _ in points]
    x, y = Log(min(sizes), max(max(sizes), 10 * min(sizes)), 70, 620), Log(min(values), max(values), 400, 90)
    parts = [text(20, 28, 'A registration cache of N registrations: one get and put', 'title'), text(26, 72, 'dashed: UCX', 'soft')]
    for decade in y.decades():
        parts += [line(70, y(decade), 620, y(decade), 'grid'), text(64, y(decade) + 4, unit(decade), 'soft end')]
    parts += [text(x(decade), 420, f'{decade:.0f}', 'soft mid') for decade in x.decades()]
    for what, _, words, i in CACHE_CURVES:
        parts += [line(26 + 150 * i, 48, 50 + 150 * i, 48, f'curve k{i}'), text(58 + 150 * i, 52, words)]
        for variant in ('pinlease', 'UCX'):
            points = [(x(n), y(ns)) for n, ns in curves[what, variant]]
            parts.append(curve(points, f'k{i} {"" if variant == "pinlease" else "plain"}'))
    return document(660, 440, 'Registration cache', parts)


def draw(r, directory):
    if any(k[0].startswith('recall') for k in r.rows):
        (directory / 'recall.svg').write_text(recall(r), encoding='utf-8')
    if r.whats('map'):
        (directory / 'map.svg').write_text(maps(r), encoding='utf-8')
    if r.whats('cache-hit'):
        (directory / 'cache.svg').write_text(cache(r), encoding='utf-8')
