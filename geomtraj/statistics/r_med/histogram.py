"""The distribution of a diagonal's entries, learned from noisy ones, and draws of the entries given it."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr, ndtri

from geomtraj.statistics.r_med.entries import MANY, Entries, normal, student

CELLS = 80
"""Cells of the histogram that stands for the entries' distribution."""
FITS, DRAWS = 24, 7
"""Fits of the distribution, each to data weighted and begun anew, and draws of the entries from each."""
STEPS = (20, 50, 120)
"""EM steps of a third of the fits each: few leave the distribution smooth, many sharpen it."""
PLAIN, PLAIN_STEPS = 32, 100
"""Draws from the likeliest distribution, and EM steps to it from the sharpest fits."""
POWERS = (0.0, 1.0, 2.0)
"""Powers of the standard error that entries may be proportional to; the likeliest is taken."""
OUTLIERS = 0.5
"""Entries that the likeliest distribution spreads evenly over its cells."""
VAGUE = 0.2
"""Relative width below which no distribution of d / s^p is believed."""


class Histogram:
    """The distribution of d / s^p on cells.

    Where s_i enters, that distribution cannot be narrower than s_i is uncertain: its relative error is
    1 / sqrt(2 dof). All distributions are blurred by as much, at least by half a cell.

    Args:
        entries: The entries (N,).
        learn: One for those that the distribution is learned from (N,), zero for the others.
    """

    def __init__(self, entries: Entries, learn: np.ndarray):
        logs = np.log(entries.sem) - np.log(entries.sem).mean()
        powers = POWERS if logs.std() > 0.05 else POWERS[:1]
        self._entries = entries
        self._learn = np.flatnonzero(learn)
        found = [self._of_power(power, logs) for power in powers]
        _, self.scale, self.edges, self.blur, self.learned, self.start = max(found, key=lambda f: f[0])

    def _of_power(self, power: float, logs: np.ndarray):
        """Log-likelihood after some EM steps, scales (N,), edges, blur, blurred cells to learn from, shares."""
        scale, some = np.exp(power * logs), self._entries.take(self._learn)
        edges, unit = cell_edges(self._entries.best / scale, self._entries.errors / scale)
        vague = max(power * math.sqrt(0.5 * float(np.mean(1 / np.clip(some.dof, 1, MANY)))), VAGUE if power else 0.0)
        blur = _blur(edges, unit, vague)
        own = scale[self._learn]
        learned = cell_likelihood(some.best / own, some.errors / own, some.dof, edges) @ blur
        shares = np.full((CELLS, 1), 1 / CELLS)
        for _ in range(40):
            shares = em_step(learned, shares, 1.0)
        return float((np.log(learned @ shares + 1e-300)[:, 0] - np.log(own)).sum()), scale, edges, blur, learned, shares

    def draw(
        self, weights: np.ndarray, uniforms: np.ndarray, rng: np.random.Generator, wanted: np.ndarray
    ) -> np.ndarray:
        """Entries (FITS * DRAWS + PLAIN, N) at given quantiles, likewise, of their posteriors.

        The fits weight the data by (FITS, N). The last PLAIN are from the likeliest distribution.
        Those that are not `wanted` (N,) stay at their estimates.
        """
        entries = self._entries
        noisy = np.flatnonzero((entries.errors > 0) & wanted)
        some, scale = entries.take(noisy), self.scale[noisy]
        values, noise, dof = some.best / scale, some.errors / scale, some.dof
        cells = cell_likelihood(values, noise, dof, self.edges)
        found = np.tile(entries.best, (len(uniforms), 1))
        number = np.arange(noisy.size)[:, None]
        fits, equal, weight = self._fits(weights[:, self._learn].T, rng)
        for fit, shares in enumerate(fits.T):
            cumulative = np.cumsum(cells * shares, 1)
            cumulative /= cumulative[:, -1:] + 1e-300
            where = slice(fit * DRAWS, (fit + 1) * DRAWS if fit < FITS else None)
            u = np.clip(uniforms[where][:, noisy].T, 1e-12, 1 - 1e-12)
            k = np.searchsorted((cumulative + number).ravel(), u + number) - number * CELLS
            k = np.clip(k, 0, CELLS - 1)
            first = np.where(k > 0, cumulative[number, np.maximum(k - 1, 0)], 0.0)
            part = np.clip((u - first) / np.maximum(cumulative[number, k] - first, 1e-300), 0, 1)
            found[where, noisy] = (self._within(k, part, values[:, None], noise[:, None], dof[:, None])).T * scale
        found[FITS * DRAWS : FITS * DRAWS + round(weight * PLAIN), noisy] = equal
        return found

    def _within(self, k: np.ndarray, part: np.ndarray, values: np.ndarray, noise: np.ndarray, dof: np.ndarray):
        """Places (N, D) within cells k: evenly spread where the noise is larger than the cell."""
        low, high = self.edges[k], self.edges[k + 1]
        found = low + part * (high - low)
        fine = high - low > 0.5 * noise
        values, noise, dof = (np.broadcast_to(a, k.shape)[fine] for a in (values, noise, dof))
        below, above = (normal((edge[fine] - values) / noise, dof) for edge in (low, high))
        found[fine] = values + noise * student(_truncated_normal(below, above, part[fine]), dof)
        return np.clip(found, low, high)

    def _fits(self, weights: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
        """Shares of the cells (CELLS, FITS + 1), the likeliest last; and `_equal`."""
        found = []
        for number, steps in enumerate(STEPS):
            own = weights[:, number :: len(STEPS)]
            prior = self._priors(own.shape[1], rng)
            counts, shares = np.exp(rng.uniform(0, math.log(10), own.shape[1])), prior
            for _ in range(steps):
                shares = em_step(self.learned, shares, own, counts * prior)
            found.append(shares)
        likeliest = (self.start + found[-1].mean(1, keepdims=True)) / 2
        for _ in range(PLAIN_STEPS):
            likeliest = em_step(self.learned, likeliest, 1.0)
        # Entries beyond all that the distribution was learned from need some mass where they are.
        spread = likeliest + OUTLIERS / (self._learn.size * CELLS)
        return self.blur @ np.concatenate([*found, spread / spread.sum()], 1), *self._equal(likeliest)

    def _equal(self, likeliest: np.ndarray) -> tuple[float, float]:
        """The number that all entries equal if they are equal, and the probability of that beside the likeliest fit.

        By the Bayesian information criterion, with two more parameters for the fit.
        """
        some = self._entries.take(self._learn)
        values, sem = some.best, some.sem
        point = float(np.average(values, weights=1 / sem**2))
        for _ in range(10):
            t = (values - point) / sem
            point = float(np.average(values, weights=1 / (sem**2 * (1 + t**2 / some.dof))))
        near = point + 1e-3 * sem[:, None] * np.array([-1.0, 1.0])
        equal = np.log(cell_likelihood(values, some.errors, some.dof, near) + 1e-300).sum()
        free = (np.log(self.learned @ likeliest + 1e-300)[:, 0] - np.log(self.scale[self._learn])).sum()
        if abs(point) < float(np.median(sem)) / 2:
            return point, 0.0
        return point, 1 / (1 + math.exp(min(float(free - equal) - math.log(values.size), 700.0)))

    def _priors(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Random distributions (CELLS, count): smooth on the cells' scale, a third with a spike at zero."""
        offsets = np.arange(-30, 31)
        smooth = []
        for width in np.exp(rng.uniform(0, math.log(10), count)):
            kernel = np.exp(-0.5 * (offsets / width) ** 2)
            smooth.append(np.convolve(rng.standard_normal(CELLS + 60), kernel / np.linalg.norm(kernel), "valid"))
        prior = np.exp(3 * rng.uniform(0, 1, count) * np.stack(smooth, 1))
        prior /= prior.sum(0)
        spike = np.where(rng.random(count) < 1 / 3, rng.uniform(0, 0.7, count), 0.0)
        prior *= 1 - spike
        prior[np.clip(np.searchsorted(self.edges, 0) - 1, 0, CELLS - 1)] += spike
        return prior


def cell_edges(values: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, float]:
    """Edges of the cells (CELLS + 1,) and their unit: fine around zero and growing with the distance from it."""
    unit = 0.3 * float(np.median(errors[errors > 0]))
    low, high = float((values - 3 * errors).min()), float((values + 3 * errors).max())
    room = 1e-6 * (high - low)
    places = np.linspace(np.arcsinh((low - room) / unit), np.arcsinh((high + room) / unit), CELLS + 1)
    return unit * np.sinh(places), unit


def cell_likelihood(values: np.ndarray, errors: np.ndarray, dof: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mean density (N, CELLS) of each value over the entries in each cell; edges (CELLS + 1,) or (N, CELLS + 1)."""
    noise = np.maximum(errors, 1e-9 * np.abs(values) + 1e-12 * (edges[..., -1] - edges[..., 0]))
    z = normal((edges - values[:, None]) / noise[:, None], dof[:, None])
    below, above = ndtr(z), ndtr(-z)
    inside = np.where(z[:, :-1] > 0, above[:, :-1] - above[:, 1:], below[:, 1:] - below[:, :-1])
    return inside / np.diff(edges)


def em_step(cells: np.ndarray, shares: np.ndarray, weights: np.ndarray | float, prior: np.ndarray | float = 0.0):
    """One EM step for the shares of the cells (CELLS, B), with weights (N, B) and prior counts (CELLS, B)."""
    counts = shares * (cells.T @ (weights / (cells @ shares + 1e-300))) + prior
    return counts / counts.sum(0)


def _blur(edges: np.ndarray, unit: float, width: float) -> np.ndarray:
    """What share (CELLS, CELLS) of cell k (column) lies in each cell once entries have a relative error `width`."""
    places = np.arcsinh(edges / unit)
    middles = (places[1:] + places[:-1]) / 2
    spread = np.hypot(width * np.tanh(middles), np.diff(places) / 2)
    shares = np.diff(ndtr((places[:, None] - middles) / spread), axis=0)
    return shares / shares.sum(0)


def _truncated_normal(low: np.ndarray, high: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Quantiles of the standard normal distribution between low and high, accurate in both tails."""
    upper = low > 0
    left, right = np.where(upper, -high, low), np.where(upper, -low, high)
    part = np.where(upper, 1 - part, part)
    z = ndtri(np.clip(ndtr(left) + part * (ndtr(right) - ndtr(left)), 1e-300, 1.0))
    return np.clip(np.where(upper, -z, z), low, high)
