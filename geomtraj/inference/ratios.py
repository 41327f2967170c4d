"""A ratio over seeds: geometric mean, t-interval on the log scale, sign test; and Holm's correction over several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from geomtraj.inference.interval import CONFIDENCE, Interval, means, said

__all__ = ["CONFIDENCE", "OverSeeds", "holm", "over_seeds", "sign_test"]


@dataclass(frozen=True, slots=True)
class OverSeeds(Interval):
    """A ratio over seeds, dimensionless: the geometric mean over n pairs with the interval of the mean log ratio.

    Attributes:
        above: How many pairs have a ratio above 1.
        t_test_p: Two-sided p of the mean log ratio being 0; below 0.05 just when the interval leaves out 1.
        sign_test_p: Two-sided exact binomial p of the sign test; pairs with a ratio of exactly 1 are not counted.
    """

    above: int = 0
    t_test_p: float = math.nan
    sign_test_p: float = math.nan

    @property
    def ratio(self) -> float:
        """Geometric mean."""
        return self.value


def over_seeds(log_ratios: ArrayLike, noise: ArrayLike | None = None) -> OverSeeds:
    """The statistics of independent pairs' log ratios.

    Args:
        log_ratios: Natural logarithm of each pair's ratio, shape (n,); those that are not finite are left out.
        noise: Standard error of each one's own measurement, shape (n,); the interval is never narrower than they say.
    """
    logs = np.asarray(log_ratios, dtype=np.float64).reshape(-1)
    found = means(logs, noise)
    above, below = int((logs > 0).sum()), int((logs < 0).sum())
    ratio, low, high = (float(exp(x)) for x in (found.mean, found.low, found.high))
    sign_p = float(sign_test(above, below)) if found.n else math.nan
    return OverSeeds(ratio, low, high, int(found.n), said(int(found.n)), above, float(found.p), sign_p)


def sign_test(above: ArrayLike, below: ArrayLike) -> np.ndarray:
    """Two-sided exact binomial p of as many values above and below 0; 1 where all are ties, shape as the counts."""
    up, down = np.asarray(above), np.asarray(below)
    return np.minimum(1.0, 2 * special.bdtr(np.minimum(up, down).astype(np.float64), up + down, 0.5))


def holm(p_values: ArrayLike | Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values over the first axis, in the given order; NaN stays NaN and is not counted as a test.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, axis=0, kind="stable")  # NaN last
    ranked = np.take_along_axis(p, order, axis=0)
    left = (~np.isnan(p)).sum(axis=0) - np.arange(len(p)).reshape(-1, *[1] * (p.ndim - 1))
    scaled = np.where(np.isnan(ranked), math.nan, np.minimum(1.0, left * ranked))
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(scaled, axis=0), axis=0)
    return adjusted


def exp(x: ArrayLike) -> np.ndarray:
    """e^x, infinite without a warning where it is too large."""
    with np.errstate(over="ignore"):
        return np.exp(np.asarray(x, dtype=np.float64))
