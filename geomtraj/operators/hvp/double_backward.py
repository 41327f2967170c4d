"""Double backward with the graph of the gradient kept from vector to vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from geomtraj.isolation import exact_arithmetic
from geomtraj.memory import with_saved_bytes
from geomtraj.operators.hvp.base import Way, flat
from geomtraj.operators.hvp.batch_loss import BatchLoss
from geomtraj.problem import dense


class Kept(Way):
    """Reverse over reverse: the gradient's graph is built once, and each vector runs backward through it.

    Source: Pearlmutter (1994), "Fast exact multiplication by the Hessian".
    """

    keeps = True
    in_one_pass = True

    def __init__(self, loss: BatchLoss):
        super().__init__(loss)
        self._leaves = [value.detach().requires_grad_() for value in loss.values]
        self._forwards = _Forwards()
        with loss.evaluation(self._leaves):
            reached, self.held = with_saved_bytes(self._gradient)
        self._recomputes = self._forwards.any
        self._paths = [i for i, g in enumerate(reached) if g is not None and g.requires_grad]
        self._gradients = [g for g in reached if g is not None and g.requires_grad]

    def _gradient(self) -> list[Tensor | None]:
        value = self.loss(self._leaves)
        if not value.requires_grad:
            return [None] * len(self._leaves)
        with self._forwards:
            found = torch.autograd.grad(value, self._leaves, create_graph=True, allow_unused=True)
        return [None if g is None else dense(g) for g in found]

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """The product with one vector (P,), by one backward pass."""
        return self.along(self.loss.rows(vector))

    def block(self, rows: Tensor) -> Tensor:
        """The products (k, P), by one backward pass mapped over the vectors."""
        return flat(self._backward(self.loss.rows(rows), batched=True), lead=1)

    def along(self, directions: Sequence[Tensor]) -> list[Tensor]:
        """The product with one direction, given and returned in the shapes of the parameters."""
        return self._backward(directions, batched=False)

    def _backward(self, along: Sequence[Tensor], batched: bool) -> list[Tensor]:
        if not self._gradients:
            return [torch.zeros_like(direction) for direction in along]
        with self.loss.evaluation(self._leaves) if self._recomputes else exact_arithmetic():
            found = torch.autograd.grad(
                self._gradients,
                self._leaves,
                [along[i] for i in self._paths],
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=batched,
            )
        return [torch.zeros_like(d) if g is None else dense(g) for g, d in zip(found, along, strict=True)]


class _Forwards:
    """Notices, inside its `with` block, whether a module runs forward, as in the backward pass of a checkpoint."""

    def __init__(self) -> None:
        self.any = False

    def _notice(self, *_: object) -> None:
        self.any = True

    def __enter__(self) -> None:
        self._handle = torch.nn.modules.module.register_module_forward_pre_hook(self._notice)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
