"""The distribution of the residual share r = R_ii / G_ii of the Hessian's diagonal, given the size of G_ii."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.stats import gamma

HEAVY = 4.0
"""Degrees of freedom of the heavy-tailed candidate; the other one is normal."""
NODES = 8
"""Normals that it is a mixture of."""
PRIOR = np.array([0, 0, 0, 0, -0.2]), np.array([5, 1.0, 0.5, 1.0, 0.4])
"""Means and standard deviations of the coefficients, in units of the data's spread."""


class ShareModel:
    """r at x is Student's t or normal, whichever is likelier, its centre quadratic and its log scale linear in x.

    Learned from noisy measurements by their largest posterior density; its uncertainty is that of the coefficients'
    normal approximation there. Student's t is a mixture of normals, so that noise adds its variance to each.

    Args:
        x: Where the shares were measured (n,), of order one.
        y: Measurements (n,).
        noise: Their standard errors (n,).
        weights: How much each of them counts (n,), at most one.
        thorough: Whether the normal is tried too.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, noise: np.ndarray, weights: np.ndarray, thorough: bool = True):
        self.centre = float(np.median(y))
        spread = np.median((y - self.centre) ** 2) / 0.455
        least = (0.5 * (1 + abs(self.centre)) / y.size) ** 2  # a few entries that agree prove little
        self.unit = float(np.sqrt(max(spread - np.median(noise**2), 0.02 * spread, least)))
        self._data = x, (y - self.centre) / self.unit, noise / self.unit, weights
        heavy = gamma.ppf((np.arange(NODES) + 0.5) / NODES, HEAVY / 2, scale=2 / HEAVY)
        start, found = np.zeros(5), []
        for precisions in (heavy, np.ones(1)) if thorough else (heavy,):
            self._precisions = precisions
            result = minimize(self._loss, start, jac=True, method="BFGS", options={"maxiter": 60, "gtol": 1e-3})
            start = result.x
            found.append((float(result.fun), start, precisions))
        _, self._best, self._precisions = min(found, key=lambda f: f[0])
        step = 1e-4 * np.eye(5)
        curvature = np.stack([self._loss(self._best + h)[1] - self._loss(self._best - h)[1] for h in step]) / 2e-4
        eigenvalues, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
        self._root = vectors / np.sqrt(np.maximum(eigenvalues, 0.05))

    def location(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Centre and scale of r at x (n,)."""
        centre, variance = self._moments(self._best, x)
        return self.centre + self.unit * centre, self.unit * np.sqrt(variance)

    def draw(self, x: np.ndarray, y: np.ndarray, noise: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (count, n) of r at x given y with its noise, which is infinite where nothing was measured."""
        coefficients = self._best[:, None] + self._root @ rng.standard_normal((5, count))
        centre, variance = self._moments(coefficients[:, :, None], x)
        precisions = rng.choice(self._precisions, (count, x.size))
        measured = np.flatnonzero(np.isfinite(noise))
        y, noise = (y[measured] - self.centre) / self.unit, noise[measured] / self.unit
        errors = y - centre[:, measured]
        parts = variance[:, measured, None] / self._precisions
        shares = np.cumsum(_densities(errors, parts + (noise**2)[:, None])[0], -1)
        chosen = (shares < shares[..., -1:] * rng.random((count, measured.size, 1))).sum(-1)
        precisions[:, measured] = self._precisions[chosen]
        part = variance / precisions
        left, shift = part.copy(), np.zeros_like(part)
        weight = part[:, measured] / (part[:, measured] + noise**2)
        left[:, measured] *= 1 - weight
        shift[:, measured] = weight * errors
        return self.centre + self.unit * (centre + shift + np.sqrt(left) * rng.standard_normal(part.shape))

    @staticmethod
    def _moments(coefficients: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b, c, d, e = coefficients
        return a + b * x + c * (x * x - 1), np.exp(np.clip(2 * (d + e * x), -30, 30))

    def _loss(self, coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log posterior density and its gradient by the coefficients."""
        x, y, noise, weights = self._data
        centre, variance = self._moments(coefficients, x)
        own = variance[:, None] / self._precisions
        variances, errors = own + (noise**2)[:, None], y - centre
        shares, logs = _densities(errors, variances)
        relative = shares / variances
        by_centre = relative.sum(1) * errors
        by_scale = (relative * own * (errors[:, None] ** 2 / variances - 1)).sum(1)
        each = np.stack([by_centre, by_centre * x, by_centre * (x * x - 1), by_scale, by_scale * x])
        z = (coefficients - PRIOR[0]) / PRIOR[1]
        return float(0.5 * z @ z - weights @ logs), z / PRIOR[1] - each @ weights


def _densities(errors: np.ndarray, variances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each normal (..., n, k) given the error (..., n), and the log density up to a constant."""
    logs = -0.5 * (errors[..., None] ** 2 / variances + np.log(variances))
    top = logs.max(-1, keepdims=True)
    shares = np.exp(logs - top)
    total = shares.sum(-1, keepdims=True)
    return shares / total, top[..., 0] + np.log(total[..., 0] / variances.shape[-1])
