"""Do two statistics rank alike? Rank correlations, with intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from geomtraj.inference.interval import CONFIDENCE, Interval, t_interval

LEAST = 4
"""Fewest points of a seed, layer or iterate whose correlation counts."""


@dataclass(frozen=True, slots=True)
class RankCorrelation(Interval):
    """A rank correlation, between -1 and 1: the mean of each of n seeds' own one, its t-interval cut at -1 and 1.

    Attributes:
        points: Number of points used.
    """

    points: int = 0


@dataclass(frozen=True)
class Agreement:
    """How alike two statistics rank the same points, by one coefficient.

    Attributes:
        pooled: Over all points of a seed.
        within: Over the points of one layer, mean over layers: do both rise and fall together?
        between: Over the layers at one iterate, mean over iterates: do both find the same layers large?
    """

    pooled: RankCorrelation
    within: RankCorrelation
    between: RankCorrelation


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation; NaN with fewer than three points, or where all x or all y are equal."""
    return _coefficient(_correlation, x, y)


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall's tau-b; NaN with fewer than three points, or where all x or all y are equal."""
    from scipy import stats  # takes a second to import

    return _coefficient(lambda a, b: float(stats.kendalltau(a, b).statistic), x, y)


def agreement(
    x: ArrayLike,
    y: ArrayLike,
    seeds: Sequence[Hashable],
    layers: Sequence[Hashable],
    iterates: Sequence[Hashable],
    coefficient: Callable[[ArrayLike, ArrayLike], float] = spearman,
    confidence: float = CONFIDENCE,
) -> Agreement:
    """Rank correlation of two statistics over all points, within layers and between layers.

    Points of one seed share their start, their layers and their path, and are not independent: each seed gives
    one number, and the interval is over seeds. Layers and iterates with fewer than four points are left out. Layers of
    different size and kind differ in both statistics whatever happens along a run, so that the pooled number can be
    high or low without the two telling the same of any layer.

    Args:
        x: One statistic, shape (n,); infinite values rank above all others, points with a NaN are left out.
        y: The other one, shape (n,).
        seeds: Seed of each point.
        layers: Layer of each point.
        iterates: Iterate of each point: optimizer and step, say.
        coefficient: `spearman` or `kendall`.
        confidence: Of each interval: above 0.95 where several are judged together.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = np.flatnonzero(~(np.isnan(a) | np.isnan(b)))

    def over(parts: Callable[[list[int]], Iterable[list[int]]]) -> RankCorrelation:
        each, used = [], 0
        for mine in _split(known.tolist(), seeds):
            found = [(coefficient(a[part], b[part]), len(part)) for part in parts(mine) if len(part) >= LEAST]
            found = [(value, size) for value, size in found if not math.isnan(value)]
            if found:
                each.append(float(np.mean([value for value, _ in found])))
                used += sum(size for _, size in found)
        return _over_seeds(each, used, confidence)

    return Agreement(
        over(lambda mine: [mine]), over(lambda mine: _split(mine, layers)), over(lambda mine: _split(mine, iterates))
    )


def _over_seeds(each: list[float], points: int, confidence: float) -> RankCorrelation:
    found = t_interval(each, confidence=confidence)
    low, high = (float(np.clip(x, -1.0, 1.0)) for x in (found.low, found.high))
    return RankCorrelation(found.value, low, high, found.n, found.status, points)


def _split(points: list[int], labels: Sequence[Hashable]) -> list[list[int]]:
    """The points by label."""
    parts: dict[Hashable, list[int]] = {}
    for i in points:
        parts.setdefault(labels[i], []).append(i)
    return list(parts.values())


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / math.sqrt((a @ a) * (b @ b)), -1, 1))


def _coefficient(function: Callable[[np.ndarray, np.ndarray], float], x: ArrayLike, y: ArrayLike) -> float:
    """The function of both's ranks, ties at their mean rank."""
    a, b = (_ranks(np.asarray(values, dtype=np.float64)) for values in (x, y))
    if a.size < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return function(a, b)


def _ranks(x: np.ndarray) -> np.ndarray:
    """RankCorrelation from 1, ties at their mean, shape (n,)."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
