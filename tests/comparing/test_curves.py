import math

import numpy as np
import pytest
from synthetic import results_of

from geomtraj.comparing.curves import at_level, curve

LOSSES = np.array([4.0, 3.0, 2.0, 1.0])


def test_power_laws_are_read_exactly():
    values = 5.0 * LOSSES**-1.7  # a straight line in log-log: interpolation must not err
    for level in (3.9, 3.0, 2.3, 1.0):
        assert at_level(LOSSES, values, level) == pytest.approx(5.0 * level**-1.7, rel=1e-12)
        assert at_level(LOSSES, -values, level) == pytest.approx(-5.0 * level**-1.7, rel=1e-12)


def test_exponentials_are_read_exactly_over_time():
    times = np.array([0.0, 1.0, 4.0])
    assert at_level(times, np.exp(2 * times), 3.0, log_x=False) == pytest.approx(math.exp(6.0), rel=1e-12)


@pytest.mark.parametrize("level", [4.1, 0.9])
def test_nothing_is_extrapolated(level):
    assert math.isnan(at_level(LOSSES, LOSSES, level))


def test_the_first_crossing_counts():
    losses, values = np.array([4.0, 2.0, 4.0, 2.0]), np.array([1.0, 2.0, 100.0, 200.0])
    assert 1.0 < at_level(losses, values, 3.0) < 2.0


def test_an_iterate_on_the_level_is_taken_as_it_is():
    assert at_level(LOSSES, np.array([np.nan, 7.0, np.inf, 1.0]), 3.0) == 7.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -2.0])
def test_unusable_neighbours_give_nan(bad):
    assert math.isnan(at_level(LOSSES, np.array([1.0, bad, 1.0, 1.0]), 3.5))


def test_iterates_without_a_loss_are_passed_over():
    losses = np.array([4.0, np.nan, 2.0])
    assert at_level(losses, np.array([4.0, 1e9, 2.0]), 3.0) == pytest.approx(3.0, rel=1e-12)


def test_curve_lines_up_losses_and_labels():
    first = results_of([0, 5], [3.0, 2.0], {"a": [1, 2], "b": [3, 4]})
    found = curve(first, "r_med")
    assert found.steps.tolist() == [0, 5] and found.losses.tolist() == [3.0, 2.0]
    assert found.rows(("b",), found.values).tolist() == [[3.0, 4.0]]
    assert np.isnan(found.rows(("c",), found.values)).all()
    assert np.isnan(curve(results_of([0, 5], None, {"a": [1, 2]}), "r_med").losses).all()
