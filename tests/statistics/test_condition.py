import math

import numpy as np
import pytest
import torch
from models import CASES

from geomtraj.linalg.magnitudes import Bounded
from geomtraj.statistics import REGISTRY, Point
from geomtraj.statistics.condition import ratio


def dense_ratio(hessian):
    sizes = torch.linalg.eigvalsh(hessian.double()).abs()
    return float(sizes.max() / np.median(sizes.numpy()))


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_ratios_of_blocks_and_of_the_whole_against_the_dense_hessian(name):
    case = CASES[name]()
    full, layout = case.hessian(), case.problem.layout
    found = REGISTRY["condition"](dense=10**6).measure(Point(case.problem))
    blocks = case.problem.blocks
    matrices = [n for n, block in blocks.items() if len(block.shape) > 1]
    assert list(found.quantities) == [*matrices, "all"]
    for label, q in found.quantities.items():
        rows = torch.arange(layout.size) if label == "all" else blocks[label].indices
        block = full[rows][:, rows]
        sizes = torch.linalg.eigvalsh(block).abs()
        median = np.median(sizes.numpy())
        if median < 1e-9 * sizes.max():
            assert math.isinf(q.value) and "zero to rounding" in found.details[label]["status"]
        else:
            assert q.value == q.low == q.high == pytest.approx(dense_ratio(block), rel=1e-6)
        ninth = float(sizes.max() / np.quantile(sizes.numpy(), 0.9))
        assert found.details[label]["ninth"][0] == pytest.approx(ninth, rel=1e-6)
    assert found.matvecs == sum(blocks[n].size for n in matrices) + layout.size


def test_the_quadrature_agrees_with_the_dense_hessian_and_what_it_cannot_resolve_is_a_lower_bound():
    problem = CASES["gpt"]().problem
    exact = REGISTRY["condition"](dense=10**6, vectors=True).measure(Point(problem))
    found = REGISTRY["condition"](steps=40, max_steps=80, dense=0, vectors=True).measure(Point(problem))
    assert set(found.quantities) == set(problem.blocks) | {"all"} == set(exact.quantities)
    held = [q.low * (1 - 1e-6) <= exact.quantities[n].value <= q.high * (1 + 1e-6) for n, q in found.quantities.items()]
    assert np.mean(held) >= 0.9
    for label, details in found.details.items():
        if "do not resolve" in details["status"]:
            assert math.isinf(found.quantities[label].high) and label in found.status
        assert np.sum(np.concatenate(details["weights"])) == pytest.approx(1)


def test_a_ratio_over_zero_is_infinite_with_a_lower_end():
    one = Bounded(8.0, 8.0, 8.0)
    zero = ratio(one, Bounded(0.0, 0.0, 0.5))
    assert math.isinf(zero.value) and zero.low == 16 and math.isinf(zero.high)
    unresolved = ratio(one, Bounded(2.0, 0.0, 4.0))
    assert (unresolved.value, unresolved.low) == (4, 2) and math.isinf(unresolved.high)
    assert math.isnan(ratio(Bounded(0.0, 0.0, 0.0), Bounded(0.0, 0.0, 0.0)).value)
