"""Which blocks one product measures: those whose R_med gains most, and that disturb each other little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOGETHER = 16
"""Blocks in one product at most."""
TINY = 1e-30


@dataclass
class Task:
    """Entries of one block that a product may measure.

    Attributes:
        block: Number of the block.
        count: How many entries.
        variance: Variance of the logarithm that they tell of, the largest entry's or the median's, as it stands.
        spread: Variance of the measured quantity from entry to entry, relative to a typical entry squared.
        top: Whether they are entries that may be the largest.
    """

    block: int
    count: int
    variance: float
    spread: float
    top: bool = False


def compose(tasks: Sequence[Task], coupling: np.ndarray, times: int = 1) -> list[Task]:
    """The tasks of the next product, at most one of a block; their variances become those after `times` of it.

    Tasks are added while what they gain is more than what the others lose by the noise that they add.

    Args:
        tasks: What may be measured.
        coupling: Noise variance (b, b) at an entry of one block from one entry of another.
        times: How many such products are made.
    """
    blocks = np.array([t.block for t in tasks])
    counts = np.array([float(t.count) for t in tasks])
    variances = np.array([t.variance for t in tasks])
    own = np.array([t.spread for t in tasks]) + (counts - 1) * coupling[blocks, blocks]
    between = np.nan_to_num(coupling, posinf=1e6)[np.ix_(blocks, blocks)]
    noise = np.zeros(len(tasks))  # from other blocks that are in the product
    free, chosen = np.ones(len(tasks), dtype=bool), list[int]()

    while len(chosen) < TOGETHER and free.any():
        total = variances**2 / (variances + (own + noise) / counts + TINY)
        if chosen:
            some, error = variances[chosen], (own + noise)[chosen] / counts[chosen]
            added = between[chosen] * (counts / counts[chosen][:, None])
            after = some[:, None] ** 2 / (some[:, None] + error[:, None] + added + TINY)
            total += after.sum(0) - (some**2 / (some + error + TINY)).sum()
        total[~free] = -np.inf
        best = int(total.argmax())
        if chosen and total[best] <= 0:
            break
        chosen.append(best)
        free &= blocks != blocks[best]
        noise += between[:, best] * counts[best]
    for k in chosen:
        error = (own[k] + noise[k]) / counts[k] / times
        tasks[k].variance *= error / (tasks[k].variance + error + TINY)
    return [tasks[k] for k in chosen]
