"""One HDF5 file per iterate, whole or absent, with a checksum; the only module that opens HDF5.

A file holds `header`, a JSON text, and under `data` every tensor by a readable path
(`data/parameters/head.weight`, `data/optimizer/state/0/exp_avg`). Its attribute `sha256` is the checksum of
the header and of every array's path, dtype, shape and bytes; `format_version` says how to read it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from geomtraj.errors import TrajectoryError
from geomtraj.trajectory.codec import decode, encode
from geomtraj.trajectory.files import replace_file, write_all, write_error

FORMAT_VERSION = 1
FOLDER = "iterates"
_NAME = re.compile(r"(\d{8,})\.h5")


def iterate_path(folder: Path, step: int) -> Path:
    """The file of one iterate of the trajectory in `folder`."""
    return folder / FOLDER / f"{step:08d}.h5"


def stored_steps(folder: Path) -> list[int]:
    """The steps that have a file, in order; temporary and other files do not count."""
    files = folder / FOLDER
    if not files.is_dir():
        return []
    return sorted(int(match[1]) for file in files.iterdir() if (match := _NAME.fullmatch(file.name)))


def write_iterate(folder: Path, step: int, content: dict[str, Any]) -> None:
    """Store one iterate's content, a dict of nested values with tensors inside.

    Raises:
        InputError: The content holds something that is neither tensor, number, string, list nor dict.
        TrajectoryError: The disk is full; nothing stored before is touched.
    """
    arrays: dict[str, np.ndarray] = {}
    tree = {name: encode(value, arrays, name) for name, value in content.items()}
    header = json.dumps(tree).encode()
    # HDF5 builds the file in memory, so that a full disk is met by one plain write and never inside HDF5.
    path = iterate_path(folder, step)
    try:
        with h5py.File("iterate", "w", driver="core", backing_store=False) as file:
            file.attrs["format_version"] = FORMAT_VERSION
            file.attrs["sha256"] = _checksum(header, arrays)
            file["header"] = np.frombuffer(header, dtype=np.uint8)
            for name, array in arrays.items():
                file[f"data/{name}"] = array
            file.flush()
            image = file.id.get_file_image()
    except OSError as error:
        raise write_error(path, error) from error
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    replace_file(path, lambda descriptor: write_all(descriptor, image))


def read_iterate(folder: Path, step: int) -> dict[str, Any]:
    """The content of one iterate, verified by its checksum.

    Raises:
        TrajectoryError: The file is missing, damaged or of a newer format.
    """
    path = iterate_path(folder, step)
    try:
        image = path.read_bytes()
    except OSError as error:
        raise TrajectoryError(f"cannot read {path} ({error.strerror}): record it again.") from error
    try:
        version, expected, header, arrays = _parse(image)
    except MemoryError:
        raise
    except Exception as error:  # h5py answers damaged files with many types of exception
        raise damaged(path) from error
    if version > FORMAT_VERSION:
        raise newer_format(path, version)
    if header is None or _checksum(header, arrays) != expected:
        raise damaged(path)
    return {name: decode(value, arrays) for name, value in json.loads(header).items()}


def same_tensors(folder: Path, step: int, part: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors in one part of a stored iterate are these, bit by bit.

    Raises:
        TrajectoryError: As for `read_iterate`.
    """
    stored = read_iterate(folder, step)[part]
    return stored.keys() == tensors.keys() and all(
        stored[name].dtype == t.dtype and torch.equal(stored[name], t.cpu()) for name, t in tensors.items()
    )


class DamagedFile(TrajectoryError):
    """A stored iterate is cut short or altered."""


def damaged(path: Path) -> DamagedFile:
    """The error for a file that is cut short or altered."""
    return DamagedFile(
        f"{path} is damaged (cut short or altered; its checksum does not hold): delete this file, "
        "the other iterates are whole without it."
    )


def newer_format(path: Path, version: int, known: int = FORMAT_VERSION) -> TrajectoryError:
    """The error for a file that a later geomtraj wrote."""
    return TrajectoryError(f"{path} has format version {version}, this geomtraj reads up to {known}: upgrade geomtraj.")


def _parse(image: bytes) -> tuple[int, str, bytes | None, dict[str, np.ndarray]]:
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(io.BytesIO(image), "r") as file:
        version = int(file.attrs["format_version"])
        if version > FORMAT_VERSION:
            return version, "", None, arrays

        def keep(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                # One array cannot be larger than the file: a damaged shape must not ask for terabytes.
                if item.nbytes > len(image):
                    raise ValueError(f"{name} is larger than its file")
                arrays[name] = np.asarray(item[()])

        if "data" in file:
            file["data"].visititems(keep)
        return version, str(file.attrs["sha256"]), bytes(file["header"][()]), arrays


def _checksum(header: bytes, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(header)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
