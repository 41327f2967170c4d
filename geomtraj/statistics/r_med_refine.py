"""Exact products where they narrow the intervals of R_med most."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from geomtraj.statistics.r_med_interval import (
    Z_MAX,
    Entries,
    Interval,
    doubt,
    extrapolated,
    maximum,
    median,
    panel,
    plausible,
)

SMALL = 32
"""Blocks up to this size are measured as a whole."""
BATCH = 8
"""Candidates for a maximum that are measured at a time."""
FIRST_SAMPLE = 32
"""Entries that are sampled for a median at first."""


class Refinement:
    """The entries of all blocks with what is measured of them so far, and the intervals that follow.

    Args:
        values: Estimated entries (P,).
        sem: Their standard errors (P,).
        rows: Number of each entry's row (P,).
        labels: Label -> where its entries stand in (P,), the whole among them.
        measure: Exact entries at some indices, one product each.
        max_matvecs: Products that may be spent.
        rtol: Width high / low - 1 at which an interval is narrow enough.
        seed: Seed of the sample.
    """

    def __init__(
        self,
        values: np.ndarray,
        sem: np.ndarray,
        rows: np.ndarray,
        labels: dict[str, slice],
        measure: Callable[[np.ndarray], np.ndarray] | None = None,
        max_matvecs: int = 0,
        rtol: float = 0.1,
        seed: int = 0,
    ):
        self.entries = Entries(values, sem, rows, np.full(values.size, np.nan), np.zeros(values.size))
        self.labels = labels
        self.budget = self.left = max_matvecs if measure else 0
        self.spent = 0
        self.rtol = rtol
        self._measure = measure
        self._seed = seed
        # Each entry keeps one random number: it is in a sample where that is below the probability of being drawn, so
        # that samples grow, and those of a block and of the whole share what they measure.
        self._dice = np.random.default_rng(seed).random(values.size)
        self._free: dict[str, tuple[Interval, tuple[float, float]]] = {}
        self._found: dict[str, tuple[Interval, Interval]] = {}

    def of(self, label: str) -> tuple[Interval, Interval]:
        """Intervals of the maximum and of the median of one label."""
        if label not in self._found:
            own = self.entries.take(self.labels[label])
            if label not in self._free:
                free = extrapolated(own, self._seed)
                self._free[label] = free, plausible(own, free)
            self._found[label] = maximum(own), median(own, *self._free[label], self._seed)
        return self._found[label]

    def width(self, label: str) -> float:
        """Relative width high / low - 1 of R_med's interval."""
        top, middle = self.of(label)
        low, high = top.low * middle.low, top.high * middle.high
        return high / low - 1 if low > 0 else math.inf

    def run(self) -> None:
        """Spend products until every interval is narrow enough or the budget is spent."""
        if self.left <= 0:
            return
        for label in self.labels:
            self.of(label)  # extrapolation is from entries that nobody has chosen yet
        for label in sorted(self._wide(), key=lambda name: self._indices(name).size):
            if self._indices(label).size <= min(SMALL, self.left):
                self._take(self._indices(label))
        for label in sorted(self._wide(), key=lambda name: self._candidates(name).size):
            self._confirm(label)
        for label in sorted(self._wide(), key=self._sample_needed):
            self._sample(label)

    def _indices(self, label: str) -> np.ndarray:
        return np.arange(self.labels[label].start, self.labels[label].stop)

    def _wide(self) -> list[str]:
        sound = [n for n, i in self.labels.items() if np.isfinite(self.entries.values[i] + self.entries.sem[i]).all()]
        return [n for n in sound if self.width(n) > self.rtol]

    def _take(self, indices: np.ndarray, sure: bool = True) -> None:
        """Measure what is not known of these entries, as far as the budget goes; `sure`: chosen with probability 1."""
        indices = indices[~self.entries.known[indices]][: self.left]
        if not indices.size:
            return
        assert self._measure is not None
        self.entries.exact[indices] = self._measure(indices)
        if sure:
            self.entries.inclusion[indices] = 1.0
        self.left -= indices.size
        self.spent += indices.size
        self._forget(indices)

    def _forget(self, changed: np.ndarray) -> None:
        for label, where in self.labels.items():
            if ((changed >= where.start) & (changed < where.stop)).any():
                self._found.pop(label, None)

    def _candidates(self, label: str) -> np.ndarray:
        """Entries that may still exceed the largest known one by more than a quarter of `rtol`, likeliest first."""
        indices = self._indices(label)
        magnitudes = np.abs(self.entries.best[indices])
        upper = magnitudes + Z_MAX * self.entries.errors[indices]
        known = self.entries.known[indices]
        confirmed = magnitudes[known].max(initial=self.of(label)[0].low)
        open_ = ~known & (upper > confirmed * (1 + self.rtol / 4))
        return indices[open_][np.argsort(-upper[open_], kind="stable")]

    def _confirm(self, label: str) -> None:
        while self.left > 0 and self.width(label) > self.rtol:
            candidates = self._candidates(label)
            if not candidates.size:
                return
            self._take(candidates[:BATCH])
            if self._candidates(label).size > self.left:
                return

    def _doubt(self, label: str) -> tuple[np.ndarray, np.ndarray]:
        """The entries that the median is taken from, and how much each of them tells about it."""
        indices = self._indices(label)
        indices = indices[panel(indices.size, self._seed)]
        own = self.entries.take(indices)
        weight = doubt(own, *self._free[label][1])
        return indices, np.where(own.sem == 0, 0.0, weight)

    def _sample_needed(self, label: str) -> float:
        """Roughly the products that a sample for the median needs."""
        _, weight = self._doubt(label)
        aim = 0.2 * self.rtol / 4
        return min(float(weight.sum() / weight.size / aim) ** 2, float((weight > 0).sum()))

    def _sample(self, label: str) -> None:
        """Grow a sample with probabilities in proportion to doubt, until it suffices."""
        indices, weight = self._doubt(label)
        reached, expected = 0.0, float(FIRST_SAMPLE)
        while self.left > 0 and self.width(label) > self.rtol:
            inclusion = np.maximum(self.entries.inclusion[indices], _probabilities(weight, expected))
            drawn = indices[(self._dice[indices] < inclusion) & ~self.entries.known[indices]]
            if drawn.size > self.left:
                expected *= 0.8
                if expected <= max(reached, 1.0):
                    return
                continue
            self.entries.inclusion[indices] = inclusion
            self._take(drawn, sure=False)
            self._forget(indices)
            if expected >= (weight > 0).sum():
                return
            reached, expected = expected, 1.5 * expected


def _probabilities(weight: np.ndarray, expected: float) -> np.ndarray:
    """min(1, c w_i) with c such that they sum to `expected`, or 1 for every w_i > 0 where there are fewer."""
    if expected >= (weight > 0).sum():
        return (weight > 0).astype(float)
    certain = np.zeros(weight.size, dtype=bool)
    while True:
        scale = (expected - certain.sum()) / weight[~certain].sum()
        over = ~certain & (scale * weight >= 1)
        if not over.any():
            return np.where(certain, 1.0, scale * weight)
        certain |= over
