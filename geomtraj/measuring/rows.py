"""Measurements as rows of a table: one for each number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from geomtraj.measuring.record import Measurement

if TYPE_CHECKING:
    from geomtraj.measuring.results import Results

COLUMNS = (
    "seed", "path", "step", "wall_time", "loss", "statistic", "label", "value", "low", "high", "status", "matvecs",
    "seconds",
)  # fmt: skip
OK = "ok"


def rows(results: Results) -> Iterator[tuple[Any, ...]]:
    """The rows of a run's measurements, in the order of `COLUMNS`; one without a label where nothing was found.

    A number's status is its block's own where the measurement tells it, else the whole measurement's.
    """
    losses = results.losses() if "loss" in results.statistics else {}
    seed, path = results.meta.get("seed", ""), str(results.path)
    for m in results.measurements:
        said = own_statuses(m)
        head = (seed, path, m.step, m.wall_time, losses.get(m.step, ""), m.statistic)
        for label, q in m.quantities.items():
            yield *head, label, q.value, q.low, q.high, said.get(label, OK) if said else m.status, m.matvecs, m.seconds
        if not m.quantities:
            yield *head, "", "", "", "", m.status, m.matvecs, m.seconds


def own_statuses(m: Measurement) -> dict[str, str]:
    """Block -> its own status, where the measurement's details hold one."""
    return {
        label: details["status"]
        for label, details in m.details.items()
        if label in m.quantities and isinstance(details, dict) and isinstance(details.get("status"), str)
    }
