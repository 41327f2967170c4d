"""The distribution of the residual share r = R_ii / G_ii of the Hessian's diagonal, given the size of G_ii."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import gamma

HEAVY = 4.0
"""Degrees of freedom of the heavy-tailed candidate; the other one is normal."""
NODES = 4
"""Normals that it is a mixture of."""
PRIOR = np.array([0, 0, 0, 0, -0.2]), np.array([5, 1.0, 0.5, 1.0, 0.4])
"""Means and standard deviations of the coefficients, in units of the data's spread."""
STEPS, ROUGH_STEPS = 16, 6
"""Steps towards the largest posterior density, and where only a rough fit is asked for."""
STEP = 1e-4
"""Distance at which gradients are differenced for the curvature of the posterior density."""


class Shares(NamedTuple):
    """Measured shares of one block: where (n,), what (n,), standard errors (n,), and how much each counts (n,)."""

    x: np.ndarray
    y: np.ndarray
    noise: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class ShareModel:
    """r at x is Student's t or normal, whichever is likelier, its centre quadratic and its log scale linear in x.

    Student's t is a mixture of normals, so that noise adds its variance to each.

    Attributes:
        centre: Median of the measurements.
        unit: Their spread.
        best: Likeliest coefficients (5,), for measurements taken off `centre` in units of `unit`.
        root: A root (5, 5) of the coefficients' covariance.
        precisions: Precisions of the normals (k,), relative to the scale.
    """

    centre: float
    unit: float
    best: np.ndarray
    root: np.ndarray
    precisions: np.ndarray

    def location(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centre and scale of r at x (n,)."""
        centre, variance = _moments(self.best, x)
        return self.centre + self.unit * centre, self.unit * np.sqrt(variance)

    def draw(self, x: np.ndarray, y: np.ndarray, noise: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (count, n) of r at x given y with its noise, which is infinite where nothing was measured."""
        coefficients = self.best[:, None] + self.root @ rng.standard_normal((5, count))
        centre, variance = _moments(coefficients[:, :, None], x)
        measured = np.flatnonzero(np.isfinite(noise))
        part = variance / rng.choice(self.precisions, (count, x.size)) if self.precisions.size > 1 else variance
        y, noise = (y[measured] - self.centre) / self.unit, noise[measured] / self.unit
        errors = y - centre[:, measured]
        if self.precisions.size > 1:
            parts = variance[:, measured, None] / self.precisions
            shares = np.cumsum(_densities(errors, parts + (noise**2)[:, None])[0], -1)
            chosen = (shares < shares[..., -1:] * rng.random((count, measured.size, 1))).sum(-1)
            part[:, measured] = variance[:, measured] / self.precisions[chosen]
        left, shift = part.copy(), np.zeros_like(part)
        weight = part[:, measured] / (part[:, measured] + noise**2)
        left[:, measured] *= 1 - weight
        shift[:, measured] = weight * errors
        return self.centre + self.unit * (centre + shift + np.sqrt(left) * rng.standard_normal(part.shape))


def fit(data: Sequence[Shares], thorough: bool = True) -> list[ShareModel]:
    """The likeliest models of some blocks' shares, all of them side by side.

    Args:
        data: The blocks' measurements.
        thorough: Whether the fit goes on to the end and the normal is tried too.
    """
    count, most = len(data), max(len(d.x) for d in data)
    x, y, noise, weights = (np.zeros((count, most)) for _ in range(4))
    centres, units = np.zeros(count), np.zeros(count)
    noise[:] = 1.0
    for k, one in enumerate(data):
        n = one.x.size
        centres[k], units[k] = _centre_and_unit(one)
        x[k, :n], y[k, :n] = one.x, (one.y - centres[k]) / units[k]
        noise[k, :n], weights[k, :n] = one.noise / units[k], one.weights
    heavy = gamma.ppf((np.arange(NODES) + 0.5) / NODES, HEAVY / 2, scale=2 / HEAVY)
    found = [_Fit(x, y, noise**2, weights, heavy, STEPS if thorough else ROUGH_STEPS)]
    if thorough:
        found.append(_Fit(x, y, noise**2, weights, np.ones(1), STEPS // 2, found[0].best))
    likeliest = np.stack([f.loss for f in found]).argmin(0)
    roots = [f.root() for f in found]
    return [
        ShareModel(centres[k], units[k], found[m].best[k], roots[m][k], found[m].precisions)
        for k, m in enumerate(likeliest)
    ]


def _centre_and_unit(data: Shares) -> tuple[float, float]:
    """The median of the measurements and the spread of what is beneath their noise."""
    centre = float(np.median(data.y))
    spread = np.median((data.y - centre) ** 2) / 0.455
    least = (0.5 * (1 + abs(centre)) / data.y.size) ** 2  # a few entries that agree prove little
    return centre, float(np.sqrt(max(spread - np.median(data.noise**2), 0.02 * spread, least)))


class _Fit:
    """Coefficients (b, 5) of largest posterior density for b blocks, by steps of the EM algorithm.

    Source: Lange, Little, Taylor (1989), "Robust statistical modeling using the t distribution".
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        variance: np.ndarray,
        weights: np.ndarray,
        precisions: np.ndarray,
        steps: int,
        start: np.ndarray | None = None,
    ):
        self.precisions = precisions
        self._data = y, variance, weights
        self._basis = np.stack([np.ones_like(x), x, x * x - 1], -1)
        self.best = np.zeros((len(x), 5)) if start is None else start.copy()
        for _ in range(steps):
            self._step()
        self.loss = self._gradient(self.best)[1]

    def _step(self) -> None:
        """Centre, then scale: each the best while the other and the mixture's shares are held."""
        y, _, weights = self._data
        own, total, errors, shares, _ = self._state(self.best)
        precision = weights * (shares / total).sum(-1)
        self.best[:, :3] += self._newton(precision, precision * errors, slice(0, 3))
        errors = y - (self._basis @ self.best[:, :3, None])[..., 0]
        pull = weights * (shares * own / total * (errors[..., None] ** 2 / total - 1)).sum(-1)
        change = self._newton(2 * weights * (shares * (own / total) ** 2).sum(-1), pull, slice(3, 5))
        self.best[:, 3:] += np.clip(change, -1, 1)

    def _newton(self, information: np.ndarray, pull: np.ndarray, part: slice) -> np.ndarray:
        basis = self._basis[..., : part.stop - part.start]
        matrix = np.einsum("bni,bn,bnj->bij", basis, information, basis)
        matrix += np.diag(PRIOR[1][part] ** -2.0)
        right = np.einsum("bni,bn->bi", basis, pull) - (self.best[:, part] - PRIOR[0][part]) / PRIOR[1][part] ** 2
        return np.linalg.solve(matrix, right[..., None])[..., 0]

    def _state(self, coefficients: np.ndarray) -> tuple[np.ndarray, ...]:
        """Own variances and whole ones (b, n, k), errors (b, n), shares of the normals, and log densities (b, n)."""
        y, variance, _ = self._data
        scale = np.exp(np.clip(2 * (self._basis[..., :2] @ coefficients[:, 3:, None])[..., 0], -30, 30))
        own = scale[..., None] / self.precisions
        errors = y - (self._basis @ coefficients[:, :3, None])[..., 0]
        total = own + variance[..., None]
        shares, logs = _densities(errors, total)
        return own, total, errors, shares, logs

    def _gradient(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradient (b, 5) of minus the log posterior density, and its value (b,)."""
        own, total, errors, shares, logs = self._state(coefficients)
        weights, basis = self._data[2], self._basis
        relative = shares / total
        by_centre = weights * relative.sum(-1) * errors
        by_scale = weights * (relative * own * (errors[..., None] ** 2 / total - 1)).sum(-1)
        each = np.concatenate(
            [np.einsum("bni,bn->bi", basis, by_centre), np.einsum("bni,bn->bi", basis[..., :2], by_scale)], 1
        )
        z = (coefficients - PRIOR[0]) / PRIOR[1]
        return z / PRIOR[1] - each, 0.5 * (z * z).sum(1) - (weights * logs).sum(1)

    def root(self) -> np.ndarray:
        """Roots (b, 5, 5) of the coefficients' covariance in the normal approximation."""
        here = self._gradient(self.best)[0]
        rows = [self._gradient(self.best + h)[0] - here for h in STEP * np.eye(5)]
        curvature = np.stack(rows, 1) / STEP
        eigenvalues, vectors = np.linalg.eigh((curvature + curvature.transpose(0, 2, 1)) / 2)
        return vectors / np.sqrt(np.maximum(eigenvalues, 0.05))[:, None, :]


def _moments(coefficients: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b, c, d, e = coefficients
    return a + b * x + c * (x * x - 1), np.exp(np.clip(2 * (d + e * x), -30, 30))


def _densities(errors: np.ndarray, variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each normal (..., n, k) given the error (..., n), and the log density up to a constant."""
    logs = -0.5 * (errors[..., None] ** 2 / variances + np.log(variances))
    top = logs.max(-1, keepdims=True)
    shares = np.exp(logs - top)
    total = shares.sum(-1, keepdims=True)
    return shares / total, top[..., 0] + np.log(total[..., 0] / variances.shape[-1])
