"""How fast a loss falls along one run."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

TAIL = 0.1
"""Share of the losses at the end whose mean stands for the end: single iterates of noisy training scatter."""


def nearest_to(losses: ArrayLike, level: float) -> int | None:
    """Index of the loss nearest to the level, on the log scale, of the two around the first passage; None without one.

    Args:
        losses: In order, positive, shape (n,).
        level: The loss to pass from above.
    """
    x = np.asarray(losses, dtype=np.float64)
    below = np.flatnonzero(x <= level)
    if not below.size:
        return None
    k = int(below[0])
    if k and abs(math.log(x[k - 1] / level)) < abs(math.log(x[k] / level)):
        return k - 1
    return k


def fall(losses: ArrayLike, first: float | None = None, tail: float = TAIL) -> float:
    """By how much the loss has fallen, in the loss's unit: the first one less the mean of the last ones.

    Args:
        losses: In order, shape (n,).
        first: Where to count from instead of the first loss.
        tail: Share of the losses that the mean is over, one at least.

    Returns:
        NaN where a loss is not finite.
    """
    x = np.asarray(losses, dtype=np.float64)
    if not np.isfinite(x).all() or not x.size:
        return math.nan
    return float((x[0] if first is None else first) - x[-max(1, math.ceil(tail * x.size)) :].mean())


def steps_to_loss(steps: ArrayLike, losses: ArrayLike, level: float) -> float:
    """Steps until the loss first passes a level, between two iterates on a straight line; NaN if it never does.

    Args:
        steps: Increasing, shape (n,).
        losses: Shape (n,).
        level: The loss to pass from above; NaN too where the first loss is at or below it.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    below = np.flatnonzero(y <= level)
    if not below.size or below[0] == 0:
        return math.nan
    k = int(below[0])
    share = (y[k - 1] - level) / (y[k - 1] - y[k])
    return float(x[k - 1] + share * (x[k] - x[k - 1]) - x[0])
