"""The mean of independent units with its t-interval, where each unit may bring a measurement error of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

CONFIDENCE = 0.95
Z = 1.959963984540054
"""The normal distribution's 0.975 quantile: half of a 95 % interval in standard errors."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its confidence interval, whatever it is of: the one type that estimates, ratios and slopes are.

    Attributes:
        value: The estimate; NaN without a unit.
        low: Lower end; NaN where there is none.
        high: Upper end.
        n: Number of independent units (seeds) behind it; 1 for a single measurement.
        status: "ok", or why the number or its interval is missing.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 1
    status: str = "ok"

    @property
    def side(self) -> int:
        """+1 where the interval lies above 0, -1 where it lies below, 0 where it holds 0 or is not known."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True)
class Means:
    """Many means over units at once, arrays of shape (...).

    Attributes:
        mean: NaN without a unit.
        low: Lower end of the interval; NaN with fewer than two units.
        high: Upper end.
        p: Two-sided p of the mean being 0; below 1 - confidence just when the interval leaves out 0.
        n: Number of units.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    n: np.ndarray


def t_interval(values: ArrayLike, noise: ArrayLike | None = None, confidence: float = CONFIDENCE) -> Interval:
    """The mean of independent values with its t-interval.

    Args:
        values: One for each unit, shape (n,); those that are not finite are left out.
        noise: Standard error of each value's own measurement, shape (n,), as in `means`.
        confidence: Of the interval.
    """
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    found = means(x, noise, confidence)
    n = int(found.n)
    return Interval(float(found.mean), float(found.low), float(found.high), n, said(n))


def said(n: int) -> str:
    """The status of a mean over n units."""
    return "ok" if n > 1 else "no unit has a value" if n == 0 else "one unit gives no interval"


def means(values: ArrayLike, noise: ArrayLike | None = None, confidence: float = CONFIDENCE) -> Means:
    """Means over the first axis with their t-intervals, never narrower than the units' measurement errors make them.

    Independent measurement errors are part of the spread between units, so that Student's t holds with them, whatever
    their size and however unlike they are between two groups whose difference a unit is; where they differ from unit
    to unit it errs to the wide side. With few units, though, values may agree by chance better than their own errors
    allow. The interval is therefore the wider one of Student's t and the normal interval of the known errors.

    Coverage at a nominal 95 % over 40,000 simulated data sets each, n = 2, 3, 5 and 10: 94.8 to 99.3 % with a spread
    between units from 0 to 3 (the more the smaller n and spread are), errors of 0.5 in both of the groups whose
    difference a unit is, or 0.1 in one and 1 in the other; at a spread of 3 94.8 to 96.0 %. Where one unit's error is
    ten times the others', 94.9 to 100 % (`tests/inference/test_interval.py` holds them).

    Args:
        values: Shape (n, ...); those that are not finite are left out.
        noise: Standard errors of the same shape; None or 0 where they are not known.
        confidence: Of the intervals.
    """
    x = np.asarray(values, dtype=np.float64)
    known = np.isfinite(x)
    n = known.sum(axis=0)
    errors = np.zeros_like(x) if noise is None else np.broadcast_to(np.asarray(noise, dtype=np.float64), x.shape)
    errors = np.where(known & np.isfinite(errors), errors, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, x, 0.0).sum(axis=0) / n
        dof = np.maximum(n - 1, 1)
        spread = np.where(known, x - mean, 0.0)
        sem = np.sqrt((spread**2).sum(axis=0) / dof / n)
        own = np.sqrt((errors**2).sum(axis=0)) / n
        half = np.maximum(t_quantile(confidence, dof) * sem, special.ndtri((1 + confidence) / 2) * own)
        size = np.abs(mean)
        # 0 / 0 is a mean of exactly 0 without an error: nothing against 0.
        p_seeds = 2 * special.stdtr(dof, -np.where(size > 0, size / sem, 0.0))
        p_own = 2 * special.ndtr(-np.where(size > 0, size / own, 0.0))
    several = n > 1
    nan = math.nan
    return Means(
        mean=mean,
        low=np.where(several, mean - half, nan),
        high=np.where(several, mean + half, nan),
        p=np.where(several, np.maximum(p_seeds, p_own), nan),
        n=n,
    )


def t_quantile(confidence: float, dof: ArrayLike) -> np.ndarray:
    """Half of a two-sided t-interval in standard errors."""
    return special.stdtrit(dof, (1 + confidence) / 2)
