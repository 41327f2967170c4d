"""One HDF5 file per iterate, whole or absent, with checksums; the only module that opens HDF5.

Format 2 (docs/file-formats.md): all tensors of one type stand behind each other in one dataset (`data/float32`), and
`header`, a JSON text, holds the nested values and a table of the tensors with their offsets. A user block before the
HDF5 part says where the header stands and carries its checksum, so that reading needs no HDF5: a file made by someone
else can ask for nothing but its own bytes. Format 1, one dataset for each tensor, is read through HDF5 after every
dataset was looked at.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from geomtraj.errors import TrajectoryError
from geomtraj.isolation import on_the_cpu
from geomtraj.trajectory import codec, container, payload
from geomtraj.trajectory.files import open_regular, replace_file, write_error
from geomtraj.trajectory.payload import Block, Row

FORMAT_VERSION = 2
FOLDER = "iterates"
PLAIN = ("step", "wall_time", "trainable", "run", "about")
"""Entries of an iterate that hold no tensors."""

_NAME = re.compile(r"(\d{8,})\.h5")
_CHUNK = 2**18  # bytes of a compressed chunk: HDF5 keeps several in its cache
_DEEPEST, _MOST = 40, 10**6  # groups within groups, and datasets, in a file of format 1


def iterate_path(folder: Path, step: int) -> Path:
    """The file of one iterate of the trajectory in `folder`."""
    return folder / FOLDER / f"{step:08d}.h5"


def stored_steps(folder: Path) -> list[int]:
    """The steps that have a file, in order; temporary and other files do not count."""
    files = folder / FOLDER
    if not files.is_dir():
        return []
    return sorted(int(match[1]) for file in files.iterdir() if (match := _NAME.fullmatch(file.name)))


@on_the_cpu
def write_iterate(
    folder: Path, step: int, content: dict[str, Any], *, dtype: torch.dtype | None = None, compress: bool = False
) -> None:
    """Store one iterate's content, a dict of nested values with tensors inside, without a copy of it in memory.

    Args:
        folder: The trajectory's folder.
        step: Optimizer steps before the iterate.
        content: What to store.
        dtype: The type that floating-point tensors are stored in; None for their own.
        compress: Whether to make the file smaller, without loss, for more time.

    Raises:
        InputError: The content holds something that is neither tensor, number, string, list nor dict.
        TrajectoryError: The disk is full; nothing stored before is touched.
    """
    tensors: list[Tensor] = []
    rows: list[Row] = []
    lengths: dict[torch.dtype, int] = {}

    def put(tensor: Tensor, name: str) -> dict[str, int]:
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        rows.append(Row(name, kind, tuple(tensor.shape), lengths.get(kind, 0)))
        lengths[kind] = rows[-1].stop
        tensors.append(tensor)
        return {"tensor": len(rows) - 1}

    tree = {name: codec.encode(value, put, name) for name, value in content.items()}
    path = iterate_path(folder, step)
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    replace_file(path, lambda descriptor: _fill(descriptor, tree, rows, tensors, lengths, compress))


@on_the_cpu
def read_iterate(
    folder: Path,
    step: int,
    parts: Collection[str] | None = None,
    *,
    names: Callable[[str], bool] | None = None,
    run: str | None = None,
) -> dict[str, Any]:
    """The content of one iterate, verified by its checksums.

    Args:
        folder: The trajectory's folder.
        step: The step.
        parts: Which entries of the content to read ("parameters") beside step, time and the like; None for all.
        names: Which parameters and buffers to read, by their names; None for all.
        run: What names the run that it must be of; None for any.

    Raises:
        TrajectoryError: The file is missing, damaged or of a newer format.
    """
    path = iterate_path(folder, step)
    with _Opened(path) as file:
        tree = {name: value for name, value in file.tree.items() if parts is None or name in (*PLAIN, *parts)}
        if names is not None:
            for part in ("parameters", "buffers"):
                if part in tree:
                    kept = [[k, v] for k, v in codec.members(tree[part]).items() if names(k)]
                    tree[part] = {"dict": kept}
        content = {name: codec.decode(value, file.tensor) for name, value in tree.items()}
        _check_identity(content, step, run)
        return content


def check_iterate(folder: Path, step: int, run: str | None = None) -> None:
    """Read all of one iterate, keeping at most one tensor in memory; errors as for `read_iterate`."""
    with _Opened(iterate_path(folder, step)) as file:

        def read(leaf: Any) -> Tensor:
            file.tensor(leaf)
            return torch.empty(0)

        content = {name: codec.decode(value, read) for name, value in file.tree.items()}
        _check_identity(content, step, run)


def same_tensors(folder: Path, step: int, part: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors in one part of a stored iterate are these, bit by bit, as far as checksums tell.

    Raises:
        TrajectoryError: As for `read_iterate`.
    """
    with _Opened(iterate_path(folder, step)) as file:
        stored = codec.members(file.tree.get(part))
        if not stored or not stored.keys() <= tensors.keys():
            return False
        return all(file.holds(leaf, tensors[name]) for name, leaf in stored.items())


def digest(folder: Path, step: int) -> str:
    """The checksum of an iterate's content, read without its tensors: what names it among others.

    Raises:
        TrajectoryError: As for `read_iterate`.
    """
    with _Opened(iterate_path(folder, step)) as file:
        return file.sha


class DamagedFile(TrajectoryError):
    """A stored iterate is cut short or altered."""


class OutOfMemory(TrajectoryError, MemoryError):
    """There is not the memory to read a file."""


def damaged(path: Path, why: object = "") -> DamagedFile:
    """The error for a file that is cut short or altered."""
    reason = str(why)[:300] or "its checksum does not hold"
    return DamagedFile(
        f"{path} is damaged (cut short or altered: {reason}): delete this file, "
        "the other iterates are whole without it."
    )


def newer_format(path: Path, version: object, known: int = FORMAT_VERSION) -> TrajectoryError:
    """The error for a file that a later geomtraj wrote."""
    return TrajectoryError(f"{path} has format version {version}, this geomtraj reads up to {known}: upgrade geomtraj.")


def _check_identity(content: Mapping[str, Any], step: int, run: str | None) -> None:
    if content.get("step", step) != step:
        raise ValueError(f"its step is {content['step']!r}, not that of its name")
    if run is not None and content.get("run") not in (None, run):
        raise _OtherRun


_CONTENT_ERRORS = (
    ValueError, KeyError, TypeError, IndexError, OverflowError, AttributeError, RecursionError, RuntimeError
)  # fmt: skip


class _Opened:
    """An iterate's file, whose content is not trusted: whatever is wrong with it becomes one error."""

    def __init__(self, path: Path):
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> container.Iterate | _FirstFormat:
        try:
            self._descriptor = open_regular(self._path)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise damaged(self._path, error.strerror) from error
            raise TrajectoryError(f"cannot read {self._path} ({error.strerror}): record it again.") from error
        try:
            return self._parsed()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if isinstance(error, OSError):
            raise TrajectoryError(f"cannot read {self._path} ({error.strerror or error}): read it again.") from error
        if isinstance(error, MemoryError):
            raise OutOfMemory(f"{self._path} cannot be read: {str(error) or 'the memory does not suffice'}.") from error
        if isinstance(error, _Newer):
            raise newer_format(self._path, error.args[0]) from None
        if isinstance(error, _OtherRun):
            raise DamagedFile(
                f"{self._path} is an iterate of another run than its folder's manifest is of: put the right file in "
                "its place, or set it aside with `geomtraj repair`."
            ) from None
        if isinstance(error, _CONTENT_ERRORS):
            raise damaged(self._path, error) from error

    def _parsed(self) -> container.Iterate | _FirstFormat:
        version = container.version(self._descriptor)
        if version == 1:
            return _FirstFormat(self._descriptor)
        if version > FORMAT_VERSION:
            raise _Newer(version)
        try:
            return container.Iterate(self._descriptor)
        except ValueError:
            if (declared := _declared(self._descriptor)) > FORMAT_VERSION:
                raise _Newer(declared) from None
            raise


class _Newer(Exception):
    pass


class _OtherRun(Exception):
    pass


def _fill(
    descriptor: int,
    tree: dict[str, Any],
    rows: list[Row],
    tensors: list[Tensor],
    lengths: dict[torch.dtype, int],
    compress: bool,
) -> None:
    """Let HDF5 lay the file out, and put the tensors' bytes where it left room for them."""
    target = container.Target(descriptor)
    with h5py.File(target, "w", userblock_size=container.USER_BLOCK) as file:
        file.create_group("data")
        datasets = {kind: _dataset(file["data"], kind, count, compress) for kind, count in lengths.items()}
        crcs = [0] * len(rows)
        for kind, dataset in datasets.items():
            item = payload.element(kind)
            start = None if compress else dataset.id.get_offset()

            def write(array: np.ndarray, at: int, dataset: Any = dataset, start: int | None = start) -> None:
                if start is None:
                    dataset[at : at + len(array)] = array
                else:
                    target.write_at(array, start + at * array.itemsize)

            sink = payload.Buffered(write, item)
            for index, row in enumerate(rows):
                if row.dtype == kind:
                    crc = 0
                    for piece in payload.pieces(tensors[index], kind):
                        crc = zlib.crc32(piece.data, crc)
                        sink.add(piece)
                    crcs[index] = crc
            sink.flush()
        if compress:
            file.flush()
        table = [row.to_json(crc) for row, crc in zip(rows, crcs, strict=True)]
        blocks = {payload.type_name(kind): _block(dataset, compress).to_json() for kind, dataset in datasets.items()}
        header = json.dumps({"content": tree, "tensors": table, "blocks": blocks}).encode()
        level = container.header_level(header)
        stored = file.create_dataset(
            "header", data=np.frombuffer(header, np.uint8), chunks=(len(header),), compression="gzip",
            compression_opts=level,
        )  # fmt: skip
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["sha256"] = hashlib.sha256(header).hexdigest()
        file.flush()
        place = stored.id.get_chunk_info(0)
    target.close(header, place.byte_offset, place.size, blocks)


def _dataset(group: Any, kind: torch.dtype, count: int, compress: bool) -> Any:
    name, item = payload.type_name(kind), payload.element(kind)
    if compress and count:
        chunk = min(count, _CHUNK // item.itemsize)
        return group.create_dataset(name, (count,), item, chunks=(chunk,), compression="gzip", shuffle=True)
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple((count,))
    return h5py.Dataset(h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(item), space, plan))


def _block(dataset: Any, compress: bool) -> Block:
    (count,) = dataset.shape
    if not (compress and count):
        return Block(count, ((dataset.id.get_offset() or 0, count * dataset.dtype.itemsize),))
    (chunk,) = dataset.chunks
    places: list[tuple[int, int]] = [(0, 0)] * -(-count // chunk)

    def keep(info: Any) -> None:
        places[info.chunk_offset[0] // chunk] = (info.byte_offset, info.size)

    dataset.id.chunk_iter(keep)
    return Block(count, tuple(places), chunk)


def _declared(descriptor: int) -> int:
    """The format version that HDF5's attribute says, 0 where it is not found; looked up as bytes, without HDF5.

    It stands behind its name, padded to 16 bytes, a type of 16 bytes and a shape of 8.
    """
    start = os.pread(descriptor, 2**20, 0)
    for match in re.finditer(rb"format_version\0\0.{24}(.{8})", start, re.DOTALL):
        version = int.from_bytes(match[1], "little")
        if version < 10**6:
            return version
    return 0


class _FirstFormat:
    """A file of format 1: one dataset for each tensor, looked at before it is read.

    Raises:
        ValueError: It is damaged, or holds anything that format 1 has not.
    """

    def __init__(self, descriptor: int):
        size = os.fstat(descriptor).st_size
        source = container.Target(descriptor, write=False)
        try:
            with h5py.File(source, "r") as file:
                version = int(file.attrs["format_version"])
                if version > 1:
                    raise _Newer(version) if version > FORMAT_VERSION else ValueError("no user block")
                self.sha = str(file.attrs["sha256"])[:64]
                _check_plain(file.id, size)
                header = bytes(file["header"][()])
                self._arrays = _arrays(file["data"].id if "data" in file else None, size)
        except (MemoryError, _Newer):
            raise
        except Exception as error:  # h5py answers damaged files with many types of exception
            if source.error is not None:
                raise source.error from error
            raise ValueError(f"its HDF5 structure ({error})") from error
        if _checksum(header, self._arrays) != self.sha:
            raise ValueError("")
        self.tree = json.loads(header)
        if not isinstance(self.tree, dict):
            raise ValueError("its header")

    @on_the_cpu
    def tensor(self, leaf: Any) -> Tensor:
        """The tensor that stands for an entry of the tree."""
        dtype = payload.dtype_of(leaf["dtype"])
        flat = torch.from_numpy(np.array(self._arrays[leaf["tensor"]]).reshape(-1))
        return (flat if flat.dtype == dtype else flat.view(dtype)).reshape(leaf["shape"])

    def holds(self, leaf: Any, tensor: Tensor) -> bool:
        """Whether an entry of the tree stands for this tensor."""
        stored = self.tensor(leaf)
        return stored.dtype == tensor.dtype and stored.shape == tensor.shape and torch.equal(stored, tensor.cpu())


def _arrays(group: Any, size: int) -> dict[str, np.ndarray]:
    """Every dataset below `data`, each looked at first; walked without recursion, to a bounded depth."""
    found: dict[str, np.ndarray] = {}
    waiting = [(group, "")] if group is not None else []
    room = size
    while waiting:
        here, prefix = waiting.pop()
        if prefix.count("/") > _DEEPEST or len(found) > _MOST:
            raise ValueError("more groups or datasets than any iterate has")
        for name in here:
            room = room - 1
            if room < 0 or here.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise ValueError("a link to elsewhere")
            item = h5py.h5o.open(here, name)
            path = prefix + name.decode()
            if isinstance(item, h5py.h5g.GroupID):
                waiting.append((item, f"{path}/"))
            elif isinstance(item, h5py.h5d.DatasetID):
                room -= _check_dataset(item, room)
                found[path] = np.asarray(h5py.Dataset(item)[()])
            else:
                raise ValueError(f"{path[:80]} is neither group nor dataset")
    return found


def _check_plain(file: Any, size: int) -> None:
    if file.links.get_info(b"header").type != h5py.h5l.TYPE_HARD:
        raise ValueError("a link to elsewhere")
    header = h5py.h5o.open(file, b"header")
    if not isinstance(header, h5py.h5d.DatasetID):
        raise ValueError("its header is no dataset")
    _check_dataset(header, size)
    if header.dtype != np.uint8 or len(header.shape) != 1:
        raise ValueError("its header is no text")


def _check_dataset(dataset: Any, room: int) -> int:
    """Bytes of a dataset that holds plain numbers of its own file; ValueError for any other."""
    plan = dataset.get_create_plist()
    if plan.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT):
        raise ValueError("a dataset whose layout is neither contiguous nor compact")
    if plan.get_external_count() or plan.get_nfilters():
        raise ValueError("a dataset with external storage or filters")
    if dataset.dtype.hasobject or dataset.dtype.kind not in "fiucb":
        raise ValueError("a dataset of no numbers")
    size = int(np.prod(dataset.shape, dtype=object)) * dataset.dtype.itemsize
    if size > room or (size and plan.get_layout() == h5py.h5d.CONTIGUOUS and dataset.get_offset() is None):
        raise ValueError("a dataset that is larger than its file")
    return size


def _checksum(header: bytes, arrays: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256(header)
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
