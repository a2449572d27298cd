#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""ib_write_bw with itself over soft-RoCE: each side's memory region, whose size the RDMA tool knows, too."""
import json
import sys

import scene

COMMAND = ('ib_write_bw', '--ib-dev=rxe0', '--gid-index=1', '--size=65536', '--run_infinitely', '--duration=5')


def regions():
    """{pid: bytes} as `rdma` has it."""
    found = json.loads(scene.run('rdma', '-j', 'resource', 'show', 'mr') or '[]')
    sizes = {}
    for region in found:
        if region.get('comm', '').startswith('ib_write_bw'):
            sizes[region['pid']] = sizes.get(region['pid'], 0) + region['mrlen']
    return sizes if len(sizes) == 2 else None


def both_sides():
    scene.need('ib_write_bw', 'rdma')
    with scene.Program(*COMMAND) as server:
        scene.until('the server listens', lambda: ':18515 ' in scene.run('ss', '-Hltn'), server)
        with scene.Program(*COMMAND, '10.9.0.1') as client:
            sizes = scene.until('both have a region', regions, server, client)
            if set(sizes) != {server.pid, client.pid}:
                raise scene.Failure(f'regions of others: {sizes}')
            rows = scene.rows_of('ib_write_bw')
            for pid, size in sizes.items():
                scene.check([row for row in rows if row['pid'] == pid], device='rdma', listed=True, mapped=True, memory='anonymous',
                            bytes=size, pins=size // scene.PAGE)
            page = scene.Page('perftest')
            page.started(server)
            page.started(client)
            page.pins()
            page.show('rdma', 'resource', 'show', 'mr')
            page.account(server.pid)
            page.write()


if __name__ == '__main__':
    sys.exit(scene.tap([("both sides' regions", both_sides)]))
