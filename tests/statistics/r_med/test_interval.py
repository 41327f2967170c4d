"""Coverage of R_med's intervals on simulated diagonals whose entries are known."""

import numpy as np
import pytest

from geomtraj.statistics.r_med.entries import Entries
from geomtraj.statistics.r_med.interval import ratios
from geomtraj.statistics.r_med.posterior import draws, may_be_mostly_zero
from geomtraj.statistics.r_med.refine import Refinement

SHAPES = {
    "flat": lambda rng, n: np.ones(n),
    "lognormal": lambda rng, n: np.exp(rng.standard_normal(n)),
    "heavy": lambda rng, n: np.exp(2 * rng.standard_normal(n)),
    "gaussian": lambda rng, n: rng.standard_normal(n),
    "fifth zeros": lambda rng, n: np.where(rng.random(n) < 0.2, 0, np.exp(rng.standard_normal(n))),
    "half zeros": lambda rng, n: np.where(np.arange(n) < 0.55 * n, 0, np.exp(rng.standard_normal(n))),
    "step": lambda rng, n: rng.permutation(np.where(np.arange(n) < 0.53 * n, 1.0, 3.0)),
}
COLUMNS = 20


def noise(rng, sem, correlation=0.0):
    """Normal errors, correlated within rows of 20."""
    rows = np.arange(sem.size) // COLUMNS
    shared = rng.standard_normal(rows[-1] + 1)[rows]
    return sem * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.standard_normal(sem.size))


def standard_errors(truth, ratio, kind):
    scale = np.median(np.abs(truth)) or 1.0
    return {"constant": np.full(truth.size, ratio * scale), "rising": ratio * np.sqrt(np.abs(truth) * scale)}[kind]


def ratio_of(truth):
    middle = np.median(np.abs(truth))
    return np.abs(truth).max() / middle if middle else np.inf


def unmeasured(values, sem, dof=None):
    rows = np.arange(values.size) // COLUMNS
    empty, blocks = np.full(values.size, np.nan), np.zeros(values.size, dtype=int)
    return Entries(values, sem, rows, empty, blocks, np.full(values.size, np.inf if dof is None else dof))


def refined(values, sem, truth, budget, seed=0, labels=None, rtol=0.1):
    rows = np.arange(values.size) // COLUMNS
    labels = labels or {"w": slice(0, values.size)}
    found = Refinement(values, sem, rows, labels, lambda i: truth[i], budget, rtol, seed)
    found.run()
    return found


def held(interval, exact):
    return interval.low <= exact * (1 + 1e-9) and exact <= interval.high * (1 + 1e-9)


def outcomes(shape, ratio, budget, seeds, size=240, correlation=0.4, dof=20, kind="constant"):
    """Whether the intervals hold the truth, and errors of log R_med in units of a quarter of the interval's width."""
    rng = np.random.default_rng(5)
    hits, scores = [], []
    for seed in range(seeds):
        truth = SHAPES[shape](rng, size)
        sem = standard_errors(truth, ratio, kind)
        values = truth + noise(rng, sem, correlation)
        sem = sem * np.sqrt(rng.chisquare(dof, size) / dof)
        labels, rows = {"w": slice(0, size)}, np.arange(size) // COLUMNS
        found = Refinement(values, sem, rows, labels, lambda i: truth[i], budget, 0.1, seed, np.full(size, dof))  # noqa: B023
        found.run()
        interval, exact = found.of("w").ratio, ratio_of(truth)
        hits.append(held(interval, exact))
        if np.isfinite(exact) and interval.low < interval.high < np.inf:
            scores.append(np.log(interval.value / exact) / (np.log(interval.high / interval.low) / 4))
    return hits, scores


@pytest.mark.parametrize("shape", SHAPES)
def test_intervals_hold_the_truth(shape):
    hits, _ = outcomes(shape, 0.3, 0, seeds=8)
    assert sum(hits) >= 6  # with 95 % once in 170 less


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0, 30])
def test_intervals_hold_the_truth_in_95_percent_and_are_no_wider_than_that_takes(budget):
    hits, scores = [], []
    for shape in SHAPES:
        for ratio in (0.1, 0.3, 1.0):
            more_hits, more_scores = outcomes(shape, ratio, budget, seeds=3)
            hits += more_hits
            scores += more_scores if shape in ("lognormal", "heavy", "gaussian") and ratio < 1 else []
    assert np.mean(hits) >= 0.90  # of 63: 95 % less two deviations
    spread = np.sqrt(np.mean(np.square(scores)))
    assert 0.55 < spread < 1.25  # 1 if normal


@pytest.mark.slow
def test_few_degrees_of_freedom_are_allowed_for():
    hits = [hit for shape in ("lognormal", "heavy", "gaussian") for hit in outcomes(shape, 0.2, 0, 12, dof=3)[0]]
    assert np.mean(hits) >= 0.89  # of 36: 95 % less two deviations


def test_a_draw_has_the_spread_of_a_precise_entry_and_less_of_one_among_equals():
    rng = np.random.default_rng(0)
    learn = np.ones(300, dtype=bool)
    apart, sem = np.exp(2 * rng.standard_normal(300)), np.full(300, 1e-4)
    spread = draws(unmeasured(apart, sem), learn, rng).std(0)
    assert 0.85 < np.median(spread) / 1e-4 < 1.1
    sem = np.full(300, 0.3)
    equal = draws(unmeasured(1 + noise(rng, sem), sem), learn, rng)
    assert np.median(equal.std(0)) < 0.2 and abs(np.median(equal) - 1) < 0.06


def test_value_and_median_are_corrected_for_the_noise():
    rng = np.random.default_rng(0)
    logs, plain = [], []
    for seed in range(12):
        truth = np.exp(rng.standard_normal(480))
        sem = np.full(480, 0.6)
        values = truth + noise(rng, sem)
        logs.append(np.log(ratios(unmeasured(values, sem), seed).median / np.median(truth)))
        plain.append(np.log(np.median(np.abs(values)) / np.median(truth)))
    assert np.mean(plain) > 0.11 and abs(np.mean(logs)) < 0.1


def test_errors_that_grow_with_the_entries_are_no_trouble():
    rng = np.random.default_rng(0)
    logs = []
    for seed in range(8):
        truth = np.exp(2 * rng.standard_normal(480))
        found = ratios(unmeasured(truth * (1 + noise(rng, np.full(480, 0.3))), 0.3 * truth), seed)
        logs.append(np.log(found.median / np.median(truth)))
    assert abs(np.mean(logs)) < 0.06


def test_rows_whose_errors_go_together_widen_the_interval():
    rng = np.random.default_rng(0)
    sem = np.full(480, 0.2)
    entries = unmeasured(np.exp(rng.standard_normal(480)) + noise(rng, sem), sem)
    alone = Entries(entries.values, sem, np.arange(480), entries.exact, entries.blocks, entries.dof)
    assert ratios(entries).spread[1] > 1.07 * ratios(alone).spread[1]


@pytest.mark.parametrize("shape", ["flat", "lognormal", "heavy"])
def test_noise_as_large_as_the_median_leaves_an_upper_end(shape):
    rng = np.random.default_rng(0)
    truth = SHAPES[shape](rng, 480)
    sem = np.full(480, np.median(truth))
    found = ratios(unmeasured(truth + noise(rng, sem), sem)).ratio
    assert found.high < 8 * found.low


def test_a_median_that_may_be_zero_has_no_upper_end():
    rng = np.random.default_rng(0)
    truth, sem = SHAPES["half zeros"](rng, 480), np.full(480, 0.1)
    entries = unmeasured(truth + noise(rng, sem), sem)
    assert may_be_mostly_zero(entries) and ratios(entries).ratio.high == np.inf
    assert not may_be_mostly_zero(unmeasured(1 + noise(rng, sem), sem))
    gaussian = unmeasured(rng.standard_normal(480) + noise(rng, 10 * sem), 10 * sem)
    assert may_be_mostly_zero(gaussian)
    gaussian.exact[:40] = rng.standard_normal(40)  # what was measured and is not zero speaks against it
    assert not may_be_mostly_zero(gaussian)
    assert may_be_mostly_zero(unmeasured(noise(rng, 50 * sem) + 1, 50 * sem))


def test_the_maximum_is_confirmed_and_the_runner_up_measured():
    rng = np.random.default_rng(3)
    truth = np.concatenate([np.exp(0.5 * rng.standard_normal(478)), [20.0, 21.0]])
    sem = np.where(truth > 10, 2.0, 0.02)
    found = refined(truth + noise(rng, sem), sem, truth, 50)
    assert found.spent == 2 and found.of("w").max == 21 and found.width("w") < 0.1


def test_small_blocks_are_measured_whole_and_serve_the_whole_too():
    rng = np.random.default_rng(0)
    truth = np.exp(rng.standard_normal(420))
    sem = np.concatenate([np.full(20, 0.1), np.full(400, 1e-3)])
    labels = {"bias": slice(0, 20), "weight": slice(20, 420), "all": slice(0, 420)}
    found = refined(truth + noise(rng, sem), sem, truth, 100, labels=labels)
    ratio = found.of("bias").ratio
    assert found.spent == 20 and ratio.low == ratio.high == pytest.approx(ratio_of(truth[:20]))


@pytest.mark.parametrize("shape", ["heavy", "flat"])
@pytest.mark.parametrize("budget", [0, 1, 7, 100])
def test_the_budget_is_kept(budget, shape):
    rng = np.random.default_rng(0)
    truth, sem = SHAPES[shape](rng, 400), np.full(400, 2.0)
    asked = []
    values = truth + noise(rng, sem)
    found = Refinement(values, sem, np.arange(400), {"w": slice(0, 400)}, lambda i: asked.extend(i) or truth[i], budget)
    found.run()
    assert len(asked) == len(set(asked)) == found.spent <= budget
    assert held(found.of("w").ratio, ratio_of(truth))


def test_enough_budget_reaches_the_width_that_was_asked_for():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        truth, sem = np.exp(rng.standard_normal(480)), np.full(480, 1.0)
        found = refined(truth + noise(rng, sem), sem, truth, 480, seed, rtol=0.3)
        assert found.width("w") < 0.3 and found.spent < 480
        assert held(found.of("w").ratio, ratio_of(truth))
        assert abs(np.log(found.of("w").ratio.value / ratio_of(truth))) < 0.2


def test_a_large_block_is_read_from_a_panel_whose_error_counts():
    rng = np.random.default_rng(0)
    truth = np.exp(rng.standard_normal(200_000))
    sem = np.full(truth.size, 0.1)
    found = ratios(unmeasured(truth + noise(rng, sem), sem))
    assert abs(found.median / np.median(truth) - 1) < 0.05 and 0.005 < found.spread[1] < 0.045
    sem = np.full(truth.size, 1e-4)
    found = ratios(unmeasured(truth + noise(rng, sem), sem))
    assert abs(found.median / np.median(truth) - 1) < 0.001 and found.spread[1] < 0.001


def test_intervals_are_as_wide_as_the_estimate_scatters():
    rng, widths, scatters = np.random.default_rng(0), [], []
    for seed in range(8):
        truth, sem = np.exp(rng.standard_normal(480)), np.full(480, 0.1)
        plain = [np.log(ratio_of(truth + noise(rng, sem))) for _ in range(100)]
        found = ratios(unmeasured(truth + noise(rng, sem), sem), seed).ratio
        widths.append(np.log(found.high / found.low))
        scatters.append(4 * np.std(plain))
    # Twice rather than once, as errors may go together within rows; 3.7 with doubled standard errors, 1.1 with halved.
    assert 1.4 < np.median(widths) / np.median(scatters) < 2.6
