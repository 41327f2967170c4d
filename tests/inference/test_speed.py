import math

import numpy as np
import pytest

from geomtraj.comparing.speed import common_level, covered, fall, nearest_to, steps_to
from geomtraj.errors import InputError


def test_the_common_level_lies_between_what_all_start_from_and_what_all_reach():
    curves = {"a": [8.0, 1.0, 2.0], "b": [9.0, 4.0, math.nan], "c": [16.0, 0.5]}
    assert common_level(curves, 0.5) == pytest.approx(math.sqrt(8 * 4))
    assert common_level(curves, 0.25) == pytest.approx(8**0.75 * 4**0.25)
    with pytest.raises(InputError, match=r"a covers 1 to 8, b covers 9 to 9, c covers 0.5 to 16\): train longer"):
        common_level({**curves, "b": [9.0, math.inf]}, 0.5)
    with pytest.raises(InputError, match="b covers none"):
        common_level({**curves, "b": [math.nan]}, 0.5)
    assert covered([3.0, math.nan, 1.0]) == "1 to 3"


def test_the_nearest_of_the_two_around_the_first_passage():
    losses = [4.0, 2.1, 1.5, 2.0, 1.0]
    assert nearest_to(losses, 2.0) == 1
    assert nearest_to(losses, 1.6) == 2
    assert nearest_to(losses, 5.0) == 0
    assert nearest_to(losses, 1.0) == 4
    assert nearest_to(losses, 0.9) is None


def test_the_fall_is_to_the_mean_of_the_last_ones():
    losses = np.linspace(5, 3, 21)
    assert fall(losses) == pytest.approx(5 - np.mean([3.2, 3.1, 3.0]))
    assert fall(losses, first=4.0) == pytest.approx(4 - 3.1)
    assert fall([2.0, 1.0]) == 1.0 and fall([1.0, 3.0]) == -2.0
    assert fall(losses, tail=1.0) == pytest.approx(1.0)
    assert math.isnan(fall([2.0, math.inf])) and math.isnan(fall([]))


def test_steps_to_a_level_are_interpolated():
    steps, losses = [10, 20, 30, 40], [5.0, 3.0, 4.0, 1.0]
    assert steps_to(steps, losses, 4.0) == pytest.approx(5)
    assert steps_to(steps, losses, 3.0) == 10
    assert steps_to(steps, losses, 2.5) == pytest.approx(25)
    assert math.isnan(steps_to(steps, losses, 0.5)) and math.isnan(steps_to(steps, losses, 5.0))
    exact = np.exp(-0.01 * np.arange(0, 500))
    assert steps_to(np.arange(0, 500), exact, math.exp(-3.333)) == pytest.approx(333.3, abs=0.01)
