"""Stored measurements of one trajectory: one JSON file for each iterate, statistic and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from geomtraj.errors import TrajectoryError, unknown_name
from geomtraj.statistics.base import Quantity
from geomtraj.trajectory.files import read_json, write_json

FORMAT_VERSION = 1
FOLDER = "results"
SUMMARY = "measured.json"


@dataclass(frozen=True)
class Measurement:
    """One statistic at one iterate.

    Attributes:
        step: Optimizer steps before the iterate.
        wall_time: Seconds of training until there.
        statistic: Name of the statistic.
        settings: Its settings.
        quantities: Label (block name, or the quantity's own name) -> value with its 95 % interval.
        details: What else the statistic keeps.
        status: "ok", or the reason why a number is missing or doubtful.
        matvecs: Hessian-vector products spent.
        seconds: Time spent.
        made: How it was made: problem fingerprint, dtype, device, versions.
    """

    step: int
    wall_time: float
    statistic: str
    settings: dict[str, Any]
    quantities: dict[str, Quantity]
    details: dict[str, Any] = field(default_factory=dict)
    status: str = "ok"
    matvecs: int = 0
    seconds: float = 0.0
    made: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The record in JSON's types, with Python's NaN and Infinity."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Measurement:
        """The record that `to_json` wrote."""
        content = {key: value for key, value in content.items() if key != "format_version"}
        content["quantities"] = {label: Quantity(**q) for label, q in content["quantities"].items()}
        return cls(**content)


def key(statistic: str, settings: dict[str, Any], fingerprint: str) -> str:
    """The part of a file's name that tells settings and problems apart."""
    text = json.dumps([statistic, settings, fingerprint], sort_keys=True)
    return f"{statistic}.{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def result_path(trajectory: Path, step: int, result_key: str) -> Path:
    """Where one measurement is stored."""
    return trajectory / FOLDER / f"{step:08d}.{result_key}.json"


def write_measurement(path: Path, measurement: Measurement) -> None:
    """Stores one measurement, whole or not at all.

    Raises:
        TrajectoryError: The disk is full; what was stored before stays.
    """
    write_json(path, measurement.to_json())


def read_measurement(path: Path) -> Measurement:
    """Reads one measurement.

    Raises:
        TrajectoryError: The file is damaged, or of a newer format.
    """
    content = read_json(path)
    version = content.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise TrajectoryError(
            f"{path} has result format {version!r}, newer than this geomtraj reads: upgrade geomtraj."
        )
    try:
        return Measurement.from_json(content)
    except (KeyError, TypeError) as error:
        raise TrajectoryError(f"{path} is no whole result ({error}): delete it and measure again.") from error


class Results:
    """The measurements of one trajectory, as `measure` returns them; read-only.

    Args:
        path: The trajectory's folder.
        manifest: The trajectory's manifest.
        measurements: All measurements, in any order.
        log: The training log, one row per logged step.

    Attributes:
        path: The trajectory's folder.
        manifest: Config, command, versions, device, status of the run.
        measurements: All measurements, ordered by step.
        log: The training log, one row {"step", "wall_time", scalars...} per logged step.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        measurements: Iterable[Measurement],
        log: list[dict[str, Any]] | None = None,
    ):
        self.path = Path(path)
        self.manifest = manifest
        self.measurements = sorted(measurements, key=lambda m: (m.step, m.statistic))
        self.log = log or []

    @property
    def meta(self) -> dict[str, Any]:
        """What the Recorder was given as `meta`: optimizer, learning rate, seed, task."""
        return self.manifest.get("meta", {})

    @property
    def diverged(self) -> bool:
        """Whether the training run diverged."""
        return self.manifest.get("status") == "diverged"

    @property
    def statistics(self) -> list[str]:
        """Names of the statistics there are."""
        return sorted({m.statistic for m in self.measurements})

    @property
    def steps(self) -> list[int]:
        """Steps of the measured iterates."""
        return sorted({m.step for m in self.measurements})

    def __len__(self) -> int:
        return len(self.measurements)

    def __repr__(self) -> str:
        return f"Results({str(self.path)!r}, {len(self.steps)} iterates, {', '.join(self.statistics)})"

    def of(self, statistic: str) -> list[Measurement]:
        """The measurements of one statistic, ordered by step.

        Raises:
            InputError: It was not measured.
        """
        found = [m for m in self.measurements if m.statistic == statistic]
        if not found:
            raise unknown_name(f"measured statistic in {self.path}", statistic, self.statistics)
        return found

    def labels(self, statistic: str) -> list[str]:
        """Labels of a statistic's quantities, in the order of their first appearance."""
        return list(dict.fromkeys(label for m in self.of(statistic) for label in m.quantities))

    def series(self, statistic: str, label: str) -> list[tuple[Measurement, Quantity]]:
        """One quantity along the trajectory; iterates that lack it are left out."""
        return [(m, m.quantities[label]) for m in self.of(statistic) if label in m.quantities]

    def losses(self) -> dict[int, float]:
        """L(theta) on the measuring batches, by step."""
        return {m.step: q.value for m, q in self.series("loss", "loss")}

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """The measurements that the last `measure` of this trajectory made or found.

        Args:
            path: The trajectory's folder.

        Raises:
            TrajectoryError: Nothing was measured there, or a file is damaged.
        """
        from geomtraj.trajectory.log import read_log
        from geomtraj.trajectory.manifest import read_manifest

        path = Path(path)
        if not (path / SUMMARY).exists():
            raise TrajectoryError(
                f"{path} holds no {SUMMARY}: measure the trajectory first, with gt.measure or make measure."
            )
        keys = read_json(path / SUMMARY)["keys"]
        files = [file for k in keys for file in sorted((path / FOLDER).glob(f"*.{k}.json"))]
        return cls(path, read_manifest(path), map(read_measurement, files), read_log(path))
