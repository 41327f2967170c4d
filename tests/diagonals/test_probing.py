"""Probing against the exact diagonal, on models that reach every kind of use of a parameter."""

from __future__ import annotations

import pytest
import torch
from models import cross_entropy, split
from problems import PROBLEMS, build, classification
from scipy.stats import t as student
from torch import Tensor, nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.diagonals.probing import probing
from geomtraj.layers import batches, shared_entries, unexplained

IN_PARAMETER_SPACE = {
    "rnn": {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0"},
    "strange_uses": {"log_scale", "left", "right", "hidden", "prelu.weight"},
}


def z_scores(problem: gt.Problem, exact: Tensor, samples: int, seeds: int) -> tuple[Tensor, Tensor]:
    """Standardised errors (seeds, P'), and those of the means over seeds (P',), of the entries that are not exact."""
    runs = [probing(problem, samples, seed) for seed in range(seeds)]
    errors = torch.stack([run.values for run in runs]) - exact
    sems = torch.stack([run.sem for run in runs])
    tolerance = 1e-9 * exact.abs().max()
    noisy = sems.amax(0) > tolerance
    assert (errors[:, ~noisy].abs() < tolerance).all()
    errors, sems = errors[:, noisy], sems[:, noisy].clamp_min(tolerance)
    return errors / sems, errors.mean(0) / (sems.square().mean(0) / seeds).sqrt()


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_mean_is_the_diagonal(name):
    problem, exact = build(name)
    z, bias = z_scores(problem, exact, samples=4, seeds=6)
    if bias.numel():
        assert bias.square().mean() < 1.6
        assert bias.abs().max() < 5
        assert (z.abs() < 3).double().mean() > 0.9


@pytest.mark.parametrize("name", PROBLEMS)
def test_only_strange_uses_are_probed_in_parameter_space(name):
    problem, _ = build(name)
    status = probing(problem, samples=2).status
    named = {line.split(": ")[0] for line in status.split("; ")} - {"ok"}
    assert named == IN_PARAMETER_SPACE.get(name, set())


@pytest.mark.parametrize("name", ["mlp", "weighted_regression", "relu_mlp", "weighted_dicts"])
def test_exact_without_positions_or_where_layers_are_narrow(name):
    problem, exact = build(name)
    diagonal = probing(problem, samples=6)
    assert torch.allclose(diagonal.values, exact, rtol=1e-9, atol=1e-12)
    assert not diagonal.sem.any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "gpt", "tanh_mlp", "grouped_cnn", "shared_module", "encoder_layer"])
def test_standard_errors_are_calibrated(name):
    torch.manual_seed(6)
    problem = PROBLEMS[name]()
    z, bias = z_scores(problem, gt.Hessian(problem).dense().diagonal(), samples=48, seeds=12)
    if z.numel():
        assert 0.75 < z.square().mean() < 1.3
        assert 0.92 < (z.abs() < 1.96).double().mean() < 0.98
        assert bias.square().mean() < 1.6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "gpt", "encoder_layer", "strange_uses"])
def test_few_probes_have_the_tails_of_few_degrees_of_freedom(name):
    problem, exact = build(name)
    runs = [probing(problem, 4, seed) for seed in range(12)]
    z, dof = (torch.cat([t[r.sem > 1e-9 * exact.abs().max()] for r, t in pairs]) for pairs in (
        [(r, (r.values - exact) / r.sem) for r in runs], [(r, r.dof) for r in runs]
    ))  # fmt: skip
    assert dof.quantile(0.9) < 30
    assert (z.abs() < 1.96).double().mean() < 0.93
    within = 2 * student.sf(z.abs().numpy(), dof.numpy()) > 0.05
    assert 0.92 < within.mean() < 0.975


def test_where_one_example_decides_degrees_of_freedom_are_those_of_its_probes():
    problem, exact = build("gpt")
    one, other = probing(problem, 6), probing(regrouped(problem, [1, 4]), 6)
    noisy = one.sem > 1e-9 * exact.abs().max()
    assert 4 < one.dof[noisy].min() < 6 and (one.dof[noisy] > 15).any()
    assert torch.allclose(one.dof[noisy], other.dof[noisy], rtol=1e-6)


def test_degrees_of_freedom_do_not_depend_on_the_size_of_the_loss():
    """Also in float32, which squares of small variances leave."""
    problem, _ = build("gpt")
    model = problem.model.float()

    def scaled(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        losses, weights = problem.objective.loss(model, batch)
        return 1e-12 * losses, weights

    usual, small = (probing(gt.Problem(model, loss, problem.batches), 6) for loss in (problem.objective.loss, scaled))
    noisy = usual.sem > 1e-5 * usual.values.abs().max()
    assert torch.allclose(usual.dof[noisy], small.dof[noisy], rtol=1e-2)


def regrouped(problem: gt.Problem, sizes: list[int]) -> gt.Problem:
    first = next(iter(problem.batches))
    if isinstance(first, dict):
        columns = {key: torch.cat([b[key] for b in problem.batches]) for key in first}
        parts = [dict(zip(columns, parts, strict=True)) for parts in split(sizes, *columns.values())]
    else:
        parts = split(sizes, *(torch.cat(column) for column in zip(*problem.batches, strict=True)))
    return gt.Problem(problem.model, problem.objective.loss, parts)


@pytest.mark.parametrize("name", ["gpt", "grouped_cnn", "shared_module", "encoder_layer", "strange_uses", "tanh_mlp"])
def test_other_batches_give_the_same_numbers(name):
    problem, _ = build(name)
    sizes = [2, problem.examples - 2] if name == "strange_uses" else [1, problem.examples - 1]
    one, other = probing(problem, 3), probing(regrouped(problem, sizes), 3)
    scale = one.values.abs().max()
    assert (one.values - other.values).abs().max() < 1e-9 * scale
    assert (one.sem - other.sem).abs().max() < 1e-6 * scale
    assert (one.values - probing(problem, 3, seed=1).values).abs().max() > 1e-6 * scale


def test_every_example_has_its_own_signs():
    problem, exact = build("gpt")
    x = {key: torch.cat([b[key] for b in problem.batches]) for key in ("tokens", "mask")}
    copies = [{key: value.repeat(40, 1) for key, value in x.items()}]
    many = gt.Problem(problem.model, problem.objective.loss, copies)

    def error(p: gt.Problem) -> float:
        return sum(float((probing(p, 2, seed).values - exact).square().sum()) for seed in range(6))

    assert error(many) < error(problem) / 15  # 1/40 but for chance


def test_chunks_of_examples_give_the_same_numbers(monkeypatch):
    problem, _ = build("encoder_layer")
    whole = probing(problem, 3)
    monkeypatch.setattr(shared_entries, "CHUNK_BYTES", 1)
    apart = probing(problem, 3)
    assert torch.allclose(whole.values, apart.values, rtol=1e-10) and torch.allclose(whole.sem, apart.sem, rtol=1e-6)


def test_batches_are_cut_where_memory_is_short(monkeypatch):
    problem, _ = build("encoder_layer")
    whole = probing(problem, 3)
    sizes = []
    losses = gt.Problem.losses

    def spied(self: gt.Problem, parameters, batch):
        sizes.append(len(batch[0]))
        return losses(self, parameters, batch)

    monkeypatch.setattr(gt.Problem, "losses", spied)
    monkeypatch.setattr(batches, "available_bytes", lambda _device: 1)
    apart = probing(problem, 3)
    assert sizes.count(3) == 1  # only to see that its examples have the same losses apart
    assert torch.allclose(whole.values, apart.values, rtol=1e-9, atol=1e-12)


def test_a_column_that_is_none_is_not_cut():
    """Three class weights beside three examples: the batch cannot be cut."""
    model = nn.Sequential(nn.Linear(3, 3), nn.PReLU()).double()
    x, y, w = torch.randn(3, 3).double(), torch.arange(3), torch.tensor([1.0, 2.0, 3.0]).double()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], weight=batch[2], reduction="none")

    diagonal = probing(gt.Problem(model, loss, [(x, y, w)]), 3)
    assert diagonal.status.startswith("1.weight") and "sharing their signs" in diagonal.status


def test_theta_and_float32():
    problem, _ = build("gpt")
    theta = problem.theta() + 0.1
    exact = gt.Hessian(problem, theta).dense().diagonal()
    diagonal = probing(problem, 40, theta=theta)
    assert (diagonal.values - exact).norm() < 0.3 * exact.norm()
    model = problem.model.float()
    data = [{"tokens": b["tokens"], "mask": b["mask"]} for b in problem.batches]
    single = probing(gt.Problem(model, problem.objective.loss, data), 40, theta=theta.float())
    assert single.values.dtype == torch.float32
    assert (single.values - diagonal.values).norm() < 1e-3 * exact.norm()


def test_selected_parameters_and_unused_ones():
    problem, exact = build("gpt")
    some = gt.Problem(problem.model, problem.objective.loss, problem.batches, params=["qkv.*", "head.weight"])
    slots = [problem.layout[name].slice for name in some.layout]
    expected = torch.cat([exact[slot] for slot in slots])
    diagonal = probing(some, 100)
    assert ((diagonal.values - expected) / diagonal.sem.clamp_min(1e-12)).abs().max() < 6
    spare = build("weighted_regression")[0]
    block = probing(spare, 2).block("spare")
    assert not block[0].any() and not block[1].any()


def test_nothing_is_left_behind():
    problem, _ = build("cnn")
    model = problem.model
    model.train()
    state, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    probing(problem, 2)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert not model._forward_hooks


def test_values_that_are_not_finite_stay():
    problem, _ = build("tanh_mlp")
    with torch.no_grad():
        problem.model[2].weight[0, 0] = torch.nan
    diagonal = probing(problem, 2)
    assert diagonal.values.isnan().any() and "not finite" in diagonal.status


def test_one_sample_gives_no_standard_errors():
    problem, _ = build("gpt")
    diagonal = probing(problem, 1)
    assert diagonal.values.isfinite().all() and diagonal.sem.isnan().any() and "one sample" in diagonal.status
    with pytest.raises(gt.errors.InputError, match="samples"):
        probing(problem, 0)


def test_batch_statistics_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 3).double(), torch.randint(0, 3, (6,))
    problem = gt.Problem(model, cross_entropy, split([3, 3], x, y), mode="train")
    with pytest.raises(gt.errors.InputError, match="'1' computes batch statistics"):
        probing(problem, 2)


@pytest.mark.parametrize("where", ["model", "loss"])
def test_a_loss_that_mixes_examples_is_refused(where):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 3).double(), torch.randint(0, 3, (6,))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = model[:2](batch[0])
        outputs = model[2](hidden - 0.01 * hidden.mean(0)) if where == "model" else model[2](hidden)
        losses = F.cross_entropy(outputs, batch[1], reduction="none")
        return losses if where == "model" else losses * losses.flip(0)

    with pytest.raises(gt.errors.InputError, match="depends on the other examples"):
        probing(gt.Problem(model, loss, split([3, 3], x, y)), 2)


def test_examples_that_cannot_be_cut_apart_share_their_signs():
    """Tokens counted as examples: unbiased all the same."""
    problem, _ = build("encoder_layer")
    model = problem.model
    x, y = (torch.cat(column) for column in zip(*problem.batches, strict=True))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = model.layer(batch[0].transpose(0, 1)).transpose(0, 1) @ model.head.weight.T
        return F.cross_entropy(logits.flatten(0, 1), batch[1].repeat_interleave(3), reduction="none")

    flat = gt.Problem(model, loss, [(x, y)], check=False)
    exact = gt.Hessian(flat).dense().diagonal()
    assert "sharing their signs" in probing(flat, 2).status
    _, bias = z_scores(flat, exact, samples=4, seeds=8)
    assert bias.square().mean() < 1.6


def test_parameter_space_maps_over_the_examples_where_it_can(monkeypatch):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bi,ij->bj", x, self.weight).tanh() * F.softplus(self.scale)

    torch.manual_seed(0)
    problem = classification(Net(), 3)
    mapped = probing(problem, 3)
    assert "each example with its own signs" in mapped.status
    monkeypatch.setattr(unexplained.Unexplained, "_mapped", lambda *_: None)
    looped = probing(problem, 3)
    assert torch.allclose(mapped.values, looped.values, rtol=1e-8) and mapped.cost.matvecs == looped.cost.matvecs
    _, bias = z_scores(problem, gt.Hessian(problem).dense().diagonal(), samples=20, seeds=4)
    assert bias.square().mean() < 3  # few entries, whose errors go together
