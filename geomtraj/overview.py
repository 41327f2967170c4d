"""Runs at a glance: progress, size and status, without reading their iterates."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from geomtraj.comparing.naming import Optimizer, optimizer_of
from geomtraj.errors import InputError, TrajectoryError
from geomtraj.measuring import Results
from geomtraj.measuring.folder import FOLDER as RESULTS
from geomtraj.measuring.summary import NAME as SUMMARY
from geomtraj.trajectory import store
from geomtraj.trajectory.folder import HOLDER, LOCK, orphans
from geomtraj.trajectory.log import NAME as LOG
from geomtraj.trajectory.manifest import NAME as MANIFEST
from geomtraj.trajectory.manifest import read_manifest

TRAINED = "trained.json"
OWN = (store.FOLDER, RESULTS, MANIFEST, LOG, SUMMARY, TRAINED, LOCK, HOLDER)
"""What a run's folder holds that is geomtraj's."""


@dataclass(frozen=True)
class Overview:
    """One run.

    Attributes:
        path: Its folder.
        status: "training", "complete", "diverged", "interrupted", "stopped" (killed before its end), "unseen" (steps
            that the Recorder did not see) or "damaged".
        steps: Steps that have an iterate.
        last_step: How far training came, as far as is known.
        total: Steps that were planned; None where that is not known.
        bytes: Size on the disk.
        optimizer: What trained it.
        meta: What the Recorder was given.
        results: Statistic -> how many iterates it was measured at.
        doubtful: How many results come with a remark.
        why: What is damaged; empty where nothing is.
    """

    path: Path
    status: str
    steps: list[int] = field(default_factory=list)
    last_step: int = 0
    total: int | None = None
    bytes: int = 0
    optimizer: Optimizer = field(default_factory=lambda: Optimizer("", "", ""))
    meta: dict[str, Any] = field(default_factory=dict)
    results: dict[str, int] = field(default_factory=dict)
    doubtful: int = 0
    why: str = ""

    @property
    def progress(self) -> str:
        """Steps taken, of those planned where that is known."""
        return f"{self.last_step}" if self.total is None else f"{self.last_step}/{self.total}"


def overview(path: str | Path) -> Overview:
    """What a run's folder tells; the header of the last iterate is read, its tensors are not.

    Raises:
        InputError: There is no run there.
    """
    path = Path(path)
    if not is_run(path):
        raise InputError(f"{path} holds no run: give the folder of one, or see `geomtraj ls FOLDER`.")
    steps, size = store.stored_steps(path), _size(path)
    try:
        manifest = read_manifest(path)
        if steps:
            store.digest(path, steps[-1])
    except TrajectoryError as error:
        return Overview(path, "damaged", steps, steps[-1] if steps else 0, bytes=size, why=str(error))
    meta = manifest.get("meta", {})
    total = meta.get("steps") if type(meta.get("steps")) is int else None
    last = max(int(manifest.get("last_step", 0)), steps[-1] if steps else 0)
    status, why = manifest["status"], ""
    if status == "running":
        status = "training" if _held(path) else "stopped"
    results: Counter[str] = Counter()
    doubtful = 0
    if (path / SUMMARY).exists():
        try:
            measurements = Results.load(path).measurements
            results.update(m.statistic for m in measurements)
            doubtful = sum(m.status != "ok" for m in measurements)
        except TrajectoryError as error:
            status, why = "damaged", str(error)
    about = optimizer_of(Results(path, manifest, []))
    return Overview(path, status, steps, last, total, size, about, meta, dict(results), doubtful, why)


def runs_below(folder: str | Path) -> Iterator[Path]:
    """The folders of runs in a folder, itself included, by name.

    Raises:
        InputError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give one that holds runs.")
    for place, below, _ in os.walk(folder):
        below.sort()
        if is_run(Path(place)):
            below.clear()
            yield Path(place)


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run, whole or not."""
    return (path / store.FOLDER).is_dir() and ((path / MANIFEST).is_file() or bool(store.stored_steps(path)))


def remove(path: str | Path) -> list[Path]:
    """Delete what geomtraj wrote into a run's folder, and the folder where nothing else is in it.

    Returns:
        What stays there, since it is not geomtraj's.

    Raises:
        InputError: There is no run there.
        TrajectoryError: It is being recorded, or cannot be deleted.
    """
    path = Path(path)
    if path.is_symlink() or not is_run(path):
        raise InputError(f"{path} holds no run: nothing is deleted.")
    if _held(path):
        raise TrajectoryError(f"{path} is being recorded: stop that first; nothing is deleted.")
    try:
        for file in orphans(path):
            file.unlink()
        for name in OWN:
            _delete(path / name)
        left = sorted(path.iterdir())
        if not left:
            path.rmdir()
    except OSError as error:
        raise TrajectoryError(f"cannot delete all of {path} ({error.strerror}): make it writable.") from error
    return left


def readable(size: int) -> str:
    """Bytes as "3.4 MB"."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} TB"


def table_of(found: Iterable[Overview]) -> str:
    """One line for each run, in columns."""
    head = ("run", "optimizer", "lr", "seed", "steps", "iterates", "measured", "size", "status")
    rows = [
        (
            str(o.path), str(o.meta.get("optimizer") or o.optimizer.name), o.optimizer.rate,
            str(o.meta.get("seed", "–")), o.progress, str(len(o.steps)),
            ", ".join(f"{name} {count}" for name, count in o.results.items()) or "–", readable(o.bytes), o.status,
        )
        for o in found
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows))


def _delete(path: Path) -> None:
    """A file, or a folder with everything in it; a link is deleted, not followed."""
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            _delete(child)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _held(path: Path) -> bool:
    """Whether a process records there."""
    if not (path / LOCK).exists():
        return False
    try:
        with filelock.FileLock(path / LOCK, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # a folder that is not to be written
        return (path / HOLDER).exists()


def _size(path: Path) -> int:
    return sum((Path(place) / name).lstat().st_size for place, _, names in os.walk(path) for name in names)
