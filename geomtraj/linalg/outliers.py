"""A spectral density with less noise from the same products: converged outliers have a mass that is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Nodes = tuple[np.ndarray, np.ndarray]


def with_known_outliers(
    nodes: Sequence[Sequence[float]],
    weights: Sequence[Sequence[float]],
    size: int,
    *,
    top: Nodes,
    bottom: Nodes,
    tol: float = 1e-3,
) -> Nodes:
    """Nodes and masses (n,) of a density by Lanczos quadrature, its converged outermost eigenvalues at mass 1 / size.

    A probe gives an eigenvalue the mass (v'q)^2, which is 1 / size on average and scatters by a factor; the eigenvalues
    that have converged, copies counted, need no estimate. What is left of the mass, 1 - |S| / size for a set S of them,
    is spread over each probe's other nodes in proportion to their weights:

        (1 / size) sum_S delta(lambda_i) + (1 - |S| / size) sum_rest w_i delta(theta_i) / sum_rest w_i

    S is the run of converged eigenvalues from each end up to the first that has not converged. A probe's nodes count
    as theirs beyond the middle between the last of them and the next node or eigenvalue.

    Args:
        nodes: Ritz values of each probe, (probes, steps).
        weights: Their masses; over all probes they sum to 1.
        size: Number of eigenvalues.
        top: Largest eigenvalues, descending, copies counted, and the residual of each.
        bottom: Smallest eigenvalues, ascending, and the residual of each.
        tol: Residual, relative to the eigenvalue, up to which one has converged.

    Source: variance-reduced stochastic Lanczos quadrature, arXiv 2410.21690.
    """
    theta, mass = np.asarray(nodes, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    high, above = _converged(np.asarray(top[0], np.float64), np.asarray(top[1], np.float64), tol, theta)
    low, below = _converged(-np.asarray(bottom[0], np.float64), np.asarray(bottom[1], np.float64), tol, -theta)
    low = -low
    if high.size and low.size and low.max() >= high.min():  # they meet: the spectrum has no more than these
        low, below = np.empty(0), np.inf
    known = np.concatenate([high, low])
    inside = (theta < above) & (theta > -below)
    left = np.where(inside, mass, 0.0)
    total = left.sum(1, keepdims=True)
    if not known.size or known.size >= size or not (total > 0).all():
        return theta.ravel(), mass.ravel()
    left = left / total / len(theta) * (1 - known.size / size)
    return np.concatenate([known, theta[inside]]), np.concatenate([np.full(known.size, 1 / size), left[inside]])


def _converged(values: np.ndarray, residuals: np.ndarray, tol: float, theta: np.ndarray) -> tuple[np.ndarray, float]:
    """The leading values that have converged, and where nodes begin to be theirs; infinite where there are none."""
    good = np.isfinite(values) & (residuals <= tol * np.abs(values))
    count = int(np.argmin(good)) if not good.all() else good.size
    # The last one may have a copy or a near neighbour that is not known: it is left to the quadrature.
    while count:
        last, reach = values[count - 1], 2 * residuals[count - 1] + 1e-6 * np.abs(values[0])
        rest = np.concatenate([values[count:], theta[theta < last - reach].ravel()])
        rest = rest[np.isfinite(rest)]
        if rest.size and rest.max() < last - reach:
            return values[:count], float((last + rest.max()) / 2)
        count -= 1
    return np.empty(0), np.inf
