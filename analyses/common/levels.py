"""Losses that several runs pass."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from geomtraj.errors import InputError


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


def _finite(losses: ArrayLike) -> np.ndarray:
    x = np.asarray(losses, dtype=np.float64)
    return x[np.isfinite(x)]
