"""Draws of the entries of a diagonal given their noisy estimates, by empirical Bayes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

CELLS = 80
"""Cells of the histogram that stands for the entries' distribution."""
FITS, DRAWS = 30, 8
"""Fits of the distribution, each to data weighted and begun anew, and draws of the entries from each."""
STEPS = (20, 60, 150)
"""EM steps of a third of the fits each: few leave the distribution smooth, many sharpen it."""
POWERS = (0.0, 1.0, 2.0)
"""Powers of the standard error that entries may be proportional to; the likeliest is taken."""
TESTED = 2048
"""Entries that the test for a median of zero looks at, at most."""
ROW_CORRELATION = 0.5
"""Correlation of errors within a row that is allowed for; probing's was 0.2 to 0.8 in small models."""
NATS, FEWEST = 1.4, 32
"""A stratum spans about so many nats of the standard error, and has at least so many entries."""


@dataclass(frozen=True)
class Entries:
    """Noisy entries of a diagonal, and what is known of them exactly. All arrays are (N,).

    Attributes:
        values: Estimates y_i of the entries d_i.
        sem: Their standard errors s_i.
        rows: Number of the row of the parameter tensor, whose errors may be correlated.
        exact: d_i where measured, NaN elsewhere.
        blocks: Number of the block; blocks are distributed each in its own way.
    """

    values: np.ndarray
    sem: np.ndarray
    rows: np.ndarray
    exact: np.ndarray
    blocks: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Which entries are known without error."""
        return ~np.isnan(self.exact) | (self.sem == 0)

    @property
    def best(self) -> np.ndarray:
        """The exact entries where measured, the estimates elsewhere."""
        return np.where(np.isnan(self.exact), self.values, self.exact)

    @property
    def errors(self) -> np.ndarray:
        """Standard errors of `best`."""
        return np.where(np.isnan(self.exact), self.sem, 0.0)

    def take(self, indices: np.ndarray | slice) -> Entries:
        """Some of the entries."""
        return Entries(
            self.values[indices],
            self.sem[indices],
            self.rows[indices],
            self.exact[indices],
            self.blocks[indices],
        )


def draws(entries: Entries, learn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws (FITS * DRAWS, N) of the entries from their posterior.

    The entries' distribution is a histogram, the nonparametric maximum likelihood estimate by EM from those in `learn`
    (N,), which must be chosen without a look at the estimates.
    Entries and standard errors go together in real diagonals, so it is learned for d_i / s_i^p, with the likeliest
    of a few powers p, in each block and, where there are many entries, in each stratum of s_i. How well it is known
    comes from fitting it anew to randomly weighted data, with a random prior distribution that counts as 1 to 10
    entries, some of them with a spike at zero: the posterior bootstrap of a Dirichlet process mixture. Weights and
    draws are correlated within rows as their errors may be.

    Source: Kiefer and Wolfowitz (1956), "Consistency of the maximum likelihood estimator in the presence of
        infinitely many incidental parameters"; Chen (2022), "Empirical Bayes when estimation precision predicts
        parameters", arXiv 2212.14444; Fong, Lyddon, Holmes (2019), "Scalable nonparametric sampling from multimodal
        posteriors with the posterior bootstrap", arXiv 1902.03175.
    """
    _, row = np.unique(entries.rows, return_inverse=True)
    best, errors = entries.best, entries.errors
    found = np.tile(best, (FITS * DRAWS, 1))
    noisy = np.flatnonzero(entries.sem > 0)
    learn = (learn & (entries.sem > 0)).astype(float)
    weights = -np.log(ndtr(_correlated(FITS, row, rng))) * learn
    uniforms = ndtr(_correlated(FITS * DRAWS, row, rng))
    for i in _strata(entries.sem[noisy], entries.blocks[noisy]):
        i = noisy[i]
        if not errors[i].any():
            continue
        if not learn[i].any():
            found[:, i] = best[i] + errors[i] * ndtri(uniforms[:, i])
            continue
        histogram = _Histogram(best[i], errors[i], entries.sem[i], learn[i])
        found[:, i] = histogram.draw(weights[:, i].T, uniforms[:, i], rng)
    return found


def may_be_mostly_zero(entries: Entries) -> bool:
    """Whether half of the entries may be zero, by a likelihood ratio test."""
    known_zero = int((entries.known & (entries.best == 0)).sum())
    i = np.flatnonzero(~entries.known)
    share = (entries.values.size / 2 - known_zero) / max(i.size, 1)
    if share <= 0 or share > 1:
        return share <= 0
    values, sem = entries.values[i[:TESTED]], entries.sem[i[:TESTED]]
    cells = _cell_likelihood(values, sem, _edges(values, sem))
    zero = np.exp(-0.5 * (values / sem) ** 2) / (math.sqrt(2 * math.pi) * sem)
    with np.errstate(divide="ignore"):
        half = np.hstack([zero[:, None], cells])
        free, held = (np.full((CELLS + 1, 1), 1 / (CELLS + 1)) for _ in range(2))
        for _ in range(max(STEPS)):
            free = _step(half, free, 1.0)
            held = _step(half, held, 1.0)
            held[1:] *= (1 - max(held[0, 0], share)) / held[1:].sum()
            held[0] = max(held[0, 0], share)
        ratio = 2 * (np.log(half @ free) - np.log(half @ held)).sum()
    return bool(ratio < 3.84)


def _correlated(count: int, row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Standard normal numbers (count, N), correlated within rows of more than one entry."""
    own, rows = rng.standard_normal((count, row.size)), int(row.max()) + 1
    if rows == row.size:
        return own
    shared = rng.standard_normal((count, rows))[:, row]
    return math.sqrt(ROW_CORRELATION) * shared + math.sqrt(1 - ROW_CORRELATION) * own


def _strata(sem: np.ndarray, blocks: np.ndarray) -> list[np.ndarray]:
    """Positions of the entries that share a distribution."""
    found = []
    for block in np.unique(blocks):
        indices = np.flatnonzero(blocks == block)
        logs = np.log(sem[indices])
        low, high = np.quantile(logs, [0.05, 0.95])
        count = max(1, math.ceil((high - low) / NATS - 0.3))
        number = np.digitize(logs, np.linspace(low, high, count + 1)[1:-1])
        own: list[np.ndarray] = []
        for k in range(count):
            part = indices[number == k]
            if own and min(part.size, own[-1].size) < FEWEST:
                own[-1] = np.concatenate([own[-1], part])
            else:
                own.append(part)
        found += own
    return found


def _edges(values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Edges of the cells (CELLS + 1,), fine around zero and growing with the distance from it."""
    unit = 0.3 * float(np.median(errors[errors > 0]))
    low, high = float((values - 3 * errors).min()), float((values + 3 * errors).max())
    room = 1e-6 * (high - low)
    return unit * np.sinh(np.linspace(np.arcsinh((low - room) / unit), np.arcsinh((high + room) / unit), CELLS + 1))


def _cell_likelihood(values: np.ndarray, errors: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mean density (N, CELLS) of each value over the entries in each cell."""
    noise = np.maximum(errors, 1e-9 * np.abs(values) + 1e-12 * (edges[-1] - edges[0]))
    z = (edges - values[:, None]) / noise[:, None]
    below, above = ndtr(z), ndtr(-z)
    inside = np.where(z[:, :-1] > 0, above[:, :-1] - above[:, 1:], below[:, 1:] - below[:, :-1])
    return inside / np.diff(edges)


def _step(cells: np.ndarray, shares: np.ndarray, weights: np.ndarray | float, prior: np.ndarray | float = 0.0):
    """One EM step for the shares of the cells (CELLS, B), with weights (N, B) and prior counts (CELLS, B)."""
    counts = shares * (cells.T @ (weights / (cells @ shares + 1e-300))) + prior
    return counts / counts.sum(0)


class _Histogram:
    """The distribution of d / s^p on cells.

    Args:
        best: Best estimates (N,) of the entries.
        errors: Their errors (N,), zero where they are exact.
        sem: Standard errors (N,) before any was measured.
        learn: One for those that the distribution is learned from (N,), zero for the others.
    """

    def __init__(self, best: np.ndarray, errors: np.ndarray, sem: np.ndarray, learn: np.ndarray):
        logs = np.log(sem) - np.log(sem).mean()
        powers = POWERS if logs.std() > 0.05 else POWERS[:1]
        likelihood = -math.inf
        noisy = (errors > 0) & (learn > 0)
        for power in powers:
            scale = np.exp(power * logs)
            values, noise = best / scale, errors / scale
            edges = _edges(values, noise)
            cells = _cell_likelihood(values, noise, edges)
            shares = np.full((CELLS, 1), 1 / CELLS)
            for _ in range(40 if len(powers) > 1 else 0):
                shares = _step(cells, shares, learn[:, None])
            found = float((np.log(cells @ shares + 1e-300)[:, 0] - np.log(scale))[noisy].sum())
            if found > likelihood or power == powers[0]:
                likelihood, self.scale, self.values, self.noise = found, scale, values, noise
                self.edges, self.cells = edges, cells

    def draw(self, weights: np.ndarray, uniforms: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Entries (FITS * DRAWS, N) at given quantiles of their posteriors; the fits weight the data by (N, FITS)."""
        noisy = np.flatnonzero(self.noise > 0)
        cells, values, noise = self.cells[noisy], self.values[noisy, None], self.noise[noisy, None]
        found = np.tile(self.values, (FITS * DRAWS, 1))
        number = np.arange(noisy.size)[:, None]
        for fit, shares in enumerate(self._fits(weights, rng).T):
            cumulative = np.cumsum(cells * shares, 1)
            cumulative /= cumulative[:, -1:] + 1e-300
            where = slice(fit * DRAWS, (fit + 1) * DRAWS)
            u = np.clip(uniforms[where][:, noisy].T, 1e-12, 1 - 1e-12)
            k = np.searchsorted((cumulative + number).ravel(), u + number) - number * CELLS
            k = np.clip(k, 0, CELLS - 1)
            first = np.where(k > 0, cumulative[number, np.maximum(k - 1, 0)], 0.0)
            part = np.clip((u - first) / np.maximum(cumulative[number, k] - first, 1e-300), 0, 1)
            low, high = (self.edges[k] - values) / noise, (self.edges[k + 1] - values) / noise
            found[where, noisy] = (values + noise * _truncated_normal(low, high, part)).T
        return found * self.scale

    def _fits(self, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Shares of the cells (CELLS, FITS)."""
        found = []
        for number, steps in enumerate(STEPS):
            own = weights[:, number :: len(STEPS)]
            prior = self._priors(own.shape[1], rng)
            counts, shares = np.exp(rng.uniform(0, math.log(10), own.shape[1])), prior
            for _ in range(steps):
                shares = _step(self.cells, shares, own, counts * prior)
            found.append(shares)
        fits = np.concatenate(found, 1)
        # Each cell shares with its neighbours, lest the edge of a cell cut an entry's posterior where noise is small.
        return fits / 2 + (np.vstack([fits[:1], fits[:-1]]) + np.vstack([fits[1:], fits[-1:]])) / 4

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


def _truncated_normal(low: np.ndarray, high: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Quantiles of the standard normal distribution between low and high, accurate in both tails."""
    upper = low > 0
    left, right = np.where(upper, -high, low), np.where(upper, -low, high)
    part = np.where(upper, 1 - part, part)
    z = ndtri(np.clip(ndtr(left) + part * (ndtr(right) - ndtr(left)), 1e-300, 1.0))
    return np.clip(np.where(upper, -z, z), low, high)
