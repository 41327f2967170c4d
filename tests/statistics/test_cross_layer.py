import numpy as np
import pytest
import torch
from models import CASES
from torch import nn

import geomtraj as gt
from geomtraj.statistics import REGISTRY, Point


def cross_layer(**settings):
    return REGISTRY["cross_layer"](**settings)


def truth(problem, H):
    square = {
        (a, b): float(H[x.indices][:, y.indices].square().sum())
        for a, x in problem.blocks.items()
        for b, y in problem.blocks.items()
    }
    return 1 - sum(square[a, a] for a in problem.blocks) / sum(square.values()), square


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_the_interval_covers_the_share_of_the_dense_hessian(name):
    case = CASES[name]()
    expected, square = truth(case.problem, case.hessian())
    point = Point(case.problem)
    found = [cross_layer(probes=6, seed=seed).measure(point) for seed in range(10)]
    assert sum(o.quantities["share"].low <= expected <= o.quantities["share"].high for o in found) >= 8
    many = cross_layer(probes=40).measure(point)
    assert many.quantities["share"].value == pytest.approx(expected, abs=0.03)
    names = many.details["blocks"]
    norms = np.array([[square[a, b] ** 0.5 for b in names] for a in names])
    assert np.abs(many.arrays["norms"] - norms).max() < 0.15 * norms.max()
    assert many.matvecs == 40 * len(names)


def test_layers_without_a_common_loss_share_nothing():
    model = nn.ModuleList(nn.Linear(3, 1) for _ in range(2)).double()
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
    problem = gt.Problem(model, lambda m, b: sum(layer(b)[:, 0].square() for layer in m), [x], params="*.weight")
    q = cross_layer().measure(Point(problem)).quantities["share"]
    assert q.low == q.value == q.high == pytest.approx(0, abs=1e-12)


def test_reasons():
    one = gt.Problem(
        nn.Linear(3, 1, bias=False).double(), lambda m, b: m(b)[:, 0].square(), [torch.ones(2, 3).double()]
    )
    assert "one block" in cross_layer().measure(Point(one)).status
    flat = gt.Problem(nn.Linear(3, 1).double(), lambda m, b: m(b)[:, 0], [torch.ones(2, 3).double()])
    assert "the Hessian is zero" in cross_layer().measure(Point(flat)).status
