"""Draws of the entries of a diagonal given their noisy estimates, by empirical Bayes."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr, ndtri

from geomtraj.statistics.r_med.entries import Entries, student
from geomtraj.statistics.r_med.histogram import (
    CELLS,
    DRAWS,
    FITS,
    PLAIN,
    Histogram,
    cell_edges,
    cell_likelihood,
    em_step,
)

ROW_CORRELATION, CORRELATION = 0.5, 0.03
"""Correlation of errors within a row, and anywhere, that is allowed for; probing's was 0.2 to 0.9, and up to 0.2."""
NATS, FEWEST = 1.4, 32
"""A stratum spans about so many nats of the standard error, and has at least so many entries."""
LIKELIHOOD_RATIO = 5.4
"""Twice the logarithm of the likelihood ratio that excludes a median of zero: 2.71 is 5 %, twice that as errors are
correlated within rows."""
TEST_STEPS = 100
"""EM steps of the test for a median of zero."""


def draws(
    entries: Entries, learn: np.ndarray, rng: np.random.Generator, wanted: np.ndarray | None = None
) -> np.ndarray:
    """Draws (FITS * DRAWS + PLAIN, N) of the entries from their posterior.

    The entries' distribution is a histogram, the nonparametric maximum likelihood estimate by EM from those in `learn`
    (N,), which must be chosen without a look at the estimates. Errors follow Student's t.
    Entries and standard errors go together in real diagonals, so it is learned for d_i / s_i^p, with the likeliest
    of a few powers p, in each block and, where there are many entries, in each stratum of s_i. How well it is known
    comes from fitting it anew to randomly weighted data, with a random prior distribution that counts as 1 to 10
    entries, some of them with a spike at zero: the posterior bootstrap of a Dirichlet process mixture. Weights and
    draws are correlated within rows as their errors may be. The last PLAIN draws are from the likeliest distribution
    alone, for an estimate that is not raised by those priors; where all entries may be equal, they are.
    Entries that are not `wanted` (N,) stay at their estimates.

    Source: Kiefer and Wolfowitz (1956), "Consistency of the maximum likelihood estimator in the presence of
        infinitely many incidental parameters"; Chen (2022), "Empirical Bayes when estimation precision predicts
        parameters", arXiv 2212.14444; Fong, Lyddon, Holmes (2019), "Scalable nonparametric sampling from multimodal
        posteriors with the posterior bootstrap", arXiv 1902.03175.
    """
    _, row = np.unique(entries.rows, return_inverse=True)
    best, errors = entries.best, entries.errors
    found = np.tile(best, (FITS * DRAWS + PLAIN, 1))
    noisy = np.flatnonzero(entries.sem > 0)
    learn = learn & (entries.sem > 0)
    wanted = np.ones_like(learn) if wanted is None else wanted
    weights = -np.log(ndtr(_correlated(FITS, row, rng)))
    uniforms = ndtr(_correlated(FITS * DRAWS + PLAIN, row, rng))
    for i in _strata(entries.sem[noisy], entries.blocks[noisy]):
        i = noisy[i]
        if not errors[i].any():
            continue
        if not learn[i].any():
            found[:, i] = best[i] + errors[i] * student(ndtri(uniforms[:, i]), entries.dof[i])
            continue
        found[:, i] = Histogram(entries.take(i), learn[i]).draw(weights[:, i], uniforms[:, i], rng, wanted[i])
    return found


def may_be_mostly_zero(entries: Entries) -> bool:
    """Whether half of the entries may be zero, by a likelihood ratio test at 5 %.

    Entries that were measured and found not zero speak against it, whatever led to their choice.
    """
    noisy = entries.take(entries.sem > 0)
    zeros = int(((entries.sem == 0) & (entries.values == 0)).sum())
    share = (entries.values.size / 2 - zeros) / max(noisy.values.size, 1)
    if share <= 0 or share > 1:
        return share <= 0
    values, errors, near = noisy.best, noisy.errors, 1e-3 * noisy.sem
    cells = cell_likelihood(values, errors, noisy.dof, cell_edges(values, errors)[0])
    zero = cell_likelihood(values, errors, noisy.dof, near[:, None] * np.array([-1.0, 1.0]))
    half = np.hstack([zero, cells])
    free, held = (np.full((CELLS + 1, 1), 1 / (CELLS + 1)) for _ in range(2))
    for _ in range(TEST_STEPS):
        free = em_step(half, free, 1.0)
        held = em_step(half, held, 1.0)
        held[1:] *= (1 - max(held[0, 0], share)) / max(held[1:].sum(), 1e-300)
        held[0] = max(held[0, 0], share)
    ratio = 2 * (np.log(half @ free + 1e-300) - np.log(half @ held + 1e-300)).sum()
    return bool(ratio < LIKELIHOOD_RATIO)


def _correlated(count: int, row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Standard normal numbers (count, N), a little correlated everywhere, and more within rows of several entries."""
    own, rows = rng.standard_normal((count, row.size)), int(row.max()) + 1
    own *= math.sqrt(1 - CORRELATION - (ROW_CORRELATION if rows < row.size else 0.0))
    if rows < row.size:
        own += math.sqrt(ROW_CORRELATION) * rng.standard_normal((count, rows))[:, row]
    return own + math.sqrt(CORRELATION) * rng.standard_normal((count, 1))


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
