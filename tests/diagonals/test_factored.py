"""Factored second derivatives against the exact diagonal, and the choice between them and signs at each tap."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from problems import PROBLEMS, build
from test_probing import regrouped
from torch import Tensor, nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.diagonals import pilot
from geomtraj.diagonals.parts import Choice, key_of_part
from geomtraj.diagonals.pilot import Measured, best
from geomtraj.diagonals.probing import probing

PROBING = sys.modules["geomtraj.diagonals.probing"]
REPLAYED = [
    "cnn", "gpt", "tanh_mlp", "conv1d_and_transposed", "conv3d_and_transposed2d", "functional_transformer",
    "encoder_layer", "cross_attention", "flattened_positions", "weighted_dicts", "checkpointed_and_compiled",
]  # fmt: skip


def everything(sampled, samples, ways) -> Choice:
    """All that can be factored is."""
    groups = [group for group, _ in sampled if not group.feeds_itself]
    return Choice(frozenset(key_of_part(g, p) for g in groups for p in g.shared_entries), samples, samples)


@pytest.fixture
def factored(monkeypatch):
    monkeypatch.setattr(PROBING, "choose", everything)


@pytest.mark.parametrize("name", REPLAYED)
def test_the_mean_is_the_diagonal(name, factored):
    problem, exact = build(name)
    runs = [probing(problem, 6, seed) for seed in range(8)]
    assert {run.status for run in runs} == {"ok"}
    errors, sems = torch.stack([r.values for r in runs]) - exact, torch.stack([r.sem for r in runs])
    tolerance = 1e-9 * exact.abs().max()
    noisy = sems.amax(0) > tolerance
    assert (errors[:, ~noisy].abs() < tolerance).all()
    if noisy.any():
        errors, sems = errors[:, noisy], sems[:, noisy].clamp_min(tolerance)
        bias = errors.mean(0) / (sems.square().mean(0) / len(runs)).sqrt()
        assert bias.square().mean() < 2.2
        assert bias.abs().max() < 5
        assert ((errors / sems).abs() < 3).double().mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "functional_transformer", "encoder_layer", "cross_attention"])
def test_standard_errors_are_calibrated(name, factored):
    problem, exact = build(name)
    runs = [probing(problem, 48, seed) for seed in range(12)]
    z = torch.cat([((r.values - exact) / r.sem)[r.sem > 1e-9 * exact.abs().max()] for r in runs])
    assert 0.75 < z.square().mean() < 1.3
    assert 0.92 < (z.abs() < 1.96).double().mean() < 0.98


@pytest.mark.parametrize("name", ["gpt", "encoder_layer", "functional_transformer"])
def test_other_batches_give_the_same_numbers(name, factored):
    problem, _ = build(name)
    one, other = probing(problem, 3), probing(regrouped(problem, [1, problem.examples - 1]), 3)
    scale = one.values.abs().max()
    assert (one.values - other.values).abs().max() < 1e-9 * scale
    assert (one.sem - other.sem).abs().max() < 1e-6 * scale
    assert (one.values - probing(problem, 3, seed=1).values).abs().max() > 1e-6 * scale


def test_an_activation_behind_its_layer_is_exact(factored):
    """Positions couple where they are flattened, not in the activation."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Flatten(), nn.Linear(20, 6)).double()
    x, y = torch.randn(3, 5, 3).double(), torch.randint(6, (3,))
    problem = gt.Problem(model, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), [(x, y)])
    found = probing(problem, 2)
    assert torch.allclose(found.values, gt.diagonal(problem, "exact").values, rtol=1e-9, atol=1e-12)
    assert not found.sem.any()


class Held(torch.autograd.Function):
    """x^2 / 2, whose second derivative autograd takes for zero."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square() / 2

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].detach()


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Held.apply(x)


class Deep(nn.Module):
    """Residual layers over positions that attention couples."""

    def __init__(self, act: nn.Module, layers: int = 3) -> None:
        super().__init__()
        self.act = act
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(layers))
        self.qkv, self.ups, self.downs = (
            nn.ModuleList(nn.Linear(*sizes) for _ in range(layers)) for sizes in ((6, 18), (6, 10), (10, 6))
        )
        self.head = nn.Linear(6, 40)

    def forward(self, x: Tensor) -> Tensor:
        for norm, qkv, up, down in zip(self.norms, self.qkv, self.ups, self.downs, strict=True):
            q, k, v = qkv(norm(x)).chunk(3, -1)
            x = x + F.scaled_dot_product_attention(q, k, v)
            x = x + down(self.act(up(x)))
        return self.head(x)


def deep(act: nn.Module) -> gt.Problem:
    torch.manual_seed(6)
    x, y = torch.randn(24, 5, 6).double(), torch.randint(40, (24, 5))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]).transpose(1, 2), batch[1], reduction="none").mean(1)

    return gt.Problem(Deep(act).double(), loss, [(x, y)], check=not isinstance(act, Half))


@pytest.fixture
def eager(monkeypatch):
    """The pilot is taken however shallow the network is."""
    monkeypatch.setattr(pilot, "SHARED", 0.5)


def test_the_pilot_takes_what_is_less_noisy_for_its_time(eager, monkeypatch):
    problem, chosen = deep(nn.GELU()), []
    monkeypatch.setattr(PROBING, "choose", lambda *a: chosen.append(pilot.choose(*a)) or chosen[-1])
    one, other = probing(problem, 8), probing(problem, 8)
    assert chosen[0] == chosen[1] and chosen[0].factored
    assert torch.equal(one.values, other.values) and torch.equal(one.sem, other.sem)
    monkeypatch.setattr(PROBING, "choose", lambda *a: None)
    alone, exact = probing(problem, 8), gt.diagonal(problem, "exact").values
    ups = problem.layout["ups.0.weight"].slice
    assert one.sem[ups].square().mean() < 0.5 * alone.sem[ups].square().mean()
    z = ((one.values - exact) / one.sem)[one.sem > 1e-9 * exact.abs().max()]
    assert 0.6 < z.square().mean() < 1.8


def test_custom_functions_fall_back_and_the_status_says_so(eager):
    problem = deep(Half())
    found = probing(problem, 4)
    assert "layer by layer" in found.status and "custom functions" in found.status
    z = ((found.values - gt.diagonal(problem, "exact").values) / found.sem)[found.sem > 0]
    assert (z.abs() < 5).double().mean() > 0.9


def measured(signs: float, factored: float, taps: int) -> Measured:
    return Measured((taps,), signs, factored, 0.0, True)


def test_the_best_choice_by_hand():
    by_signs = {(n,): 4.0 for n in range(40)}
    good = {((n,), "w"): measured(1.0, 1.0, n) for n in range(30)}
    bad = {((n,), "b"): measured(1.0, 1e4, n) for n in range(30, 40)}
    choice = best({**good, **bad}, by_signs, 8)
    assert choice == Choice(frozenset(good), 8 * pilot.TIMES, round(8 * pilot.SHARED / 40))
    assert best({((n,), ""): measured(1.0, 1e4, n) for n in range(40)}, by_signs, 8) is None
    assert best({((n,), ""): measured(1.0, math.inf, n) for n in range(40)}, by_signs, 8) is None


def test_every_problem_is_as_before_where_it_is_shallow():
    for name in PROBLEMS:
        torch.manual_seed(1)
        assert "layer by layer" not in probing(PROBLEMS[name](), 2).status
