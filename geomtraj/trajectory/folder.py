"""The folder of a run while it is recorded: one writer at a time, and an error where the folder goes away."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import socket
from pathlib import Path

import filelock

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.trajectory import store
from geomtraj.trajectory.files import read_text, vanished, write_error, write_json

LOCK = ".recording.lock"
HOLDER = ".recording.json"
_ORPHAN = re.compile(r"\.(manifest\.json|log\.jsonl|\.recording\.json|\d{8,}\.h5)\.[0-9a-f]+\.tmp")


def absolute(path: object) -> Path:
    """The path from the root, so that a later chdir changes nothing.

    Raises:
        InputError: It is no path, or one that no file system takes.
    """
    try:
        made = Path(os.path.abspath(os.fspath(path)))  # type: ignore[call-overload]
        os.stat(made)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return made
    except (TypeError, ValueError, OSError) as error:  # such as an over-long name or a null character
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(path)[:200]!r} is no usable path ({reason}): give the path of a folder.") from error
    return made


class RunFolder:
    """Holds a run's folder for one writer, from `hold` to `release`.

    Args:
        path: The folder, as an absolute path.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock: filelock.BaseFileLock | None = None
        self._identity: tuple[int, int] | None = None
        self._made: list[Path] = []
        self._made_lock = False

    def hold(self) -> None:
        """Make the folder if it is absent, lock it, and remove what killed processes left half-written.

        Raises:
            InputError: The path is a file.
            TrajectoryError: Another process records there, or the folder cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: give the path of a folder to record into.")
        try:
            self._make(self.path)
            self._made_lock = not (self.path / LOCK).exists()
            lock = filelock.FileLock(self.path / LOCK, timeout=0)
            lock.acquire()
        except filelock.Timeout:
            raise TrajectoryError(
                f"{self.path} is being recorded by {self._holder()}: wait for its end, or record into another folder."
            ) from None
        except OSError as error:
            raise write_error(self.path, error) from error
        self._lock = lock
        try:
            self._make(self.path / store.FOLDER)
            for file in orphans(self.path):
                file.unlink()
            status = os.stat(self.path)
            self._identity = (status.st_dev, status.st_ino)
            write_json(self.path / HOLDER, {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()})
        except OSError as error:
            self.release()
            raise write_error(self.path, error) from error
        except BaseException:
            self.release()
            raise

    def check(self) -> None:
        """Find out whether the folder still stands where it stood.

        Raises:
            TrajectoryError: It was removed, renamed, or another stands in its place.
        """
        try:
            status = os.stat(self.path)
        except OSError:
            status = None
        if status is None or (status.st_dev, status.st_ino) != self._identity:
            raise vanished(self.path)
        if not (self.path / store.FOLDER).is_dir():
            raise vanished(self.path / store.FOLDER)

    def release(self) -> None:
        """Let others write."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        with contextlib.suppress(OSError, TrajectoryError):
            self.check()
            (self.path / HOLDER).unlink()
        lock.release()

    def undo(self) -> None:
        """Remove the folders that `hold` made, as far as nothing stands in them, and release the lock."""
        with contextlib.suppress(OSError):
            (self.path / HOLDER).unlink(missing_ok=True)
            if self._made_lock:
                (self.path / LOCK).unlink()
            for folder in reversed(self._made):
                folder.rmdir()
        self.release()

    def _make(self, folder: Path) -> None:
        absent = [f for f in (folder, *folder.parents) if not f.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._made += reversed(absent)

    def _holder(self) -> str:
        try:
            content = json.loads(read_text(self.path / HOLDER))
            return f"process {content['pid']} on {content['host']} since {content['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def orphans(folder: Path) -> list[Path]:
    """The temporary files that a killed recording left in a run's folder."""
    places = [place for place in (folder, folder / store.FOLDER) if place.is_dir()]
    return [file for place in places for file in place.iterdir() if _ORPHAN.fullmatch(file.name) and not file.is_dir()]


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
