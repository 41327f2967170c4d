"""R_med of the Gauss-Newton part against dense matrices, and where there is none."""

from __future__ import annotations

import math

import pytest
import torch
from problems import build
from torch import nn

import geomtraj as gt
from geomtraj.statistics import REGISTRY, Point


@pytest.mark.parametrize("name", ["gpt", "cnn", "weighted_regression"])
def test_it_is_that_of_the_dense_matrix(name):
    problem, _ = build(name)
    dense = gt.GGN(problem).dense().diagonal()
    found = REGISTRY["gauss_newton_diagonal"]().measure(Point(problem))
    assert list(found.quantities) == [*problem.blocks, "all"]
    for label, block in problem.blocks.items():
        entries = block.take(dense)
        expected = float(entries.max() / entries.quantile(0.5))
        if math.isfinite(expected) and entries.max() > 1e-12 * dense.max():  # else zero by symmetry, as keys' biases
            assert found.quantities[label].value == pytest.approx(expected)
            assert found.quantities[label].low == found.quantities[label].high


def test_a_loss_without_a_split_gives_its_reason():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    x = torch.randn(5, 3).double()
    problem = gt.Problem(model, lambda m, b: m(b).pow(4).sum(1) + sum(p.square().sum() for p in m.parameters()), [x])
    found = REGISTRY["gauss_newton_diagonal"]().measure(Point(problem))
    assert all(math.isnan(q.value) for q in found.quantities.values())
    assert "no Gauss-Newton part" in found.status
