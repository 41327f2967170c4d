"""Measurements as rows of a table: one for each number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geomtraj.measuring.results import Results

COLUMNS = (
    "seed", "path", "step", "wall_time", "loss", "statistic", "label", "value", "low", "high", "status", "matvecs",
    "seconds",
)  # fmt: skip


def rows(results: Results) -> Iterator[tuple[Any, ...]]:
    """The rows of a run's measurements, in the order of `COLUMNS`; one without a label where nothing was found.

    A number's status is what the measurement says of it, not of other blocks.
    """
    losses = results.losses() if "loss" in results.statistics else {}
    seed, path = results.meta.get("seed", ""), str(results.path)
    for m in results.measurements:
        head = (seed, path, m.step, m.wall_time, losses.get(m.step, ""), m.statistic)
        for label, q in m.quantities.items():
            yield *head, label, q.value, q.low, q.high, m.status_of(label), m.matvecs, m.seconds
        if not m.quantities:
            yield *head, "", "", "", "", m.status, m.matvecs, m.seconds
