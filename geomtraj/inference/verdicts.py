"""What an interval allows to say of a claim, as a function of numbers; sentences are made elsewhere."""

from __future__ import annotations

import math
from enum import Enum

from geomtraj.inference.interval import Interval

LEVEL = 0.05
"""Of tests."""


class Verdict(str, Enum):
    """Whether a claim holds, fails, or is undecided."""

    HOLDS = "holds"
    FAILS = "fails"
    UNDECIDED = "undecided"


def within(ratio: Interval, margin: float) -> Verdict:
    """Whether a ratio is 1 up to a factor: its interval lies inside, or on one side of 1 and not inside.

    Args:
        ratio: Positive; an interval that is not known decides nothing.
        margin: The factor, above 1.
    """
    if 1 / margin < ratio.low <= ratio.high < margin:
        return Verdict.HOLDS
    return Verdict.FAILS if ratio.low > 1 or ratio.high < 1 else Verdict.UNDECIDED


def larger(ratio: Interval, p: float, margin: float = 1.0) -> Verdict:
    """Whether a ratio is above 1: firmly so; firmly below, or 1 up to the margin; or neither.

    Args:
        ratio: Positive.
        p: Two-sided, of the ratio being 1, after correction for all that are tested.
        margin: Factor within which a ratio counts as 1.
    """
    if not math.isnan(p) and p < LEVEL:
        return Verdict.HOLDS if ratio.value > 1 else Verdict.FAILS
    return Verdict.FAILS if within(ratio, margin) is Verdict.HOLDS else Verdict.UNDECIDED
