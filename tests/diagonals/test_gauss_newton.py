"""The Gauss-Newton diagonal and products with the residual part, against dense matrices."""

from __future__ import annotations

import pytest
import torch
from models import split
from problems import PROBLEMS, build
from torch import nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.diagonals.gauss_newton import NoSplit
from geomtraj.diagonals.residual import Residual
from geomtraj.isolation import without_checkpoints

SHARED = {
    "rnn": {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0"},
    "strange_uses": {"log_scale", "left", "right", "hidden", "prelu.weight"},
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_diagonal_is_that_of_the_dense_matrix(name):
    """Few outputs make it exact but for parameters that enter in ways that are not understood."""
    problem, _ = build(name)
    dense = gt.GGN(problem).dense().diagonal()
    found = gt.diagonal(problem, "gauss_newton", samples=200)
    shared = {line.split(": ")[0] for line in found.status.split("; ")} - {"ok"}
    assert shared == SHARED.get(name, set())
    for parameter, slot in problem.layout.items():
        error = (found.values - dense)[slot.slice].abs()
        if parameter in shared:
            assert (error <= 6 * found.sem[slot.slice] + 1e-12).all()
        else:
            assert error.max() <= 1e-10 * dense.max() and not found.sem[slot.slice].any()
    assert found.gauss_newton is not None and found.gauss_newton.values is found.values and found.residual is None


def wide(outputs: int = 40, squared: bool = False) -> gt.Problem:
    """More outputs than are worked through one by one; weights of both signs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, outputs)).double()
    x, y = torch.randn(12, 2, 6).double(), torch.randint(0, outputs, (12,))
    w = torch.randn(12).double() + 0.5

    def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        z = model(batch[0])
        if squared:
            return z.square().mean(1), batch[2]
        return F.cross_entropy(z, batch[1], reduction="none"), batch[2]

    return gt.Problem(model, loss, split([8, 4], x, y, w))


@pytest.mark.parametrize("squared", [False, True])
def test_standard_errors_are_right_where_outputs_are_drawn(squared):
    problem = wide(squared=squared)
    dense = gt.GGN(problem).dense().diagonal()
    runs = [gt.diagonal(problem, "gauss_newton", samples=16, seed=seed) for seed in range(12)]
    noisy = runs[0].sem > 1e-12 * dense.max()
    assert noisy.sum() > 20
    torch.testing.assert_close(runs[0].values[~noisy], dense[~noisy])
    z = torch.stack([((run.values - dense) / run.sem)[noisy] for run in runs])
    assert 0.7 < z.square().mean() < 1.5 and z.mean(0).abs().max() * 12**0.5 < 5
    assert torch.equal(runs[3].values, gt.diagonal(problem, "gauss_newton", samples=16, seed=3).values)


@pytest.mark.parametrize("name", ["gpt", "cnn", "rnn", "shared_module", "strange_uses", "checkpointed_and_compiled"])
def test_the_residual_part_is_what_is_left(name):
    problem, _ = build(name)
    theta = problem.theta() + 0.1
    with without_checkpoints():
        left = gt.Hessian(problem, theta).dense() - gt.GGN(problem, theta).dense()
    torch.testing.assert_close(Residual(problem, theta).dense(), left, rtol=1e-7, atol=1e-9 * float(left.abs().max()))


@pytest.mark.parametrize("how", ["penalty", "two outputs", "another curvature"])
def test_a_loss_that_cannot_be_taken_apart_is_refused(how):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()

    def loss(model: nn.Module, batch: tuple[torch.Tensor]) -> torch.Tensor:
        z = model(batch[0])
        if how == "penalty":
            return z.square().sum(1) + model[0].weight.square().sum()
        if how == "two outputs":
            return z.square().sum(1) + model(batch[0] + 1).square().sum(1)
        return z.norm(dim=1)

    problem = gt.Problem(model, loss, [(torch.randn(5, 3).double(),)])
    with pytest.raises(NoSplit, match="no Gauss-Newton part"):
        gt.diagonal(problem, "gauss_newton")
    found = gt.r_med(problem, method="probing", samples=4)
    exact = gt.r_med(problem, method="exact")
    assert set(found) == set(exact) and found["0.weight"].low <= exact["0.weight"].value * (1 + 1e-9)


def test_operators_have_no_output():
    with pytest.raises(gt.errors.InputError, match="needs a Problem"):
        gt.diagonal(gt.MatrixOperator(torch.eye(2)), "gauss_newton")
