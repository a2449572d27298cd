#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: p2p_machine.py PINLEASE - what `pinlease p2p` says of the machine of vm/jobs/p2p.job.

    host bridge -- root port -- switch -- port -- edu
                |                      +- port -- ivshmem
                +- root port -- edu
"""
import json
import os
import pathlib
import struct
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import tree

PINLEASE = os.path.abspath(sys.argv[1])
DEVICES = pathlib.Path('/sys/bus/pci/devices')


def same(got, expected):
    if got != expected:
        raise tree.Failure(f'got {got!r}, expected {expected!r}')


def devices(ids):
    """By their place: those below a switch have three bridges above them."""
    found = {}
    for device in DEVICES.iterdir():
        if ((device / 'vendor').read_text().strip(), (device / 'device').read_text().strip()) == ids:
            found[len(device.resolve().parts)] = device.name
    return [found[depth] for depth in sorted(found)]


EDU_ALONE, EDU = devices(('0x1234', '0x11e8'))
IVSHMEM, = devices(('0x1af4', '0x1110'))


def ask(*words):
    result = subprocess.run([PINLEASE, 'p2p', *words], capture_output=True, text=True, check=False, timeout=60)
    return result.returncode, result.stdout


def answer(*words):
    status, said = ask('--json', *words)
    return status, json.loads(said)


def the_same_switch():
    status, found = answer(EDU, IVSHMEM)
    same((status, found['answer'], found['route'], found['hops']), (0, 'yes', 'port', 3))
    up = DEVICES / found['through']
    same((up / 'vendor').read_text().strip() + (up / 'device').read_text().strip(), '0x104c0x8232')  # x3130-upstream
    same([port['acs'] for port in found['from']['ports'][1:]], ['none', 'none'])
    same(found['from']['iommu'], 'translates')
    same(ask(EDU, IVSHMEM)[1].startswith('yes: both are below '), True)


def two_root_ports():
    status, found = answer(EDU_ALONE, IVSHMEM)
    same((status, found['answer'], found['route']), (1, 'no', 'none'))
    same('8086:29c0' in found['reason'], True)


def acs_is_what_the_port_says():
    """The root port has ACS, which the kernel switches on where there is an IOMMU; here it is switched off and on."""
    port = answer(EDU_ALONE, IVSHMEM)[1]['from']['ports'][0]
    same(port['acs'], 'redirects')
    with open(DEVICES / port['port'] / 'config', 'r+b', buffering=0) as config:
        at = 0x100
        while True:
            config.seek(at)
            head, = struct.unpack('<I', config.read(4))
            if head & 0xffff == 0x000d:
                break
            at = head >> 20
        config.seek(at + 6)
        control = config.read(2)
        config.seek(at + 6)
        config.write(bytes(2))
        try:
            same(answer(EDU_ALONE, IVSHMEM)[1]['from']['ports'][0]['acs'], 'none')
        finally:
            config.seek(at + 6)
            config.write(control)
    same(answer(EDU_ALONE, IVSHMEM)[1]['from']['ports'][0]['acs'], 'redirects')


def by_interface():
    """Interfaces that no PCI device has."""
    status, said = ask('lo', IVSHMEM)
    same((status, said), (2, ''))


def pairs():
    status, said = ask('--json')
    answers = {(pair['from']['address'], pair['to']['address']): pair['answer'] for pair in json.loads(said)['pairs']}
    same((status, [pair for pair, yes in answers.items() if yes == 'yes']), (0, [(EDU, IVSHMEM)]))


def without_privilege():
    """Nobody else may read ACS, so there is no answer."""
    result = subprocess.run(['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', PINLEASE, 'p2p', EDU, IVSHMEM],
                            capture_output=True, text=True, check=False, timeout=60)
    same((result.returncode, result.stdout.startswith('unknown: '), 'as root' in result.stdout), (2, True, True))


if __name__ == '__main__':
    sys.exit(tree.tap([
        ('below one switch', the_same_switch),
        ('below two root ports', two_root_ports),
        ('ACS is what the port says', acs_is_what_the_port_says),
        ('an interface without a device', by_interface),
        ('all pairs', pairs),
        ('without privilege', without_privilege),
    ]))
