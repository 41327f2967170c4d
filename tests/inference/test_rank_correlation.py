import math

import numpy as np
import pytest
from scipy import stats

from geomtraj.inference.rank_correlation import agreement, kendall, spearman


def labelled(seeds, layers, iterates):
    """Labels of every combination, in order: (seeds, layers, iterates), one list each."""
    cases = [(s, f"layer {k}", ("adam", i)) for s in range(seeds) for k in range(layers) for i in range(iterates)]
    return tuple(map(list, zip(*cases, strict=True)))


def test_coefficients_are_those_of_scipy_and_of_the_definition():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 40), rng.normal(size=40).round(1)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
    a, b = rng.normal(size=(2, 15))
    ranks = a.argsort().argsort(), b.argsort().argsort()
    assert spearman(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    signs = [np.sign((a[i] - a[j]) * (b[i] - b[j])) for i in range(15) for j in range(i)]
    assert kendall(a, b) == pytest.approx(np.mean(signs))


def test_ratios_that_are_infinite_rank_highest_and_too_few_or_equal_points_give_nothing():
    assert spearman([1, 2, math.inf], [3, 4, 5]) == 1 and kendall([1, 2, math.inf], [5, 4, 3]) == -1
    for coefficient in (spearman, kendall):
        assert math.isnan(coefficient([1, 2], [1, 2])) and math.isnan(coefficient([1, 1, 1], [1, 2, 3]))
        assert math.isnan(coefficient([], []))


def test_layers_of_different_size_make_the_pooled_number_high_while_nothing_agrees_within_them():
    seeds, layers, iterates = labelled(5, 6, 8)
    rng = np.random.default_rng(1)
    level = np.array([10.0 * int(name[-1]) for name in layers])
    x, y = level + rng.normal(size=len(level)), level + rng.normal(size=len(level))
    found = agreement(x, y, seeds, layers, iterates)
    assert found.pooled.value > 0.9 and found.between.value > 0.99
    assert abs(found.within.value) < 0.2 and found.within.low < 0 < found.within.high
    against = agreement(level + x - level, level - 3 * (x - level), seeds, layers, iterates)
    assert against.within.value == -1 and against.pooled.value > 0.8


def test_each_seed_gives_the_mean_of_its_parts_and_points_that_are_missing_are_left_out():
    seeds, layers, iterates = labelled(3, 5, 6)
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 90))
    x[7] = math.nan
    found = agreement(x, y, seeds, layers, iterates, kendall, 0.8)
    keep = ~np.isnan(x)
    s, k, i = np.array(seeds), np.array(layers), np.array([step for _, step in iterates])
    for part, label, total in ((found.within, k, 89), (found.between, i, 89), (found.pooled, np.zeros(90), 89)):
        own = []
        for seed in range(3):
            places = [keep & (s == seed) & (label == value) for value in np.unique(label)]
            own.append(np.mean([stats.kendalltau(x[p], y[p]).statistic for p in places]))
        interval = stats.t.interval(0.8, 2, np.mean(own), stats.sem(own))
        assert part.value == pytest.approx(np.mean(own)) and part.n == 3 and part.points == total
        assert (part.low, part.high) == pytest.approx(np.clip(interval, -1, 1))


def test_one_seed_has_a_value_and_no_interval():
    seeds, layers, iterates = labelled(1, 4, 4)
    x = np.arange(16.0)
    found = agreement(x, x, seeds, layers, iterates)
    assert found.pooled.value == found.within.value == found.between.value == 1
    assert math.isnan(found.pooled.low) and math.isnan(found.pooled.high) and found.pooled.n == 1
    seeds, layers, iterates = labelled(5, 3, 4)
    few = agreement(np.arange(60.0), np.arange(60.0), seeds, layers, iterates)
    assert few.within.value == 1 and few.between.n == 0  # three layers are too few to rank
    empty = agreement([math.nan], [1.0], [0], ["a"], [0])
    assert math.isnan(empty.pooled.value) and empty.pooled.n == 0


def test_intervals_over_seeds_hold_the_expected_correlation():
    seeds, layers, iterates = labelled(5, 3, 5)
    rng = np.random.default_rng(3)
    of = np.array(seeds)

    def draw():
        """Seeds that differ in how their two statistics hang together."""
        slope = rng.normal(0.5, 0.6, size=5)[of]
        x = rng.normal(size=len(of))
        return agreement(x, slope * x + rng.normal(size=len(of)), seeds, layers, iterates)

    found = [draw() for _ in range(150)]
    for part in ("pooled", "within"):
        ranks = [getattr(f, part) for f in found]
        truth = np.mean([r.value for r in ranks])
        assert 0.90 <= np.mean([r.low <= truth <= r.high for r in ranks]) <= 0.99
