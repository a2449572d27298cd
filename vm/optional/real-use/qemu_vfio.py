#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU with a device of the host: all of the guest's memory is pinned, whether the guest runs or not. Needs the job's setup vfio."""
import contextlib
import json
import os
import pathlib
import socket
import sys

import scene

MEMORY = 64 << 20


@contextlib.contextmanager
def qemu(*more):
    """Nothing of the guest runs (-S): its memory is mapped for the device as QEMU starts."""
    scene.need('qemu-system-x86_64')
    group = os.environ.get('PINLEASE_TEST_VFIO')
    if not group:
        raise scene.Skip('a device that belongs to vfio-pci (vm/setup/vfio)')
    [device] = [path.name for path in pathlib.Path(f'/sys/kernel/iommu_groups/{group}/devices').iterdir()]
    with scene.folder() as folder:
        path = f'{folder}/qmp'
        with scene.Program('qemu-system-x86_64', '-M', 'q35', '-accel', 'tcg', '-m', f'{MEMORY >> 20}M', '-nodefaults', '-display', 'none',
                           '-S', '-qmp', f'unix:{path},server=on,wait=off', '-device', f'vfio-pci,host={device}', *more) as program:
            scene.until('QEMU is ready', lambda: ready(path), program)
            yield program


def ready(path):
    """It answers when it is through with its start, in which it maps and unmaps."""
    try:
        with socket.socket(socket.AF_UNIX) as qmp:
            qmp.connect(path)
            lines = qmp.makefile('rw', encoding='utf-8')
            lines.readline()  # its greeting
            for words in ('qmp_capabilities', 'query-status'):
                print(json.dumps({'execute': words}), file=lines, flush=True)
                answer = json.loads(lines.readline())
            return answer['return']['status'] == 'prelaunch'
    except (FileNotFoundError, ConnectionRefusedError):
        return False


def rows_of(program):
    return [row for row in scene.rows_of('qemu-system-x86_64') if row['pid'] == program.pid]


def check_all(program, found):
    """As much as the kernel has on the process' account, though it can't say where."""
    for row in found:
        scene.check([row], device='vfio', listed=True, mapped=True)
    pinned, account = scene.PAGE * sum(row['pins'] for row in found), scene.locked(program.pid)
    if pinned != account['VmLck'] or pinned < MEMORY:
        raise scene.Failure(f'{pinned} bytes of pins are found, and the kernel accounts {account}: {found}')


def show(name, program):
    page = scene.Page(name)
    page.started(program)
    page.pins()
    page.account(program.pid)
    page.write()


def private():
    with qemu() as program:
        rows = rows_of(program)
        check_all(program, rows)
        scene.check(rows, memory='anonymous')
        show('qemu-vfio', program)


def of_a_memfd():
    """All of it but below 1 MiB where a PC has its ROMs, which QEMU has elsewhere."""
    with qemu('-object', f'memory-backend-memfd,id=ram,size={MEMORY >> 20}M', '-machine', 'memory-backend=ram') as program:
        rows = rows_of(program)
        check_all(program, rows)
        scene.check([row for row in rows if row['memory'] == 'file'], path='memfd:memory-backend-memfd',
                    ranges=[{'start': 0, 'end': 0xc0000}, {'start': 1 << 20, 'end': MEMORY}])
        show('qemu-vfio-memfd', program)


if __name__ == '__main__':
    sys.exit(scene.tap([("a guest's memory", private), ("a guest's memory in a memfd", of_a_memfd)]))
