import math

import numpy as np
import pytest
from scipy import stats

from geomtraj.inference.factorial import two_way


def drawn(rng, seeds, row, column, interaction, scatter=0.1):
    """Logs whose row ratio is exp(row) and so on, with an own level for each seed."""
    signs = np.array([0.5, -0.5])
    mean = row * signs[:, None] + column * signs[None] + interaction * signs[:, None] * signs[None]
    return rng.normal(0, 3, (seeds, 1, 1)) + mean + rng.normal(0, scatter, (seeds, 2, 2))


def test_effects_are_those_of_least_squares_and_paired_t_tests():
    y = drawn(np.random.default_rng(0), 5, 0.3, 0.9, 0.4)
    found = two_way(y)
    design, values = [], []
    for s in range(5):
        for r in range(2):
            for c in range(2):
                a, b = 0.5 - r, 0.5 - c
                design.append([a, b, a * b, *(float(k == s) for k in range(5))])
                values.append(y[s, r, c])
    row, column, interaction = np.linalg.lstsq(np.array(design), np.array(values), rcond=None)[0][:3]
    assert found.rows.ratio == pytest.approx(math.exp(row))
    assert found.columns.ratio == pytest.approx(math.exp(column))
    assert found.interaction.ratio == pytest.approx(math.exp(interaction))
    paired = stats.ttest_rel(y[:, :, 0].mean(axis=1), y[:, :, 1].mean(axis=1))
    assert found.columns.t_test_p == pytest.approx(paired.pvalue)
    low, high = paired.confidence_interval()
    assert (found.columns.low, found.columns.high) == pytest.approx((math.exp(low), math.exp(high)))


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [(0.2, 1.0, "columns"), (0.2, -1.0, "columns"), (-1.0, 0.2, "rows"), (1.0, -0.2, "rows"), (-0.2, -1.0, "columns")],
)
def test_the_larger_effect_is_named_whatever_its_direction(row, column, expected):
    assert two_way(drawn(np.random.default_rng(1), 5, row, column, 0.5)).larger == expected


def test_nothing_is_named_where_effects_are_alike_or_seeds_are_too_few():
    rng = np.random.default_rng(2)
    assert two_way(drawn(rng, 1, 0.1, 5.0, 0.0)).larger == ""
    assert two_way(np.zeros((0, 2, 2))).rows.n == 0
    for row, column in ((0.5, 0.5), (0.5, -0.5), (0.0, 0.0)):
        named = sum(bool(two_way(drawn(rng, 5, row, column, 0.3)).larger) for _ in range(1000))
        assert named <= 65, "one of two equal effects is named in at most 5 % of the cases, up to chance"


def test_intervals_cover():
    rng = np.random.default_rng(3)
    hits = [0, 0, 0]
    for _ in range(1000):
        t = two_way(drawn(rng, 5, 0.3, -0.7, 0.2))
        for i, (x, true) in enumerate(((t.rows, 0.3), (t.columns, -0.7), (t.interaction, 0.2))):
            hits[i] += x.low <= math.exp(true) <= x.high
    assert all(930 <= h <= 970 for h in hits)
