import math

import pytest

from geomtraj.inference.interval import Interval
from geomtraj.inference.verdicts import Verdict, larger, within

HOLDS, FAILS, UNDECIDED = Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("low", "high", "alike", "above"),
    [
        (1.5, 3.0, FAILS, HOLDS),
        (0.2, 0.5, FAILS, FAILS),
        (0.9, 1.1, HOLDS, FAILS),  # a gap, if there is one, is smaller than the margin
        (1.02, 1.1, HOLDS, HOLDS),  # larger, and negligibly so
        (0.5, 2.0, UNDECIDED, UNDECIDED),
        (math.nan, math.nan, UNDECIDED, UNDECIDED),
    ],
)
def test_what_an_interval_allows_to_say(low, high, alike, above):
    ratio = Interval(math.sqrt(low * high), low, high, 5)
    p = 0.01 if low > 1 or high < 1 else math.nan if math.isnan(low) else 0.5
    assert within(ratio, 1.2) is alike and larger(ratio, p, 1.2) is above


def test_what_a_correction_takes_back_is_undecided():
    assert larger(Interval(2.0, 1.1, 4.0, 5), 0.2, 1.05) is UNDECIDED
    assert larger(Interval(1.0, 0.9, 1.1, 5), 0.2) is UNDECIDED, "with no margin nothing counts as 1"
