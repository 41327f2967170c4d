"""Log ratios of every pair of runs at every place, with what single measurements add to their error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geomtraj.comparing.alignment import Alignment, Run


@dataclass(frozen=True)
class Logs:
    """log(numerator / denominator) of K labels for n pairs of runs at m places; NaN where it does not exist.

    Attributes:
        labels: Shape (K,).
        each: At each place, shape (n, K, m).
        noise: Standard errors of `each` by the single measurements' own intervals, shape (n, K, m).
        mean: Each pair's mean over the places that can be read, shape (n, K).
        mean_noise: Standard errors of `mean`, shape (n, K).
        open_each: Whether a value without an upper end takes part, shape (n, K, m).
        rests_on: How many single measurements take part in `mean`, shape (n, K).
        open_ended: How many of them have no upper end, shape (n, K).
        losses: Log ratios of the losses, shape (n, m).
    """

    labels: tuple[str, ...]
    each: np.ndarray
    noise: np.ndarray
    mean: np.ndarray
    mean_noise: np.ndarray
    open_each: np.ndarray
    rests_on: np.ndarray
    open_ended: np.ndarray
    losses: np.ndarray

    def at(self, labels: tuple[str, ...]) -> list[int]:
        """Places of labels in `labels`."""
        return [self.labels.index(label) for label in labels]


def log_ratios(alignment: Alignment, open_ends: bool = True) -> Logs:
    """The log ratios of a alignment's pairs, (denominator, numerator) each.

    Args:
        alignment: Where the pairs are read.
        open_ends: Whether values count whose interval has no upper end.
    """
    labels = alignment.labels
    pairs = [
        _pair(alignment, labels, pair, places, open_ends)
        for pair, places in zip(alignment.pairs, alignment.places, strict=True)
    ]
    return Logs(labels, *(np.stack(found) for found in zip(*pairs, strict=True)))


def _pair(
    alignment: Alignment, labels: tuple[str, ...], pair: tuple[Run, Run], places: np.ndarray, open_ends: bool
) -> tuple[np.ndarray, ...]:
    below, above = (_Side(alignment, labels, run, places, open_ends) for run in pair)
    with np.errstate(all="ignore"):
        logs = np.log(np.abs(above.values)) - np.log(np.abs(below.values))
        usable = np.isfinite(above.values) & np.isfinite(below.values)
        usable &= np.sign(above.values) * np.sign(below.values) > 0
        each = np.where(usable, logs, np.nan)
        mean = np.where(usable, logs, 0.0).sum(axis=1) / usable.sum(axis=1)
        losses = np.log(alignment.losses(pair[1], places) / alignment.losses(pair[0], places))
    tops, bottoms = above.of_mean(usable), below.of_mean(usable)
    variance, rests_on, open_ended = (a + b for a, b in zip(tops, bottoms, strict=True))
    return (
        each,
        np.sqrt(above.variance + below.variance),
        mean,
        np.sqrt(variance),
        above.open | below.open,
        rests_on,
        open_ended,
        np.where(np.isfinite(losses), losses, np.nan),
    )


class _Side:
    """One run's part in the ratios of a pair, arrays of shape (K, m)."""

    def __init__(self, alignment: Alignment, labels: tuple[str, ...], run: Run, places: np.ndarray, open_ends: bool):
        along = run.curve if open_ends else run.curve.without_open_ends()
        self._reading = alignment.reading(run, places)
        self._noise = np.nan_to_num(along.rows(labels, along.noise))
        self._marked = along.rows(labels, along.open_ended)
        self.values = self._reading.read(along.rows(labels, along.values))
        self.variance = self._reading.variance(self._noise)
        self.open = self._reading.touches(self._marked)

    def of_mean(self, used: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the mean over the places that are used (K, m): variance, measurements behind it, open-ended ones (K,)."""
        shares = self._reading.shares(used, self._noise.shape[1])
        touched = shares > 0
        return (
            ((shares * self._noise) ** 2).sum(axis=1),
            touched.sum(axis=1),
            (touched & self._marked).sum(axis=1),
        )
