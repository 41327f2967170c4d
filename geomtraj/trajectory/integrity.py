"""Checks of a run's folder, file by file, and the repair of what can be rebuilt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from geomtraj.errors import TrajectoryError
from geomtraj.trajectory import log, manifest, store
from geomtraj.trajectory.files import NO_FILE_OF_OURS, numbered
from geomtraj.trajectory.folder import LOCK, RunFolder, absolute, orphans
from geomtraj.trajectory.payload import type_name

Finding = tuple[str, str]
"""A file, and what is wrong with it."""


@dataclass(frozen=True)
class Verification:
    """What stands in a run's folder.

    Attributes:
        path: The folder.
        steps: Steps whose iterates are whole.
        findings: Each damaged or doubtful file, and what is wrong with it.
        notes: What is no damage, and worth knowing.
        rows: Rows of the log that are whole.
    """

    path: Path
    steps: list[int]
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is damaged."""
        return not self.findings

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self.steps)} iterates and {self.rows} logged steps are whole"]
        lines += [f"  damaged: {file}: {why}" for file, why in self.findings]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def verify(path: str | Path, check_results: Callable[[Path], Iterable[Finding]] | None = None) -> Verification:
    """Read every file of a run and check it against its checksum; nothing is changed.

    Args:
        path: The run's folder.
        check_results: Finds what is wrong with the stored results; None to leave them out.

    Raises:
        TrajectoryError: There is no such folder, or a file cannot be read for want of rights or memory, by a fault of
            the disk, or since a later geomtraj wrote it.
    """
    folder = absolute(path)
    if not folder.is_dir():
        raise TrajectoryError(f"there is no folder {path}: give the path of a recorded run.")
    findings: list[Finding] = []
    notes: list[str] = []
    described = _manifest(folder, findings)
    steps = _iterates(folder, described, findings)
    reading, lost = _log(folder)
    expected = described.get("log_rows") if described.get("status") in ("complete", "unseen") else None
    if lost:
        findings.append((log.NAME, lost))
    elif reading.passed_over:
        findings.append((log.NAME, reading.described()))
    elif isinstance(expected, int) and reading.written < expected:
        findings.append((log.NAME, f"{expected - reading.written} rows at its end are gone"))
    if reading.torn:
        notes.append(f"the last line of {log.NAME} is cut short, as a killed process leaves it")
    left = orphans(folder)
    if left:
        notes.append(f"{len(left)} temporary files of killed processes, which the next recording or repair removes")
    aside = [f.name for suffix in ("damaged", "superseded") for f in folder.rglob(f"*.{suffix}*")]
    if aside:
        notes.append(f"set aside: {', '.join(sorted(aside)[:5])}{' and more' if len(aside) > 5 else ''}")
    if check_results is not None:
        findings += check_results(folder)
    return Verification(folder, steps, findings, notes, len(reading.rows))


def repair(path: str | Path) -> list[str]:
    """Set damaged files aside and rebuild what can be rebuilt from the rest; what was done, in sentences.

    A damaged iterate keeps its bytes under the name NAME.damaged. A manifest is rebuilt from the iterates, which carry
    what it says; a log keeps its whole rows.

    Raises:
        TrajectoryError: The folder is being recorded into, holds no whole iterate, or cannot be written.
    """
    folder = absolute(path)
    if not folder.is_dir():
        raise TrajectoryError(f"there is no folder {path}: give the path of a recorded run.")
    lock_was_there = (folder / LOCK).exists()
    removed = orphans(folder)
    held = RunFolder(folder)
    held.hold()
    try:
        done = [f"removed {len(removed)} temporary files"] if removed else []
        return done + _repaired(folder)
    finally:
        held.release()
        if not lock_was_there:
            (folder / LOCK).unlink(missing_ok=True)


def _repaired(folder: Path) -> list[str]:
    findings: list[Finding] = []
    described = _manifest(folder, findings)
    lost = bool(findings)
    steps = _iterates(folder, described, findings)
    if not steps:
        raise TrajectoryError(f"{folder} holds no whole iterate: there is nothing to rebuild it from.")
    done = []
    for file, _ in findings:
        if file != manifest.NAME:
            done.append(f"kept {file} as {_aside(folder / file)}")
    if lost:
        described = _rebuilt(folder, steps)
        if (folder / manifest.NAME).exists():
            done.append(f"kept {manifest.NAME} as {_aside(folder / manifest.NAME)}")
        done.append(f"rebuilt {manifest.NAME} from {len(steps)} iterates")
    reading, unreadable = _log(folder)
    if unreadable:
        done.append(f"kept {log.NAME} as {_aside(folder / log.NAME)}")
        described["log_rows"] = 0
    if reading.passed_over or reading.torn:
        kept = numbered(folder / log.NAME, ".damaged")
        kept.write_bytes((folder / log.NAME).read_bytes())
        writer = log.LogWriter(folder)
        writer.start(2**62)
        writer.close()
        described["log_rows"] = writer.rows
        done.append(f"kept {log.NAME} as {kept.name}, and wrote the {writer.rows} rows that are whole")
    if done:
        manifest.write_manifest(folder, described)
    return done


def _manifest(folder: Path, findings: list[Finding]) -> dict[str, Any]:
    try:
        return manifest.read_manifest(folder)
    except TrajectoryError as error:
        findings.append((manifest.NAME, str(error)))
        return {}


def _log(folder: Path) -> tuple[log.LogReading, str]:
    """What can be read of the log, and why it cannot be read at all, empty where it can."""
    try:
        return log.inspect_log(folder), ""
    except TrajectoryError as error:
        if getattr(error.__cause__, "errno", None) not in NO_FILE_OF_OURS:
            raise
        return log.LogReading([]), str(error)


def _iterates(folder: Path, described: dict[str, Any], findings: list[Finding]) -> list[int]:
    """The steps of the whole iterates; a run whose manifest is lost is the one that most of its iterates name."""
    whole = []
    for step in store.stored_steps(folder):
        try:
            store.check_iterate(folder, step, described.get("run"))
            whole.append(step)
        except store.DamagedFile as error:
            findings.append((f"{store.FOLDER}/{store.iterate_path(folder, step).name}", str(error)))
    return whole


def _rebuilt(folder: Path, steps: list[int]) -> dict[str, Any]:
    """The manifest of a run whose own is lost, from what each iterate says of its run."""
    content = store.read_iterate(folder, steps[-1])
    parameters: dict[str, Tensor] = content["parameters"]
    about = content.get("about") or {}
    states = content["optimizer"]
    states = [] if states is None else states if isinstance(states, list) else [states]
    groups = [
        {key: manifest.plain(value) for key, value in group.items() if key != "params"}
        for state in states
        for group in state.get("param_groups", [])
    ]
    reading, _ = _log(folder)
    return {
        "format_version": manifest.FORMAT_VERSION,
        **({"run": content["run"]} if content.get("run") else {}),
        "status": "interrupted",
        "diverged_at": None,
        "meta": about.get("meta", {}),
        "schedule": about.get("schedule", ""),
        "parameters": {name: list(p.shape) for name, p in parameters.items()},
        "trainable": content["trainable"],
        "not_optimized": about.get("not_optimized", []),
        "aliases": about.get("aliases", {}),
        "dtype": sorted({type_name(p.dtype) for p in parameters.values()}),
        "optimizer": {"class": about.get("optimizer", ""), "groups": groups},
        "storage": about.get("storage", {}),
        "sessions": [],
        "repaired": True,
        "last_step": steps[-1],
        "wall_time": content["wall_time"],
        "log_rows": reading.written,
    }


def _aside(path: Path) -> str:
    target = numbered(path, ".damaged")
    path.rename(target)
    return target.name
