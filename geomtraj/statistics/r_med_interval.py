"""R_med of entries known with noise, some of them exactly, with its 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from geomtraj.statistics.r_med_posterior import Entries, draws, may_be_mostly_zero

PANEL = 4096
"""Entries that the median is taken from at most; their choice is random and its error counted."""
CANDIDATES = 256
"""Entries that are considered for the largest one at most."""
LEARN = 1024
"""Entries that their distribution is learned from at most."""
FAR = 6.0
"""Standard errors beyond which an entry's side of the median is beyond doubt."""


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

    Each draw gives a maximum and a median; the interval is from the 2.5 to the 97.5 % quantile of their ratio. Draws
    spread entries that are all equal, so that the lower end is lowered to what holds for the largest of as many
    entries as may be the largest. Where a likelihood ratio test cannot exclude that half of the entries are zero,
    there is no upper end.
    """
    errors = entries.errors
    if not errors.any() or not np.isfinite(errors).all():
        return _plain(entries)
    rng = np.random.default_rng([seed, entries.values.size])
    magnitudes, size = np.abs(entries.best), entries.values.size
    z = float(ndtri(1 - 0.005 / size))
    low = np.quantile(np.maximum(magnitudes - z * errors, 0), 0.5, method="lower")
    high = np.quantile(magnitudes + z * errors, 0.5, method="higher")
    below = magnitudes + FAR * errors < low
    middle = np.flatnonzero(~below & (magnitudes - FAR * errors <= high))
    panel = middle if middle.size <= PANEL else rng.choice(middle, PANEL, replace=False)
    leading = np.flatnonzero(magnitudes + 4 * errors >= (magnitudes - z * errors).max())
    leading = leading[np.argsort(-(magnitudes + 4 * errors)[leading], kind="stable")[:CANDIDATES]]
    top = np.union1d(leading, np.argpartition(-magnitudes, min(9, size - 1))[:10])
    needed = np.union1d(panel, top)
    learn = rng.choice(size, min(size, LEARN), replace=False)
    chosen = np.concatenate([needed, np.setdiff1d(learn, needed)])
    drawn = np.abs(draws(entries.take(chosen), np.isin(chosen, learn), rng))[:, : needed.size]
    places = np.searchsorted(needed, panel)
    median = _median(drawn[:, places], int(below.sum()), middle.size, size, rng)
    largest = np.sort(drawn, 1)[:, -10:]
    ratio = largest[:, -1] / np.maximum(median, np.finfo(float).tiny)
    value = over(float(np.median(largest[:, -1])), float(np.median(median)))
    bottom, end = (float(q) for q in np.quantile(ratio, [0.025, 0.975]))
    bottom = max(1.0, min(bottom, over(_surely(magnitudes, errors), float(np.quantile(median, 0.75)))))
    noise = float(np.median(errors[panel][errors[panel] > 0])) if errors[panel].any() else 0.0
    if np.quantile(median, 0.025) < noise and may_be_mostly_zero(entries.take(learn)):
        end = math.inf
    side = (drawn[:, places] <= median[:, None]).mean(0)
    doubt = np.sqrt(side * (1 - side)) * (errors[panel] > 0)
    first = np.bincount(drawn.argmax(1), minlength=needed.size)
    order = np.argsort(-first, kind="stable")
    leaders = needed[order[first[order] > 0]]
    return Ratios(
        ratio=Interval(value, min(bottom, value), max(end, value)),
        max=float(np.median(largest[:, -1])),
        median=float(np.median(median)),
        tenth=over(float(np.median(largest[:, 0])), float(np.median(median))) if size >= 10 else math.nan,
        q99=over(float(np.quantile(_shrunk(magnitudes, needed, drawn), 0.99)), float(np.median(median))),
        spread=(float(np.log(largest[:, -1]).std()), float(np.log(np.maximum(median, 1e-300)).std())),
        leaders=leaders[errors[leaders] > 0],
        doubtful=(panel[doubt > 0], doubt[doubt > 0]),
    )


def _median(drawn: np.ndarray, below: int, middle: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Medians (D,) from draws (D, n) of n of the `middle` entries that are not surely below or above it."""
    drawn, count = np.sort(drawn, 1), drawn.shape[1]
    if count == middle:
        first, second = (np.clip(r - below, 0, count - 1) for r in ((size - 1) // 2, size // 2))
        return (drawn[:, first] + drawn[:, second]) / 2
    missing = math.sqrt(0.25 / count * (1 - count / middle))
    share = (size / 2 - below) / middle + missing * rng.standard_normal(len(drawn))
    return drawn[np.arange(len(drawn)), np.clip(np.round(share * count - 0.5), 0, count - 1).astype(int)]


def _surely(magnitudes: np.ndarray, errors: np.ndarray) -> float:
    """What the largest magnitude exceeds with 97.5 %, whichever of the entries that may be the largest it is."""
    rivals = int((magnitudes + 2 * errors >= (magnitudes - 2 * errors).max()).sum())
    return float((magnitudes - ndtri(1 - 0.025 / rivals) * errors).max())


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
