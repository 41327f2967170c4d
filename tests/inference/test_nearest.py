import math

import pytest

from geomtraj.inference.nearest import Match, match_iterates


def test_the_nearest_pairs_each_iterate_once():
    first, other = {10: 4.0, 20: 3.0, 40: 2.0}, {10: 4.5, 20: 3.1, 40: 3.05, 80: 2.0}
    found = match_iterates(first, other, 2)
    assert [(m.first, m.other) for m in found] == [(20, 40), (40, 80)]
    assert found[0].difference == pytest.approx(math.log(3.05 / 3)) and found[1].difference == 0
    assert [(m.first, m.other) for m in match_iterates(first, other, 9)] == [(10, 10), (20, 40), (40, 80)]
    assert match_iterates(first, other, 1) == [Match(40, 80, 0.0)]


def test_pairs_further_apart_than_the_tolerance_and_unusable_losses_are_left_out():
    assert match_iterates({1: 1.0, 2: 0.9}, {1: 2.0, 2: 1.1}, 3, math.log(1.15)) == [Match(1, 2, math.log(1.1))]
    assert match_iterates({1: 1.0}, {1: 2.0}, 3, 0.1) == []
    assert match_iterates({1: math.nan, 2: 0.0, 3: -1.0}, {1: math.inf, 2: 1.0}, 3) == []
    assert match_iterates({}, {1: 1.0}, 1) == []
