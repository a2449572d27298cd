#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""usage: p2p.py PINLEASE - what `pinlease p2p` answers, on machines that are made up below a temporary directory.

The answers are the kernel's for the same machine (drivers/pci/p2pdma.c); vm/jobs/p2p.job asks in real ones.
"""
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import tree

PINLEASE = os.path.abspath(sys.argv[1])
BRIDGE, NET, NVME = 0x060400, 0x020000, 0x010802
RR, CR, EC = 0x04, 0x08, 0x20
MEM = '0x00000000fe000000 0x00000000fe0fffff 0x0000000000040200\n'
IO = '0x000000000000c000 0x000000000000c01f 0x0000000000040101\n'
NONE = '0x0000000000000000 0x0000000000000000 0x0000000000000000\n'


def same(got, expected):
    if got != expected:
        raise tree.Failure(f'got {got!r}, expected {expected!r}')


def config(acs=None, length=4096, decodes=True):
    """A configuration space. ACS comes second in the list of extended capabilities, as a port has it."""
    space = bytearray(4096)
    struct.pack_into('<H', space, 4, 6 if decodes else 4)
    struct.pack_into('<I', space, 0x100, 0x0001 | 1 << 16 | 0x150 << 20)
    if acs is not None:
        struct.pack_into('<IHH', space, 0x150, 0x000d | 1 << 16, 0x7f, acs)
    return bytes(space[:length])


class Machine:
    """A root with sys and proc. Devices are given by their path: "pci0000:00/0000:00:01.0/0000:01:00.0"."""

    def __init__(self, directory, cpu='GenuineIntel', family=6, flags='vme'):
        self.root = directory
        self.devices = directory / 'sys/devices'
        (directory / 'sys/bus/pci/devices').mkdir(parents=True)
        (directory / 'proc').mkdir()
        (directory / 'proc/cpuinfo').write_text(f'processor\t: 0\nvendor_id\t: {cpu}\ncpu family\t: {family}\nflags\t: fpu {flags}\n\n')

    def add(self, path, ids=(0x1234, 0x11e8), kind=NET, resource=MEM, space=None, group=None, domain_type='DMA-FQ'):
        place = self.devices / path
        place.mkdir(parents=True, exist_ok=True)
        for name, value in (('vendor', f'0x{ids[0]:04x}'), ('device', f'0x{ids[1]:04x}'), ('class', f'0x{kind:06x}')):
            (place / name).write_text(value + '\n')
        (place / 'resource').write_text(resource + NONE * 5)
        (place / 'config').write_bytes(config() if space is None else space)
        if group is not None:
            groups = self.root / f'sys/kernel/iommu_groups/{group}'
            groups.mkdir(parents=True, exist_ok=True)
            (groups / 'type').write_text(domain_type + '\n')
            os.symlink(groups, place / 'iommu_group')
        os.symlink(place, self.root / 'sys/bus/pci/devices' / place.name)
        return place

    def name(self, kind, name, path):
        """A network interface, say, on the device."""
        target = self.devices / path / kind / name
        target.mkdir(parents=True)
        (self.root / 'sys/class' / kind).mkdir(parents=True, exist_ok=True)
        os.symlink(target, self.root / 'sys/class' / kind / name)

    def ask(self, *words):
        result = subprocess.run([PINLEASE, 'p2p', '--root', str(self.root), *words], capture_output=True, text=True, check=False,
                                timeout=60)
        return result.returncode, result.stdout, result.stderr

    def answer(self, *words):
        """(status, what --json says), which is also what the words say."""
        status, said, errors = self.ask(*words)
        other, as_json, _ = self.ask('--json', *words)
        answer = json.loads(as_json)
        same((status, errors), (other, ''))
        same(said.startswith(f"{answer['answer']}: {answer['reason']}"), True)
        return status, answer

    def host_bridge(self, ids=(0x8086, 0x29c0), bus='pci0000:00', at='0000:00:00.0'):
        return self.add(f'{bus}/{at}', ids, 0x060000, NONE)

    def switch(self, acs=(0, 0), length=4096):
        """Below a root port: a switch with two ports and a device behind each."""
        up = 'pci0000:00/0000:00:01.0/0000:01:00.0'
        self.add('pci0000:00/0000:00:01.0', kind=BRIDGE, resource=NONE, space=config(RR | CR))
        self.add(up, kind=BRIDGE, resource=NONE, space=config(RR))  # above what they have in common: of no account
        for i in (0, 1):
            port = f'{up}/0000:02:0{i}.0'
            self.add(port, kind=BRIDGE, resource=NONE, space=config(acs[i], length))
            self.add(f'{port}/0000:0{3 + i}:00.0')


def machine(fn):
    def test():
        directory = pathlib.Path(tempfile.mkdtemp())
        try:
            fn(directory)
        finally:
            shutil.rmtree(directory)
    return test


@machine
def below_a_switch(directory):
    m = Machine(directory)
    m.host_bridge()
    m.switch()
    status, answer = m.answer('0000:03:00.0', '04:00.0')
    same((status, answer['answer'], answer['route'], answer['through'], answer['hops']), (0, 'yes', 'port', '0000:01:00.0', 3))
    same(answer['from']['ports'][-1], {'port': '0000:02:00.0', 'acs': 'none'})


@machine
def acs_redirects(directory):
    for i, (acs, answers) in enumerate([((RR, 0), 'no'), ((0, CR), 'no'), ((EC, EC), 'no'), ((0x51, 0x13), 'yes')]):
        m = Machine(directory / str(i))
        m.host_bridge()
        m.switch(acs)
        status, answer = m.answer('0000:03:00.0', '0000:04:00.0')
        same((acs, answer['answer'], status), (acs, answers, answers == 'no'))
        if answers == 'no':
            same('ACS of port 0000:02:0' in answer['reason'] and '8086:29c0' in answer['reason'], True)


@machine
def acs_and_a_host_bridge_that_routes(directory):
    m = Machine(directory)
    m.host_bridge((0x8086, 0x3c00))
    m.switch((RR, RR))
    status, answer = m.answer('0000:03:00.0', '0000:04:00.0')
    same((status, answer['route']), (0, 'host bridge'))
    same('ACS of port' in answer['reason'], True)


@machine
def unprivileged(directory):
    """64 bytes of configuration space don't have ACS: no guess."""
    m = Machine(directory)
    m.host_bridge()
    m.switch((0, 0), length=64)
    status, answer = m.answer('0000:03:00.0', '0000:04:00.0')
    same((status, answer['answer']), (2, 'unknown'))
    same('as root' in answer['reason'], True)


@machine
def functions_of_one_device(directory):
    m = Machine(directory)
    m.host_bridge()
    m.add('pci0000:00/0000:00:01.0', kind=BRIDGE, resource=NONE, space=config(RR))
    for i in (0, 1):
        m.add(f'pci0000:00/0000:00:01.0/0000:01:00.{i}')
    same(m.answer('01:00.0', '01:00.1')[1]['through'], '0000:00:01.0')


def two_root_ports(directory, **how):
    m = Machine(directory, **how)
    for i in (1, 2):
        m.add(f'pci0000:00/0000:00:0{i}.0', kind=BRIDGE, resource=NONE, space=config(RR | CR))
        m.add(f'pci0000:00/0000:00:0{i}.0/0000:0{i}:00.0')
    return m


@machine
def by_the_host_bridge(directory):
    for i, (ids, status) in enumerate([((0x8086, 0x29c0), 1), ((0x8086, 0x3c00), 0), ((0x8086, 0x2020), 0), ((0x1ae0, 0x1234), 0),
                                       ((0x1ae1, 0x1234), 1), ((0x1022, 0x2020), 1)]):
        m = two_root_ports(directory / str(i))
        m.host_bridge(ids)
        got, answer = m.answer('0000:01:00.0', '0000:02:00.0')
        same((ids, got), (ids, status))
        same(f'{ids[0]:04x}:{ids[1]:04x}' in answer['reason'], True)


@machine
def by_a_root_port_that_is_first(directory):
    """Skylake-E has no host bridge device; its root ports are in the table."""
    m = Machine(directory)
    for i in (1, 2):
        m.add(f'pci0000:00/0000:00:0{i}.0', (0x8086, 0x2030), BRIDGE, NONE)
        m.add(f'pci0000:00/0000:00:0{i}.0/0000:0{i}:00.0')
    same(m.answer('0000:01:00.0', '0000:02:00.0')[0], 0)


@machine
def no_host_bridge_to_be_seen(directory):
    m = Machine(directory)
    for i in (1, 2):
        m.add(f'pci0000:00/0000:00:0{i}.0')
    status, answer = m.answer('0000:00:01.0', '0000:00:02.0')
    same((status, 'shows no device of its own' in answer['reason']), (1, True))


@machine
def zen(directory):
    for i, (cpu, family, status) in enumerate([('AuthenticAMD', 23, 0), ('AuthenticAMD', 25, 0), ('AuthenticAMD', 22, 1),
                                               ('HygonGenuine', 24, 1)]):
        m = two_root_ports(directory / str(i), cpu=cpu, family=family)
        m.host_bridge((0x1022, 0x1450))
        same((cpu, family, m.answer('0000:01:00.0', '0000:02:00.0')[0]), (cpu, family, status))


@machine
def guest(directory):
    """The bridges there are the hypervisor's."""
    for i, flags in enumerate(['vme', 'vme hypervisor lahf_lm']):
        m = two_root_ports(directory / str(i), cpu='AuthenticAMD', family=25, flags=flags)
        m.host_bridge()
        same('if its hypervisor does' in m.answer('0000:01:00.0', '0000:02:00.0')[1]['reason'], i == 1)


@machine
def two_host_bridges(directory):
    for i, (ids, status, says) in enumerate([((0x2f00, 0x2f00), 1, 'its own ports only'), ((0x09a2, 0x09a2), 0, 'is known'),
                                             ((0x09a2, 0x29c0), 1, "0000:80 (8086:29c0) isn't known"),
                                             ((0x29c0, 0x09a2), 1, "0000:00 (8086:29c0) isn't known")]):
        m = Machine(directory / str(i))
        for bus, device in zip(('00', '80'), ids):
            m.host_bridge((0x8086, device), f'pci0000:{bus}', f'0000:{bus}:00.0')
            m.add(f'pci0000:{bus}/0000:{bus}:01.0')
        got, answer = m.answer('0000:00:01.0', '0000:80:01.0')
        same((ids, got, says in answer['reason']), (ids, status, True))


@machine
def wide_domains(directory):
    """The domains of VMD have five digits."""
    m = Machine(directory)
    for i in (0, 1):
        m.add(f'pci0000:00/0000:00:0e.0/pci10000:e1/10000:e1:0{i}.0', kind=BRIDGE, resource=NONE)
        m.add(f'pci0000:00/0000:00:0e.0/pci10000:e1/10000:e1:0{i}.0/10000:e{2 + i}:00.0', kind=NVME)
    answer = m.answer('10000:e2:00.0', '10000:e3:00.0')[1]
    same((answer['answer'], '10000:e1' in answer['reason']), ('no', True))


@machine
def nothing_to_be_reached(directory):
    m = two_root_ports(directory, cpu='AuthenticAMD', family=25)
    m.add('pci0000:00/0000:00:03.0', resource=IO)
    status, answer = m.answer('0000:01:00.0', '0000:00:03.0')
    same((status, 'no memory BAR' in answer['reason']), (1, True))
    same(m.answer('0000:00:03.0', '0000:01:00.0')[0], 0)
    m.add('pci0000:00/0000:00:04.0', space=config(decodes=False))
    same("doesn't decode" in m.ask('0000:01:00.0', '0000:00:04.0')[1], True)


@machine
def iommu(directory):
    m = two_root_ports(directory, cpu='AuthenticAMD', family=25)
    m.add('pci0000:00/0000:00:03.0', group=5)
    m.add('pci0000:00/0000:00:04.0', group=6, domain_type='identity')
    answer = m.answer('0000:00:03.0', '0000:01:00.0')[1]
    same((answer['from']['iommu'], answer['from']['group'], 'IOMMU translates' in answer['reason']), ('translates', 5, True))
    answer = m.answer('0000:00:04.0', '0000:01:00.0')[1]
    same((answer['from']['iommu'], 'passes its addresses through' in answer['reason']), ('identity', True))
    answer = m.answer('0000:01:00.0', '0000:00:03.0')[1]
    same(('group' in answer['from'], 'no IOMMU' in answer['reason']), (False, True))


@machine
def names(directory):
    m = Machine(directory)
    m.host_bridge()
    m.switch()
    m.name('net', 'eth0', 'pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0')
    m.name('infiniband', 'mlx5_0', 'pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0')
    m.name('block', 'nvme0n1', 'pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:04:00.0')
    for name in ('eth0', 'mlx5_0'):
        status, answer = m.answer(name, '/dev/nvme0n1')
        same((status, answer['from']['address'], answer['to']['address']), (0, '0000:03:00.0', '0000:04:00.0'))


@machine
def bad_input(directory):
    m = Machine(directory)
    m.host_bridge()
    m.switch()
    lo = directory / 'sys/devices/virtual/net/lo'
    lo.mkdir(parents=True)
    (directory / 'sys/class/net').mkdir(parents=True)
    os.symlink(lo, directory / 'sys/class/net/lo')
    for words, says in [(('0000:09:00.0', '0000:03:00.0'), 'there is no PCI device 0000:09:00.0'),
                        (('0000:03:00.0', 'eth7'), 'no PCI device, network interface, RDMA or block device "eth7"'),
                        (('lo', '0000:03:00.0'), 'lo is no PCI device'),
                        (('03:00.0', '0000:03:00.0'), 'the same device'),
                        (('0000:03:00.0', '../../../etc'), 'is no name of a device'),
                        (('0000:03:00.0', ''), 'is no name of a device'),
                        (('0000:03:20.0', '0000:03:00.0'), 'no PCI device, network'),
                        (('0000:03:00.0',), 'one device alone'),
                        (('0000:03:00.0', '0000:04:00.0', '0000:03:00.0'), 'unexpected')]:
        status, out, errors = m.ask(*words)
        same((words, status, out, says in errors), (words, 2, '', True))
        same((words, len([line for line in errors.splitlines() if 'Try' not in line])), (words, 1))
    result = subprocess.run([PINLEASE, 'p2p', '--root', str(directory / 'nowhere')], capture_output=True, text=True, check=False)
    same((result.returncode, 'nowhere' in result.stderr), (2, True))
    result = subprocess.run([PINLEASE, 'p2p', '--root', str(directory / 'proc')], capture_output=True, text=True, check=False)
    same((result.returncode, 'there is no PCI here' in result.stderr), (2, True))


@machine
def all_pairs(directory):
    m = Machine(directory)
    m.host_bridge()
    m.switch()
    m.add('pci0000:00/0000:00:02.0', resource=IO)
    m.add('pci0000:00/0000:00:03.0', resource=NONE)
    status, said, _ = m.ask()
    lines = said.splitlines()
    same((status, lines[0].split()), (0, ['FROM', 'TO', 'ANSWER', 'REASON']))
    same([line.split()[:3] for line in lines[1:]],
         [['0000:00:02.0', '0000:03:00.0', 'no'], ['0000:00:02.0', '0000:04:00.0', 'no'], ['0000:00:03.0', '0000:03:00.0', 'no'],
          ['0000:00:03.0', '0000:04:00.0', 'no'], ['0000:03:00.0', '0000:04:00.0', 'yes']])
    pairs = json.loads(m.ask('--json')[1])['pairs']
    same([pair['answer'] for pair in pairs], ['no', 'no', 'no', 'no', 'yes'])


@machine
def nobody_to_talk_to(directory):
    m = Machine(directory)
    m.host_bridge()
    m.add('pci0000:00/0000:00:03.0')
    status, out, errors = m.ask()
    same((status, out, 'no two PCI devices' in errors), (1, '', True))
    same((m.ask('--json')[0], json.loads(m.ask('--json')[1])), (1, {'pairs': []}))
    shutil.rmtree(directory / 'sys/bus/pci/devices')
    (directory / 'sys/bus/pci/devices').write_text('')
    for words in ((), ('--json',)):
        status, out, errors = m.ask(*words)
        same((words, status, out, errors.count('\n'), "can't be read" in errors), (words, 2, '', 1, True))


@machine
def odd_configuration_spaces(directory):
    """A list of capabilities that never ends, one that leads out, an empty file."""
    loop = bytearray(config(RR))
    struct.pack_into('<I', loop, 0x100, 0x0001 | 1 << 16 | 0x100 << 20)
    out = bytearray(config())
    struct.pack_into('<I', out, 0x100, 0x0001 | 1 << 16 | 0xffc << 20)
    struct.pack_into('<I', out, 0xffc, 0x000d | 1 << 16)
    for i, (space, answers) in enumerate([(bytes(loop), 'yes'), (bytes(out), 'yes'), (b'', 'unknown'), (bytes(256), 'yes')]):
        m = Machine(directory / str(i))
        up = 'pci0000:00/0000:00:01.0/0000:01:00.0'
        m.add('pci0000:00/0000:00:01.0', kind=BRIDGE, resource=NONE)
        m.add(up, kind=BRIDGE, resource=NONE)
        for port in (0, 1):
            m.add(f'{up}/0000:02:0{port}.0', kind=BRIDGE, resource=NONE, space=space)
            m.add(f'{up}/0000:02:0{port}.0/0000:0{3 + port}:00.0')
        same((i, m.answer('0000:03:00.0', '0000:04:00.0')[1]['answer']), (i, answers))


def this_machine():
    """Whatever it has: an answer for each pair, and the same one when asked for it alone."""
    result = subprocess.run([PINLEASE, 'p2p', '--json'], capture_output=True, text=True, check=False, timeout=60)
    if result.returncode == 2 and 'no PCI here' in result.stderr:
        return
    same(result.returncode in (0, 1), True)
    for pair in json.loads(result.stdout)['pairs'][:10]:
        alone = subprocess.run([PINLEASE, 'p2p', '--json', pair['from']['address'], pair['to']['address']], capture_output=True,
                               text=True, check=False, timeout=60)
        same(json.loads(alone.stdout), pair)


if __name__ == '__main__':
    sys.exit(tree.tap([
        ('below a switch', below_a_switch),
        ('ports whose ACS redirects', acs_redirects),
        ('the same below a host bridge that routes', acs_and_a_host_bridge_that_routes),
        ("ACS that can't be read is no answer", unprivileged),
        ('functions of one device', functions_of_one_device),
        ('by the host bridge', by_the_host_bridge),
        ('by a root port that is first', by_a_root_port_that_is_first),
        ('a host bridge that shows nothing', no_host_bridge_to_be_seen),
        ('AMD, from Zen on', zen),
        ('in a virtual machine', guest),
        ('below two host bridges', two_host_bridges),
        ('domains of more digits', wide_domains),
        ('nothing to be reached', nothing_to_be_reached),
        ('with and without an IOMMU', iommu),
        ('by name', names),
        ('bad input', bad_input),
        ('all pairs', all_pairs),
        ('nobody to talk to', nobody_to_talk_to),
        ('odd configuration spaces', odd_configuration_spaces),
        ('this machine', this_machine),
    ]))
