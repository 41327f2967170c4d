"""A forward pass run again operation by operation, against dense second derivatives."""

from __future__ import annotations

import pytest
import torch
from problems import PROBLEMS
from torch import Tensor, nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.isolation import without_checkpoints
from geomtraj.layers.batches import batches
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.replay import NotReplayed, Replay


def graph_of(problem: gt.Problem) -> LossGraph:
    """Of the first batch."""
    with batches(problem, None) as found:
        return next(found).graph


def problem_of(model: nn.Module, *shape: int, squared: bool = False) -> gt.Problem:
    torch.manual_seed(2)
    model = model.double()
    x, size = torch.randn(3, *shape).double(), None
    with torch.no_grad():
        size = model(x)[0].numel()
    y = torch.randn(3, size).double()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]).flatten(1) - batch[1]).square().sum(1)

    return gt.Problem(model, loss, [(x, y)])


class Attention(nn.Module):
    """Masked, with a mixture of experts behind it: products, softmax and gates that bend together."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.gate, self.up = (nn.Linear(4, n) for n in (12, 4, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + F.silu(self.gate(x)) * self.up(x) + F.layer_norm(x, (4,))


MODELS = {
    "attention": (Attention, (3, 4)),
    "activations": (lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 4), nn.Softplus()), (3,)),
    "images": (lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.ELU(), nn.Conv2d(4, 2, 2)), (1, 4, 3)),
    "softmax": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 2), nn.LogSoftmax(-1)), (2, 3)),
}  # fmt: skip


def dense(operation) -> Tensor:
    """The second derivative of an operation, (n, n), by products with one-hot vectors."""
    sizes = [leaf.numel() for leaf in operation.leaves]
    columns = []
    for one in torch.eye(sum(sizes), dtype=torch.float64):
        vectors = [v.reshape(leaf.shape) for v, leaf in zip(one.split(sizes), operation.leaves, strict=True)]
        columns.append(torch.cat([u.flatten() for u in operation.product(vectors)]))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", MODELS)
def test_operations_add_up_to_the_residual_part(name):
    make, shape = MODELS[name]
    problem = problem_of(make(), *shape)
    with problem.session():
        replay = Replay(graph_of(problem))
        assert replay.operations
        replay.check_product()
        for operation in replay.operations:
            matrix = dense(operation)
            assert torch.allclose(matrix, matrix.T, atol=1e-10 * float(matrix.abs().max()))
            if operation.diagonal is not None:
                assert torch.allclose(matrix, torch.diag(operation.diagonal.flatten()), atol=1e-12)


def test_what_hands_on_to_a_single_other_is_one_operation():
    problem = problem_of(Attention(), 3, 4)
    with problem.session():
        operations = Replay(graph_of(problem)).operations
    inputs = sorted(len(o.inputs) for o in operations)
    assert inputs == [1, 2, 3]  # the norm; gate times up; query, key and value


def test_gates_and_activations_are_direct():
    problem = problem_of(Attention(), 3, 4)
    with problem.session():
        gated = next(o for o in Replay(graph_of(problem)).operations if len(o.inputs) == 2)
    matrix, sizes = dense(gated), [leaf.numel() for leaf in gated.leaves]
    assert len(gated.direct) == 2
    for k, own in enumerate(torch.diag(matrix).split(sizes)):
        assert torch.allclose(gated.direct[k].curvature.flatten(), own, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in PROBLEMS if n not in ("grouped_cnn", "rnn")])
def test_every_kind_of_use_is_replayed(name):
    torch.manual_seed(3)
    problem = PROBLEMS[name]()
    with problem.session(), without_checkpoints():
        Replay(graph_of(problem)).check_product()


class Squared(torch.autograd.Function):
    """x^2, whose derivative is 2x times `factor` here."""

    factor = 1.0

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * Squared.factor * g * x


class HeldSquared(Squared):
    """The same with a derivative that autograd takes for a constant times g."""

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g * x.detach()


class Custom(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(3, 4), nn.Linear(4, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def test_a_custom_function_with_right_derivatives_is_replayed():
    problem = problem_of(Custom(Squared.apply), 3)
    with problem.session():
        replay = Replay(graph_of(problem))
        replay.check_product()
        assert len(replay.operations) == 1


@pytest.mark.parametrize(
    ("function", "factor", "why"),
    [
        (Squared.apply, 3.0, "other derivatives than autograd"),
        (HeldSquared.apply, 1.0, "second derivatives of its operations are not"),
        (lambda x: x * float(x.sum().detach().sign()) * x.sum().item(), 1.0, "cannot be recorded"),
    ],
)
def test_what_autograd_differentiates_otherwise_is_refused(function, factor, why, monkeypatch):
    monkeypatch.setattr(Squared, "factor", factor)
    problem = problem_of(Custom(function), 3)
    with problem.session(), pytest.raises(NotReplayed, match=why):
        Replay(graph_of(problem)).check_product()


def test_detached_values_are_constants():
    problem = problem_of(Custom(lambda x: x + (x.round() - x).detach() + x.detach() * x.tanh()), 3)
    with problem.session():
        Replay(graph_of(problem)).check_product()
