import math

import numpy as np
import pytest
from synthetic import results_of

from analyses.common.blocks import mean_over_blocks, only, usable_everywhere
from geomtraj.comparing import contrast
from geomtraj.inference import over_seeds

STEPS = [0, 10, 20, 30]
NAMES = ["u", "v", "w"]


def runs(seed_of_values, decay):
    rng = np.random.default_rng(seed_of_values)
    return [
        results_of(
            STEPS, 8.0 * np.exp(-np.array(STEPS) * decay), {k: np.exp(rng.normal(size=4)) for k in NAMES}, seed=s
        )
        for s in range(4)
    ]


@pytest.mark.parametrize("at", ["loss", "step"])
def test_the_contrast_of_the_means_is_the_mean_of_the_contrasts_run_by_run(at):
    first, other = runs(0, 0.1), runs(1, 0.06)
    averaged = [[mean_over_blocks(r, "r_med", ["u", "w"], "layers") for r in group] for group in (first, other)]
    row = contrast({"a": averaged[0], "b": averaged[1]}, at=at).overall()[0]
    logs = []
    for a, b in zip(first, other, strict=True):
        single = {r.label: r.ratio for r in contrast({"a": [a], "b": [b]}, at=at).overall()}
        logs.append((math.log(single["u"]) + math.log(single["w"])) / 2)
    expected = over_seeds(logs)
    assert row.label == "layers" and row.n == 4
    assert (row.ratio, row.low, row.high) == pytest.approx((expected.ratio, expected.low, expected.high))


def test_other_statistics_and_the_given_results_stay():
    given = runs(0, 0.1)[0]
    before = given.of("r_med")[0].quantities
    for changed in (only(given, "r_med", ["v"]), mean_over_blocks(given, "r_med", NAMES, "v")):
        assert changed.labels("r_med") == ["v"] and changed.losses() == given.losses()
        assert changed.meta == given.meta
    assert given.labels("r_med") == NAMES and given.of("r_med")[0].quantities is before


def test_a_block_without_a_value_somewhere_is_not_usable_and_makes_the_mean_unknown():
    values = {"u": [1.0, 2.0, 3.0, 4.0], "v": [1.0, math.inf, 1.0, 1.0], "w": [1.0, 1.0, math.nan, 1.0]}
    broken = results_of(STEPS, [4.0, 3.0, 2.0, 1.0], {k: np.array(v) for k, v in values.items()}, seed=0)
    assert usable_everywhere([broken, *runs(0, 0.1)], "r_med", [*NAMES, "x"]) == ["u"]
    assert usable_everywhere([], "r_med", NAMES) == []
    means = [q.value for _, q in mean_over_blocks(broken, "r_med", ["u", "v"], "m").series("r_med", "m")]
    assert means == pytest.approx([1.0, math.nan, math.sqrt(3), 2.0], nan_ok=True)
