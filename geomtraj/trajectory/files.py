"""Files that are either whole or absent: written to a temporary name, flushed to disk and renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from geomtraj.errors import TrajectoryError

TEMPORARY_SUFFIX = ".tmp"
LARGEST_TEXT = 2**30
"""Bytes of the largest text file that is read whole."""
NO_FILE_OF_OURS = (errno.EINVAL, errno.EFBIG, errno.ELOOP)
"""Errors of `open_regular` and `read_text` for what cannot have been written here: a pipe, a circle of links."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, making its folder; what stood under the name stays until the new one is on the disk.

    Raises:
        TrajectoryError: The disk is full or the folder cannot be written; the temporary file is removed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    replace_file(path, lambda descriptor: write_all(descriptor, content))


def replace_file(path: Path, fill: Callable[[int], None]) -> None:
    """Write a file atomically into a folder that is there.

    Args:
        path: The file.
        fill: Writes the content to the descriptor that it is given.

    Raises:
        TrajectoryError: As for `write_bytes`.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            fill(descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise


def write_all(descriptor: int, content: Any, offset: int | None = None) -> None:
    """Write all of a buffer, at `offset` or where the file stands; one call may write only a part."""
    view = memoryview(content).cast("B")
    while len(view):
        written = os.write(descriptor, view) if offset is None else os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset = None if offset is None else offset + written


def write_error(path: Path, error: OSError) -> TrajectoryError:
    """The error for a file that could not be written: what is kept and how to go on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TrajectoryError(
            f"the disk is full: {path} was not written, everything stored before it is kept whole; "
            "free some space and go on with resume=True."
        )
    if error.errno == errno.ENOENT:
        return TrajectoryError(
            f"cannot write {path}, whose folder is gone: it was removed or renamed; put it back and go on with "
            "resume=True, or write into another folder."
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
        return TrajectoryError(
            f"cannot write {path} ({error.strerror}): a file, a folder or a link of its name, or of the folder it is "
            "in or holds, stands in the way; move it aside, or write into another folder."
        )
    return TrajectoryError(
        f"cannot write {path} ({error.strerror or error}): everything stored before it is kept whole; "
        "make the folder writable and go on with resume=True."
    )


def vanished(path: Path) -> TrajectoryError:
    """The error for a folder, or a file in it, that was removed or renamed during recording."""
    return TrajectoryError(
        f"{path} was removed, renamed or replaced while it was being recorded: nothing more can be stored there; "
        "put it back and go on with resume=True, or record into another folder."
    )


def open_regular(path: Path) -> int:
    """A descriptor to read a regular file with; what waits or never ends (a pipe, a device) is refused unopened.

    Raises:
        OSError: The file cannot be opened, or is none.
    """
    # A pipe without a writer would block, were it not for O_NONBLOCK, which regular files do not heed.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def read_text(path: Path, errors: str = "strict") -> str:
    """The text of a regular file.

    Args:
        path: The file.
        errors: "replace" for U+FFFD in place of bytes that are no UTF-8.

    Raises:
        OSError: It cannot be read, is not regular, or larger than any text of ours.
        UnicodeDecodeError: It is no UTF-8.
    """
    return read_bytes(path).decode("utf-8", errors=errors)


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file of text; errors as for `read_text`."""
    with open(open_regular(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > LARGEST_TEXT:
            raise OSError(errno.EFBIG, "larger than any file of this kind")
        return file.read()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically; errors as for `write_bytes`."""
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        TrajectoryError: The file is missing, unreadable or holds no JSON object.
    """
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError:
        raise TrajectoryError(f"{path} is missing: this is no whole trajectory; record it anew.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise TrajectoryError(f"{path} cannot be read ({error}): restore it from a copy or record anew.") from error
    if not isinstance(content, dict):
        raise TrajectoryError(f"{path} holds no JSON object: restore it from a copy or record anew.")
    return content


def numbered(path: Path, suffix: str) -> Path:
    """A free name made of this one, a suffix, and a number where that is taken."""
    names: Iterable[Path] = (path.with_name(f"{path.name}{suffix}{f'.{n}' if n else ''}") for n in range(10**6))
    return next(name for name in names if not name.exists())


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
