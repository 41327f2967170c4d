"""How fast a loss falls along one run, and losses that several runs pass."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from geomtraj.errors import InputError

TAIL = 0.1
"""Share of the losses at the end whose mean stands for the end: single iterates of noisy training scatter."""


def common_level(curves: Mapping[str, ArrayLike], share: float) -> float:
    """A loss that all runs pass: `share` of the way, on the log scale, from their start down to what all of them reach.

    Args:
        curves: Name of a run -> its losses in order, positive; values that are not finite are passed over.
        share: Between 0 and 1.

    Raises:
        InputError: There is no loss that all runs pass; the message says which each covers.
    """
    known = {name: _finite(losses) for name, losses in curves.items()}
    top = min((x[0] for x in known.values() if x.size), default=math.nan)
    bottom = max((x.min() if x.size else math.inf for x in known.values()), default=math.nan)
    if not 0 < bottom < top:
        covers = ", ".join(f"{name} covers {covered(x)}" for name, x in known.items())
        raise InputError(f"the runs have no common loss ({covers}): train longer, or with other learning rates.")
    return float(math.exp((1 - share) * math.log(top) + share * math.log(bottom)))


def covered(losses: ArrayLike) -> str:
    """The range of losses of a run, in words."""
    x = _finite(losses)
    return f"{x.min():.4g} to {x.max():.4g}" if x.size else "none"


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


def steps_to(steps: ArrayLike, losses: ArrayLike, level: float) -> float:
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


def _finite(losses: ArrayLike) -> np.ndarray:
    x = np.asarray(losses, dtype=np.float64)
    return x[np.isfinite(x)]
