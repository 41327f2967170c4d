"""Statistics of a ratio over seeds: geometric mean, t-interval, sign test, and Holm's correction over blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class OverSeeds:
    """A ratio over seeds, dimensionless.

    Attributes:
        ratio: Geometric mean.
        low: Lower end of the 95 % t-interval of the mean log ratio; NaN with fewer than two pairs.
        high: Upper end of it.
        n: Number of pairs.
        above: How many pairs have a ratio above 1.
        t_test_p: Two-sided p of the paired t-test that the mean log ratio is 0; below 0.05 just when the interval
            leaves out 1.
        sign_test_p: Two-sided exact binomial p of the sign test; pairs with a ratio of exactly 1 are not counted.
    """

    ratio: float
    low: float
    high: float
    n: int
    above: int
    t_test_p: float
    sign_test_p: float


def over_seeds(log_ratios: ArrayLike) -> OverSeeds:
    """The statistics of independent pairs' log ratios.

    Args:
        log_ratios: Natural logarithm of each pair's ratio, shape (n,), finite.
    """
    logs = np.asarray(log_ratios, dtype=np.float64)
    n, above, below = logs.size, int((logs > 0).sum()), int((logs < 0).sum())
    if n == 0:
        return OverSeeds(math.nan, math.nan, math.nan, 0, 0, math.nan, math.nan)
    mean = float(logs.mean())
    low = high = t_test_p = math.nan
    if n > 1:
        sem = float(logs.std(ddof=1)) / math.sqrt(n)
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * sem
        low, high = _exp(mean - half), _exp(mean + half)
        if sem > 0:
            t_test_p = float(2 * stats.t.sf(abs(mean) / sem, n - 1))
        else:
            t_test_p = 1.0 if mean == 0 else 0.0
    sign_test_p = float(stats.binomtest(above, above + below).pvalue) if above + below else 1.0
    return OverSeeds(_exp(mean), low, high, n, above, t_test_p, sign_test_p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order; NaN stays NaN and is not counted as a test.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    adjusted = [math.nan] * len(p_values)
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
