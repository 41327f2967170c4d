"""The Hessian of a Problem's loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from geomtraj.isolation import exact_arithmetic
from geomtraj.operators.base import SymmetricOperator
from geomtraj.operators.memory import SavedBytes, available_bytes
from geomtraj.problem import Problem, leaves

KEEP_FRACTION = 0.25


class Hessian(SymmetricOperator):
    """The Hessian (P, P) of L at theta, by exact products (double backward).

    The graphs of the gradients are kept from one product to the next while all of them together fit into a quarter
    of the free memory, which halves the cost of a product; otherwise each product builds them anew, batch by batch.

    Args:
        problem: The loss.
        theta: Where to measure, shape (P,); a copy of the current parameters if left out.

    Raises:
        InputError: theta does not fit the problem's layout.
    """

    def __init__(self, problem: Problem, theta: Tensor | None = None):
        super().__init__(problem.layout, problem.dtype, problem.device)
        self.problem = problem
        self.theta = problem.checked(theta)
        self._start(problem.layout.unflatten(self.theta))

    def _start(self, parameters: dict[str, Tensor]) -> None:
        self._parameters = parameters
        self._leaves = leaves({name: parameters[name] for name in self.layout})
        self._graphs: list[_GradientGraph] | None = None
        self._keep: bool | None = None

    def block(self, globs: str | Iterable[str]) -> Hessian:
        """The principal block of the parameters that match; its products differentiate by these alone."""
        part = object.__new__(type(self))
        SymmetricOperator.__init__(part, self.layout.subset(self.layout.select(globs)), self.dtype, self.device)
        part.problem, part.theta = self.problem, self.theta
        part._start(self._parameters)
        return part

    def _matmat(self, vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        if self._graphs is not None:
            with exact_arithmetic():
                for graph in self._graphs:
                    total += graph.products(vectors, last_use=False)
        else:
            self._first_pass(vectors, total)
        return total / self.problem.total_weight

    def _first_pass(self, vectors: Tensor, total: Tensor) -> None:
        budget = KEEP_FRACTION * available_bytes(self.device) if self._keep is not False else 0.0
        graphs: list[_GradientGraph] = []
        used = 0
        with self.problem.session():
            for batch in self.problem.batches:
                with SavedBytes() as saved:
                    graph = _GradientGraph(self, batch)
                used += saved.total
                keep = used <= budget
                if not keep:
                    budget, graphs = 0.0, []
                total += graph.products(vectors, last_use=not keep)
                if keep:
                    graphs.append(graph)
        self._keep = budget > 0
        self._graphs = graphs if self._keep else None


class _GradientGraph:
    """The gradient of one batch's loss sum with its graph, ready to be differentiated along vectors."""

    def __init__(self, operator: Hessian, batch: Any):
        self._leaves = list(operator._leaves.values())
        value = operator.problem.batch_sum(operator._parameters | operator._leaves, batch)
        reached: tuple[Tensor | None, ...] = (None,) * len(self._leaves)
        if value.requires_grad:
            reached = torch.autograd.grad(value, self._leaves, create_graph=True, allow_unused=True)
        pairs = [
            (slot, g)
            for slot, g in zip(operator.layout.values(), reached, strict=True)
            if g is not None and g.requires_grad
        ]
        self._slots = [slot for slot, _ in pairs]
        self._gradients = [g for _, g in pairs]

    def products(self, vectors: Tensor, last_use: bool) -> Tensor:
        if not self._gradients:
            return torch.zeros_like(vectors)
        columns = []
        for j in range(vectors.shape[1]):
            along = [vectors[slot.slice, j].reshape(slot.shape) for slot in self._slots]
            rows = torch.autograd.grad(
                self._gradients,
                self._leaves,
                along,
                retain_graph=not last_use or j + 1 < vectors.shape[1],
                allow_unused=True,
                materialize_grads=True,
            )
            columns.append(torch.cat([row.reshape(-1) for row in rows]))
        return torch.stack(columns, dim=1)
