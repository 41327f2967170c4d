"""measured.json: which of the stored results belong together, and what their iterates held."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from geomtraj.errors import TrajectoryError
from geomtraj.measuring.content import Seen
from geomtraj.measuring.record import NewerFormat, numbers, strict
from geomtraj.trajectory.files import read_json, write_json

NAME = "measured.json"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class Summary:
    """What was measured in a folder.

    Attributes:
        problem: Fingerprint of the problem that was measured last.
        keys: Statistic -> the part of its results' file names that tells settings and problems apart.
        iterates: Step -> what the iterate held when it was last read.
        trajectory: Folder of the trajectory, where results are kept elsewhere; else empty.
        manifest: The trajectory's manifest, where results are kept elsewhere.
    """

    problem: str
    keys: dict[str, str]
    iterates: dict[int, Seen] = field(default_factory=dict)
    trajectory: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)

    def after(self, earlier: Summary | None) -> Summary:
        """This summary with what an earlier one says of the same problem and of other iterates."""
        if earlier is None:
            return self
        keys = earlier.keys | self.keys if earlier.problem == self.problem else self.keys
        return replace(self, keys=keys, iterates=earlier.iterates | self.iterates)


def read_summary(folder: Path) -> Summary | None:
    """The summary in a folder; None if there is none, or only that of format 1.

    Raises:
        TrajectoryError: It is damaged or of a newer format.
    """
    path = folder / NAME
    if not path.exists():
        return None
    content = read_json(path)
    version = content.get("format_version", 1)
    if version == 1 and isinstance(content.get("keys"), list):
        return None
    if type(version) is int and version > FORMAT_VERSION:
        raise NewerFormat(version, str(path))
    try:
        if content.pop("sha256", None) != _checksum(content):
            raise ValueError("its checksum does not hold")
        return _from_json(content)
    except (ValueError, RecursionError) as error:
        raise TrajectoryError(
            f"{path} is damaged ({error}): delete it and call gt.measure again, which finds the stored results."
        ) from None


_FIELDS = {"problem": str, "keys": dict, "iterates": dict, "trajectory": str, "manifest": dict}


def _from_json(content: dict[str, Any]) -> Summary:
    """The summary in what `write_summary` wrote; ValueError for anything else."""
    for name, kind in _FIELDS.items():
        if type(content.get(name)) is not kind:
            raise ValueError(f"its {name} is {content.get(name)!r:.40}")
    if not all(type(key) is str for key in content["keys"].values()):
        raise ValueError("its keys are no texts")
    return Summary(
        content["problem"],
        content["keys"],
        {int(step): Seen.from_json(seen) for step, seen in content["iterates"].items()},
        content["trajectory"],
        numbers(content["manifest"]),
    )


def keys_of_format_1(folder: Path) -> list[str]:
    """The keys in a summary of format 1; none if there is no such file.

    Raises:
        TrajectoryError: The file is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return []
    content = read_json(path)
    if "format_version" in content:
        return []
    keys = content.get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise TrajectoryError(f"{path} is damaged ('keys' is {keys!r:.40}): call gt.measure again.")
    return keys


def write_summary(folder: Path, summary: Summary) -> None:
    """Stores the summary; one that stands there already only gets a new time stamp, for `make`.

    Raises:
        TrajectoryError: The disk is full or the folder cannot be written.
    """
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "problem": summary.problem,
        "keys": summary.keys,
        "trajectory": summary.trajectory,
        "manifest": strict(summary.manifest),
        "iterates": {str(step): seen.to_json() for step, seen in sorted(summary.iterates.items())},
    }
    with suppress(TrajectoryError):
        if read_summary(folder) == summary:
            with suppress(OSError):
                os.utime(folder / NAME)
            return
    write_json(folder / NAME, {**content, "sha256": _checksum(content)})


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
