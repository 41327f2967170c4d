"""The plain bytes of an iterate's file of format 2: its user block, its header and where its tensors stand."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from geomtraj.trajectory import payload
from geomtraj.trajectory.files import write_all
from geomtraj.trajectory.payload import Block, Row

USER_BLOCK = 512
_MAGIC = b"geomtraj iterate, format "
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LOOSEST = 64  # times that a header is smaller when deflated, at most: what reading one may cost is bounded
_SMALL = 2**20
_MOST_AROUND = 2**24  # bytes of HDF5's own structures


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


def header_level(header: bytes) -> int:
    """The level of deflate for a header: 1, or 0 where it would become so small that reading it back is refused."""
    return 1 if len(header) <= _SMALL + _LOOSEST * len(zlib.compress(header, 1)) else 0


class Target:
    """The file that HDF5 sees: reads and writes go straight to the disk, and HDF5 never hears of a full one.

    Args:
        descriptor: The open file.
        write: Whether it may be changed.

    Attributes:
        error: The first error of the disk.
    """

    def __init__(self, descriptor: int, write: bool = True):
        self._descriptor, self._may_write = descriptor, write
        self._position = 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        base = (0, self._position, os.fstat(self._descriptor).st_size)[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The place."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Bytes from the place on."""
        buffer = bytearray(size if size >= 0 else os.fstat(self._descriptor).st_size - self._position)
        return bytes(buffer[: self.readinto(buffer)])

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the place on."""
        try:
            got = os.preadv(self._descriptor, [buffer], self._position)
        except OSError as error:
            self.error = self.error or error
            raise
        self._position += got
        return got

    def write(self, content: Any) -> int:
        """Write at the place."""
        view = memoryview(content).cast("B")
        self.write_at(view, self._position)
        self._position += len(view)
        return len(view)

    def write_at(self, content: Any, offset: int) -> None:
        """Write somewhere else; an error of the disk is kept for `close`."""
        if not self._may_write:
            raise OSError("opened to be read")
        if self.error is None:
            try:
                write_all(self._descriptor, content, offset)
            except OSError as error:
                self.error = error

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size."""
        size = self._position if size is None else size
        if self._may_write and self.error is None:
            try:
                os.ftruncate(self._descriptor, size)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        """Nothing waits."""

    def close(self, header: bytes, offset: int, stored: int, blocks: dict[str, Any]) -> None:
        """Write the user block of a file whose HDF5 part is whole.

        Args:
            header: The JSON text.
            offset: Where its deflated bytes stand.
            stored: How many there are.
            blocks: The blocks of tensors, as in the header.

        Raises:
            OSError: The disk was full on the way.
        """
        if self.error is not None:
            raise self.error
        size = os.fstat(self._descriptor).st_size
        extents = [tuple(e) for block in blocks.values() for e in block["extents"]]
        content = {
            "size": size,
            "header": [offset, stored, len(header)],
            "sha256": hashlib.sha256(header).hexdigest(),
            "rest": _rest(self._descriptor, size, [(offset, stored), *extents]),
        }
        text = _MAGIC + b"2\n" + json.dumps(content).encode() + b"\n"
        write_all(self._descriptor, text.ljust(USER_BLOCK, b"\0"), 0)


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
