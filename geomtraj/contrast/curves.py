"""A statistic along one run, and its value where the run passes a loss or a time, by bracketing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geomtraj.measuring.results import Results


@dataclass(frozen=True)
class Curve:
    """A statistic's quantities along one run, one entry per iterate, ordered by step.

    Attributes:
        steps: Optimizer steps before each iterate, shape (n,).
        times: Seconds of training until there, shape (n,).
        losses: L(theta) on the measuring batches, shape (n,); NaN where it was not measured.
        values: Label -> value of the quantity, shape (n,); NaN where it is missing.
    """

    steps: np.ndarray
    times: np.ndarray
    losses: np.ndarray
    values: dict[str, np.ndarray]


def curve(results: Results, statistic: str) -> Curve:
    """A statistic along one run; where an iterate was measured under several settings, the last in the list stands.

    Raises:
        InputError: The statistic was not measured.
    """
    rows = {m.step: m for m in results.of(statistic)}
    losses = results.losses() if "loss" in results.statistics else {}
    values = {
        label: np.array([m.quantities[label].value if label in m.quantities else np.nan for m in rows.values()], float)
        for label in results.labels(statistic)
    }
    return Curve(
        np.array(list(rows), dtype=np.int64),
        np.array([m.wall_time for m in rows.values()], dtype=np.float64),
        np.array([losses.get(step, np.nan) for step in rows], dtype=np.float64),
        values,
    )


def at_level(x: np.ndarray, values: np.ndarray, level: float, log_x: bool = True) -> float:
    """The value where x first passes a level; NaN where x never does or the value there is not usable.

    The first two consecutive iterates with x on both sides of the level (or on it) are joined by a straight line of
    log |value| over log x. Iterates without a finite x are passed over; nothing is extrapolated.

    Args:
        x: What the runs are brought to the same value of (loss, time), shape (n,).
        values: The statistic, shape (n,).
        level: The value of x to read at.
        log_x: Whether to interpolate over log x rather than x.
    """
    finite = np.isfinite(x)
    x, values = x[finite], values[finite]
    sides = np.sign(x - level)
    crossings = np.flatnonzero(sides[:-1] * sides[1:] <= 0)
    if not crossings.size:
        return float(values[0]) if x.size == 1 and x[0] == level else np.nan
    i = int(crossings[0])
    if sides[i] == 0:
        return float(values[i])
    if sides[i + 1] == 0:
        return float(values[i + 1])
    a, b = float(values[i]), float(values[i + 1])
    if not (np.isfinite(a) and np.isfinite(b) and a * b > 0):
        return np.nan
    place = np.log(np.array([x[i], x[i + 1], level])) if log_x else np.array([x[i], x[i + 1], level])
    weight = (place[2] - place[0]) / (place[1] - place[0])
    return float(np.sign(a) * np.exp((1 - weight) * np.log(abs(a)) + weight * np.log(abs(b))))
