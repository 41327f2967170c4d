"""Exact products where they narrow the intervals of R_med most."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from geomtraj.statistics.r_med.entries import Entries
from geomtraj.statistics.r_med.interval import Ratios, ratios

SMALL = 32
"""Blocks up to this size are measured as a whole."""
BATCH = 8
"""Candidates for a maximum that are measured at first."""
FIRST_SAMPLE = 32
"""Entries that are sampled for a median at first."""
GROWTH = 1.5
"""How much larger each further batch of a block is."""


class Refinement:
    """The entries of all blocks with what is measured of them so far, and the intervals that follow.

    Args:
        values: Estimated entries (P,).
        sem: Their standard errors (P,).
        rows: Number of each entry's row (P,).
        labels: Label -> where its entries stand in (P,), a slice or positions; the whole among them.
        measure: Exact entries at some indices, one product each.
        max_matvecs: Products that may be spent.
        rtol: Width high / low - 1 at which an interval is narrow enough.
        seed: Seed of the sample.
        dof: Degrees of freedom of the standard errors (P,); infinite if left out.
    """

    def __init__(
        self,
        values: np.ndarray,
        sem: np.ndarray,
        rows: np.ndarray,
        labels: Mapping[str, slice | np.ndarray],
        measure: Callable[[np.ndarray], np.ndarray] | None = None,
        max_matvecs: int = 0,
        rtol: float = 0.1,
        seed: int = 0,
        dof: np.ndarray | None = None,
    ):
        blocks = np.zeros(values.size, dtype=int)
        self.labels = {label: np.arange(values.size)[where] for label, where in labels.items()}
        for number, where in enumerate(self.labels.values()):
            if where.size < values.size:
                blocks[where] = number
        dof = np.full(values.size, np.inf) if dof is None else dof
        self.entries = Entries(values, sem, rows, np.full(values.size, np.nan), blocks, dof)
        self.budget = self.left = max_matvecs if measure else 0
        self.spent = 0
        self.rtol = rtol
        self._measure = measure
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._found: dict[str, Ratios] = {}

    def of(self, label: str) -> Ratios:
        """R_med of one label with its interval."""
        if label not in self._found:
            self._found[label] = ratios(self.entries.take(self.labels[label]), self._seed)
        return self._found[label]

    def width(self, label: str) -> float:
        """Relative width high / low - 1 of R_med's interval; 0 where it is inf throughout."""
        ratio = self.of(label).ratio
        return ratio.high / ratio.low - 1 if ratio.high > ratio.low else 0.0

    def run(self) -> None:
        """Spend products until every interval is narrow enough or the budget is spent."""
        if self.left <= 0:
            return
        sound = [
            n
            for n, i in self.labels.items()
            if i.size and np.isfinite(self.entries.values[i] + self.entries.sem[i]).all()
        ]
        for label in sorted(sound, key=lambda name: self.labels[name].size):
            indices = self.labels[label]
            if indices.size <= min(SMALL, self.left) and self.width(label) > self.rtol:
                self._take(indices)
        for label in sorted(sound, key=self.width):
            self._narrow(label)

    def _take(self, indices: np.ndarray) -> None:
        """Measure what is not known of these entries, as far as the budget goes."""
        indices = indices[~self.entries.known[indices]][: self.left]
        if not indices.size:
            return
        assert self._measure is not None
        self.entries.exact[indices] = self._measure(indices)
        self.left -= indices.size
        self.spent += indices.size
        for label, where in self.labels.items():
            if np.isin(indices, where).any():
                self._found.pop(label, None)

    def _narrow(self, label: str) -> None:
        """Measure likely maxima or a sample for the median, whichever is less certain, until R_med is narrow."""
        candidates, sample = float(BATCH), float(FIRST_SAMPLE)
        while self.left > 0 and self.width(label) > self.rtol:
            found, places = self.of(label), self.labels[label]
            if found.leaders.size and (found.spread[0] >= found.spread[1] or not found.doubtful[0].size):
                self._take(places[found.leaders[: int(candidates)]])
                candidates *= GROWTH
                continue
            where, doubt = found.doubtful
            if not where.size:
                return
            count = min(int(sample), where.size)
            self._take(places[self._rng.choice(where, count, replace=False, p=doubt / doubt.sum())])
            sample *= GROWTH
