# SPDX-License-Identifier: LGPL-2.1-or-later
"""A FUSE file system with a file, /file, that answers nothing when a descriptor of it is closed, when it is read, or when it is
asked for attributes, and one that can be read, /written, and answers nothing to that: as anybody can have one."""
import contextlib
import ctypes
import os
import struct
import tempfile
import threading

LOOKUP, GETATTR, OPEN, READ, WRITE, RELEASE, FLUSH, INIT, FORGET, BATCH_FORGET = 1, 3, 14, 15, 16, 18, 25, 26, 2, 42
IN, OUT = struct.Struct('=IIQQIIII'), struct.Struct('=IiQ')
WRITTEN = threading.Event()  # somebody waits for that
CHANNELS = []  # of the servers; a child that gets stuck closes them, so that all is over when its parent dies
VALID = 1 << 30  # seconds for which nothing is asked again
LIBC = ctypes.CDLL(None, use_errno=True)


def attributes(node):
    mode = 0o40755 if node == 1 else 0o100666
    return struct.pack('=6Q10I', node, 4096, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(opcode, node, valid, written=False):
    """The answer's body, or an errno; None: there is none. valid: the seconds for which attributes are; 0: they are not told, but it can be closed."""
    if opcode == INIT:
        return struct.pack('=4IHHI8I', 7, 31, 0, 0, 1, 1, 4096, 1, *[0] * 7)
    if opcode == LOOKUP:
        node = 3 if written else 2
        return struct.pack('=4Q2I', node, 0, VALID, valid, 0, 0) + attributes(node)
    if opcode == GETATTR and valid:
        return struct.pack('=Q2I', VALID, 0, 0) + attributes(node)
    if opcode == OPEN:
        return struct.pack('=Q2I', 1, 0, 0)
    if opcode == READ and node == 3:
        return bytes(4096)
    return None if opcode in (GETATTR, READ, WRITE, FLUSH if valid else GETATTR, RELEASE, FORGET, BATCH_FORGET) else 38


def serve(fuse, valid):
    with contextlib.suppress(OSError):
        while packet := os.read(fuse, 1 << 18):
            _, opcode, unique, node, *_ = IN.unpack_from(packet)
            if opcode == WRITE:
                WRITTEN.set()
            body = answer(opcode, node, valid, packet[IN.size:] == b'written\0')
            if isinstance(body, int):
                os.write(fuse, OUT.pack(OUT.size, -body, unique))
            elif body is not None:
                os.write(fuse, OUT.pack(OUT.size + len(body), 0, unique) + body)


@contextlib.contextmanager
def silent_file(valid=VALID, name='file'):
    """The path of the file. At the end who waits for it gets an error."""
    with tempfile.TemporaryDirectory() as place:
        fuse = os.open('/dev/fuse', os.O_RDWR | os.O_CLOEXEC)
        CHANNELS.append(fuse)
        options = f'fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other'.encode()
        if LIBC.mount(b'pinlease-silent', place.encode(), b'fuse', 0, options):
            raise OSError(ctypes.get_errno(), 'mount')
        threading.Thread(target=serve, args=(fuse, valid), daemon=True).start()
        try:
            yield os.path.join(place, name)
        finally:
            LIBC.umount2(place.encode(), 1)  # MNT_FORCE: whoever waits gets an error
            LIBC.umount2(place.encode(), 2)
            CHANNELS.remove(fuse)
            os.close(fuse)
