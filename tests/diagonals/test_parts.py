"""The two parts of a diagonal, against dense Gauss-Newton matrices and what these leave of dense Hessians."""

from __future__ import annotations

import pytest
import torch
from problems import PROBLEMS, build
from test_probing import IN_PARAMETER_SPACE
from torch import Tensor, nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.diagonals import Part
from geomtraj.isolation import without_checkpoints


def dense_parts(problem: gt.Problem, hessian: Tensor) -> tuple[Tensor, Tensor]:
    with without_checkpoints():
        gauss_newton = gt.GGN(problem).dense().diagonal()
    return gauss_newton, hessian - gauss_newton


def checked(part: Part | None, expected: Tensor, scale: Tensor, known: Tensor) -> Tensor:
    """Standardised errors of the entries that are not exact."""
    assert part is not None
    assert torch.equal(part.values.isnan(), ~known) and torch.equal(part.sem.isnan(), ~known)
    errors = (part.values - expected)[known]
    noisy = part.sem[known] > 1e-9 * scale
    assert (errors[~noisy].abs() <= 1e-11 * scale).all()
    assert part.dof[known][~noisy].numel() == 0 or part.dof[known][~noisy].min() > 0
    return (errors / part.sem[known])[noisy]


@pytest.mark.parametrize("name", PROBLEMS)
def test_parts_of_the_exact_diagonal_are_those_of_dense_matrices(name):
    problem, hessian = build(name)
    found = gt.diagonal(problem, "exact")
    everywhere = torch.ones(problem.size, dtype=torch.bool)
    for part, expected in zip((found.gauss_newton, found.residual), dense_parts(problem, hessian), strict=True):
        assert not checked(part, expected, hessian.abs().max(), everywhere).numel()
        assert not part.sem.any() and part.dof.isinf().all()
    sums = found.gauss_newton.values + found.residual.values
    assert torch.allclose(sums, found.values, rtol=1e-12, atol=1e-14 * float(hessian.abs().max()))


@pytest.mark.parametrize("name", PROBLEMS)
def test_parts_of_the_estimate_are_those_of_dense_matrices(name):
    problem, hessian = build(name)
    strange = [problem.layout[n].slice for n in IN_PARAMETER_SPACE.get(name, ())]
    known = torch.ones(problem.size, dtype=torch.bool)
    for place in strange:
        known[place] = False
    runs = [gt.diagonal(problem, "probing", samples=8, seed=seed) for seed in range(3)]
    for kind, expected in zip(("gauss_newton", "residual"), dense_parts(problem, hessian), strict=True):
        z = torch.cat([checked(getattr(run, kind), expected, hessian.abs().max(), known) for run in runs])
        if z.numel():
            assert z.square().mean() < 2.5
    for run in runs:
        sums = (run.gauss_newton.values + run.residual.values)[known]
        assert torch.allclose(sums, run.values[known], rtol=1e-10, atol=1e-13 * float(hessian.abs().max()))


class Wide(nn.Module):
    """More outputs than are worked through one by one; a last layer with positions, and a norm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.norm, self.head = (
            nn.Embedding(9, 6),
            nn.Linear(6, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 9),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = x + (x @ x.transpose(1, 2)).softmax(2) @ x
        return self.head(self.norm(x + self.mix(x).tanh()))


@pytest.mark.parametrize("samples", [4, 16])
def test_standard_errors_of_both_parts_are_right(samples):
    torch.manual_seed(0)
    tokens, y = torch.randint(0, 9, (12, 5)), torch.randint(0, 9, (12, 5))
    problem = gt.Problem(
        Wide().double(), lambda m, b: F.cross_entropy(m(b[0]).transpose(1, 2), b[1], reduction="none"), [(tokens, y)]
    )
    hessian = gt.Hessian(problem).dense().diagonal()
    everywhere = torch.ones(problem.size, dtype=torch.bool)
    runs = [gt.diagonal(problem, "probing", samples=samples, seed=seed) for seed in range(20)]
    for kind, expected in zip(("gauss_newton", "residual"), dense_parts(problem, hessian), strict=True):
        z = torch.cat([checked(getattr(run, kind), expected, hessian.abs().max(), everywhere) for run in runs])
        assert z.numel() > 1000
        assert 0.7 < z.square().mean() < 1.6
        assert 0.9 < (z.abs() < 1.96).double().mean() < 0.98


def test_a_loss_without_a_known_curvature_has_no_parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 40)).double()
    model.register_parameter("spare", nn.Parameter(torch.ones(2).double()))
    problem = gt.Problem(model, lambda m, b: m(b).sum(1).square(), [torch.randn(5, 3).double()])
    for method in ("exact", "probing"):
        found = gt.diagonal(problem, method, samples=4)
        assert found.gauss_newton is None and found.residual is None and found.values.isfinite().all()


def test_only_what_reaches_the_loss_in_another_way_is_not_taken_apart():
    """A penalty on one matrix: it has no split, the others have."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    x = torch.randn(5, 3).double()
    plain = gt.Problem(model, lambda m, b: m(b).square().sum(1), [x])
    problem = gt.Problem(model, lambda m, b: m(b).square().sum(1) + m[0].weight.square().sum(), [x])
    hessian = gt.Hessian(problem).dense().diagonal()
    known = torch.ones(problem.size, dtype=torch.bool)
    known[problem.layout["0.weight"].slice] = False
    for method in ("exact", "probing"):
        found = gt.diagonal(problem, method, samples=40)
        for part, expected in zip((found.gauss_newton, found.residual), dense_parts(plain, hessian), strict=True):
            assert not checked(part, expected, hessian.abs().max(), known).numel()
