"""Numbers in bulk beside a result: one .npz file without pickle, each array checked by a checksum when it is read.

A result's record names the file and, for each array, its type, its shape and the checksum of its bytes. The file's name
carries a checksum of them all, so that a result that is measured again never stands beside another one's arrays.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.trajectory.files import write_bytes

FOLDER = "arrays"
"""Below the folder of the results."""

Table = dict[str, Any]
"""{"file": name, "bytes": size of the file, "members": {array: {"dtype", "shape", "sha256"}}}."""

KINDS = "biufc"
"""NumPy's kinds of numbers that are kept."""


class Arrays(Mapping[str, np.ndarray]):
    """Arrays by name: those that a statistic just made, or stored ones that are read when they are asked for.

    Args:
        held: Arrays in memory.
        table: What a record says of stored ones.
        folder: Where the file is.
    """

    def __init__(self, held: Mapping[str, Any] | None = None, table: Table | None = None, folder: Path | None = None):
        self._held = {name: _checked(name, array) for name, array in (held or {}).items()}
        self._table, self._folder = table, folder

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._held:
            self._held[name] = self._read(name)
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held if self._table is None else self._table["members"])

    def __len__(self) -> int:
        return len(self._held if self._table is None else self._table["members"])

    def __repr__(self) -> str:
        return f"Arrays({', '.join(self)})"

    @property
    def path(self) -> Path | None:
        """The file that they are stored in."""
        return self._folder / FOLDER / self._table["file"] if self._folder is not None and self._table else None

    def stored(self, stem: str, folder: Path) -> Arrays:
        """The same, written into a file whose name begins with the stem, whole or not at all.

        Raises:
            TrajectoryError: The disk is full.
        """
        members = {name: _bytes(self[name]) for name in self}
        told = {
            name: {
                "dtype": self[name].dtype.str,
                "shape": list(self[name].shape),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            for name, data in members.items()
        }
        mark = hashlib.sha256(repr(sorted((n, m["sha256"]) for n, m in told.items())).encode()).hexdigest()[:10]
        text = io.BytesIO()
        with zipfile.ZipFile(text, "w", zipfile.ZIP_STORED) as file:
            for name, data in members.items():
                file.writestr(zipfile.ZipInfo(f"{name}.npy"), data)  # of 1980, so that equal arrays are equal files
        table: Table = {"file": f"{stem}.{mark}.npz", "bytes": len(text.getbuffer()), "members": told}
        found = Arrays(None, table, folder)
        if not found.whole:
            write_bytes(folder / FOLDER / str(table["file"]), text.getvalue())
        return found

    def to_json(self) -> Table:
        """What the record says of them; empty before they are stored."""
        return dict(self._table or {})

    @property
    def whole(self) -> bool:
        """Whether the file is there in full length; its checksums are looked at when an array is read."""
        if self.path is None or self._table is None:
            return not self._table
        with suppress(OSError):
            return self.path.stat().st_size == self._table["bytes"]
        return False

    def _read(self, name: str) -> np.ndarray:
        if self._table is None or name not in self._table["members"]:
            raise KeyError(name)
        told, path = self._table["members"][name], self.path
        if path is None:
            raise TrajectoryError(f"the array {name!r} is not held here: load the results from their folder.")
        try:
            with zipfile.ZipFile(path) as file:
                member = file.getinfo(f"{name}.npy")
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > self._table["bytes"]:
                    raise ValueError("of another size")
                data = file.read(member)
            if hashlib.sha256(data).hexdigest() != told["sha256"]:
                raise ValueError("its checksum does not hold")
            array = np.load(io.BytesIO(data), allow_pickle=False)
            if array.dtype.str != told["dtype"] or list(array.shape) != told["shape"]:
                raise ValueError("of another type or shape")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise TrajectoryError(
                f"{path} does not hold the array {name!r} of its result ({error}): run `geomtraj repair`, or delete "
                "the file, and measure again."
            ) from error
        return array

    def verify(self) -> str:
        """What is wrong with the stored arrays; empty where nothing is."""
        try:
            for name in self._table["members"] if self._table else ():
                self._read(name)
        except TrajectoryError as error:
            return str(error)
        return ""


NONE = Arrays()


def _checked(name: str, array: Any) -> np.ndarray:
    found = np.asarray(array)
    if not isinstance(name, str) or not name:
        raise InputError(f"an array's name is {name!r}: it must be a string.")
    if found.dtype.kind not in KINDS:
        raise InputError(f"the array {name!r} holds {found.dtype}: a result keeps arrays of numbers.")
    return found


def _bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
    return buffer.getvalue()


def table_of(content: Any) -> Table | None:
    """The table in a record; None where it has none.

    Raises:
        TrajectoryError: It is none.
    """
    if not content:
        return None
    members = content.get("members") if isinstance(content, dict) else None
    sound = (
        isinstance(members, dict)
        and isinstance(content.get("bytes"), int)
        and isinstance(content.get("file"), str)
        and Path(content["file"]).name == content["file"]
        and all(
            isinstance(m, dict) and isinstance(m.get("sha256"), str) and isinstance(m.get("shape"), list)
            for m in members.values()
        )
    )
    if not sound:
        raise TrajectoryError(f"its 'arrays' is {content!r:.40}")
    return content
