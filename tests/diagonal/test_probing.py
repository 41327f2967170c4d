"""Probing against the exact diagonal, on models that reach every kind of use of a parameter."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from models import CASES, cross_entropy, split
from torch import Tensor, nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.diagonal.probing import probing


def classification(model: nn.Module, *shape: int, classes: int = 3, sizes: tuple[int, ...] = (3, 2)) -> gt.Problem:
    x = torch.randn(sum(sizes), *shape).double()
    y = torch.randint(0, classes, (sum(sizes),))
    return gt.Problem(model.double(), cross_entropy, split(list(sizes), x, y))


def from_cases(name: str) -> Callable[[], gt.Problem]:
    return lambda: CASES[name]().problem


def tanh_mlp() -> gt.Problem:
    return classification(nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3)), 3)


def relu_mlp() -> gt.Problem:
    return classification(nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 3)), 3)


def grouped_cnn() -> gt.Problem:
    """Groups, stride, dilation, 'same' padding, circular padding, batch norm in evaluation mode."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(4), nn.Tanh(),
        nn.Conv2d(4, 4, 2, dilation=2, padding="same", groups=4),
        nn.Conv2d(4, 2, (1, 3), padding=(0, 1), padding_mode="circular", bias=False), nn.Softplus(),
        nn.Flatten(), nn.Linear(18, 3),
    )  # fmt: skip
    model(torch.randn(8, 2, 5, 6))
    return classification(model, 2, 5, 6)


def conv1d_and_transposed() -> gt.Problem:
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, groups=1),
        nn.InstanceNorm1d(4, affine=True), nn.Tanh(), nn.Flatten(), nn.Linear(28, 3),
    )  # fmt: skip
    return classification(model, 2, 6)


def conv3d_and_transposed2d() -> gt.Problem:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Conv3d(1, 2, 2)
            self.wide = nn.ConvTranspose2d(2, 2, 2, stride=2, output_padding=1, groups=2, dilation=2)
            self.head = nn.Linear(72, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.deep(x))
            return self.head(torch.tanh(self.wide(x[..., 0])).flatten(1))

    return classification(Net(), 1, 3, 3, 2)


def shared_module() -> gt.Problem:
    """One layer and one norm, both called three times, the later calls on outputs of the earlier ones."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = torch.tanh(self.norm(self.layer(x)))
            return self.head(x)

    return classification(Net(), 4)


def functional_transformer() -> gt.Problem:
    """Bare parameters, transposed weights, positions as a (1, T, D) table, gains written out, left products."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(6, 4))
            self.position = nn.Parameter(torch.randn(1, 5, 4))
            self.gain = nn.Parameter(0.1 * torch.randn(4))
            self.scale = nn.Parameter(1 + 0.1 * torch.randn(4, 1))
            self.mix = nn.Parameter(torch.randn(5, 5))
            self.weight = nn.Parameter(torch.randn(4, 7))
            self.bias = nn.Parameter(torch.randn(7))
            self.token = nn.Parameter(torch.randn(1, 1, 4))

        def forward(self, tokens: Tensor) -> Tensor:
            x = F.embedding(tokens, self.table, padding_idx=2) * 2.0 + self.position
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True)) * (1.0 + self.gain)
            x = x + self.mix @ torch.tanh(x)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            h = torch.tanh(torch.addmm(self.bias, x.reshape(-1, 4), self.weight)).view(len(x), 6, 7)
            h = (h @ self.weight.T).transpose(1, 2)
            return (h * self.scale).sum(2) @ self.table.t()

    return classification_of_tokens(Net())


def classification_of_tokens(model: nn.Module, sizes: tuple[int, ...] = (3, 2)) -> gt.Problem:
    tokens, y = torch.randint(0, 6, (sum(sizes), 5)), torch.randint(0, 6, (sum(sizes),))
    return gt.Problem(model.double(), cross_entropy, split(list(sizes), tokens, y))


def encoder_layer() -> gt.Problem:
    """Packed projections; the batch is the second axis inside."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=False)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x.transpose(0, 1)).mean(0))

    return classification(Net(), 3, 4)


def cross_attention() -> gt.Problem:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.packed = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)
            self.apart = nn.MultiheadAttention(4, 1, batch_first=True, kdim=3, vdim=2)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            query, memory = x[:, :2], torch.tanh(x)
            y = self.packed(query, memory, memory)[0]
            return self.head(self.apart(y, x[..., :3], x[..., 2:])[0].sum(1))

    return classification(Net(), 3, 4)


class HFConv1D(nn.Module):
    """As in GPT-2: weight (in, out), examples and positions in one axis."""

    def __init__(self, out: int, size: int):
        super().__init__()
        self.out = out
        self.weight, self.bias = nn.Parameter(torch.randn(size, out)), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.out)


def flattened_positions() -> gt.Problem:
    model = nn.Sequential(HFConv1D(5, 3), nn.Tanh(), nn.RMSNorm(5), HFConv1D(2, 5), nn.Flatten(), nn.Linear(8, 3))
    return classification(model, 4, 3)


def strange_uses() -> gt.Problem:
    """Parameters that no rule covers: functions of a parameter, an outer product, a custom autograd function."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return 2 * x * w

        @staticmethod
        def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            return 2 * g * w, (2 * g * x).sum(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.randn(3))
            self.left, self.right = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 3))
            self.hidden = nn.Parameter(torch.randn(3))
            self.prelu = nn.PReLU()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.linear(x * self.log_scale.exp(), self.left @ self.right)
            return self.layer(self.prelu(Double.apply(torch.tanh(x), self.hidden)))

    return classification(Net(), 3)


def weighted_dicts() -> gt.Problem:
    """Losses (B, T) in dicts, weights of any size, one example without weight, a parameter that nothing uses."""
    model = nn.Sequential(nn.Linear(2, 6), nn.Softplus(), nn.LayerNorm(6), nn.Linear(6, 2)).double()
    model.register_parameter("spare", nn.Parameter(torch.ones(2).double()))
    x, y, w = torch.randn(6, 4, 2).double(), torch.randn(6, 4, 2).double(), torch.rand(6, 4).double()
    w[1] = 0
    batches = [{"x": a, "y": b, "w": c} for a, b, c in split([4, 1, 1], x, y, w)]
    return gt.Problem(model, lambda m, b: ((m(b["x"]) - b["y"]).square().sum(2), b["w"]), batches)


PROBLEMS: dict[str, Callable[[], gt.Problem]] = {
    **{name: from_cases(name) for name in CASES},
    **{f.__name__: f for f in (
        tanh_mlp, relu_mlp, grouped_cnn, conv1d_and_transposed, conv3d_and_transposed2d, shared_module,
        functional_transformer, encoder_layer, cross_attention, flattened_positions, strange_uses, weighted_dicts,
    )},
}  # fmt: skip

IN_PARAMETER_SPACE = {
    "rnn": {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0"},
    "strange_uses": {"log_scale", "left", "right", "hidden", "prelu.weight"},
}


def build(name: str) -> tuple[gt.Problem, Tensor]:
    torch.manual_seed(5)
    problem = PROBLEMS[name]()
    return problem, gt.Hessian(problem).dense().diagonal()


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


def regrouped(problem: gt.Problem, sizes: list[int]) -> gt.Problem:
    first = next(iter(problem.batches))
    if isinstance(first, dict):
        columns = {key: torch.cat([b[key] for b in problem.batches]) for key in first}
        batches = [dict(zip(columns, parts, strict=True)) for parts in split(sizes, *columns.values())]
    else:
        batches = split(sizes, *(torch.cat(column) for column in zip(*problem.batches, strict=True)))
    return gt.Problem(problem.model, problem._loss, batches)


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
    many = gt.Problem(problem.model, problem._loss, copies)

    def error(p: gt.Problem) -> float:
        return sum(float((probing(p, 2, seed).values - exact).square().sum()) for seed in range(6))

    assert error(many) < error(problem) / 15  # 1/40 but for chance


def test_chunks_of_examples_give_the_same_numbers(monkeypatch):
    problem, _ = build("encoder_layer")
    whole = probing(problem, 3)
    monkeypatch.setattr(sys.modules["geomtraj.diagonal.sites.clusters"], "CHUNK_BYTES", 1)
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
    monkeypatch.setattr(sys.modules["geomtraj.diagonal.probing.estimate"], "available_bytes", lambda _device: 1)
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
    batches = [{"tokens": b["tokens"], "mask": b["mask"]} for b in problem.batches]
    single = probing(gt.Problem(model, problem._loss, batches), 40, theta=theta.float())
    assert single.values.dtype == torch.float32
    assert (single.values - diagonal.values).norm() < 1e-3 * exact.norm()


def test_selected_parameters_and_unused_ones():
    problem, exact = build("gpt")
    some = gt.Problem(problem.model, problem._loss, problem.batches, params=["qkv.*", "head.weight"])
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

    flat = gt.Problem(model, loss, [(x, y)])
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
    monkeypatch.setattr(sys.modules["geomtraj.diagonal.probing.parameter_probes"], "_mapped", lambda *_: None)
    looped = probing(problem, 3)
    assert torch.allclose(mapped.values, looped.values, rtol=1e-8) and mapped.cost.matvecs == looped.cost.matvecs
    _, bias = z_scores(problem, gt.Hessian(problem).dense().diagonal(), samples=20, seeds=4)
    assert bias.square().mean() < 3  # few entries, whose errors go together
