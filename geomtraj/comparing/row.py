"""One row of a contrast table, and the rows of many labels and places at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geomtraj.comparing.logs import Logs
from geomtraj.inference.interval import Interval, Means, means
from geomtraj.inference.ratios import exp, holm, sign_test

LEFT_OUT = "missing, zero, infinite, NaN or of unlike signs"


@dataclass(frozen=True)
class Row:
    """One ratio, numerator over denominator, dimensionless, over the pairs of runs.

    Attributes:
        label: The quantity: block name, or the statistic's own name.
        numerator: Group above the line.
        denominator: Group below the line.
        at: Loss, step or time in seconds where the runs are compared; "all" for the mean log ratio over them all.
        ratio: Geometric mean over pairs.
        low: Lower end of the 95 % t-interval on the log scale, never narrower than the single measurements' own
            intervals make it; NaN with one pair.
        high: Upper end of it.
        n: Number of pairs.
        above: How many pairs have a ratio above 1.
        sign_test_p: Two-sided p of the sign test, for this row alone.
        t_test_p: Two-sided p of the mean log ratio being 0, for this row alone; agrees with the interval.
        holm_p: `t_test_p` after Holm's correction over the labels with the same groups and `at`.
        loss_ratio: Geometric mean of the pairs' losses there, numerator over denominator; 1 at equal loss.
        status: "ok", or what was left out, has no upper end, or cannot be given.
        rests_on: How many single measurements the ratio rests on; 0 at a single place, where it is not counted.
        open_ended: How many of them have no upper end; at a single place, in how many pairs one takes part.
        left_out: How many ratios of single pairs and places do not exist.
    """

    label: str
    numerator: str
    denominator: str
    at: float | int | str
    ratio: float
    low: float
    high: float
    n: int
    above: int
    sign_test_p: float
    t_test_p: float
    holm_p: float
    loss_ratio: float
    status: str
    rests_on: int = 0
    open_ended: int = 0
    left_out: int = 0

    @property
    def interval(self) -> Interval:
        """The ratio with its interval over pairs."""
        return Interval(self.ratio, self.low, self.high, self.n, self.status)


def rows_of(logs: Logs, places: list[float | int] | None, numerator: str, denominator: str) -> list[Row]:
    """The rows of every label: one for each place, if all pairs share them, and one for the mean over places.

    Args:
        logs: The pairs' log ratios.
        places: The shared places (m,); None where pairs have places of their own.
        numerator: Group above the line.
        denominator: Group below it.
    """
    n, _, m = logs.each.shape
    overall = _columns(logs.mean, logs.mean_noise, _mean_losses(logs))
    rests, ends = logs.rests_on.sum(axis=0), logs.open_ended.sum(axis=0)
    missing = np.isnan(logs.each).sum(axis=(0, 2))
    statuses = _statuses(overall[3], missing, n * m, ends, rests)
    counts = (rests.tolist(), ends.tolist(), missing.tolist())
    totals = [
        Row(label, numerator, denominator, *values)
        for label, *values in zip(logs.labels, ["all"] * len(logs.labels), *overall, statuses, *counts, strict=True)
    ]
    if places is None:
        return totals
    each = _columns(logs.each, logs.noise, np.broadcast_to(logs.losses[:, None], logs.each.shape))
    opened = (logs.open_each & ~np.isnan(logs.each)).sum(axis=0)
    gone = np.isnan(logs.each).sum(axis=0)
    rows: list[Row] = []
    for i, label in enumerate(logs.labels):
        here = [np.asarray(column)[i].tolist() for column in each]
        statuses = _place_statuses(here[3], gone[i].tolist(), opened[i].tolist(), n)
        rows += [
            Row(label, numerator, denominator, *values)
            for values in zip(places, *here, statuses, [0] * m, opened[i].tolist(), gone[i].tolist(), strict=True)
        ]
        rows.append(totals[i])
    return rows


def _columns(logs: np.ndarray, noise: np.ndarray, losses: np.ndarray) -> tuple:
    """ratio, low, high, n, above, sign p, t-test p, Holm's p, loss ratio (K, ...) of logs (n, K, ...)."""
    found = means(logs, noise)
    above, below = (logs > 0).sum(axis=0), (logs < 0).sum(axis=0)
    signs = np.where(found.n > 0, sign_test(above, below), np.nan)
    loss = np.where(np.isfinite(logs), losses, np.nan)
    columns = (
        exp(found.mean), exp(found.low), exp(found.high), found.n, above, signs, found.p, holm(found.p),
        exp(_mean(means(loss))),
    )  # fmt: skip
    return tuple(column.tolist() for column in columns) if logs.ndim == 2 else columns


def _mean(found: Means) -> np.ndarray:
    return found.mean


def _mean_losses(logs: Logs) -> np.ndarray:
    """Each pair's mean log loss ratio over the places, shape (n, K)."""
    known = np.isfinite(logs.losses)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, logs.losses, 0.0).sum(axis=1) / known.sum(axis=1)
    return np.broadcast_to(mean[:, None], logs.mean.shape)


def _statuses(n: list[int], missing: np.ndarray, total: int, ends: np.ndarray, rests: np.ndarray) -> list[str]:
    """The status of each label's mean over the places."""
    statuses = []
    for pairs, gone, opened, all_values in zip(n, missing.tolist(), ends.tolist(), rests.tolist(), strict=True):
        remarks = []
        if not pairs:
            remarks.append(f"no pair has a usable value ({LEFT_OUT})")
        elif gone:
            remarks.append(f"{gone} of {total} values left out ({LEFT_OUT})")
        if opened:
            remarks.append(f"{opened} of {all_values} single values have no upper end")
        if pairs == 1:
            remarks.append("no interval can be given with one seed")
        statuses.append("; ".join(remarks) or "ok")
    return statuses


def _place_statuses(n: list[int], gone: list[int], opened: list[int], pairs: int) -> list[str]:
    """The status at each single place."""
    return [
        "ok" if known == pairs > 1 and not ends else _place_status(known, missing, ends, pairs)
        for known, missing, ends in zip(n, gone, opened, strict=True)
    ]


def _place_status(known: int, missing: int, ends: int, pairs: int) -> str:
    remarks = []
    if not known:
        remarks.append(f"no pair has a usable value ({LEFT_OUT})")
    elif missing:
        remarks.append(f"{missing} of {pairs} pairs left out ({LEFT_OUT})")
    if ends:
        remarks.append(f"{ends} of {known} pairs rest on a value without upper end")
    if known == 1:
        remarks.append("no interval can be given with one seed")
    return "; ".join(remarks) or "ok"
