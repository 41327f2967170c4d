"""What an entry of the standing list is, and the reference that each is held against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Situation:
    """A model, a loss and batches, as a user would have them.

    Attributes:
        options: Further arguments of `gt.Problem`.
        around: What the user has around every call.
        apart: Whether examples do not depend on each other, so that probing must be right.
        still: Entries of theta by which nothing is differentiated by convention.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], Any]
    batches: Iterable[Any]
    options: dict[str, Any] = field(default_factory=dict)
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    apart: bool = True
    still: slice = field(default_factory=lambda: slice(0))


@dataclass(frozen=True)
class Entry:
    """One line of the list: how to make the situation, and what must come of it.

    Attributes:
        refused: None if every number must be right, else a pattern of the sentence that says why there is none.
    """

    name: str
    make: Callable[[], Situation]
    refused: str | None = None


def entries(kind: list[Any]) -> list[Entry]:
    """Entries from functions, or from (function, pattern of the refusal) pairs."""
    pairs = [item if isinstance(item, tuple) else (item, None) for item in kind]
    return [Entry(make.__name__, make, refused) for make, refused in pairs]


class Reference:
    """Gradients by `.backward()` with values written into the model's own parameters: no code shared with geomtraj.

    Args:
        situation: Made anew for it alone.
    """

    def __init__(self, situation: Situation):
        self.still = situation.still
        self.model, self.loss, self.batches = situation.model, situation.loss, list(situation.batches)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.model.train(situation.options.get("mode", "eval") == "train")
        self.buffers = [(m, dict(m._buffers)) for m in self.model.modules()]
        frozen = [p for p in self.model.parameters() if not p.requires_grad]
        self.state = [(t, t.detach().clone()) for t in (*self.model.buffers(), *frozen)]

    def theta(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def _sums(self) -> Iterator[tuple[Tensor, float]]:
        """Of each batch the weighted sum of its losses, and the weight."""
        for batch in self.batches:
            for module, buffers in self.buffers:
                module._buffers.update(buffers)
            for tensor, value in self.state:
                tensor.data.copy_(value)
            result = self.loss(self.model, _copied(batch))
            losses, weights = result if isinstance(result, tuple) else (result, torch.ones_like(result))
            weights = weights.reshape(*weights.shape, *[1] * (losses.dim() - weights.dim())).expand_as(losses)
            yield (losses * weights).sum(), float(weights.sum())

    def put(self, theta: Tensor) -> None:
        for p, part in zip(self.parameters, theta.split([p.numel() for p in self.parameters]), strict=True):
            p.data.copy_(part.reshape(p.shape))

    def value(self, theta: Tensor) -> float:
        self.put(theta)
        sums, weights = zip(*((float(s.detach()), w) for s, w in self._sums()), strict=True)
        return sum(sums) / sum(weights)

    def gradient(self, theta: Tensor) -> Tensor:
        self.put(theta)
        for p in self.parameters:
            p.grad = None
        weight = 0.0
        for total, more in self._sums():
            total.backward()
            weight += more
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in self.parameters]
        return torch.cat([g.reshape(-1) for g in grads]) / weight

    def product(self, theta: Tensor, v: Tensor, step: float = 1e-5) -> Tensor:
        return (self.gradient(theta + step * v) - self.gradient(theta - step * v)) / (2 * step)

    def hessian(self, theta: Tensor) -> Tensor:
        rows = torch.eye(theta.numel(), dtype=theta.dtype)
        rows[self.still] = 0
        return torch.stack([self.product(theta, row) for row in rows])


def _copied(batch: Any) -> Any:
    try:
        return copy.deepcopy(batch)
    except NotImplementedError:  # torch copies no compressed sparse tensors
        return tuple(tensor.clone() for tensor in batch)
