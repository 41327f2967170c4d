"""Fewer points where more cannot be told apart: a figure of ten thousand iterates shows what one of a hundred shows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

PANEL = 160
"""Single measurements drawn in a panel, over all runs; the tables hold all."""
LINE = 300
"""Vertices of a line."""


def thinned(x: ArrayLike, y: ArrayLike, most: int) -> np.ndarray:
    """Indices, in order, of at most so many points (two at least), shape (m,); all of them if they are few enough.

    The points are cut into runs of equal length along their order; each gives its lowest and its highest point, so that
    the outline stays. The first and the last point are always among them.

    Args:
        x: Places, shape (n,); points without a finite one come last in their run's choice.
        y: Values, shape (n,).
        most: How many to keep.
    """
    values = np.asarray(y, dtype=np.float64)
    values = np.where(np.isfinite(np.asarray(x, dtype=np.float64)), values, np.nan)
    n = values.size
    if n <= most:
        return np.arange(n)
    edges = np.linspace(0, n, max(most // 2 - 1, 0) + 1).astype(int)
    kept = {0, n - 1}
    for start, stop in pairwise(edges.tolist()):
        part = values[start:stop]
        if np.isfinite(part).any():
            kept |= {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}
    return np.array(sorted(kept))
