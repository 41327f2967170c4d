"""Files that torch.save wrote: looked at before they are read, and read with weights_only."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from geomtraj.errors import GeomtrajError, TrajectoryError
from geomtraj.isolation import on_the_cpu
from geomtraj.trajectory.files import open_regular
from geomtraj.trajectory.store import DamagedFile, OutOfMemory

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_CHUNK = 2**22
SPREAD = 2**24
"""Bytes that tensors may have beyond twice those of their files: expanded ones repeat them."""


@on_the_cpu
def load_torch(path: Path, *, whole: bool = True) -> Any:
    """What a file holds, its tensors mapped from the disk where its form allows that.

    Args:
        path: The file.
        whole: Whether to compare the checksums of everything in it.

    Raises:
        DamagedFile: It is cut short or altered, or no file of torch's.
        TrajectoryError: It cannot be opened, or holds objects that weights_only does not read.
    """
    zipped = is_zip(path)
    try:
        if zipped:
            _check_archive(path, whole)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of the file's form
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except GeomtrajError:
        raise
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    except MemoryError as error:
        raise OutOfMemory(f"{path} cannot be read: the memory does not suffice.") from error
    except OSError as error:
        raise cannot_open(path, error) from error
    except Exception as error:  # a damaged file makes the unpickler raise almost anything
        raise unreadable(path, error) from error


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive, as torch has written since version 1.6.

    Raises:
        TrajectoryError: It cannot be opened, or is no regular file.
    """
    try:
        descriptor = open_regular(path)
        try:
            return os.pread(descriptor, 4, 0) == b"PK\x03\x04"
        finally:
            os.close(descriptor)
    except OSError as error:
        raise cannot_open(path, error) from error


def cannot_open(path: Path, error: OSError) -> TrajectoryError:
    """The error for a file that is not there or not to be read."""
    return TrajectoryError(f"cannot read the checkpoint {path} ({error.strerror or error}): give the path of a file.")


def unreadable(path: object, why: object) -> DamagedFile:
    """The error for a file that is cut short, altered or of no known form."""
    reason = " ".join(str(why).split())[:200] or type(why).__name__
    return DamagedFile(
        f"{path} is no whole checkpoint ({reason}): leave it out or put a whole copy in its place, or pass "
        "load= if it is of a form of its own."
    )


def _check_archive(path: Path, whole: bool) -> None:
    """Refuse archives that torch.save does not write: compressed, larger inside than outside, with false checksums."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = {entry.filename.rpartition("/")[2] for entry in entries}
        if "constants.pkl" in names:
            raise TrajectoryError(
                f"{path} is a TorchScript archive, which holds code: save model.state_dict() with torch.save."
            )
        if "data.pkl" not in names:
            raise ValueError("a zip archive that torch.save did not write")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its entries are compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("its entries are larger than the file")
        if whole and any(entry.CRC for entry in entries):  # torch can be told to write none
            for entry in entries:
                with archive.open(entry) as file:
                    while file.read(_CHUNK):
                        pass


def _refused(path: Path, error: Exception) -> TrajectoryError:
    needed = list(dict.fromkeys(_GLOBAL.findall(str(error))))
    if not needed:
        return unreadable(path, error)
    name = needed[0]
    return TrajectoryError(
        f"{path} holds {name}, which is not read, since reading it may run code: save tensors, numbers and plain dicts "
        f"alone; if you trust the file, call torch.serialization.add_safe_globals([{name.rpartition('.')[2]}]) first, "
        "or pass load=."
    )
