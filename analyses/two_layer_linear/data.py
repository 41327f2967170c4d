"""The stored runs of two_layer_linear, and their statistics over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from machinery import Job, Result

from geomtraj.inference.ratios import OverSeeds, over_seeds
from geomtraj.inference.trend import MeanOverSeeds, Trend, mean_over_seeds, trend
from geomtraj.tasks import two_layer_linear as theory

Done = tuple[Job, Result]
NAMES = {"adam": "Adam", "sgdm": "SGD with momentum"}
LAYERS = ("r_1", "r_2")


@dataclass(frozen=True)
class Runs:
    """Runs of one part of the analysis.

    Attributes:
        done: Jobs with their results; those that diverged count as not there.
    """

    done: Sequence[Done]

    def where(self, **fixed: Any) -> Runs:
        """The runs whose jobs have these values."""
        return Runs([(j, r) for j, r in self.done if all(j[k] == v for k, v in fixed.items())])

    def values(self, level: float, key: str) -> dict[int, float]:
        """Seed -> what was read where the loss passed a level."""
        return {
            j["seed"]: row[key]
            for j, r in self.done
            if r["status"] != "diverged"
            for row in r["rows"]
            if row["level"] == level
        }

    def mean(self, level: float, key: str) -> MeanOverSeeds:
        """Arithmetic mean over seeds."""
        return mean_over_seeds(list(self.values(level, key).values()))

    def excess(self, level: float, key: str) -> OverSeeds:
        """Geometric mean of R - 1 over seeds."""
        return over_seeds([math.log(v - 1) for v in self.values(level, key).values() if 1 < v < math.inf])

    def ratio(self, level: float, key: str) -> OverSeeds:
        """SGD with momentum over Adam, paired by seed."""
        sgdm, adam = (self.where(optimizer=name).values(level, key) for name in ("sgdm", "adam"))
        pairs = [(sgdm[s], adam[s]) for s in sgdm if s in adam and 0 < sgdm[s] < math.inf and 0 < adam[s] < math.inf]
        return over_seeds([math.log(a / b) for a, b in pairs])


def window(config: dict[str, Any]) -> list[float]:
    """The levels in the window in which the theorem speaks, from the highest on."""
    return sorted((x for x in config["levels"] if theory.WINDOW[1] <= x <= theory.WINDOW[0]), reverse=True)


def adam_limit(done: Sequence[Any], level: float) -> float:
    """Geometric mean over runs of Adam's R_1 - 1 as the learning rate goes to 0."""
    values = [r["start"]["adam"].get(str(level), math.nan) - 1 for _, r in done]
    return over_seeds([math.log(v) for v in values if v > 0]).ratio


def decay(group: Runs, dims: Sequence[int], level: float, key: str) -> Trend:
    """Power of d in R - 1."""
    points = [(d, v) for d in dims for v in group.where(d=d).values(level, key).values() if 1 < v < math.inf]
    return trend([math.log(d) for d, _ in points], [math.log(v - 1) for _, v in points])


def upper(dims: Sequence[int]) -> list[int]:
    """The upper half of the dimensions, two at least where there are two."""
    return sorted(dims)[min(len(dims) // 2, len(dims) - 2) if len(dims) > 1 else 0 :]
