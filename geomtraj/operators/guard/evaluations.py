"""What the guard compares: losses, gradients and products at and around a point, in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from geomtraj.failures import is_out_of_memory
from geomtraj.operators.evaluation.engine import Engine
from geomtraj.operators.hvp.hessian import HESSIAN
from geomtraj.problem import Problem, dense, leaves


class Evaluations:
    """Evaluations of one problem around one point, counted.

    Args:
        problem: The loss.
        theta: The point (P,).

    Attributes:
        gradients, losses, products: How many were made.
        eps: Rounding of the losses.
    """

    def __init__(self, problem: Problem, theta: Tensor):
        self.problem, self.theta = problem, theta
        self.gradients = self.losses = self.products = 0
        self.eps = torch.finfo(problem.dtype).eps
        parameters = problem.layout.unflatten(theta)
        self._engine = Engine(HESSIAN, problem, parameters, layout=problem.layout, strategy="double-backward")
        self._parts = self._engine.parts

    def by_double_backward(self, *vectors: Tensor) -> list[Tensor]:
        """Products with these vectors, one after the other through a graph that is kept for the next."""
        self._engine.release()
        found = [self._product(vector) for vector in vectors]
        self._engine.release()
        return found

    def _product(self, vector: Tensor) -> Tensor:
        self.products += 1
        total = self._engine.products(vector[None])
        return self.problem.over_ranks(total, of=vector).div_(self.problem.total_weight)[0]

    def own_loss(self, theta: Tensor) -> tuple[float, float]:
        """The loss with theta in the model's own parameters, and the mean of the losses' sizes."""
        self.losses += 1
        objective, values = self.problem.objective, self.problem.layout.unflatten(theta)

        def of(part: Any) -> Tensor:
            with objective.moved(values):
                losses, weights = objective.own_losses(part)
            self.eps = max(self.eps, torch.finfo(losses.dtype).eps)
            weighted = (losses if weights is None else losses * weights).double()
            return torch.stack([weighted.sum(), weighted.abs().sum()])

        value, size = self._mean(2, None, of).tolist()
        return value, size

    def differences(self, vector: Tensor, dtype: torch.dtype, step: float) -> Tensor:
        """Central differences of gradients along a vector, for this number type."""
        dtype = torch.float64 if dtype is torch.float64 else self.problem.dtype
        theta, along = self.theta.to(dtype), vector.to(dtype)
        ahead = self.loss_and_gradient(theta + step * along, dtype)[1]
        behind = self.loss_and_gradient(theta - step * along, dtype)[1]
        return (ahead - behind) / (2 * step)

    def in_float64(self, vector: Tensor) -> Tensor:
        """The product with a vector by double backward in float64."""
        self.products += 1
        parameters = leaves(self.problem.layout.unflatten(self.theta.double()))

        def of(part: Any) -> Tensor:
            value = self._sum(parameters, part, torch.float64)
            first = _flat(value, parameters, create_graph=True)
            return _flat((first * vector.double()).sum(), parameters)

        return self._mean(self.problem.size, parameters, of)

    def _sum(self, parameters: dict[str, Tensor], batch: object, dtype: torch.dtype) -> Tensor:
        cast = None if dtype is self.problem.dtype else dtype
        losses, weights = self.problem.objective.losses(parameters, batch, cast)
        return losses.sum() if weights is None else (losses * weights).sum()

    def loss_and_gradient(self, theta: Tensor, dtype: torch.dtype) -> tuple[float, Tensor]:
        """The loss and its gradient (P,) in this number type."""
        self.gradients += 1
        parameters = leaves(self.problem.layout.unflatten(theta))

        def of(part: Any) -> Tensor:
            value = self._sum(parameters, part, dtype)
            return torch.cat([_flat(value, parameters).double(), value.detach().double()[None]])

        found = self._mean(self.problem.size + 1, parameters, of)
        return float(found[-1]), found[:-1].to(dtype)

    def _mean(self, size: int, held: Mapping[str, Tensor] | None, of: Callable[[Any], Tensor]) -> Tensor:
        """The sum (size,) over all examples of what `of` gives for a part of them, over the total weight."""
        problem = self.problem
        while True:
            total = torch.zeros(size, dtype=torch.float64, device=problem.device)
            try:
                with problem.session(), nullcontext() if held is None else problem.holding(held):
                    for _, part in self._parts:
                        total += of(part)
                return problem.over_ranks(total) / problem.total_weight
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                shortage = str(error)
            self._parts.split(shortage)


def _flat(value: Tensor, parameters: Mapping[str, Tensor], create_graph: bool = False) -> Tensor:
    """The gradient (P,) of a sum by the parameters; zeros where it does not depend on them."""
    targets = list(parameters.values())
    if not value.requires_grad:
        return torch.cat([torch.zeros_like(p, requires_grad=False).reshape(-1) for p in targets])
    found = torch.autograd.grad(value, targets, create_graph=create_graph, allow_unused=True, materialize_grads=True)
    return torch.cat([dense(g).reshape(-1) for g in found])
