"""Points that stand on small recorded runs, for statistics that know their trajectory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from models import cross_entropy
from torch import nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.isolation import preserved_state
from geomtraj.measuring.content import content_of
from geomtraj.measuring.history import Place
from geomtraj.statistics import Point


def data(n: int = 24, d: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(7)
    return torch.randn(n, d, generator=rng).double(), torch.randint(0, 3, (n,), generator=rng)


def classifier(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def classification(model: nn.Module | None = None, **options: Any) -> gt.Problem:
    x, y = data()
    return gt.Problem(model or classifier(), cross_entropy, [(x[:16], y[:16]), (x[16:], y[16:])], **options)


def half_squares(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return 0.5 * (model(batch[0])[:, 0] - batch[1]).square()


def quadratic(n: int = 24, d: int = 5, scale: float = 1.0, seed: int = 3) -> tuple[gt.Problem, torch.Tensor]:
    """Linear regression, L = |X theta - y|^2 / 2n, and its Hessian X'X / n."""
    rng = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=rng).double() * torch.linspace(1, 2, d).double() * scale
    y = torch.randn(n, generator=rng).double()
    torch.manual_seed(seed)
    model = nn.Linear(d, 1, bias=False).double()
    return gt.Problem(model, half_squares, [(X, y)]), X.T @ X / n


Make = Callable[[nn.Module], Any]


def trained(path: Any, problem: gt.Problem, make: Make, steps: int = 5, every: int = 1) -> gt.Trajectory:
    """Full-batch training on the problem's own loss; the problem's model moves."""
    model = problem.model
    made = make(model)
    several = made if isinstance(made, list) else [made]
    (batches,) = (list(problem.batches),)
    with gt.Recorder(path, model, made, gt.every(every)):
        for _ in range(steps):
            for optimizer in several:
                optimizer.zero_grad()
            total = sum(problem.objective.loss(model, b).sum() for b in batches) / problem.total_weight
            total.backward()
            for optimizer in several:
                optimizer.step()
    return gt.Trajectory(path)


@contextmanager
def at(run: gt.Trajectory, problem: gt.Problem, step: int, folder: Any = None) -> Any:
    """The point of one iterate, whose values the problem's model holds inside the block."""
    job = SimpleNamespace(trajectory=run, fingerprint="f", folder=folder, factories={}, cache={})
    iterate = run.at_step(step)
    with preserved_state(problem.model):
        run.put_into(problem.model, iterate)
        yield Point(problem, history=Place(job, iterate, content_of(iterate)))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.05)


def tokens(seed: int = 0) -> gt.Problem:
    """A bigram model on sequences of tokens with uneven frequencies: labels are the last integers of a batch."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.multinomial(1 / torch.arange(1, 8).double(), 60, replacement=True, generator=rng).reshape(10, 6)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), nn.Linear(4, 7)).double()

    def loss(m: nn.Module, b: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(m(b[0]).transpose(1, 2), b[1], reduction="none")

    return gt.Problem(model, loss, [(ids[:6, :-1], ids[:6, 1:]), (ids[6:, :-1], ids[6:, 1:])])
