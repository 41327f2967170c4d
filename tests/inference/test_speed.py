import math

import numpy as np
import pytest

from geomtraj.inference.speed import fall, nearest_to, steps_to_loss


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
    assert steps_to_loss(steps, losses, 4.0) == pytest.approx(5)
    assert steps_to_loss(steps, losses, 3.0) == 10
    assert steps_to_loss(steps, losses, 2.5) == pytest.approx(25)
    assert math.isnan(steps_to_loss(steps, losses, 0.5)) and math.isnan(steps_to_loss(steps, losses, 5.0))
    exact = np.exp(-0.01 * np.arange(0, 500))
    assert steps_to_loss(np.arange(0, 500), exact, math.exp(-3.333)) == pytest.approx(333.3, abs=0.01)
