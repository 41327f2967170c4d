"""Iterates of format 1: HDF5 files with one dataset for each tensor, read without the HDF5 library.

A file of this format was always written by h5py in HDF5's oldest layout: superblock version 0, groups by symbol tables,
object headers of version 1, contiguous datasets. Nothing else is read, so that a file made or altered to harm cannot
make anything happen but one error: every read stays within the file, no place is read twice as the same thing, and
all reads together are bounded by the file's size.

Source: HDF5 File Format Specification Version 3.0, sections II.A, III.A, III.B, III.D, III.E, IV.A.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomtraj.trajectory import hdf5, payload

VERSION = 1
_SUPERBLOCK = b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0"
_DEEPEST, _DIMENSIONS = 40, 64
_NIL, _DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT, _FILTERS, _ATTRIBUTE, _CONTINUED, _GROUP = (
    0x0, 0x1, 0x3, 0x7, 0x8, 0xB, 0xC, 0x10, 0x11,
)  # fmt: skip


class FirstFormat:
    """An open file of format 1, all of whose content is checked by its checksum.

    Args:
        descriptor: The file.

    Attributes:
        tree: The content, its tensors standing as paths.
        sha: SHA-256 of the content.

    Raises:
        ValueError: It is damaged, or holds anything that format 1 has not.
        OSError: The disk does not give its bytes.
    """

    def __init__(self, descriptor: int):
        file = _File(descriptor)
        root = list(file.messages(file.root()))
        attributes = dict(_attribute(body, file) for kind, body in root if kind == _ATTRIBUTE)
        version = attributes.get("format_version")
        if version != VERSION:
            raise ValueError(f"its format_version is {version!r:.20}")
        self.sha = str(attributes.get("sha256"))
        members = dict(file.members(root))
        if "header" not in members:
            raise ValueError("it has no header")
        header = file.dataset(list(file.messages(members["header"])))
        if header.dtype != np.uint8 or header.ndim != 1:
            raise ValueError("its header is no text")
        self._arrays = file.datasets(members["data"]) if "data" in members else {}
        text = header.tobytes()
        if _checksum(text, self._arrays) != self.sha:
            raise ValueError("")
        self.tree: dict[str, Any] = json.loads(text)
        if not isinstance(self.tree, dict):
            raise ValueError("its header")

    @torch.inference_mode(False)
    def tensor(self, leaf: Any) -> Tensor:
        """The tensor that stands for an entry of the tree, with memory of its own."""
        dtype = payload.dtype_of(leaf["dtype"])
        flat = torch.from_numpy(self._arrays[leaf["tensor"]].reshape(-1).copy())
        return (flat if flat.dtype == dtype else flat.view(dtype)).reshape(leaf["shape"])

    def check(self, leaf: Any) -> None:
        """Look whether a tensor stands for an entry of the tree; its bytes are checked already."""
        self.tensor(leaf)

    def holds(self, leaf: Any, tensor: Tensor) -> bool:
        """Whether an entry of the tree stands for this tensor."""
        stored = self.tensor(leaf)
        return stored.dtype == tensor.dtype and stored.shape == tensor.shape and torch.equal(stored, tensor.cpu())


def _checksum(header: bytes, arrays: dict[str, np.ndarray]) -> str:
    sha = hashlib.sha256(header)
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        sha.update(array.data)
    return sha.hexdigest()


class _File:
    """Reads of bytes, each within the file, and what HDF5 makes of them."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._room = 4 * self._size + 2**16
        self._seen: set[tuple[str, int]] = set()

    def read(self, at: int, count: int) -> bytearray:
        """Bytes of the file."""
        self._room -= count
        if at + count > self._size or self._room < 0:
            raise ValueError("a structure that reaches beyond the file, or many that overlap")
        found = bytearray(count)
        payload.read_into(self._descriptor, memoryview(found), at)
        return found

    def _once(self, kind: str, at: int) -> None:
        if (kind, at) in self._seen:
            raise ValueError(f"a {kind} that stands in two places")
        self._seen.add((kind, at))

    def root(self) -> int:
        """Address of the root group's header."""
        block = self.read(0, 96)
        if block[:16] != _SUPERBLOCK or _number(block, 24) or _number(block, 40) != self._size:
            raise ValueError("its superblock")
        return _number(block, 64)

    def messages(self, at: int) -> Iterator[tuple[int, bytearray]]:
        """Type and body of each message in an object's header."""
        self._once("object", at)
        prefix = self.read(at, 16)
        if prefix[0] != 1:
            raise ValueError("an object header of another version")
        blocks = [(at + 16, _number(prefix, 8, 4))]
        for start, count in blocks:
            block = self.read(start, count)
            place = 0
            while place + 8 <= count:
                kind, length, flags = _number(block, place, 2), _number(block, place + 2, 2), block[place + 4]
                body = block[place + 8 : place + 8 + length]
                place += 8 + length
                if len(body) != length or flags & 2:
                    raise ValueError("a message that is cut short or stands elsewhere")
                if kind == _CONTINUED:
                    self._once("continuation", _number(body, 0))
                    blocks.append((_number(body, 0), _number(body, 8)))
                elif kind != _NIL:
                    yield kind, body

    def members(self, messages: list[tuple[int, bytearray]]) -> Iterator[tuple[str, int]]:
        """Names of a group's members, and the addresses of their headers."""
        tree, heap = _place_of_group(messages)
        names = self._heap(heap)
        waiting = [tree]
        while waiting:
            at = waiting.pop()
            self._once("node", at)
            start = self.read(at, 24)
            used = _number(start, 6, 2)
            if start[:4] == b"SNOD":
                entries = self.read(at + 8, 40 * used)
                for entry in range(0, len(entries), 40):
                    if _number(entries, entry + 16, 4) > 1:
                        raise ValueError("a link to elsewhere")
                    name = bytes(names[_number(entries, entry) :].split(b"\0", 1)[0])
                    yield name.decode("ascii"), _number(entries, entry + 8)
            elif start[:5] == b"TREE\0":
                children = self.read(at + 24, 8 + 16 * used)
                waiting += [_number(children, 8 + 16 * child) for child in range(used)]
            else:
                raise ValueError("a group without a table of its members")

    def datasets(self, at: int) -> dict[str, np.ndarray]:
        """Every dataset below a group, by its path from there."""
        found: dict[str, np.ndarray] = {}
        waiting = [("", at)]
        while waiting:
            path, here = waiting.pop()
            messages = list(self.messages(here))
            if any(kind == _GROUP for kind, _ in messages):
                if path.count("/") > _DEEPEST:
                    raise ValueError("more groups within groups than any iterate has")
                waiting += [(f"{path}/{name}" if path else name, place) for name, place in self.members(messages)]
            else:
                found[path] = self.dataset(messages)
        return found

    def dataset(self, messages: list[tuple[int, bytearray]]) -> np.ndarray:
        """The numbers of a dataset that stands in one piece in this file."""
        parts = {kind: body for kind, body in messages if kind in (_DATASPACE, _DATATYPE, _LAYOUT)}
        if len(parts) != 3 or any(kind in (_EXTERNAL, _FILTERS) for kind, _ in messages):
            raise ValueError("a dataset with filters or external storage, or that is none")
        shape, dtype, layout = _shape(parts[_DATASPACE]), _dtype(parts[_DATATYPE]), parts[_LAYOUT]
        if layout[:2] != b"\3\1":
            raise ValueError("a dataset that is not in one piece")
        count = math.prod(shape) * dtype.itemsize
        if not count:
            return np.empty(shape, dtype)
        if _number(layout, 10) != count:
            raise ValueError("a dataset whose size is not that of its numbers")
        return np.frombuffer(self.read(_number(layout, 2), count), dtype).reshape(shape)

    def text(self, at: int, index: int) -> str:
        """A string of the global heap."""
        start = self.read(at, 16)
        if start[:5] != b"GCOL\1":
            raise ValueError("no heap where a text belongs")
        heap = self.read(at, _number(start, 8))
        place = 16
        while place + 16 <= len(heap) and _number(heap, place, 2):
            length = _number(heap, place + 8)
            if _number(heap, place, 2) == index:
                return heap[place + 16 : place + 16 + length].decode()
            place += 16 + -(-length // 8) * 8
        raise ValueError("a text that its heap lacks")

    def _heap(self, at: int) -> bytearray:
        self._once("heap", at)
        start = self.read(at, 32)
        if start[:5] != b"HEAP\0":
            raise ValueError("no heap where names belong")
        return self.read(_number(start, 24), _number(start, 8))


def _number(block: bytearray, at: int, count: int = 8) -> int:
    part = block[at : at + count]
    if len(part) != count:
        raise ValueError("a structure that is cut short")
    return int.from_bytes(part, "little")


def _place_of_group(messages: list[tuple[int, bytearray]]) -> tuple[int, int]:
    """Addresses of a group's tree of members and of the heap of their names."""
    for kind, body in messages:
        if kind == _GROUP:
            return _number(body, 0), _number(body, 8)
    raise ValueError("no group where one belongs")


def _shape(body: bytearray) -> tuple[int, ...]:
    if body[0] != 1 or body[1] > _DIMENSIONS:
        raise ValueError("a shape of another version")
    return tuple(_number(body, 8 + 8 * axis) for axis in range(body[1]))


def _dtype(body: bytearray) -> np.dtype:
    found = _TYPES.get(bytes(body).rstrip(b"\0"))
    if found is None:
        raise ValueError("a dataset of no numbers")
    return found


_TYPES = {hdf5.datatype(dtype, 1).rstrip(b"\0"): dtype for dtype in hdf5.NUMBERS}
"""HDF5's description of each type, without the zeros at its end."""

_WHOLE = np.dtype(np.int64)


def _attribute(body: bytearray, file: _File) -> tuple[str, int | str]:
    """Name and value of an attribute that is a number or a string."""
    if body[0] != 1:
        raise ValueError("an attribute of another version")
    lengths = [_number(body, place, 2) for place in (2, 4, 6)]
    places = [8]
    for length in lengths:
        places.append(places[-1] + -(-length // 8) * 8)
    name, kind = (bytes(body[place : place + n]).rstrip(b"\0") for place, n in zip(places, lengths[:2], strict=False))
    value = body[places[3] :]
    if _TYPES.get(kind) == _WHOLE:
        return name.decode(), _number(value, 0)
    if kind == hdf5.TEXT.rstrip(b"\0"):
        return name.decode(), file.text(_number(value, 4), _number(value, 12, 4))
    raise ValueError("an attribute that is neither number nor text")
