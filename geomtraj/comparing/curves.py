"""A statistic along one run, and its value where the run passes a loss or a time, by bracketing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from geomtraj.inference.interval import Z
from geomtraj.measuring.results import Results
from geomtraj.statistics.base import Quantity


@dataclass(frozen=True)
class Curve:
    """A statistic's K quantities along one run of n measured iterates, ordered by step.

    Attributes:
        steps: Optimizer steps before each iterate, shape (n,).
        times: Seconds of training until there, shape (n,).
        losses: L(theta) on the measuring batches, shape (n,); NaN where it was not measured.
        labels: Names of the quantities.
        values: Shape (K, n); NaN where a quantity is missing.
        low: Lower ends of the values' own 95 % intervals, shape (K, n); NaN where none is known.
        high: Upper ends.
        noise: Standard error of log |value| by each value's own interval, shape (K, n); 0 where none is known, and
            from the other end alone where an end is infinite.
        open_ended: Whether a value's interval has an end at infinity, shape (K, n).
    """

    steps: np.ndarray
    times: np.ndarray
    losses: np.ndarray
    labels: tuple[str, ...]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    noise: np.ndarray
    open_ended: np.ndarray

    def rows(self, labels: tuple[str, ...], of: np.ndarray) -> np.ndarray:
        """The rows (K', n) of `values`, `noise` or `open_ended` for these labels: NaN or False for unknown ones."""
        place = {label: i for i, label in enumerate(self.labels)}
        filler = np.full((1, of.shape[1]), False if of.dtype == bool else np.nan, of.dtype)
        return np.concatenate([of, filler])[[place.get(label, len(place)) for label in labels]]

    def falling(self) -> Curve:
        """The iterates up to the lowest loss, it included: where runs overfit, equal loss means this way down."""
        if not np.isfinite(self.losses).any():
            return self
        return self._of(np.arange(len(self.steps)) <= int(np.nanargmin(_finite(self.losses))))

    def without_open_ends(self) -> Curve:
        """The same with values left out whose interval has an end at infinity."""
        return replace(self, values=np.where(self.open_ended, np.nan, self.values))

    def _of(self, kept: np.ndarray) -> Curve:
        along = {name: getattr(self, name)[kept] for name in ("steps", "times", "losses")}
        return replace(
            self, **along, **{k: getattr(self, k)[:, kept] for k in ("values", "low", "high", "noise", "open_ended")}
        )


def curve(results: Results, statistic: str) -> Curve:
    """A statistic along one run; where an iterate was measured under several settings, the last in the list stands.

    Raises:
        InputError: The statistic was not measured.
    """
    rows = {m.step: m for m in results.of(statistic)}
    losses = results.losses() if "loss" in results.statistics else {}
    labels = results.labels(statistic)
    missing = Quantity(np.nan)
    ends = np.array(
        [
            [(q.value, q.low, q.high) for q in (m.quantities.get(label, missing) for label in labels)]
            for m in rows.values()
        ],
        dtype=np.float64,
    ).reshape(len(rows), len(labels), 3)
    values, low, high = np.moveaxis(ends, 2, 0).transpose(0, 2, 1)
    return Curve(
        np.array(list(rows), dtype=np.int64),
        np.array([m.wall_time for m in rows.values()], dtype=np.float64),
        np.array([losses.get(step, np.nan) for step in rows], dtype=np.float64),
        tuple(labels),
        values,
        low,
        high,
        _noise(values, low, high),
        np.isfinite(values) & (np.isinf(low) | np.isinf(high)),
    )


def _noise(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Standard errors of log |value|, from the interval's ends on the log scale where both have the value's sign."""
    size = np.abs(values)
    near, far = np.where(values > 0, low, -high), np.where(values > 0, high, -low)
    with np.errstate(all="ignore"):
        on_log_scale = np.where(np.isinf(far), 2 * (np.log(size) - np.log(near)), np.log(far) - np.log(near))
        # Across zero the logarithm does not exist: the standard error over the value.
        linear = (
            np.where(np.isinf(far), 2 * (size - near), np.where(np.isinf(near), 2 * (far - size), far - near)) / size
        )
        found = np.where(near > 0, on_log_scale, linear) / (2 * Z)
    return np.where(np.isfinite(found), np.maximum(found, 0.0), 0.0)


@dataclass(frozen=True)
class Places:
    """Where a run is read: between two of its n iterates, or at one of them.

    Attributes:
        left: Index of the iterate before each of the m places, shape (m,); -1 where the run cannot be read.
        right: Index of the one behind it; equal to `left` where the place is an iterate.
        weight: Weight of the right one on the log scale, shape (m,).
    """

    left: np.ndarray
    right: np.ndarray
    weight: np.ndarray

    def read(self, values: np.ndarray) -> np.ndarray:
        """Values (..., n) at the places, shape (..., m): log-linear between iterates; NaN if unusable."""
        a, b = values[..., self.left], values[..., self.right]
        with np.errstate(all="ignore"):
            between = np.exp((1 - self.weight) * np.log(np.abs(a)) + self.weight * np.log(np.abs(b)))
            usable = np.isfinite(a) & np.isfinite(b) & (np.sign(a) * np.sign(b) > 0)
        found = np.where(self.left == self.right, a, np.where(usable, np.sign(a) * between, np.nan))
        return np.where(self.left < 0, np.nan, found)

    def variance(self, noise: np.ndarray) -> np.ndarray:
        """Variance of the log values at the places, shape (..., m), from the iterates' standard errors (..., n)."""
        return ((1 - self.weight) * noise[..., self.left]) ** 2 + (self.weight * noise[..., self.right]) ** 2

    def touches(self, marked: np.ndarray) -> np.ndarray:
        """Whether a marked iterate (..., n) takes part in each place, shape (..., m)."""
        return (marked[..., self.left] | (marked[..., self.right] & (self.weight > 0))) & (self.left >= 0)

    def shares(self, used: np.ndarray, iterates: int) -> np.ndarray:
        """Weight of each iterate in the mean over the places that are used (K, m), shape (K, n)."""
        m = len(self.left)
        rows, columns = np.tile(np.arange(m), 2), np.concatenate([self.left, self.right])
        weights = np.concatenate([1 - self.weight, self.weight]) * (columns >= 0)
        matrix = sparse.csr_array((weights, (rows, np.maximum(columns, 0))), shape=(m, max(iterates, 1)))
        sums = (matrix.T @ used.T.astype(np.float64)).T
        return sums / np.maximum(used.sum(axis=1, keepdims=True), 1)


def at_places(x: np.ndarray, wanted: ArrayLike) -> Places:
    """The iterates whose x (a step) is the wanted one."""
    order = np.argsort(x, kind="stable")
    targets = np.asarray(wanted)
    found = order[np.clip(np.searchsorted(x[order], targets), 0, len(x) - 1)]
    found = np.where(x[found] == targets, found, -1)
    return Places(found, found, np.zeros(len(found)))


def between(x: np.ndarray, levels: ArrayLike, log_x: bool = True, falling: bool = False) -> Places:
    """Where x first passes each of the levels; iterates without a finite x are passed over, nothing is extrapolated.

    Args:
        x: What the runs are brought to the same value of (loss, time), shape (n,).
        levels: Shape (m,).
        log_x: Whether to interpolate over log x rather than x.
        falling: Whether only a passage from above counts.
    """
    finite = np.flatnonzero(np.isfinite(x))
    known = x[finite]
    places = [_passage(known, float(level), log_x, falling) for level in np.asarray(levels, dtype=np.float64)]
    left, right, weight = (np.array([p[i] for p in places]) for i in range(3))
    if not finite.size:
        return Places(np.full(len(places), -1), np.full(len(places), -1), np.zeros(len(places)))
    index = np.append(finite, -1)
    return Places(index[left.astype(int)], index[right.astype(int)], weight.astype(np.float64))


def _passage(x: np.ndarray, level: float, log_x: bool, falling: bool) -> tuple[int, int, float]:
    """Indices before and behind the first passage, and the weight of the latter; -1 without one."""
    sides = np.sign(x - level)
    before, behind = sides[:-1], sides[1:]
    crossings = np.flatnonzero((before >= 0) & (behind <= 0) if falling else before * behind <= 0)
    if not crossings.size:
        return (0, 0, 0.0) if x.size == 1 and x[0] == level else (-1, -1, 0.0)
    i = int(crossings[0])
    if sides[i] == 0:
        return i, i, 0.0
    if sides[i + 1] == 0:
        return i + 1, i + 1, 0.0
    a, b, c = np.log([x[i], x[i + 1], level]) if log_x else (x[i], x[i + 1], level)
    return i, i + 1, float((c - a) / (b - a))


def at_level(x: np.ndarray, values: np.ndarray, level: float, log_x: bool = True) -> float:
    """The value where x first passes a level; NaN where x never does or the value there is not usable.

    The first two consecutive iterates with x on both sides of the level (or on it) are joined by a straight line of
    log |value| over log x.

    Args:
        x: As in `between`, shape (n,).
        values: The statistic, shape (n,).
        level: The value of x to read at.
        log_x: Whether to interpolate over log x rather than x.
    """
    return float(between(x, [level], log_x).read(np.asarray(values, dtype=np.float64))[0])


def _finite(x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), x, np.nan)
