"""The bytes of tensors in an iterate's file: all of one type behind each other, found by a table of offsets."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from geomtraj.trajectory.files import write_all

PIECE = 2**22
"""Bytes that are converted, hashed and written at a time."""

GATHERED = 2**18
"""Bytes of small tensors that are written together, and of a compressed chunk, at most."""

DEFLATE_LEVEL = 4

DEFLATE_RATIO = 1032
"""How many times smaller deflate makes anything at most."""

_LARGE = 2**28

_NATIVE = {
    torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
}  # fmt: skip
_BITS = {torch.bfloat16: np.dtype(np.uint16)}


@cache
def type_name(dtype: torch.dtype) -> str:
    """The name of a tensor's type: "float32"."""
    return str(dtype).removeprefix("torch.")


@cache
def _dtype_named(name: str) -> object:
    return getattr(torch, name, None) if name.isidentifier() else None


def dtype_of(name: object) -> torch.dtype:
    """The tensor type of that name.

    Raises:
        ValueError: There is none.
    """
    dtype = _dtype_named(name) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"the unknown number type {name!r}")
    return dtype


@cache
def element(dtype: torch.dtype) -> np.dtype:
    """The NumPy type whose elements hold the bits: its own, uint16 for bfloat16, else bytes."""
    if dtype in _NATIVE:
        return torch.empty(0, dtype=dtype, device="cpu").numpy().dtype
    return _BITS.get(dtype, np.dtype(np.uint8))


def length(shape: Sequence[int], dtype: torch.dtype) -> int:
    """How many elements a tensor takes up."""
    return math.prod(shape) * (dtype.itemsize // element(dtype).itemsize)


def array_of(tensor: Tensor) -> np.ndarray:
    """The bits of a tensor in a flat array; a view where the tensor is contiguous and on the CPU."""
    flat = tensor.detach()
    if flat.is_conj() or flat.is_neg():
        flat = flat.resolve_conj().resolve_neg()
    flat = flat.cpu()
    if flat.dtype in _NATIVE:
        return np.ascontiguousarray(flat.numpy()).reshape(-1)
    flat = flat.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().view(element(flat.dtype))


def pieces(tensor: Tensor, dtype: torch.dtype) -> Iterator[np.ndarray]:
    """The bits of a tensor as another type, in flat arrays of a few MiB, so that no second copy stands in memory."""
    if tensor.dtype == dtype and tensor.nbytes <= PIECE:
        yield array_of(tensor)
        return
    flat = tensor.detach()
    flat = flat.reshape(-1) if flat.is_contiguous() else flat.contiguous().reshape(-1)
    step = max(PIECE // max(flat.element_size(), dtype.itemsize), 1)
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step]
        yield array_of(part if part.dtype == dtype else part.to(dtype))


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor in the table.

    Attributes:
        name: Its readable path.
        dtype: Its type.
        shape: Its shape.
        offset: Its first element among those of its type.
        crc: CRC-32 of its bytes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    crc: int = 0

    @property
    def stop(self) -> int:
        """The element after its last one."""
        return self.offset + length(self.shape, self.dtype)

    def to_json(self, crc: int) -> list[Any]:
        """The row as JSON has it, with the checksum that is known by then."""
        return [self.name, type_name(self.dtype), self.shape, self.offset, crc]

    @classmethod
    def from_json(cls, row: Any) -> Row:
        """The row that `to_json` wrote.

        Raises:
            ValueError: It is not such a row.
        """
        if not isinstance(row, list) or len(row) != 5:
            raise ValueError("a row of the table that has not five entries")
        name, dtype, shape, offset, crc = row
        if not isinstance(name, str) or not _whole(crc):
            raise ValueError("a row of the table without name or checksum")
        if not isinstance(shape, list) or len(shape) > 64 or not all(map(_whole, [*shape, offset])):
            raise ValueError(f"the shape or offset of {name[:80]}")
        return cls(name, dtype_of(dtype), tuple(shape), offset, crc)


@dataclass(frozen=True)
class Block:
    """Where the tensors of one type stand in the file.

    Attributes:
        length: How many elements there are.
        extents: (offset in the file, bytes there) of the block, or of each of its compressed chunks.
        chunk: Elements of a compressed chunk, 0 where nothing is compressed.
    """

    length: int
    extents: tuple[tuple[int, int], ...]
    chunk: int = 0

    def to_json(self) -> dict[str, Any]:
        """The block as JSON has it."""
        return {"length": self.length, "extents": [list(e) for e in self.extents], "chunk": self.chunk}

    @classmethod
    def from_json(cls, content: Any, item: int, file_size: int) -> Block:
        """The block that `to_json` wrote, for elements of `item` bytes in a file of that size.

        Raises:
            ValueError: It is not such a block, or does not fit into the file.
        """
        if not isinstance(content, dict) or not all(_whole(content.get(key)) for key in ("length", "chunk")):
            raise ValueError("a block without length or chunk")
        count, chunk, extents = content["length"], content["chunk"], content.get("extents")
        if not isinstance(extents, list) or not all(
            isinstance(e, list) and len(e) == 2 and all(map(_whole, e)) and sum(e) <= file_size for e in extents
        ):
            raise ValueError("a block that reaches beyond the file")
        stored = sum(size for _, size in extents)
        fits = len(extents) == -(-count // chunk) if chunk else len(extents) == 1 and stored == count * item
        if (
            not fits
            or stored > file_size
            or chunk * item > 2**30
            or count * item > DEFLATE_RATIO * stored + chunk * item
        ):
            raise ValueError("a block whose size does not fit the file's")
        return cls(count, tuple((start, size) for start, size in extents), chunk)


class Reader:
    """Reads elements of one block, without HDF5.

    Args:
        descriptor: The open file.
        block: The block.
        item: Bytes of an element.
    """

    def __init__(self, descriptor: int, block: Block, item: int):
        self._descriptor, self._block, self._item = descriptor, block, item
        self._held: tuple[int, bytes] = (-1, b"")

    def into(self, target: memoryview, first: int) -> None:
        """Fill a writable buffer with the elements from `first` on.

        Raises:
            ValueError: The file ends before, or a compressed chunk is damaged.
            OSError: The disk does not give the file's bytes.
        """
        if not self._block.chunk:
            read_into(self._descriptor, target, self._block.extents[0][0] + first * self._item)
            return
        start, size = first * self._item, self._block.chunk * self._item
        done = 0
        while done < len(target):
            index, inside = divmod(start + done, size)
            part = self._chunk(index)[inside : inside + len(target) - done]
            target[done : done + len(part)] = part
            done += len(part)

    def _chunk(self, index: int) -> bytes:
        if self._held[0] != index:
            self._held = (-1, b"")
            offset, size = self._block.extents[index]
            raw = bytearray(size)
            read_into(self._descriptor, memoryview(raw), offset)
            plain = inflate(bytes(raw), self._block.chunk * self._item)
            columns = np.frombuffer(plain, np.uint8).reshape(self._item, -1)  # HDF5's shuffle filter, undone
            self._held = (index, columns.T.tobytes())
        return self._held[1]


def inflate(raw: bytes, size: int) -> bytes:
    """Deflated bytes as they were; never more than `size` of them are made.

    Raises:
        ValueError: They are damaged, or of another size.
    """
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(raw, size) if size else b""
    except zlib.error as error:
        raise ValueError(f"compressed bytes ({error})") from error
    if len(plain) != size:
        raise ValueError("compressed bytes of another size")
    return plain


def read_into(descriptor: int, target: memoryview, offset: int) -> None:
    """Fill a buffer from a place in a file.

    Raises:
        ValueError: The file ends before.
        OSError: The disk does not give the file's bytes.
    """
    done = 0
    while done < len(target):
        got = os.preadv(descriptor, [target[done:]], offset + done)
        if got == 0:
            raise ValueError("a file that ends too early")
        done += got


@torch.inference_mode(False)
def read_tensor(row: Row, reader: Reader) -> Tensor:
    """One tensor, with memory of its own, verified by its checksum.

    Raises:
        ValueError: The bytes are not those that were written.
        OSError: The disk does not give them.
    """
    size = math.prod(row.shape) * row.dtype.itemsize
    if size > _LARGE and size > psutil.virtual_memory().total:
        raise MemoryError(f"{row.name[:200]} of shape {row.shape} is larger than this machine's memory")
    try:
        tensor = torch.empty(row.shape, dtype=row.dtype, device="cpu")
    except RuntimeError as error:  # torch's word for memory that does not suffice
        raise MemoryError(f"{row.name[:200]} of shape {row.shape} does not fit into memory") from error
    if tensor.numel():
        target = tensor.reshape(-1).view(torch.uint8).numpy().data
        _check(row, reader, (target[start : start + PIECE] for start in range(0, size, PIECE)))
    else:
        _check(row, reader, ())
    return tensor


def check_tensor(row: Row, reader: Reader) -> None:
    """Read one tensor against its checksum, a piece at a time; errors as for `read_tensor`."""
    size = math.prod(row.shape) * row.dtype.itemsize
    room = memoryview(bytearray(min(size, PIECE)))
    _check(row, reader, (room[: size - start] for start in range(0, size, PIECE)))


def _check(row: Row, reader: Reader, parts: Iterable[memoryview]) -> None:
    """Fill the parts with the bytes of a tensor, and check them."""
    at, crc, item = row.offset, 0, element(row.dtype).itemsize
    for part in parts:
        reader.into(part, at)
        crc = zlib.crc32(part, crc)
        at += len(part) // item
    if crc != row.crc:
        raise ValueError(f"the numbers of {row.name[:200]}, whose checksum does not hold")


class Sink:
    """Writes the tensors of one type behind each other, small ones gathered, so that thousands cost few writes.

    Args:
        descriptor: The file.
        at: Where in it to begin.
        dtype: Type of the elements.
        chunk: Elements of a chunk, to be compressed by HDF5's shuffle and deflate filters; 0 for none.

    Attributes:
        at: Where in the file the next bytes go.
    """

    def __init__(self, descriptor: int, at: int, dtype: np.dtype, chunk: int = 0):
        self.at = at
        self._descriptor, self._chunk = descriptor, chunk
        self._waiting, self._filled = np.empty(chunk or GATHERED // dtype.itemsize, dtype), 0
        self._extents: list[tuple[int, int]] = [] if chunk else [(at, 0)]

    def add(self, arrays: Iterable[np.ndarray]) -> int:
        """Take the pieces of a tensor over, whose memory may change afterwards; gives the CRC-32 of its bytes."""
        crc = 0
        for array in arrays:
            crc = zlib.crc32(array.data, crc)
            if not self._chunk and len(array) >= len(self._waiting) // 4:
                self._flush()
                self._write(array.data)
                continue
            while len(array):
                part = array[: len(self._waiting) - self._filled]
                self._waiting[self._filled : self._filled + len(part)] = part
                self._filled += len(part)
                array = array[len(part) :]
                if self._filled == len(self._waiting):
                    self._flush()
        return crc

    def finish(self, count: int) -> Block:
        """Write what waits; gives where the elements stand, of which there are so many."""
        self._flush()
        return Block(count, tuple(self._extents), self._chunk)

    def _flush(self) -> None:
        if not self._filled:
            return
        if self._chunk:
            self._waiting[self._filled :] = 0
            columns = self._waiting.view(np.uint8).reshape(self._chunk, -1).T  # HDF5's shuffle filter
            self._extents.append((self.at, 0))
            self._write(zlib.compress(columns.tobytes(), DEFLATE_LEVEL))
        else:
            self._write(self._waiting[: self._filled].data)
        self._filled = 0

    def _write(self, content: Any) -> None:
        view = memoryview(content).cast("B")
        write_all(self._descriptor, view, self.at)
        self.at += len(view)
        start, stored = self._extents[-1]
        self._extents[-1] = (start, stored + len(view))


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62
