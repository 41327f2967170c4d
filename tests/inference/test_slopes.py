import math

import numpy as np
import pytest

from geomtraj.inference.slopes import mean_over_seeds, trend


def test_slope_against_the_normal_equations():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = 2 - 3 * x + rng.normal(size=30)
    design = np.column_stack([np.ones(30), x])
    (intercept, slope), *_ = np.linalg.lstsq(design, y, rcond=None)
    found = trend([*x, math.nan], [*y, 1.0])
    assert (found.slope, found.intercept, found.n) == (pytest.approx(slope), pytest.approx(intercept), 30)
    assert found.low < slope < found.high


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    x = np.repeat([1.0, 2.0, 3.0], 4)
    slopes, means = [], []
    for _ in range(600):
        noise = rng.normal(size=12)
        line, mean = trend(x, 0.5 * x + noise), mean_over_seeds(1 + noise)
        slopes.append(line.low < 0.5 < line.high)
        means.append(mean.low < 1 < mean.high)
    assert 0.92 < np.mean(slopes) < 0.98 and 0.92 < np.mean(means) < 0.98


def test_too_few_points_have_no_interval():
    assert math.isnan(trend([1.0, 1.0], [1.0, 2.0]).slope)
    two = trend([1.0, 2.0], [1.0, 3.0])
    assert two.slope == 2 and math.isnan(two.low)
    one = mean_over_seeds([2.0, math.inf])
    assert one.mean == 2 and one.n == 1 and math.isnan(one.low) and math.isnan(mean_over_seeds([]).mean)
