"""Files that are either whole or absent: written to a temporary name, flushed to disk and renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from pathlib import Path
from typing import Any

from geomtraj.errors import TrajectoryError

TEMPORARY_SUFFIX = ".tmp"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; what stood under the name before stays until the new content is on the disk.

    Raises:
        TrajectoryError: The disk is full or the folder cannot be written; the temporary file is removed.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def write_error(path: Path, error: OSError) -> TrajectoryError:
    """The error for a file that could not be written: what is kept and how to go on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TrajectoryError(
            f"the disk is full: {path} was not written, everything stored before it is kept whole; "
            "free some space and go on with resume=True."
        )
    return TrajectoryError(
        f"cannot write {path} ({error.strerror or error}): everything stored before it is kept whole; "
        "make the folder writable and go on with resume=True."
    )


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically; errors as for `write_bytes`."""
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        TrajectoryError: The file is missing, unreadable or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrajectoryError(f"{path} is missing: this is no whole trajectory; record it anew.") from None
    except (OSError, ValueError) as error:
        raise TrajectoryError(f"{path} cannot be read ({error}): restore it from a copy or record anew.") from error
    if not isinstance(content, dict):
        raise TrajectoryError(f"{path} holds no JSON object: restore it from a copy or record anew.")
    return content


def _sync_folder(folder: Path) -> None:
    # A rename reaches the disk with its folder; systems that cannot open folders do without.
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
