import math

import numpy as np
import pytest
from scipy import stats

from geomtraj.inference.ratios import holm, over_seeds

LOGS = np.random.default_rng(0).normal(0.3, 0.4, size=7)


def test_against_scipy():
    found = over_seeds(LOGS)
    test = stats.ttest_1samp(LOGS, 0.0)
    interval = test.confidence_interval(0.95)
    assert found.ratio == pytest.approx(stats.gmean(np.exp(LOGS)), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)), rel=1e-12)
    assert found.t_test_p == pytest.approx(test.pvalue, rel=1e-10)
    above = int((LOGS > 0).sum())
    assert found.above == above
    assert found.sign_test_p == pytest.approx(min(1.0, 2 * stats.binom.cdf(min(above, 7 - above), 7, 0.5)), rel=1e-12)


@pytest.mark.parametrize("n", [3, 5])
def test_interval_covers_the_true_ratio_in_95_percent(n):
    rng = np.random.default_rng(n)
    true = 1.7
    draws = np.log(true) + 0.5 * rng.normal(size=(2000, n))
    held = [s.low <= true <= s.high for s in map(over_seeds, draws)]
    assert 0.93 < np.mean(held) < 0.97


def test_p_below_five_percent_just_when_the_interval_leaves_out_one():
    rng = np.random.default_rng(1)
    for logs in 0.4 + rng.normal(size=(200, 4)) * 0.3:
        found = over_seeds(logs)
        assert (found.t_test_p < 0.05) == (not found.low <= 1 <= found.high)


def test_one_pair_has_no_interval():
    found = over_seeds([0.5])
    assert found.ratio == pytest.approx(math.exp(0.5))
    assert math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.t_test_p)
    assert (found.n, found.above, found.sign_test_p) == (1, 1, 1.0)


def test_no_pair_is_all_nan():
    found = over_seeds([])
    assert found.n == 0 and math.isnan(found.ratio) and math.isnan(found.sign_test_p)


def test_equal_ratios_have_an_interval_without_width():
    found = over_seeds([0.5, 0.5])
    assert found.low == found.high == pytest.approx(found.ratio) and found.t_test_p == 0
    assert over_seeds([0.0, 0.0]).t_test_p == 1.0


def test_ties_do_not_count_in_the_sign_test():
    assert over_seeds([0.0, 1.0, 1.0, 1.0]).sign_test_p == pytest.approx(0.25)
    assert over_seeds([0.0, 0.0]).sign_test_p == 1.0


def test_holm_by_hand():
    # Holm: sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, made monotone.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    adjusted = holm([0.01, math.nan, 0.02])
    assert adjusted[0] == pytest.approx(0.02) and math.isnan(adjusted[1]) and adjusted[2] == pytest.approx(0.02)


def test_huge_ratios_do_not_overflow():
    assert math.isinf(over_seeds([800.0, 900.0]).ratio)
