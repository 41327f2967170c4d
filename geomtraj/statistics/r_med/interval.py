"""R_med of entries known with noise, some of them exactly, with its 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from geomtraj.statistics.r_med.entries import Entries
from geomtraj.statistics.r_med.histogram import PLAIN
from geomtraj.statistics.r_med.posterior import draws, may_be_mostly_zero

PANEL = 1536
"""Entries that the median is taken from at most; their choice is random and its error counted."""
CANDIDATES = 256
"""Entries that are considered for the largest one at most."""
LEARN = 512
"""Entries that their distribution is learned from at most."""
LOWER, UPPER = 1.2, 1.25
"""Stretch of the interval on the log scale: shrinkage is right on average over blocks, and biased in any single one."""
SIDE = 0.4
"""Each side of the interval is at least so large next to the other, on the log scale."""
FAR, NEAR = 5.0, 3.5
"""Standard errors (if normal) beyond which an entry's side of the median, or that it is not the largest, is sure."""


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratios:
    """R_med and what it is made of.

    Attributes:
        ratio: max / median with its interval; its upper end is inf where the median may be zero.
        max: Largest magnitude.
        median: Median magnitude, the mean of the two middle ones.
        tenth: 10th largest magnitude over the median, NaN with fewer than 10 entries.
        q99: 0.99 quantile of the magnitudes over the median.
        spread: Standard deviations of log max and of log median.
        leaders: Entries that may be the largest, likeliest first (positions in the entries).
        doubtful: Entries whose side of the median is in doubt (positions), and how much for each.
    """

    ratio: Interval
    max: float
    median: float
    tenth: float
    q99: float
    spread: tuple[float, float]
    leaders: np.ndarray
    doubtful: tuple[np.ndarray, np.ndarray]


def over(numerator: float, denominator: float) -> float:
    """The quotient; inf or NaN where the denominator is zero."""
    if denominator == 0:
        return math.inf if numerator > 0 else math.nan
    return numerator / denominator


def ratios(entries: Entries, seed: int = 0) -> Ratios:
    """R_med with its 95 % interval, from draws of the entries given their estimates.

    Each draw gives a maximum and a median; the interval is from the 2.5 to the 97.5 % quantile of their ratio,
    stretched, the value from the draws of the likeliest distribution. Draws spread entries that are all equal, so that
    the lower end is lowered to what holds for the largest of as many entries as may be the largest. Where a likelihood
    ratio test cannot exclude that half of the entries are zero, there is no upper end.
    """
    errors = entries.errors
    if not errors.any() or not np.isfinite(errors).all():
        return _plain(entries)
    rng = np.random.default_rng([seed, entries.values.size])
    magnitudes, size = np.abs(entries.best), entries.values.size
    z = float(ndtri(1 - 0.005 / size))
    surely, far, near = entries.reach(z), entries.reach(FAR), entries.reach(NEAR)
    low = np.quantile(np.maximum(magnitudes - surely, 0), 0.5, method="lower")
    high = np.quantile(magnitudes + surely, 0.5, method="higher")
    below = magnitudes + far < low
    middle = np.flatnonzero(~below & (magnitudes - far <= high))
    panel = middle if middle.size <= PANEL else rng.choice(middle, PANEL, replace=False)
    leading = np.flatnonzero(magnitudes + near >= (magnitudes - surely).max())
    leading = leading[np.argsort(-(magnitudes + near)[leading], kind="stable")[:CANDIDATES]]
    top = np.union1d(leading, np.argpartition(-magnitudes, min(9, size - 1))[:10])
    needed = np.union1d(panel, top)
    learn = rng.choice(size, min(size, LEARN), replace=False)
    chosen = np.concatenate([needed, np.setdiff1d(learn, needed)])
    wanted = np.arange(chosen.size) < needed.size
    drawn = np.abs(draws(entries.take(chosen), np.isin(chosen, learn), rng, wanted))[:, wanted]
    places = np.searchsorted(needed, panel)
    median = _median(drawn[:, places], int(below.sum()), middle.size, size, rng)
    median[:-PLAIN] += _swaps(drawn[:-PLAIN, places], int(below.sum()), middle.size, entries, rng)
    largest = np.sort(drawn, 1)[:, -10:]
    plain_max, plain_median = _log_mean(largest[-PLAIN:, -1]), _log_mean(median[-PLAIN:])
    drawn, median, largest = drawn[:-PLAIN], median[:-PLAIN], largest[:-PLAIN]
    ratio = _interval(over(plain_max, plain_median), largest[:, -1], median, entries)
    noise = float(np.median(errors[panel][errors[panel] > 0])) if errors[panel].any() else 0.0
    if np.quantile(median, 0.025) < noise and may_be_mostly_zero(entries.take(learn)):
        ratio = ratio._replace(high=math.inf)
    side = (drawn[:, places] <= median[:, None]).mean(0)
    doubt = np.sqrt(side * (1 - side)) * (errors[panel] > 0)
    first = np.bincount(drawn.argmax(1), minlength=needed.size)
    order = np.argsort(-first, kind="stable")
    leaders = needed[order[first[order] > 0]]
    return Ratios(
        ratio=ratio,
        max=plain_max,
        median=plain_median,
        tenth=over(float(np.median(largest[:, 0])), plain_median) if size >= 10 else math.nan,
        q99=over(float(np.quantile(_shrunk(magnitudes, needed, drawn), 0.99)), plain_median),
        spread=(float(np.log(largest[:, -1]).std()), float(np.log(np.maximum(median, 1e-300)).std())),
        leaders=leaders[errors[leaders] > 0],
        doubtful=(panel[doubt > 0], doubt[doubt > 0]),
    )


def _interval(value: float, largest: np.ndarray, median: np.ndarray, entries: Entries) -> Interval:
    """The interval of the ratio from draws (D,) of both, about a value."""
    if not (math.isfinite(value) and value > 0 and median.all()):
        return Interval(value, min(1.0, value), math.inf)
    ratio = largest / median
    low, high = np.quantile(ratio, [0.025, 0.975])
    middle = _log_mean(ratio)
    low, high = middle * (low / middle) ** LOWER, middle * (high / middle) ** UPPER
    low = min(low, over(_surely(entries), float(np.quantile(median, 0.75))), value)
    high = max(high, value)
    low = max(low, 1.0)
    low, high = min(low, value * (value / high) ** SIDE), max(high, value * (value / low) ** SIDE)
    return Interval(value, float(np.clip(low, 1.0, max(value, 1.0))), float(high))


def _median(drawn: np.ndarray, below: int, middle: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Medians (D,) from draws (D, n) of n of the `middle` entries that are not surely below or above it."""
    drawn, count = np.sort(drawn, 1), drawn.shape[1]
    if count == middle:
        first, second = (np.clip(r - below, 0, count - 1) for r in ((size - 1) // 2, size // 2))
        return (drawn[:, first] + drawn[:, second]) / 2
    missing = math.sqrt(0.25 / count * (1 - count / middle))
    share = (size / 2 - below) / middle + missing * rng.standard_normal(len(drawn))
    return drawn[np.arange(len(drawn)), np.clip(np.round(share * count - 0.5), 0, count - 1).astype(int)]


def _swaps(drawn: np.ndarray, below: int, middle: int, entries: Entries, rng: np.random.Generator) -> np.ndarray:
    """Shifts (D,) of the median: none in half of the draws, else to the next entry, but within a standard error.

    A few entries may leave a gap on one side of the median that no smooth distribution shows.
    """
    size, count = entries.values.size, drawn.shape[1]
    ranks = np.array([(size - 1) // 2 - 1, (size - 1) // 2, size // 2, size // 2 + 1]) - below
    if count < middle or ranks[0] < 0 or ranks[3] >= count:
        return np.zeros(len(drawn))
    order = np.sort(drawn, 1)[:, ranks]
    magnitudes = np.abs(entries.best)
    nearest = np.argsort(np.abs(magnitudes - np.median(magnitudes)), kind="stable")[:4]
    error = float(entries.errors[nearest].mean())
    down, up = (np.minimum(order[:, k + 1] - order[:, k], error) for k in (0, 2))
    return np.stack([-down, 0 * up, 0 * up, up])[rng.integers(0, 4, len(drawn)), np.arange(len(drawn))]


def _surely(entries: Entries) -> float:
    """What the largest magnitude exceeds with 97.5 %, whichever of the entries that may be the largest it is."""
    magnitudes, reach = np.abs(entries.best), entries.reach(2.0)
    rivals = int((magnitudes + reach >= (magnitudes - reach).max()).sum())
    return float((magnitudes - entries.reach(float(ndtri(1 - 0.025 / rivals)))).max())


def _log_mean(numbers: np.ndarray) -> float:
    """The geometric mean, what lies beyond the quartiles counting as they do; zero where half of the numbers are."""
    if not np.median(numbers) > 0:
        return 0.0
    inner = np.clip(numbers, *np.quantile(numbers, [0.25, 0.75]))  # or a few draws near zero would decide
    return float(np.exp(np.mean(np.log(np.maximum(inner, np.finfo(float).tiny)))))


def _shrunk(magnitudes: np.ndarray, needed: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    found = magnitudes.copy()
    found[needed] = np.median(drawn, 0)
    return found


def _plain(entries: Entries) -> Ratios:
    """From the best estimates alone: exact where no entry has an error, and without upper end otherwise."""
    magnitudes, none = np.sort(np.abs(entries.best)), np.empty(0, dtype=int)
    top, middle = float(magnitudes[-1]), float(np.median(magnitudes))
    ratio, exact = over(top, middle), not entries.errors.any()
    spread = 0.0 if exact else math.inf
    return Ratios(
        ratio=Interval(ratio, ratio, ratio) if exact else Interval(ratio, min(1.0, ratio), math.inf),
        max=top,
        median=middle,
        tenth=over(float(magnitudes[-10]), middle) if magnitudes.size >= 10 else math.nan,
        q99=over(float(np.quantile(magnitudes, 0.99)), middle),
        spread=(spread, spread),
        leaders=none,
        doubtful=(none, np.empty(0)),
    )
