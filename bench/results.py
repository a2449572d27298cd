# SPDX-License-Identifier: LGPL-2.1-or-later
"""The results of one run: what the rounds gave, and the numbers that are made of it.

A number is the median over the rounds; a ratio is the median of the ratios within each round, so that a
slow round makes both sides slow.
"""
import json
import statistics

LICENCE = 'SPDX-License-Identifier: LGPL-2.1-or-later'
KEY = ('group', 'place', 'what', 'variant', 'metric')
ROUNDS = ('n', 'p50', 'p99')  # samples, nanoseconds; one value per round


class Results:
    def __init__(self, machine, options):
        self.machine, self.options = machine, options
        self.rows = {}  # key -> {'n': [], 'p50': [], 'p99': []}, one entry per round
        self.left_out = {}  # (group, what) -> why

    def add(self, row):
        if 'left_out' in row:
            self.left_out[row['group'], row['left_out']] = row['why']
            return
        rounds = self.rows.setdefault(tuple(row[k] for k in KEY), {name: [] for name in ROUNDS})
        for name, values in rounds.items():
            values.append(round(row[name], 1 if row[name] < 1000 else None))

    def get(self, quantile, *key):
        """Nanoseconds, or None if it was not measured."""
        rounds = self.rows.get(key)
        return statistics.median(rounds[quantile]) if rounds else None

    def ratio(self, key, base, quantile='p50'):
        mine, other = self.rows.get(key), self.rows.get(base)
        if not mine or not other:
            return None
        return statistics.median(a / b for a, b in zip(mine[quantile], other[quantile]))

    def whats(self, group, place='same'):
        """In the order in which they were measured."""
        return list(dict.fromkeys(k[2] for k in self.rows if k[:2] == (group, place)))

    def dump(self, path):
        """One row per line: small differences give small diffs."""
        rows = [json.dumps([list(key), *rounds.values()], separators=(',', ':')) for key, rounds in self.rows.items()]
        out = [json.dumps({'group': g, 'left_out': w, 'why': why}) for (g, w), why in self.left_out.items()]
        path.write_text('{"licence": "%s",\n"machine": %s,\n"options": %s,\n"left_out": [\n%s],\n"columns": %s,\n"rows": [\n%s\n]}\n' % (
            LICENCE, json.dumps(self.machine, indent=1), json.dumps(self.options), ',\n'.join(out),
            json.dumps([KEY, *ROUNDS]), ',\n'.join(rows)),
            encoding='utf-8')


def load(path):
    data = json.loads(path.read_text(encoding='utf-8'))
    results = Results(data['machine'], data['options'])
    for row in data['rows']:
        results.rows[tuple(row[0])] = dict(zip(ROUNDS, row[1:]))
    for row in data['left_out']:
        results.left_out[row['group'], row['left_out']] = row['why']
    return results


def merged(reference, found, groups):
    """The reference with these groups (a prefix of their names) from a later run."""
    for rows in (reference.rows, reference.left_out):
        for key in [k for k in rows if k[0].startswith(groups)]:
            del rows[key]
    reference.rows.update(found.rows)
    reference.left_out.update(found.left_out)
    later = [run for run in reference.machine.get('later', []) if not run['groups'].startswith(groups)]
    reference.machine['later'] = later + [{'groups': groups, 'machine': found.machine, 'options': found.options}]
    return reference
