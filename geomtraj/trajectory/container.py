"""The plain bytes of an iterate's file of format 2: its user block, its header and where its tensors stand."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomtraj.trajectory import hdf5, payload
from geomtraj.trajectory.files import write_all
from geomtraj.trajectory.payload import Block, Row

VERSION = 2
USER_BLOCK = 512
_MAGIC = b"geomtraj iterate, format "
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LOOSEST = 64  # times that a header is smaller when deflated, at most: what reading one may cost is bounded
_SMALL = 2**20
_MOST_AROUND = 2**24  # bytes of HDF5's own structures
_ALIGNED = 64  # bytes, to which numbers and structures are aligned


def version(descriptor: int) -> int:
    """The format version by a file's first bytes.

    Raises:
        ValueError: It is no file of ours.
    """
    start = os.pread(descriptor, USER_BLOCK, 0)
    if start.startswith(_HDF5):
        return 1
    word = start.removeprefix(_MAGIC).split(b"\n")[0] if start.startswith(_MAGIC) else b""
    if not word.isdigit() or len(word) > 6:
        raise ValueError("its beginning is not that of an iterate")
    return int(word)


def declared(descriptor: int) -> int:
    """The format version that HDF5's attribute says, 0 where it is not found; looked up as bytes.

    It stands behind its name, its type and its shape, each padded to 8 bytes or not at all.
    """
    size = os.fstat(descriptor).st_size
    for start in {0, max(size - _SMALL, 0)}:
        for match in re.finditer(
            rb"format_version\0(?:\0.{24}|[^\0].{15})(.{8})", os.pread(descriptor, _SMALL, start), re.S
        ):
            version = int.from_bytes(match[1], "little")
            if version < 10**6:
                return version
    return 0


def write(
    descriptor: int,
    tree: dict[str, Any],
    tensors: Sequence[tuple[Row, Tensor]],
    lengths: Mapping[torch.dtype, int],
    compress: bool,
) -> None:
    """Write a file of format 2 from its start to its end, and then what stands before its numbers.

    Args:
        descriptor: The empty file.
        tree: The content, its tensors standing as numbers of rows.
        tensors: The rows of the table, whose checksums are found here, and the tensors.
        lengths: How many elements of each type there are.
        compress: Whether to deflate the numbers.

    Raises:
        OSError: The disk is full.
    """
    at = USER_BLOCK + hdf5.SUPERBLOCK
    blocks: dict[str, Block] = {}
    crcs = [0] * len(tensors)
    for kind, count in lengths.items():
        item = payload.element(kind)
        chunk = min(count, payload.GATHERED // item.itemsize) if compress else 0
        sink = payload.Sink(descriptor, _aligned(at), item, chunk)
        for index, (row, tensor) in enumerate(tensors):
            if row.dtype == kind:
                crcs[index] = sink.add(payload.pieces(tensor, kind))
        blocks[payload.type_name(kind)] = sink.finish(count)
        at = sink.at
    stored = {name: block.to_json() for name, block in blocks.items()}
    table = [row.to_json(crc) for (row, _), crc in zip(tensors, crcs, strict=True)]
    header = json.dumps({"content": tree, "tensors": table, "blocks": stored}).encode()
    raw = _deflated(header)
    blocks["header"] = Block(len(header), ((at, len(raw)),), len(header))
    write_all(descriptor, raw, at)
    sha = hashlib.sha256(header).hexdigest()
    _enclose(descriptor, _aligned(at + len(raw)), blocks, sha)
    size = os.fstat(descriptor).st_size
    extents = [extent for block in blocks.values() for extent in block.extents]
    place = [at, len(raw), len(header)]
    outline = {"size": size, "header": place, "sha256": sha, "rest": _rest(descriptor, size, extents)}
    text = _MAGIC + f"{VERSION}\n{json.dumps(outline)}\n".encode()
    write_all(descriptor, text.ljust(USER_BLOCK, b"\0"), 0)


def _enclose(descriptor: int, at: int, blocks: Mapping[str, Block], sha: str) -> None:
    """Write what HDF5 needs to find the blocks, the header among them: from `at` on, and before the numbers."""
    around = hdf5.Structures(USER_BLOCK, at)
    places = {
        name: around.dataset(np.dtype(np.uint8) if name == "header" else _element(name), block)
        for name, block in blocks.items()
    }
    header = places.pop("header")
    links = {"data": around.group(places), "header": header}
    superblock = around.superblock(around.group(links, {"format_version": VERSION, "sha256": sha}))
    write_all(descriptor, around.content, at)
    write_all(descriptor, superblock, USER_BLOCK)


def _element(name: str) -> np.dtype:
    return payload.element(payload.dtype_of(name))


def _aligned(at: int) -> int:
    return -(-at // _ALIGNED) * _ALIGNED


def _deflated(header: bytes) -> bytes:
    """A header as zlib makes it smaller, but not so small that reading it back is refused."""
    raw = zlib.compress(header, 1)
    return raw if len(header) <= _SMALL + _LOOSEST * len(raw) else zlib.compress(header, 0)


class Iterate:
    """An open file of format 2, read without HDF5.

    Args:
        descriptor: The file.

    Attributes:
        tree: The content, its tensors standing as numbers of rows.
        sha: SHA-256 of the header, and so of the content.

    Raises:
        ValueError: It is damaged.
        OSError: The disk does not give its bytes.
    """

    def __init__(self, descriptor: int):
        size = os.fstat(descriptor).st_size
        block = os.pread(descriptor, USER_BLOCK, 0)
        lines = block.split(b"\n")
        if len(lines) != 3 or lines[2].strip(b"\0"):
            raise ValueError("its user block")
        outline = json.loads(lines[1])
        if set(outline) != {"size", "header", "sha256", "rest"} or outline["size"] != size:
            raise ValueError("its size is not that of the file")
        header = self._header(descriptor, outline["header"], size)
        if hashlib.sha256(header).hexdigest() != outline["sha256"]:
            raise ValueError("its header")
        content = json.loads(header)
        self.sha: str = outline["sha256"]
        self.tree: dict[str, Any] = content["content"]
        if not isinstance(self.tree, dict) or not isinstance(content["tensors"], list):
            raise ValueError("its header holds no content")
        self._rows = [Row.from_json(row) for row in content["tensors"]]
        self._readers: dict[Any, payload.Reader] = {}
        extents = [tuple(outline["header"][:2])]
        used: dict[Any, int] = {}
        lengths: dict[Any, int] = {}
        for name, one in content["blocks"].items():
            kind = payload.dtype_of(name)
            place = Block.from_json(one, payload.element(kind).itemsize, size)
            self._readers[kind] = payload.Reader(descriptor, place, payload.element(kind).itemsize)
            extents += place.extents
            lengths[kind] = place.length
        for row in self._rows:
            used[row.dtype] = used.get(row.dtype, 0) + row.stop - row.offset
            if row.stop > lengths.get(row.dtype, -1) or used[row.dtype] > lengths[row.dtype]:
                raise ValueError(f"{row.name[:200]} reaches beyond its block")
        if size > USER_BLOCK + sum(count for _, count in extents) * 9 / 8 + _MOST_AROUND:
            raise ValueError("much room that nothing uses")
        if _rest(descriptor, size, extents) != outline["rest"]:
            raise ValueError("its HDF5 structure")

    def tensor(self, leaf: Any) -> Tensor:
        """The tensor that stands for an entry of the tree."""
        row = self._row(leaf)
        return payload.read_tensor(row, self._readers[row.dtype])

    def check(self, leaf: Any) -> None:
        """Read the tensor that stands for an entry of the tree against its checksum, without room for it in memory."""
        row = self._row(leaf)
        payload.check_tensor(row, self._readers[row.dtype])

    def holds(self, leaf: Any, tensor: Tensor) -> bool:
        """Whether an entry of the tree stands for this tensor, once it is turned into the type that is stored."""
        row = self._row(leaf)
        if row.shape != tuple(tensor.shape):
            return False
        if row.dtype != tensor.dtype and not (row.dtype.is_floating_point and tensor.is_floating_point()):
            return False
        crc = 0
        for piece in payload.pieces(tensor, row.dtype):
            crc = zlib.crc32(piece.data, crc)
        return crc == row.crc

    def _row(self, leaf: Any) -> Row:
        index = leaf["tensor"]
        if type(index) is not int or not 0 <= index < len(self._rows):
            raise ValueError(f"the unknown tensor {index!r}")
        return self._rows[index]

    @staticmethod
    def _header(descriptor: int, place: Any, size: int) -> bytes:
        if not isinstance(place, list) or len(place) != 3 or not all(type(n) is int and n >= 0 for n in place):
            raise ValueError("where its header stands")
        offset, stored, plain = place
        if offset + stored > size or plain > _SMALL + _LOOSEST * stored:
            raise ValueError("how large its header is")
        raw = bytearray(stored)
        payload.read_into(descriptor, memoryview(raw), offset)
        return payload.inflate(bytes(raw), plain)


def _rest(descriptor: int, size: int, extents: Iterable[tuple[int, int]]) -> str:
    """SHA-256 of all bytes but the user block and those extents."""
    sha = hashlib.sha256()
    at = USER_BLOCK
    for start, count in [*sorted(e for e in extents if e[1]), (size, 0)]:
        while at < start:
            part = np.empty(min(start - at, payload.PIECE), np.uint8)
            payload.read_into(descriptor, part.data, at)
            sha.update(part.data)
            at += len(part)
        at = max(at, start + count)
    return sha.hexdigest()
