#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""fio's fixed buffers: iodepth times bs, as private memory and as a file on tmpfs."""
import os
import sys

import scene

DEPTH, SIZE = 16, 64 << 10


def job(folder, *more):
    return scene.Program('fio', '--name=fixed', '--ioengine=io_uring', '--fixedbufs=1', f'--iodepth={DEPTH}', f'--bs={SIZE >> 10}k',
                         '--direct=1', '--rw=randread', '--size=16M', f'--filename={folder}/data', '--time_based', '--runtime=3600', *more)


def rings(program):
    """Of the job, which is a child of the fio that was started."""
    return scene.until('fio has its buffers registered',
                       lambda: [row for row in scene.rows_of('fio', 'io_uring') if scene.parent(row['pid']) == program.pid], program)


def private():
    scene.need('fio')
    with scene.folder() as folder, job(folder) as program:
        row = scene.check(rings(program), listed=True, memory='anonymous', mapped=True, bytes=DEPTH * SIZE, pins=DEPTH * SIZE // scene.PAGE)
        page = scene.Page('fio')
        page.started(program)
        page.pins()
        page.account(row['pid'])
        page.write()


def of_a_file():
    """The buffers as a shared mapping: the file is named, which others may truncate."""
    scene.need('fio')
    buffers = '/dev/shm/fio-buffers'
    with open(buffers, 'wb') as file:  # fio makes it no longer
        file.truncate(2 * DEPTH * SIZE)
    with scene.folder() as folder, job(folder, f'--iomem=mmapshared:{buffers}') as program:
        row = scene.check(rings(program), listed=True, memory='file', path=buffers, mapped=True, bytes=DEPTH * SIZE)
        page = scene.Page('fio-file')
        page.started(program)
        page.pins('--file', buffers)
        os.truncate(buffers, 0)
        left = scene.check(scene.rows_of('fio', 'io_uring'), memory='none', mapped=False, bytes=DEPTH * SIZE, pins=row['pins'])
        page.show('truncate', '--size=0', buffers)
        page.pins('--pid', left['pid'])
        page.write()
        os.unlink(buffers)


if __name__ == '__main__':
    sys.exit(scene.tap([('private buffers: iodepth times bs', private), ('buffers in a file, which then is truncated', of_a_file)]))
