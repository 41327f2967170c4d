"""A straight line through independent points, with the interval of its slope."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from geomtraj.inference.interval import CONFIDENCE, Interval, t_interval, t_quantile


@dataclass(frozen=True, slots=True)
class Trend(Interval):
    """Least-squares slope of y over x over n points, in y's unit over x's, with its 95 % t-interval from three on.

    Attributes:
        intercept: The line at x = 0.
    """

    intercept: float = math.nan

    @property
    def slope(self) -> float:
        """NaN with fewer than two different x."""
        return self.value


def trend(x: ArrayLike, y: ArrayLike) -> Trend:
    """The line through points with the same spread; points that are not finite are left out.

    Args:
        x: Places, shape (n,).
        y: Independent values, shape (n,).
    """
    points = np.column_stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)])
    points = points[np.isfinite(points).all(axis=1)]
    n = len(points)
    if n < 2 or np.ptp(points[:, 0]) == 0:
        return Trend(math.nan, n=n, status="fewer than two different places")
    away = points - points.mean(axis=0)
    scatter = float(away[:, 0] @ away[:, 0])
    slope = float(away[:, 0] @ away[:, 1]) / scatter
    half = math.nan
    if n > 2:
        left = away[:, 1] - slope * away[:, 0]
        half = float(t_quantile(CONFIDENCE, n - 2)) * math.sqrt(float(left @ left) / (n - 2) / scatter)
    intercept = float(points[:, 1].mean() - slope * points[:, 0].mean())
    return Trend(slope, slope - half, slope + half, n, "ok" if n > 2 else "two points give no interval", intercept)


@dataclass(frozen=True, slots=True)
class MeanOverSeeds(Interval):
    """An arithmetic mean over n seeds with its 95 % t-interval, in the unit of the values.

    Attributes:
        std: Standard deviation over seeds; NaN with fewer than two.
    """

    std: float = math.nan

    @property
    def mean(self) -> float:
        """NaN without a value."""
        return self.value


def mean_over_seeds(values: ArrayLike) -> MeanOverSeeds:
    """Mean and standard deviation over seeds, as tables of the form "mean (std)" want them.

    Args:
        values: One for each seed, shape (n,); those that are not finite are left out.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    found = t_interval(x)
    std = float(x.std(ddof=1)) if found.n > 1 else math.nan
    return MeanOverSeeds(found.value, found.low, found.high, found.n, found.status, std)
