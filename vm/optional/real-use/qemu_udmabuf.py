#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU's virtio-gpu with blob=on: it makes a udmabuf of the guest's memory for each framebuffer of the guest's.

The guest is this script: it drives the device by QEMU's own port for tests, as a Linux guest's virtio-gpu does when it makes a dumb buffer.
"""
import socket
import struct
import sys

import scene

MEMORY = 64 << 20
FRAME = 1920 * 1080 * 4
PARTS = ((0x800000, 4 << 20), (0x1000000, FRAME - (4 << 20)))  # of the guest's memory: a framebuffer needn't be in one piece
TABLE, AVAILABLE, USED, COMMAND, ANSWER, SLOTS = 0x100000, 0x101000, 0x102000, 0x103000, 0x104000, 16
WINDOW = 0xe0000000  # where the device's registers go
CREATE_BLOB, GUEST, SHAREABLE, DONE = 0x010c, 1, 2, 0x1100


class Guest:
    """Ports, memory and the PCI bus by qtest."""
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file = self.socket.makefile('rw', encoding='ascii')

    def ask(self, words):
        self.file.write(f'{words}\n')
        self.file.flush()
        answer = self.file.readline().split()
        if not answer or answer[0] != 'OK':
            raise scene.Failure(f'qtest: {words}: {answer}')
        return int(answer[1], 0) if len(answer) > 1 and len(answer[1]) < 20 else answer[1:]

    def write(self, addr, data):
        self.ask(f'write {addr:#x} {len(data):#x} 0x{data.hex()}')

    def config(self, device, at):
        self.ask(f'outl 0xcf8 {0x80000000 | device << 11 | at & ~3:#x}')
        return self.ask('inl 0xcfc')

    def configure(self, device, at, value):
        self.ask(f'outl 0xcf8 {0x80000000 | device << 11 | at:#x}')
        self.ask(f'outl 0xcfc {value:#x}')


class Gpu:
    """A virtio device of PCI, modern: its first queue."""
    def __init__(self, guest):
        self.guest = guest
        self.device = next(d for d in range(32) if guest.config(d, 0) == 0x10501af4)
        self.registers = self.parts()
        common = self.registers[1][0]
        guest.ask(f'writeb {common + 20:#x} 3')  # status: seen by a driver
        for word in (0, 1):  # all features but indirect descriptors and the like: blobs, version 1
            guest.ask(f'writel {common + 8:#x} {word}')
            guest.ask(f'writel {common + 12:#x} {(1 << 3, 1)[word]:#x}')
        guest.ask(f'writeb {common + 20:#x} 0xb')
        guest.ask(f'writew {common + 22:#x} 0')  # the queue for commands
        guest.ask(f'writew {common + 24:#x} {SLOTS}')
        for at, where in ((32, TABLE), (40, AVAILABLE), (48, USED)):
            guest.ask(f'writel {common + at:#x} {where:#x}')
            guest.ask(f'writel {common + at + 4:#x} 0')
        guest.ask(f'writew {common + 28:#x} 1')
        guest.ask(f'writeb {common + 20:#x} 0xf')

    def parts(self):
        """{kind: (address, multiplier)} of its registers, which get an address first."""
        guest, device, found = self.guest, self.device, {}
        at = guest.config(device, 0x34) & 0xff
        while at:
            head, bar, offset = (guest.config(device, at + n) for n in (0, 4, 8))
            if head & 0xff == 9 and head >> 24 < 5:
                found[head >> 24] = (WINDOW + offset, guest.config(device, at + 16))
                guest.configure(device, 0x10 + 4 * (bar & 0xff), WINDOW)
            at = head >> 8 & 0xff
        guest.configure(device, 4, 0x6)  # memory and DMA
        return found

    def command(self, data):
        """Its answer's type."""
        guest, number = self.guest, self.guest.ask(f'readw {USED + 2:#x}')
        guest.write(COMMAND, data)
        guest.write(TABLE, struct.pack('<QIHHQIHH', COMMAND, len(data), 1, 1, ANSWER, 24, 2, 0))
        guest.write(AVAILABLE + 4 + 2 * (number % SLOTS), struct.pack('<H', 0))
        guest.write(AVAILABLE + 2, struct.pack('<H', number + 1))
        guest.ask(f'writew {self.registers[2][0]:#x} 0')
        scene.until('the device answers', lambda: guest.ask(f'readw {USED + 2:#x}') != number)
        return guest.ask(f'readl {ANSWER:#x}')


def framebuffer():
    scene.need('qemu-system-x86_64')
    with scene.folder() as folder:
        path = f'{folder}/port'
        with scene.Program('qemu-system-x86_64', '-M', 'q35,memory-backend=ram', '-object', f'memory-backend-memfd,id=ram,size={MEMORY >> 20}M',
                           '-m', f'{MEMORY >> 20}M', '-nodefaults', '-display', 'none', '-device', 'virtio-gpu-pci,blob=on',
                           '-accel', 'tcg', '-S', '-qtest', f'unix:{path},server=on,wait=off', '-qtest-log', 'none') as program:
            gpu = Gpu(scene.until('QEMU listens', lambda: connect(path), program))
            page = scene.Page('qemu-udmabuf')
            page.started(program)
            blob = struct.pack('<IIQIIIIIIQQ', CREATE_BLOB, 0, 0, 0, 0, 1, GUEST, SHAREABLE, len(PARTS), 0, FRAME)
            if (answer := gpu.command(blob + b''.join(struct.pack('<QII', *part, 0) for part in PARTS))) != DONE:
                raise scene.Failure(f'the device refuses the framebuffer: {answer:#x}\n{program.said()}')
            row = scene.check(scene.rows_of('qemu-system-x86_64'), pid=program.pid, device='dma-buf', listed=True, memory='file',
                              path='memfd:memory-backend-memfd', mapped=True, bytes=FRAME,
                              ranges=[{'start': start, 'end': start + size} for start, size in PARTS])
            if row['pins'] < 1 or row['references']:
                raise scene.Failure(f'they are pins since Linux 6.12: {row}')
            page.pins()
            page.write()


def connect(path):
    try:
        return Guest(path)
    except OSError:
        return None


if __name__ == '__main__':
    sys.exit(scene.tap([("a framebuffer of the guest's", framebuffer)]))
