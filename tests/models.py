"""Small problems in float64 with the mean loss on concatenated data beside them: what every operator must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import geomtraj as gt


@dataclass
class Case:
    """A problem, and the same loss written by hand as one function of the parameters by name."""

    problem: gt.Problem
    reference: Callable[[dict[str, Tensor]], Tensor]

    def flat_reference(self, theta: Tensor) -> Tensor:
        return self.reference(self.problem.layout.unflatten(theta))

    def hessian(self) -> Tensor:
        # Not torch.func.hessian: its inner jacrev maps over the backward pass, and for the weight of a LayerNorm
        # torch 2.13 then gives wrong rows (asymmetric, off by 10 % here); finite differences side with this.
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return torch.func.jacrev(torch.func.grad(self.flat_reference))(self.problem.theta())


def call(model: nn.Module, parameters: dict[str, Tensor], *inputs: Tensor) -> Tensor:
    return torch.func.functional_call(model, parameters, inputs)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def split(sizes: list[int], *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(t.split(sizes) for t in tensors), strict=True))


def mlp() -> Case:
    """Ragged batches of 8 and 2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(10, 4).double(), torch.randint(0, 3, (10,))
    problem = gt.Problem(model, cross_entropy, split([8, 2], x, y))
    return Case(problem, lambda p: F.cross_entropy(call(model, p, x), y))


def cnn() -> Case:
    """Convolutions and batch normalisation in evaluation mode, with statistics that are not the initial ones."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    ).double()
    x, y = torch.randn(7, 1, 4, 4).double(), torch.randint(0, 3, (7,))
    model(x)
    problem = gt.Problem(model, cross_entropy, split([3, 3, 1], x, y))

    def reference(p: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(call(model.eval(), p, x), y)

    return Case(problem, reference)


class TinyGPT(nn.Module):
    """One attention block through scaled_dot_product_attention; the head is the embedding."""

    def __init__(self, vocabulary: int = 7, width: int = 4, context: int = 5):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.1 * torch.randn(context, width))
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position
        q, k, v = self.qkv(self.norm(x)).reshape(*tokens.shape, 3, 2, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return self.head(x)


def token_losses(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    logits = model(batch["tokens"][:, :-1])
    losses = F.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 1:].flatten(), reduction="none")
    return losses.view(len(logits), -1), batch["mask"]


def gpt() -> Case:
    """Tied weights, attention, dict batches, padded tokens by a boolean mask, ragged batches."""
    torch.manual_seed(2)
    model = TinyGPT().double()
    tokens = torch.randint(0, 7, (5, 6))
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 1, 2])[:, None]
    batches = [{"tokens": t, "mask": m} for t, m in split([3, 2], tokens, mask)]
    problem = gt.Problem(model, token_losses, batches)

    def reference(p: dict[str, Tensor]) -> Tensor:
        logits = call(model, p, tokens[:, :-1])
        return F.cross_entropy(logits[mask], tokens[:, 1:][mask])

    return Case(problem, reference)


def rnn() -> Case:
    """A recurrent net and a frozen parameter."""
    torch.manual_seed(3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 3, batch_first=True)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    model = Net().double()
    model.head.bias.requires_grad_(False)
    x, y = torch.randn(6, 4, 2).double(), torch.randn(6, 2).double()
    problem = gt.Problem(model, lambda m, b: (m(b[0]) - b[1]).square().sum(1), split([4, 2], x, y))
    return Case(problem, lambda p: (call(model, p, x) - y).square().sum(1).mean())


def weighted_regression() -> Case:
    """Real weights for each example, broadcast over two outputs; one parameter that nothing uses."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 2)).double()
    model.register_parameter("spare", nn.Parameter(torch.ones(2).double()))
    x, y, w = torch.randn(9, 3).double(), torch.randn(9, 2).double(), torch.rand(9).double()
    batches = [{"x": a, "y": b, "w": c} for a, b, c in split([4, 4, 1], x, y, w)]
    problem = gt.Problem(model, lambda m, b: ((m(b["x"]) - b["y"]).square(), b["w"]), batches)

    def reference(p: dict[str, Tensor]) -> Tensor:
        losses = (call(model, p, x) - y).square()
        return (w[:, None] * losses).sum() / (2 * w.sum())

    return Case(problem, reference)


CASES = {f.__name__: f for f in (mlp, cnn, gpt, rnn, weighted_regression)}
