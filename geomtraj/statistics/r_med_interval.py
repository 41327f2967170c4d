"""Intervals for the largest and the median magnitude of entries known with noise, some of them exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

Z_MAX = 3.0
"""One-sided normal quantile for the largest entry's upper end: it misses once in 700."""
Z_MEDIAN = 2.05
"""Two-sided quantile for the median: 96 %, which leaves 1 % to the maximum."""
ROW_CORRELATION = 0.5
"""Correlation of the errors within a row for which the median's interval leaves room; probing's was up to 0.47."""
BIAS = 0.4
"""Room for what the correction of the median leaves, relative to the median, times the squared noise ratio."""
STEP = 2.0
"""Further room to the side that the correction went, in corrections: what it leaves at a step of the distribution."""
TRUSTED = 0.35
"""Squared ratio of noise to median up to which the correction is trusted."""
PANEL = 2**15
"""Entries that the median is taken from at most; their choice is random and its error counted."""
GRID, PASSES, REPLICATES = 33, 4, 4
FAR = 8.0
"""Standard errors beyond which an entry's side of the median is beyond doubt."""
FEWEST = 12
"""Entries drawn at random that a sample must have for an interval."""


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Entries:
    """Noisy entries of a diagonal, what is known of them exactly, and how it was chosen. All arrays are (N,).

    Attributes:
        values: Estimates y_i of the entries d_i.
        sem: Their standard errors s_i.
        rows: Number of the row of the parameter tensor, whose errors may be correlated.
        exact: d_i where measured, NaN elsewhere.
        inclusion: Probability with which entry i was chosen to be measured, given the estimates; 0: it cannot be.
    """

    values: np.ndarray
    sem: np.ndarray
    rows: np.ndarray
    exact: np.ndarray
    inclusion: np.ndarray

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
            self.inclusion[indices],
        )


def z_for_all(size: int) -> float:
    """Two-sided normal quantile that holds for all of `size` entries at once with probability 99 %."""
    return float(ndtri(1 - 0.005 / max(size, 1)))


def maximum(entries: Entries) -> Interval:
    """max|d|: the largest best estimate, and its interval.

    The entry that is the largest is one, so that its own upper end |y| + 3 s holds without correction for the number
    of entries, and with it the largest upper end. The lower end is what is known exactly, or holds for all at once.
    """
    magnitudes, errors = np.abs(entries.best), entries.errors
    if np.isnan(errors).any():
        return Interval(float(magnitudes.max()), 0.0, math.inf)
    low = float((magnitudes - z_for_all(magnitudes.size) * errors).max())
    high = float((magnitudes + Z_MAX * errors).max())
    low = max(low, 0.0)
    return Interval(float(np.clip(magnitudes.max(), low, high)), low, high)


def median(entries: Entries, free: Interval, within: tuple[float, float], seed: int = 0) -> Interval:
    """median|d|: the narrowest of what follows from the errors' size, from extrapolation and from sampling.

    Args:
        entries: The entries, some of them measured.
        free: `extrapolated` of the entries before any was measured.
        within: `plausible` of the same.
        seed: Seed of the panel.
    """
    plain = float(np.median(np.abs(entries.best)))
    if entries.known.all():
        return Interval(plain, plain, plain)
    if np.isnan(entries.errors).any():
        return Interval(plain, 0.0, math.inf)
    low, high = bounds(entries)
    drawn = sampled(entries.take(panel(entries.values.size, seed)), *within, entries.values.size)
    value, narrow_low, narrow_high = min(free, drawn, key=lambda i: i.high / i.low if i.low > 0 else math.inf)
    if max(low, narrow_low) <= min(high, narrow_high):
        low, high = max(low, narrow_low), min(high, narrow_high)
    return Interval(float(np.clip(value, low, high)), low, high)


def plausible(entries: Entries, free: Interval) -> tuple[float, float]:
    """The range in which sampling looks for the median: a quarter beyond extrapolation's interval, within `bounds`."""
    low, high = bounds(entries)
    narrow = max(low, free.low / 1.25), min(high, free.high * 1.25)
    return narrow if narrow[0] <= narrow[1] else (low, high)


def panel(size: int, seed: int) -> np.ndarray:
    """Indices of the entries that the median is taken from: all, or `PANEL` of them at random."""
    if size <= PANEL:
        return np.arange(size)
    return np.random.default_rng([seed, size]).choice(size, PANEL, replace=False)


def bounds(entries: Entries) -> tuple[float, float]:
    """Ends of an interval for median|d| whatever the distribution of the entries.

    Either from the bounds that hold for all entries at once; or, tighter where noise is large: of the entries' own
    95 % intervals 5 % miss, half on each side, give or take three deviations, and the ranks leave room for them.
    """
    magnitudes, errors = np.abs(entries.best), entries.errors
    size = magnitudes.size
    z_all = z_for_all(size)
    low = float(np.median(np.maximum(magnitudes - z_all * errors, 0)))
    high = float(np.median(magnitudes + z_all * errors))
    row = size / np.unique(entries.rows).size
    missing = 0.025 + 3 * math.sqrt(0.025 * 0.975 * (1 + ROW_CORRELATION / 2 * (row - 1)) / size)
    low_rank = math.floor((0.5 - missing) * size) - 1
    high_rank = math.ceil((0.5 + missing) * size)
    if low_rank >= 0:
        low = max(low, float(np.sort(np.maximum(magnitudes - 1.96 * errors, 0))[low_rank]))
    if high_rank < size:
        high = min(high, float(np.sort(magnitudes + 1.96 * errors)[high_rank]))
    return low, high


def share_below(t: np.ndarray, values: np.ndarray, sem: np.ndarray) -> np.ndarray:
    """P(|y_i + s_i e| <= t) for standard normal e, shape (T, N)."""
    noise = np.maximum(sem, np.finfo(float).tiny)
    with np.errstate(over="ignore"):
        return ndtr((t[:, None] - values) / noise) - ndtr((-t[:, None] - values) / noise)


def _corrected(t: np.ndarray, values: np.ndarray, sem: np.ndarray) -> np.ndarray:
    """Shares of entries up to t (T, N) at noise variance 1 and 2, extrapolated linearly to 0."""
    return 2 * (np.abs(values) <= t[:, None]) - share_below(t, values, sem)


def extrapolated(entries: Entries, seed: int = 0) -> Interval:
    """The median from the estimates and their standard errors alone, without any product.

    The share of |y_i| <= t is that of the entries, smeared with noise of variance s_i^2. Smearing it once more gives
    the share at twice the variance, and a line through both the share at none (simulation extrapolation). Its standard
    error comes from replicated noise, correlated within rows. What is left of the bias grows with the square of the
    noise next to the median, and with the correction where the distribution has a step: room for both is added. Where
    the squared noise ratio is above 0.35 there is no interval.

    Source: Cook and Stefanski (1994), "Simulation-extrapolation estimation in parametric measurement error models",
        Journal of the American Statistical Association 89.
    """
    total, everywhere = entries.values.size, entries
    entries = entries.take(panel(total, seed))
    values, sem = entries.values, entries.sem
    magnitudes, size = np.abs(values), values.size
    plain = float(np.median(magnitudes))
    if not np.isfinite(values + sem).all() or not sem.any():
        return Interval(plain, plain if not sem.any() else 0.0, plain if not sem.any() else math.inf)
    _, row = np.unique(entries.rows, return_inverse=True)
    count = row.max() + 1
    correlated = 0.0 if count == size else ROW_CORRELATION
    rng = np.random.default_rng(seed)

    def noisy() -> np.ndarray:
        shared, own = rng.standard_normal(count)[row], rng.standard_normal(size)
        return values + sem * (math.sqrt(correlated) * shared + math.sqrt(1 - correlated) * own)

    pairs = [(noisy(), noisy()) for _ in range(REPLICATES)]

    def curve(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        below = magnitudes + FAR * sem < t[0]
        near = ~below & (magnitudes - FAR * sem <= t[-1])
        share = (below.sum() + _corrected(t, values[near], sem[near]).sum(1)) / size
        variance = np.zeros(t[::4].size)
        for one, other in pairs:
            difference = _corrected(t[::4], one[near], sem[near]) - _corrected(t[::4], other[near], sem[near])
            by_row = np.stack([np.bincount(row[near], d, minlength=count) for d in difference])
            variance += (by_row**2).sum(1) / (2 * size**2 * REPLICATES)
        half = np.interp(t, t[::4], np.sqrt(variance + _panel_variance(size, total)))
        return share, 1 / size + Z_MEDIAN * half

    found = _inverted(curve, *bounds(everywhere), magnitudes)
    ratio = _noise_ratio(found.value, entries)
    if not ratio <= TRUSTED:
        return Interval(found.value, 0.0, math.inf)
    room = BIAS * ratio * found.value
    down, up = max(room, STEP * (plain - found.value)), max(room, STEP * (found.value - plain))
    return Interval(found.value, max(found.low - down, 0.0), found.high + up)


def _noise_ratio(t: float, entries: Entries) -> float:
    """Mean of (s_i / t)^2 over the entries around t."""
    magnitudes = np.abs(entries.values)
    near = (magnitudes >= t / 2 - entries.sem) & (magnitudes <= 2 * t + entries.sem)
    if t <= 0 or not near.any():
        return math.inf
    return float(np.minimum((entries.sem[near] / t) ** 2, 1.0).mean())


def doubt(entries: Entries, low: float, high: float) -> np.ndarray:
    """How much an exact entry (N,) tells about the median: the largest standard deviation of its side of the median.

    Sampling in proportion to it gives the smallest error for a number of products; entries that lie on one side of
    all candidates by many standard errors get zero.
    """
    weight = np.zeros(entries.values.size)
    for t in np.linspace(low, high, 9):
        below = share_below(np.array([t]), entries.values, entries.sem)[0]
        np.maximum(weight, np.sqrt(np.maximum(below * (1 - below), 0)), out=weight)
    weight[weight < 1e-3] = 0
    return weight


def sampled(entries: Entries, low: float, high: float, total: int) -> Interval:
    """The median from exact entries drawn with known probabilities, the estimates serving as control variates.

    The share of entries up to t is the mean of P(|d_i| <= t | y_i), plus the mean over the exact entries, each over
    its probability of being drawn, of what that misses. Unbiased whatever those predictions are worth.

    Source: Sarndal, Swensson, Wretman (1992), "Model Assisted Survey Sampling", chapter 6.
    """
    size, plain = entries.values.size, float(np.median(np.abs(entries.best)))
    drawn = ~np.isnan(entries.exact) & (entries.inclusion > 0)
    weight = 1 / entries.inclusion[drawn]
    by_chance = int((weight > 1).sum())
    unreachable = (entries.inclusion == 0) & (entries.sem > 0)
    if 0 < by_chance < FEWEST or (unreachable.any() and doubt(entries.take(unreachable), low, high).any()):
        return Interval(plain, 0.0, math.inf)
    z = Z_MEDIAN * (1 + 2 / by_chance if by_chance else 1)

    def curve(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        predicted = share_below(t, entries.values, entries.sem)
        missed = (np.abs(entries.exact[drawn]) <= t[:, None]) - predicted[:, drawn]
        share = predicted.mean(1) + (missed * weight).sum(1) / size
        expected = predicted[:, drawn] * (1 - predicted[:, drawn])
        spread = weight * (weight - 1)
        variance = np.maximum((spread * missed**2).sum(1), (spread * expected).sum(1)) / size**2
        return share, 1 / size + z * np.sqrt(variance + _panel_variance(size, total))

    return _inverted(curve, low, high, np.abs(entries.best))


def _panel_variance(size: int, total: int) -> float:
    return 0.25 / size * (1 - size / total)


def _inverted(curve, low: float, high: float, magnitudes: np.ndarray) -> Interval:
    """Where the share crosses one half, and from where to where its interval holds one half."""
    if not math.isfinite(high) or high <= 0:
        high = float(magnitudes.max())
    first, last, value = low, high, high
    for _ in range(PASSES):
        start = max(first, 1e-4 * last)
        t = np.geomspace(start, max(last, start * (1 + 1e-12)), GRID)
        share, half = curve(t)
        below, above = np.flatnonzero(share + half < 0.5), np.flatnonzero(share - half > 0.5)
        if below.size:
            above = above[above > below[-1]]
        found_low = float(t[below[-1]]) if below.size else first
        found_high = float(t[above[0]]) if above.size else last
        crossed = np.flatnonzero(share >= 0.5)
        value = float(t[crossed[0]]) if crossed.size else float(t[-1])
        done = found_low <= first * 1.05 and found_high >= last / 1.05
        first, last = found_low, found_high
        if done:
            break
    return Interval(float(np.clip(value, first, last)), first, last)
