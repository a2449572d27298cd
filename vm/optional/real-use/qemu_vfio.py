#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU with a device of the host: all of the guest's memory is pinned, whether the guest runs or not. Needs the job's setup vfio."""
import os
import pathlib
import sys

import scene

MEMORY = 64 << 20


def qemu(*more):
    """Nothing of the guest runs (-S): its memory is mapped for the device as QEMU starts."""
    scene.need('qemu-system-x86_64')
    group = os.environ.get('PINLEASE_TEST_VFIO')
    if not group:
        raise scene.Skip('a device that belongs to vfio-pci (vm/setup/vfio)')
    [device] = [path.name for path in pathlib.Path(f'/sys/kernel/iommu_groups/{group}/devices').iterdir()]
    return scene.Program('qemu-system-x86_64', '-M', 'q35', '-accel', 'tcg', '-m', f'{MEMORY >> 20}M', '-nodefaults', '-display', 'none',
                         '-S', '-device', f'vfio-pci,host={device}', *more)


def rows(program):
    """When all of it is mapped: QEMU adds region by region."""
    found = [row for row in scene.rows_of('qemu-system-x86_64') if row['pid'] == program.pid]
    return found if sum(row['bytes'] for row in found) >= MEMORY else None


def check_all(program, found):
    for row in found:
        scene.check([row], device='vfio', listed=False, mapped=True)
    pinned, account = sum(row['bytes'] for row in found), scene.locked(program.pid)
    if pinned != account['VmLck']:
        raise scene.Failure(f'{pinned} bytes are found, and the kernel accounts {account}: {found}')


def show(name, program):
    page = scene.Page(name)
    page.started(program)
    page.pins()
    page.show('grep', '-E', 'VmLck|VmPin|VmRSS', f'/proc/{program.pid}/status')
    page.write()


def private():
    with qemu() as program:
        found = scene.until("the guest's memory is mapped for the device", lambda: rows(program), program)
        check_all(program, found)
        scene.check([row for row in found if row['memory'] == 'anonymous'], mapped=True)
        show('qemu-vfio', program)


def of_a_memfd():
    with qemu('-object', f'memory-backend-memfd,id=ram,size={MEMORY >> 20}M', '-machine', 'memory-backend=ram') as program:
        found = scene.until("the guest's memory is mapped for the device", lambda: rows(program), program)
        check_all(program, found)
        scene.check([row for row in found if row['memory'] == 'file'], path='memfd:memory-backend-memfd', bytes=MEMORY,
                    ranges=[{'start': 0, 'end': MEMORY}])
        show('qemu-vfio-memfd', program)


if __name__ == '__main__':
    sys.exit(scene.tap([("a guest's memory", private), ("a guest's memory in a memfd", of_a_memfd)]))
