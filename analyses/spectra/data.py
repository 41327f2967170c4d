"""The numbers of spectra: R_med and the spectrum at every compared iterate, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import geomtraj as gt
from analyses.common import trajectories
from analyses.common.jobs import Job, Result
from geomtraj.inference import Agreement, Match, OverSeeds, agreement, over_seeds
from geomtraj.measuring import Measurement, Results
from geomtraj.statistics import REGISTRY as STATISTICS

ALL = "all"
MEAN = "mean over layers"
COMPARED = {
    "r_med": "R_med",
    "condition": "λmax / median |λ|",
    "ninth": "λmax / 0.9 quantile of |λ|",
}
"""Statistics that are set beside each other."""


@dataclass(frozen=True)
class Point:
    """One layer at one iterate.

    Attributes:
        optimizer: Which run.
        seed: Which run.
        step: Of the iterate.
        pair: Number of the pair of iterates of nearly equal loss, from 0.
        loss: Evaluation loss.
        layer: Block name, or "all".
        r_med: R_med.
        largest_entry: max|H_ii|, as R_med's measurement has it.
        condition: λmax / median |λ|: an estimate where `kind` is "unresolved", inf where it is "zero".
        low: Lower end of its interval.
        high: Upper end.
        ninth: λmax over the 0.9 quantile of |λ|.
        lambda_max: Largest |λ|, with its upper end.
        lambda_max_high: Upper end of it.
        outliers: Number of eigenvalues of at least a tenth of λmax.
        negative: Share of eigenvalues below -0.001 λmax.
        kind: "resolved", "zero" (the median is, to rounding), "unresolved", or "missing".
        details: Nodes and weights of the density.
    """

    optimizer: str
    seed: int
    step: int
    pair: int
    loss: float
    layer: str
    r_med: float
    largest_entry: float
    condition: float
    low: float
    high: float
    ninth: float
    lambda_max: float
    lambda_max_high: float
    outliers: float
    negative: float
    kind: str
    details: Mapping[str, Any]

    def value(self, key: str) -> float:
        """One of the numbers; NaN for a condition number whose median is not resolved."""
        if key == "condition" and self.kind == "unresolved":
            return math.nan
        return float(getattr(self, "condition" if key == "estimate" else key))


@dataclass(frozen=True)
class Task:
    """One task's points.

    Attributes:
        name: Of the recipe.
        title: Of the recipe.
        optimizers: The two.
        points: All layers at all compared iterates; "all" among the layers.
        matches: Seed -> compared pairs of iterates.
    """

    name: str
    title: str
    optimizers: Sequence[str]
    points: Sequence[Point]
    matches: Mapping[int, Sequence[Match]]

    @property
    def ratio(self) -> str:
        """Name of the ratio."""
        return f"{self.optimizers[1]} / {self.optimizers[0]}"

    @property
    def layers(self) -> list[str]:
        """The weight matrices."""
        return list(dict.fromkeys(p.layer for p in self.points if p.layer != ALL))

    @property
    def seeds(self) -> list[int]:
        """Seeds with a pair of iterates whose spectra are there."""
        return list(dict.fromkeys(p.seed for p in self.points))

    def of(self, layer: str, optimizer: str | None = None) -> list[Point]:
        """The points of a layer."""
        return [p for p in self.points if p.layer == layer and optimizer in (None, p.optimizer)]

    def blocks(self) -> list[Point]:
        """The points of the weight matrices."""
        return [p for p in self.points if p.layer != ALL]

    def agreement(self, key: str, coefficient: Any, confidence: float = 0.95) -> Agreement:
        """Rank correlation of R_med with another statistic over iterates, layers and seeds."""
        points = self.blocks()
        return agreement(
            [p.r_med for p in points],
            [p.value(key) for p in points],
            [p.seed for p in points],
            [p.layer for p in points],
            [(p.optimizer, p.step) for p in points],
            coefficient,
            confidence,
        )

    def contrast(self, layer: str, key: str) -> OverSeeds:
        """The second optimizer's statistic over the first one's, each seed's mean log ratio over its pairs."""
        logs = self._logs(layer, key)
        return over_seeds([float(np.mean(x)) for x in logs.values() if x])

    def usable(self) -> list[str]:
        """Layers whose R_med and λmax / median |λ| are known in every pair of every seed."""
        whole = sum(len(m) for s, m in self.matches.items() if s in self.seeds)
        return [
            layer
            for layer in self.layers
            if all(sum(map(len, self._logs(layer, key).values())) == whole for key in ("r_med", "condition"))
        ]

    def mean_contrast(self, key: str, layers: Sequence[str]) -> OverSeeds:
        """The same for the geometric mean over layers, which must be known in every pair."""
        logs = [self._logs(layer, key) for layer in layers]
        return over_seeds([float(np.mean([np.mean(x[s]) for x in logs])) for s in self.seeds if logs])

    def _logs(self, layer: str, key: str) -> dict[int, list[float]]:
        """Seed -> log ratio of each pair in which both are positive and finite."""
        first, other = ({(p.seed, p.pair): p.value(key) for p in self.of(layer, o)} for o in self.optimizers)
        found: dict[int, list[float]] = {seed: [] for seed in self.seeds}
        for at, a in first.items():
            b = other.get(at, math.nan)
            if 0 < a < math.inf and 0 < b < math.inf:
                found[at[0]].append(math.log(b / a))
        return found


def gather(
    name: str,
    title: str,
    optimizers: Sequence[str],
    groups: Mapping[str, Sequence[Results]],
    matches: Mapping[int, Sequence[Match]],
    spectra: Mapping[tuple[str, str, int, int], Measurement],
) -> Task:
    """One task's points: R_med as it was measured along the run, the spectrum where iterates are compared."""
    points: list[Point] = []
    runs = {(o, r.meta["seed"]): r for o in optimizers for r in groups.get(o, []) if not r.diverged}
    for seed, pairs in matches.items():
        for number, pair in enumerate(pairs):
            for optimizer, step in zip(optimizers, (pair.first, pair.other), strict=True):
                spectrum = spectra.get((name, optimizer, seed, step))
                results = runs[optimizer, seed]
                ratios = {m.step: m for m in results.of("r_med")}.get(step)
                if spectrum is None or ratios is None:
                    continue
                for layer, q in spectrum.quantities.items():
                    details, r_med = spectrum.details[layer], ratios.quantities.get(layer)
                    points.append(
                        Point(
                            optimizer, seed, step, number, results.losses()[step], layer,
                            r_med.value if r_med else math.nan,
                            ratios.details[layer]["max"] if r_med else math.nan,
                            q.value, q.low, q.high, details["ninth"][0],
                            details["lambda_max"][0], details["lambda_max"][2],
                            details["outliers"][0], details["negative"][0], _kind(q), details,
                        )
                    )  # fmt: skip
    return Task(name, title, optimizers, points, matches)


def _kind(q: Any) -> str:
    if math.isnan(q.value):
        return "missing"
    if math.isinf(q.value):
        return "zero"
    return "resolved" if math.isfinite(q.high) else "unresolved"


def spectrum_at(job: Job) -> Result:
    """The statistic "condition" at one iterate of a run, as JSON holds it."""
    trajectory = trajectories.trained(job)
    task = trajectories.task_of(job)
    place = trajectory.steps.index(job["step"])
    statistic = STATISTICS["condition"].with_settings(job["condition"])
    results = gt.measure(trajectory[place : place + 1], task.problem(task.model(0)), [statistic], progress=False)
    return results.of("condition")[0].to_json()
