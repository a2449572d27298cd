#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""DPDK's testpmd on one end of a veth by AF_XDP: the packets' memory, whose size the socket tells, too."""
import re
import sys

import scene

BUFFERS = 2048


def area():
    """Pages of the socket's memory as the kernel tells ss."""
    found = re.search(r'num_pages:(\d+)', scene.run('ss', '--xdp', '-a', '-e'))
    return int(found[1]) if found else 0


def testpmd():
    scene.need('dpdk-testpmd', 'ss')
    scene.run('modprobe', '-a', 'veth', 'xsk_diag')
    scene.run('ip', 'link', 'add', 'xdp0', 'type', 'veth', 'peer', 'name', 'xdp1')
    try:
        for name in ('xdp0', 'xdp1'):
            scene.run('ip', 'link', 'set', name, 'up')
        # Two of its own threads on the only processor; -i: it waits for words on its input, which stays open.
        with scene.Program('dpdk-testpmd', '--lcores=0@0,1@0', '--no-huge', '-m', 64, '--no-pci', '--vdev=net_af_xdp0,iface=xdp0', '--', '-i',
                           f'--total-num-mbufs={BUFFERS}') as program:
            pages = scene.until('it has its socket', area, program)
            row = scene.check(scene.rows_of('dpdk-testpmd'), pid=program.pid, device='af_xdp', listed=True, mapped=True,
                              bytes=pages * scene.PAGE, pins=pages)
            if row['bytes'] < BUFFERS * 2048:
                raise scene.Failure(f'too little for {BUFFERS} packets: {row}')
            page = scene.Page('dpdk')
            page.started(program)
            page.pins()
            page.show('ss', '--xdp', '-a', '-e')
            page.account(program.pid)
            page.write()
    finally:
        scene.run('ip', 'link', 'del', 'xdp0')


if __name__ == '__main__':
    sys.exit(scene.tap([("the packets' memory", testpmd)]))
