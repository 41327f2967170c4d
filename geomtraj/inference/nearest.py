"""Iterates of two runs whose losses are nearly equal, for statistics too dear to measure everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Match:
    """Two iterates of nearly equal loss.

    Attributes:
        first: Step of the first run.
        other: Step of the other run.
        difference: log of the other's loss over the first's.
    """

    first: int
    other: int
    difference: float


def match_iterates(
    first: Mapping[int, float], other: Mapping[int, float], count: int, tolerance: float = math.inf
) -> list[Match]:
    """The `count` pairs of iterates nearest in log loss, each iterate in one pair at most, by the first run's step.

    Args:
        first: Step -> loss of one run; losses that are not positive and finite are left out.
        other: The same of another run.
        count: How many pairs at most.
        tolerance: Largest |log ratio| of the losses.
    """
    pairs = [
        Match(i, j, math.log(b / a))
        for i, a in first.items()
        for j, b in other.items()
        if 0 < a < math.inf and 0 < b < math.inf
    ]
    chosen: list[Match] = []
    for pair in sorted(pairs, key=lambda p: (abs(p.difference), p.first, p.other)):
        free = all(pair.first != c.first and pair.other != c.other for c in chosen)
        if len(chosen) < count and free and abs(pair.difference) <= tolerance:
            chosen.append(pair)
    return sorted(chosen, key=lambda p: p.first)
