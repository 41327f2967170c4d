import pytest
import torch
from models import CASES

from geomtraj.statistics import REGISTRY, Point


def test_against_the_dense_hessian_per_block():
    case = CASES["mlp"]()
    diagonal = case.hessian().diagonal()
    found = REGISTRY["sqrt_trace"](method="exact").measure(Point(case.problem))
    for label, block in case.problem.blocks.items():
        q = found.quantities[label]
        assert q.low == q.value == q.high == pytest.approx(float(block.take(diagonal).abs().sqrt().sum()))
    assert found.quantities["all"].value == pytest.approx(float(diagonal.abs().sqrt().sum()))
    assert found.details["trace"] == pytest.approx(float(diagonal.sum()))


@pytest.mark.parametrize(("method", "samples"), [("hutchinson", 40), ("probing", 8)])
def test_the_interval_holds_the_sum_where_the_diagonal_is_estimated(method, samples):
    case = CASES["gpt"]()
    truth = case.hessian().diagonal()
    labels = {**{k: b.take(truth) for k, b in case.problem.blocks.items()}, "all": truth}
    point = Point(case.problem)
    held = []
    for seed in range(8):
        found = REGISTRY["sqrt_trace"](method=method, samples=samples, seed=seed).measure(point).quantities
        for label, entries in labels.items():
            held.append(found[label].low <= float(entries.abs().sqrt().sum()) <= found[label].high)
    assert found["all"].low < found["all"].value < found["all"].high
    assert sum(held) >= 0.93 * len(held)


def test_the_diagonal_is_shared():
    point = Point(CASES["mlp"]().problem)
    first = REGISTRY["sqrt_trace"]().measure(point)
    again = REGISTRY["sqrt_trace"]().measure(point)
    assert again.quantities == first.quantities and again.matvecs == 0
    torch.testing.assert_close(first.details["trace"], again.details["trace"])
