"""Choosing blocks of a statistic, and the mean over them as a quantity of its own."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from geomtraj.measuring import Results
from geomtraj.statistics import Quantity


def only(results: Results, statistic: str, labels: Collection[str]) -> Results:
    """The measurements with only these labels of a statistic; other statistics stay as they are."""
    changed = [
        replace(m, quantities={k: q for k, q in m.quantities.items() if k in labels}) if m.statistic == statistic else m
        for m in results.measurements
    ]
    return Results(results.path, results.manifest, changed, results.log, results.remarks)


def mean_over_blocks(results: Results, statistic: str, labels: Sequence[str], name: str) -> Results:
    """The measurements with the geometric mean over blocks in place of a statistic's quantities, without an interval.

    Since runs are brought to equal loss by interpolating log values, a ratio of these means is the geometric mean of
    the blocks' ratios, run by run. Blocks of one run depend on each other, runs do not, so an interval over seeds is
    one of this mean. Where one of the values is not positive and finite the mean is NaN.

    Args:
        results: Of one run.
        statistic: What to average.
        labels: The blocks.
        name: Label of the mean.
    """
    changed = [
        replace(m, quantities={name: Quantity(_geometric_mean([m.quantities[k].value for k in labels]))})
        if m.statistic == statistic
        else m
        for m in results.measurements
    ]
    return Results(results.path, results.manifest, changed, results.log, results.remarks)


def usable_everywhere(groups: Sequence[Results], statistic: str, labels: Sequence[str]) -> list[str]:
    """Those labels whose value is positive and finite at every measured iterate of every run that did not diverge."""
    rows = [m.quantities for results in groups if not results.diverged for m in results.of(statistic)]
    return [k for k in labels if rows and all(k in row and 0 < row[k].value < math.inf for row in rows)]


def _geometric_mean(values: Sequence[float]) -> float:
    if not values or not all(0 < v < math.inf for v in values):
        return math.nan
    return math.exp(math.fsum(map(math.log, values)) / len(values))
