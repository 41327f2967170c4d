"""The measurements of one trajectory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomtraj.display import html_table
from geomtraj.errors import TrajectoryError, unknown_name
from geomtraj.measuring.content import Seen, content_of, still
from geomtraj.measuring.folder import FOLDER, counted, key_of, no_collection, read_stored
from geomtraj.measuring.record import Measurement, read_measurement
from geomtraj.measuring.summary import NAME, keys_of_format_1, read_summary
from geomtraj.spreadsheets import dataframe
from geomtraj.statistics.base import Quantity
from geomtraj.trajectory import Trajectory
from geomtraj.trajectory.log import inspect_log
from geomtraj.trajectory.manifest import read_manifest
from geomtraj.trajectory.store import stored_steps

if TYPE_CHECKING:
    import pandas

__all__ = ["FOLDER", "Measurement", "Results", "key_of", "read_measurement"]

_LOG = logging.getLogger("geomtraj")

COLUMNS = (
    "seed", "path", "step", "wall_time", "loss", "statistic", "label", "value", "low", "high", "status", "matvecs",
    "seconds",
)  # fmt: skip


class Results:
    """The measurements of one trajectory, as `measure` returns them; read-only.

    Args:
        path: The folder of the results, which is the trajectory's unless they are kept elsewhere.
        manifest: The trajectory's manifest.
        measurements: All measurements, in any order.
        log: The training log, one row per logged step.
        remarks: Sentences about results that were passed over or measured anew.

    Attributes:
        path: The folder of the results.
        manifest: Config, command, versions, device, status of the run.
        measurements: All measurements, ordered by step.
        log: The training log, one row {"step", "wall_time", scalars...} per logged step.
        remarks: Sentences about results that were passed over or measured anew.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        measurements: Iterable[Measurement],
        log: list[dict[str, Any]] | None = None,
        remarks: Iterable[str] = (),
    ):
        self.path = Path(path)
        self.manifest = manifest
        self.measurements = sorted(measurements, key=lambda m: (m.step, m.statistic))
        self.log = log or []
        self.remarks = list(remarks)
        self._of: dict[str, list[Measurement]] = {}
        for m in self.measurements:
            self._of.setdefault(m.statistic, []).append(m)

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
        return sorted(self._of)

    @property
    def steps(self) -> list[int]:
        """Steps of the measured iterates."""
        return sorted({m.step for m in self.measurements})

    def __len__(self) -> int:
        return len(self.measurements)

    def __repr__(self) -> str:
        return f"Results({str(self.path)!r}, {len(self.steps)} iterates, {', '.join(self.statistics)})"

    def _repr_html_(self) -> str:
        rows = []
        for name in self.statistics:
            found = self.of(name)
            remarks = sum(m.status != "ok" for m in found)
            rows.append((name, len(found), len(self.labels(name)), remarks, sum(m.matvecs for m in found)))
        return html_table(repr(self), ("statistic", "iterates", "quantities", "with a remark", "products"), rows)

    def of(self, statistic: str) -> list[Measurement]:
        """The measurements of one statistic, ordered by step.

        Raises:
            InputError: It was not measured.
        """
        if statistic not in self._of:
            raise unknown_name(f"measured statistic in {self.path}", statistic, self.statistics)
        return list(self._of[statistic])

    def labels(self, statistic: str) -> list[str]:
        """Labels of a statistic's quantities, in the order of their first appearance."""
        return list(dict.fromkeys(label for m in self.of(statistic) for label in m.quantities))

    def series(self, statistic: str, label: str) -> list[tuple[Measurement, Quantity]]:
        """One quantity along the trajectory; iterates that lack it are left out."""
        return [(m, m.quantities[label]) for m in self.of(statistic) if label in m.quantities]

    def losses(self) -> dict[int, float]:
        """L(theta) on the measuring batches, by step."""
        return {m.step: q.value for m, q in self.series("loss", "loss")}

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """One row for each measured number, in the order of `COLUMNS`; one without a label where nothing was found.

        A number's status is what the measurement says of it, not of other blocks.
        """
        losses = self.losses() if "loss" in self.statistics else {}
        seed, path = self.meta.get("seed", ""), str(self.path)
        for m in self.measurements:
            head = (seed, path, m.step, m.wall_time, losses.get(m.step, ""), m.statistic)
            for label, q in m.quantities.items():
                yield *head, label, q.value, q.low, q.high, m.status_of(label), m.matvecs, m.seconds
            if not m.quantities:
                yield *head, "", "", "", "", m.status, m.matvecs, m.seconds

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each measured number, with the columns of a report's measurements.csv that are of one run.

        Raises:
            InputError: pandas is not installed.
        """
        return dataframe(COLUMNS, self.rows())

    @classmethod
    @no_collection()
    def load(cls, path: str | Path) -> Results:
        """The measurements that `measure` made or found for the problem it was called with last.

        For each statistic those of the settings that were used last. Results that are damaged, or of other iterates
        than those recorded now, are passed over and counted in `remarks`, which are logged too.

        Args:
            path: The trajectory's folder, or the folder that `measure` was given as `out`.

        Raises:
            TrajectoryError: Nothing was measured there, or a file is of a newer format.
        """
        path = Path(path)
        if not (path / NAME).exists():
            raise TrajectoryError(
                f"{path} holds no {NAME}: measure the trajectory first, with gt.measure or make measure."
            )
        summary = read_summary(path)
        if summary is None:
            stored = read_stored(path, keys_of_format_1(path))
            found, remarks = [*stored.first_format.values(), *stored.results.values()], stored.remarks(path)
            folder, manifest = path, read_manifest(path)
        else:
            folder = Path(summary.trajectory) if summary.trajectory else path
            manifest = summary.manifest if summary.trajectory else read_manifest(path)
            stored = read_stored(path, summary.keys.values())
            found, remarks = list(stored.results.values()), stored.remarks(path)
            others = of_other_iterates(folder, summary.iterates, found)
            remarks += _left_out(path, found, others)
            found = [m for m in found if m.iterate == others.get(m.step, m.iterate)]
        for sentence in remarks:
            _LOG.warning(sentence)
        reading = inspect_log(folder)
        return cls(path, manifest, found, reading.logged(), remarks + reading.warn(folder))


def _left_out(path: Path, found: list[Measurement], others: Mapping[int, str]) -> list[str]:
    """Sentences about results that are not believed because of their iterates."""
    told = []
    for why, unreadable in (("of other iterates than those recorded now", False), ("of unreadable iterates", True)):
        left = [
            m for m in found if m.step in others and others[m.step] != m.iterate and unreadable != bool(others[m.step])
        ]
        if left:
            told.append(f"{path}: {counted(left, 'stored result')} {why}: left out; call gt.measure again.")
    return told


def of_other_iterates(folder: Path, seen: Mapping[int, Seen], found: list[Measurement]) -> dict[int, str]:
    """Step -> what its iterate holds now, where a result was measured at something else; "" if it cannot be read.

    Only files that have changed since `measure` read them are read; iterates that are gone contradict nothing.
    """
    others: dict[int, str] = {}
    now: dict[int, str] = {}
    recorded = set(stored_steps(folder))
    trajectory = Trajectory(folder) if recorded else None
    for m in found:
        if m.step not in recorded or trajectory is None:
            continue
        if m.step not in now:
            now[m.step] = still(seen, trajectory, m.step) or _content(trajectory, m.step)
        if now[m.step] != m.iterate:
            others[m.step] = now[m.step]
    return others


def _content(trajectory: Trajectory, step: int) -> str:
    try:
        return content_of(trajectory.at_step(step))
    except TrajectoryError:
        return ""
