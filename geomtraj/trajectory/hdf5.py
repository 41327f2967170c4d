"""HDF5's structures around the numbers of an iterate's file, as bytes: with them any HDF5 program reads the file.

They are those that the HDF5 library writes for its version 1.8: a superblock of version 2, object headers of version 2
with the links in them, contiguous datasets, and trees of version 1 over compressed chunks. They are made here since the
library costs more memory and time than a small iterate, and may crash where a disk is full.

Source: HDF5 File Format Specification Version 3.0, sections II.C, III.A.1, III.E, IV.A.1.b and IV.A.2.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

from geomtraj.trajectory.payload import DEFLATE_LEVEL, Block

SUPERBLOCK = 48
"""Bytes of a superblock."""

NUMBERS = tuple(map(np.dtype, ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16"]))
"""Types that datasets have."""

TEXT = bytes.fromhex("1901010010000000100000000100000000000800")
"""How it describes UTF-8 of any length."""

_NOWHERE = 2**64 - 1
_FLOATS = {2: (10, 5, 15), 4: (23, 8, 127), 8: (52, 11, 1023)}  # bytes -> bits of mantissa and exponent, bias
_CHILDREN = 64  # of a node in a tree of chunks
_KEY = struct.Struct("<2I2Q")
_HEAP = 4096


class Structures:
    """The structures of one file, which stand behind its numbers.

    Args:
        base: Bytes before the superblock, from which on HDF5 counts.
        at: Where in the file they begin.

    Attributes:
        content: Their bytes.
    """

    def __init__(self, base: int, at: int):
        self._base, self._at = base, at
        self.content = bytearray()

    def dataset(self, dtype: np.dtype, block: Block) -> int:
        """Describe a block of numbers; gives the address of the dataset."""
        offset, stored = block.extents[0]
        layout = struct.pack("<2B2Q", 3, 1, offset - self._base if stored else _NOWHERE, stored)
        filters = []
        if block.chunk:
            layout = struct.pack("<3BQ2I", 3, 2, 2, self._tree(dtype, block), block.chunk, dtype.itemsize)
            shuffle, deflate = (2, 1, 1, dtype.itemsize), (1, 1, 1, DEFLATE_LEVEL)
            filters = [_message(11, struct.pack("<2B3HI3HI", 2, 2, *shuffle, *deflate), constant=True)]
        return self._object(
            _message(1, struct.pack("<4B2Q", 2, 1, 1, 1, block.length, block.length)),
            _message(3, datatype(dtype, 3), constant=True),
            _message(5, b"\3\x0b" if block.chunk else b"\3\x0a", constant=True),  # fill values are never met
            *filters,
            _message(8, layout),
        )

    def group(self, links: Mapping[str, int], attributes: Mapping[str, int | str] | None = None) -> int:
        """Name objects by their addresses; gives the address of the group."""
        messages = [_message(2, struct.pack("<2B2Q", 0, 0, _NOWHERE, _NOWHERE)), _message(10, b"\0\0", constant=True)]
        for name, address in links.items():
            messages.append(
                _message(6, struct.pack("<3B", 1, 0, len(name)) + name.encode() + struct.pack("<Q", address))
            )
        messages += [self._attribute(name, value) for name, value in (attributes or {}).items()]
        return self._object(*messages)

    def superblock(self, root: int) -> bytes:
        """What stands at `base`: it leads to the root group and says where the file ends."""
        end = self._at + len(self.content)
        block = b"\x89HDF\r\n\x1a\n\2\x08\x08\0" + struct.pack("<4Q", self._base, _NOWHERE, end, root)
        return block + struct.pack("<I", lookup3(block))

    def _put(self, content: bytes) -> int:
        address = self._at + len(self.content) - self._base
        self.content += content + bytes(-len(content) % 8)
        return address

    def _object(self, *messages: bytes) -> int:
        body = b"".join(messages)
        header = b"OHDR\2\1" + struct.pack("<H", len(body)) + body
        return self._put(header + struct.pack("<I", lookup3(header)))

    def _attribute(self, name: str, value: int | str) -> bytes:
        if isinstance(value, int):
            kind, content = datatype(np.dtype(np.int64), 3), struct.pack("<q", value)
        else:
            text = value.encode()
            head, heap = struct.pack("<4sB3xQ", b"GCOL", 1, _HEAP), struct.pack("<2H4xQ", 1, 1, len(text)) + text
            heap += bytes(-len(text) % 8)
            rest = _HEAP - len(head) - len(heap)
            heap += struct.pack("<2H4xQ", 0, 0, rest) + bytes(rest - 16)
            kind, content = TEXT, struct.pack("<IQI", len(text), self._put(head + heap), 1)
        label = name.encode() + b"\0"
        sizes = struct.pack("<2B3HB", 3, 0, len(label), len(kind), 4, 0)
        return _message(12, sizes + label + kind + b"\2\0\0\0" + content)

    def _tree(self, dtype: np.dtype, block: Block) -> int:
        """The tree that leads to the chunks of a block; gives its address."""
        last = _KEY.pack(0, 0, len(block.extents) * block.chunk, dtype.itemsize)
        level, children = 0, [
            (_KEY.pack(size, 0, number * block.chunk, 0), offset - self._base)
            for number, (offset, size) in enumerate(block.extents)
        ]  # fmt: skip
        while True:
            nodes = [children[start : start + _CHILDREN] for start in range(0, len(children), _CHILDREN)]
            size = 24 + _CHILDREN * (_KEY.size + 8) + _KEY.size
            first = self._at + len(self.content) - self._base
            for number, node in enumerate(nodes):
                left = first + (number - 1) * size if number else _NOWHERE
                right = first + (number + 1) * size if number + 1 < len(nodes) else _NOWHERE
                content = struct.pack("<4s2BH2Q", b"TREE", 1, level, len(node), left, right)
                content += b"".join(key + struct.pack("<Q", address) for key, address in node)
                content += nodes[number + 1][0][0] if number + 1 < len(nodes) else last
                self._put(content.ljust(size, b"\0"))
            children = [(node[0][0], first + number * size) for number, node in enumerate(nodes)]
            if len(children) == 1:
                return first
            level += 1


def _message(kind: int, body: bytes, constant: bool = False) -> bytes:
    return struct.pack("<BHB", kind, len(body), constant) + body


def datatype(dtype: np.dtype, version: int) -> bytes:
    """How HDF5 describes a type of `NUMBERS`, as h5py has it: complex numbers as pairs, truth values as enumerations.

    Args:
        dtype: The type.
        version: 1, the oldest layout of that description, or 3.
    """
    size = dtype.itemsize
    if dtype.kind == "f":
        mantissa, exponent, bias = _FLOATS[size]
        head = struct.pack("<4BI", 0x11, 0x20, 8 * size - 1, 0, size)
        return head + struct.pack("<2H4BI", 0, 8 * size, mantissa, exponent, 0, mantissa, bias)
    if dtype.kind in "iu":
        return struct.pack("<4BI2H", 0x10, 8 * (dtype.kind == "i"), 0, 0, size, 0, 8 * size)

    def name(text: bytes) -> bytes:
        return text + bytes(-len(text) % 8 if version == 1 else 0)

    if dtype.kind == "b":
        base = datatype(np.dtype(np.int8), version)
        return struct.pack("<4BI", version << 4 | 8, 2, 0, 0, 1) + base + name(b"FALSE\0") + name(b"TRUE\0") + b"\0\1"
    part = np.dtype(f"f{size // 2}")
    members = b""
    for label, offset in ((b"r\0", 0), (b"i\0", size // 2)):
        place = struct.pack("<I28x", offset) if version == 1 else struct.pack("<B", offset)
        members += name(label) + place + datatype(part, version)
    return struct.pack("<4BI", version << 4 | 6, 2, 0, 0, size) + members


def lookup3(content: bytes) -> int:
    """Jenkins' hash of that name, by which HDF5 checks its structures.

    Source: Bob Jenkins, lookup3.c, `hashlittle` with an initial value of 0.
    """
    words = struct.unpack(f"<{-(-len(content) // 12) * 3}I", content + bytes(-len(content) % 12))
    a = b = c = (0xDEADBEEF + len(content)) % 2**32
    for place in range(0, len(words) - 3, 3):
        a, b, c = ((x + word) % 2**32 for x, word in zip((a, b, c), words[place : place + 3], strict=True))
        for turn in (4, 6, 8, 16, 19, 4):
            a, b, c = b, (c + b) % 2**32, (a - c) % 2**32 ^ _turned(c, turn)
    a, b, c = ((x + word) % 2**32 for x, word in zip((a, b, c), words[-3:], strict=True))
    for turn in (14, 11, 25, 16, 4, 14, 24):
        a, b, c = b, ((c ^ b) - _turned(b, turn)) % 2**32, a
    return b


def _turned(word: int, by: int) -> int:
    return (word << by | word >> (32 - by)) % 2**32
