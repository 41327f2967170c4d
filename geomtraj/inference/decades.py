"""Spectral densities over decades: shares of the eigenvalues by the size of |lambda|, each sign apart."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

KERNEL = 0.2
"""Standard deviation of the smoothing kernel, in decades."""


def per_decade(nodes: ArrayLike, weights: ArrayLike, grid: ArrayLike, sign: int = 1) -> np.ndarray:
    """Share of the eigenvalues per decade of |lambda| on the grid, each node widened by a Gaussian of 0.2 decades.

    Both signs together, with the eigenvalues below the grid, integrate to 1 over log10 |lambda|.

    Args:
        nodes: Nodes of the quadrature, shape (n,).
        weights: Their shares, shape (n,).
        grid: |lambda| > 0, shape (m,).
        sign: 1 for positive eigenvalues, -1 for negative ones.
    """
    x, w = np.asarray(nodes, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    x, w = sign * x[sign * x > 0], w[sign * x > 0]
    distance = (np.log10(np.asarray(grid, dtype=np.float64))[:, None] - np.log10(x)[None, :]) / KERNEL
    return np.exp(-0.5 * distance**2) @ w / (KERNEL * math.sqrt(2 * math.pi))
