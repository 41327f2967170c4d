import math

import numpy as np
import pytest

from geomtraj.inference.regression import explained, share_of


def invented(rng, seeds, slope=1.0, offsets=None, layers=8, points=10, noise=1.0):
    """Predictor and value with layers' own offsets, each seed with deviations of its own in every layer."""
    rows = []
    offsets = np.zeros((layers, 2)) if offsets is None else offsets
    for seed in range(seeds):
        own = 0.3 * rng.normal(size=(layers, 2))
        for layer in range(layers):
            x = rng.normal(size=points) + own[layer, 0] + offsets[layer, 0]
            y = slope * x + offsets[layer, 1] + own[layer, 1] + noise * rng.normal(size=points)
            rows += [(b, a, layer, seed) for a, b in zip(x, y, strict=True)]
    y, x, layer, seed = (np.array(column) for column in zip(*rows, strict=True))
    return y, x, layer.tolist(), seed.tolist()


def test_within_layers_is_the_regression_with_a_dummy_for_each_layer():
    rng = np.random.default_rng(0)
    y, x, layer, seed = invented(rng, 4, offsets=3 * rng.normal(size=(8, 2)))
    z = rng.normal(size=len(y))
    dummies = np.eye(8)[layer]
    design = np.column_stack([x, z, dummies])
    beta = np.linalg.lstsq(design, y, rcond=None)[0]
    error = ((y - design @ beta) ** 2).sum()
    total = ((y - dummies @ np.linalg.lstsq(dummies, y, rcond=None)[0]) ** 2).sum()
    found = explained(y, np.column_stack([x, z]), layer, seed, "within", draws=50)
    assert found.r2 == pytest.approx(1 - error / total) and found.slopes == pytest.approx(beta[:2])
    assert (found.n, found.seeds, found.layers) == (320, 4, 8) and found.low < found.r2 < found.high


def test_between_layers_is_the_line_through_their_means():
    rng = np.random.default_rng(1)
    y, x, layer, seed = invented(rng, 4, offsets=3 * rng.normal(size=(8, 2)))
    means = np.array([[y[np.equal(layer, k)].mean(), x[np.equal(layer, k)].mean()] for k in range(8)])
    found = explained(y, x, layer, seed, "between", draws=50)
    assert found.r2 == pytest.approx(np.corrcoef(means.T)[0, 1] ** 2) and found.n == 8
    by_hand = []
    for k in range(8):
        rest = np.delete(means, k, axis=0)
        slope, intercept = np.polyfit(rest[:, 1], rest[:, 0], 1)
        by_hand.append([(means[k, 0] - slope * means[k, 1] - intercept) ** 2, (means[k, 0] - rest[:, 0].mean()) ** 2])
    error, total = np.sum(by_hand, axis=0)
    assert found.held_out == pytest.approx(1 - error / total)


def test_held_out_seeds_by_hand():
    rng = np.random.default_rng(2)
    y, x, layer, seed = invented(rng, 3, offsets=rng.normal(size=(8, 2)))
    layer, unit = np.array(layer), np.array(seed)
    error = total = 0.0
    for k in range(3):
        train = unit != k
        design = np.column_stack([x, np.eye(8)[layer]])
        beta = np.linalg.lstsq(design[train], y[train], rcond=None)[0]
        error += ((y - design @ beta)[~train] ** 2).sum()
        means = np.array([y[train & (layer == j)].mean() for j in range(8)])
        total += ((y - means[layer])[~train] ** 2).sum()
    assert explained(y, x, layer.tolist(), seed, "within", draws=5).held_out == pytest.approx(1 - error / total)


def test_a_rich_fit_to_few_points_is_seen_through_by_what_is_held_out():
    rng = np.random.default_rng(3)
    layers, seeds = ["a"] * 30, [0] * 10 + [1] * 10 + [2] * 10
    found = explained(rng.normal(size=30), rng.normal(size=(30, 12)), layers, seeds, "within", draws=5)
    assert found.r2 > 0.2 and found.held_out < -1


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    offsets = np.random.default_rng(4).normal(size=(8, 2)) * [2, 1]
    for part, slope in (("within", 0.5), ("within", 2.0), ("between", 1.0)):
        many = invented(np.random.default_rng(5), 200, slope, offsets)
        truth = explained(*many, part, draws=3).r2
        rng = np.random.default_rng(6)
        each = [explained(*invented(rng, 5, slope, offsets), part, draws=60) for _ in range(80)]
        assert np.mean([e.low <= truth <= e.high for e in each]) >= 0.88, (part, slope)
        assert np.mean([e.high - e.low for e in each]) < 0.5


def test_what_cannot_be_given_is_nan():
    rng = np.random.default_rng(7)
    y, x, layer, seed = invented(rng, 2)
    one = explained(y, x, layer, [0] * len(y), "within")
    assert one.r2 > 0 and math.isnan(one.low) and math.isnan(one.held_out) and one.seeds == 1
    assert math.isnan(explained(y, x, layer, seed, "within", draws=5).low), "two seeds give no interval"
    constant = explained(y, np.ones_like(y), layer, seed, "within", draws=5)
    assert math.isnan(constant.r2) and math.isnan(constant.slopes[0])
    few = explained(y[:20], x[:20], layer[:20], seed[:20], "between", draws=5)
    assert math.isnan(few.r2) and few.layers == 2, "a line through two layers says nothing"
    assert math.isnan(explained(y * math.inf, x, layer, seed, "within").r2)
    gaps = np.where(np.arange(len(y)) % 7 == 0, math.nan, x)
    assert explained(y, gaps, layer, seed, "within", draws=5).n == np.isfinite(gaps).sum()


def test_share_of_two_means_and_its_interval():
    assert share_of([2.0, 4.0], [1.0, 2.0]).share == pytest.approx(0.5)
    assert share_of([1.0, -1.0], [1.0, 2.0]).n == 2 and math.isnan(share_of([1.0, -1.0], [1.0, 2.0]).share)
    one = share_of([2.0, math.nan], [1.0, 1.0])
    assert one.share == 0.5 and one.n == 1 and math.isnan(one.low)
    assert math.isnan(share_of([3.0, -2.9, 0.1], [1.0, 1.1, 0.9]).low), "a sum that cannot be told from 0"
    rng = np.random.default_rng(8)
    held = []
    for _ in range(800):
        y = 1 + 0.3 * rng.normal(size=5)
        found = share_of(y, 0.4 * y + 0.1 * rng.normal(size=5))
        held.append(found.low < 0.4 < found.high)
    assert 0.93 < np.mean(held) < 0.97
