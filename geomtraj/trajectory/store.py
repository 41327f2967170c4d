"""One file per iterate, whole or absent, with checksums: where it stands, and what can be asked of it.

Files are of format 2 (`container`), or of format 1 (`first_format`), which is read for ever. Any HDF5 program reads
both (docs/file-formats.md); here they are written and read as plain bytes, without the HDF5 library, so that a file
made by someone else can ask for nothing but its own.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomtraj.errors import TrajectoryError
from geomtraj.trajectory import codec, container
from geomtraj.trajectory.files import open_regular, replace_file, write_error
from geomtraj.trajectory.first_format import FirstFormat
from geomtraj.trajectory.payload import Row

FORMAT_VERSION = container.VERSION
FOLDER = "iterates"
PLAIN = ("step", "wall_time", "trainable", "run", "about")
"""Entries of an iterate that hold no tensors."""

_NAME = re.compile(r"([0-9]{8}|[1-9][0-9]{8,17})\.h5")  # the one name of each step


def iterate_path(folder: Path, step: int) -> Path:
    """The file of one iterate of the trajectory in `folder`."""
    return folder / FOLDER / f"{step:08d}.h5"


def stored_steps(folder: Path) -> list[int]:
    """The steps that have a file, in order; temporary and other files do not count."""
    files = folder / FOLDER
    if not files.is_dir():
        return []
    return sorted(int(match[1]) for file in files.iterdir() if (match := _NAME.fullmatch(file.name)))


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
    tensors: list[tuple[Row, Tensor]] = []
    lengths: dict[torch.dtype, int] = {}

    def put(tensor: Tensor, name: str) -> dict[str, int]:
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        row = Row(name, kind, tuple(tensor.shape), lengths.get(kind, 0))
        lengths[kind] = row.stop
        tensors.append((row, tensor))
        return {"tensor": len(tensors) - 1}

    tree = {name: codec.encode(value, put, name) for name, value in content.items()}
    path = iterate_path(folder, step)
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    replace_file(path, lambda descriptor: container.write(descriptor, tree, tensors, lengths, compress))


@torch.inference_mode(False)
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
    """Read all of one iterate, a piece at a time; errors as for `read_iterate`."""
    with _Opened(iterate_path(folder, step)) as file:

        def read(leaf: Any) -> Tensor:
            file.check(leaf)
            return torch.empty(0, device="cpu")

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

    def __enter__(self) -> container.Iterate | FirstFormat:
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

    def _parsed(self) -> container.Iterate | FirstFormat:
        version = container.version(self._descriptor)
        if version > FORMAT_VERSION:
            raise _Newer(version)
        try:
            return FirstFormat(self._descriptor) if version == 1 else container.Iterate(self._descriptor)
        except ValueError:
            if (declared := container.declared(self._descriptor)) > FORMAT_VERSION:
                raise _Newer(declared) from None
            raise


class _Newer(Exception):
    pass


class _OtherRun(Exception):
    pass
