"""One batch's loss sum as a function of the tensors that it is differentiated by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from geomtraj.layout import Layout
from geomtraj.problem import Problem, dense


class BatchLoss:
    """sum(w * losses) of one batch, as a function of some parameters at theta.

    Args:
        problem: The loss.
        parameters: Values of all the problem's parameters, by name.
        layout: The parameters to differentiate by.
        batch: One batch, or a part of one.
        inspect: Called with each loss sum that has a graph, to look through it.

    Attributes:
        values: The values of the parameters to differentiate by, in order, detached.
    """

    def __init__(
        self,
        problem: Problem,
        parameters: Mapping[str, Tensor],
        layout: Layout,
        batch: Any,
        *,
        inspect: Callable[[Tensor], None] | None = None,
    ):
        self.problem, self.layout, self.batch, self.inspect = problem, layout, batch, inspect
        self._parameters = parameters
        self.values = [parameters[name].detach() for name in layout]

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """The loss sum, 0-d, at other values. Call it inside `evaluation`."""
        value = self.problem.batch_sum(self._at(tensors), self.batch)
        if self.inspect is not None and value.requires_grad:
            self.inspect(value)
        return value

    def gradient(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients by the tensors, None where there is none."""
        value = self(tensors)
        if not value.requires_grad:
            return [None] * len(tensors)
        found = torch.autograd.grad(value, list(tensors), allow_unused=True)
        return [None if g is None else dense(g) for g in found]

    @contextmanager
    def evaluation(self, tensors: Sequence[Tensor] | None = None) -> Iterator[None]:
        """What forward and backward passes need: the problem's session, and the model holding these parameters.

        The model holds them in the backward pass too, where checkpointed blocks are computed once more.
        """
        held = self._at(self.values if tensors is None else tensors)
        with ExitStack() as stack:
            stack.enter_context(self.problem.session())
            stack.enter_context(self.problem.holding(held))
            yield

    def rows(self, vectors: Tensor) -> list[Tensor]:
        """Views of a vector (P,), or of the rows of (k, P), in the shapes of the parameters."""
        return list(self.layout.unflatten(vectors).values())

    def _at(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        return {**self._parameters, **dict(zip(self.layout, tensors, strict=True))}
