"""Forward over reverse: the directional derivative of the gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from geomtraj.operators.hvp.base import Way
from geomtraj.operators.hvp.batch_loss import BatchLoss


class Forward(Way):
    """Forward over reverse: one gradient of dual numbers for each vector, and nothing kept.

    Custom autograd functions need a `jvp`.

    Source: Pearlmutter (1994), "Fast exact multiplication by the Hessian", section 3.
    """

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """The product with one vector (P,), from one gradient of dual numbers."""
        return derivative(self.loss, self.loss.rows(vector))


def derivative(loss: BatchLoss, along: Sequence[Tensor]) -> list[Tensor]:
    """The gradient's derivative along one direction."""
    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(value.detach().requires_grad_(), direction)
            for value, direction in zip(loss.values, along, strict=True)
        ]
        with loss.evaluation(duals):
            gradients = loss.gradient(duals)
        found = [None if g is None else forward_ad.unpack_dual(g).tangent for g in gradients]
    return [torch.zeros_like(value) if t is None else t.detach() for value, t in zip(loss.values, found, strict=True)]
