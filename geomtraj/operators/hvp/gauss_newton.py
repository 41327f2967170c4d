"""The Gauss-Newton matrix of one batch's loss sum: J^T (d2L/dz2) J, z being what the model returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from geomtraj.graphs import nodes_of
from geomtraj.isolation import exact_arithmetic
from geomtraj.memory import with_saved_bytes
from geomtraj.operators.hvp.base import Curvature, Graph, flat
from geomtraj.operators.hvp.batch_loss import BatchLoss
from geomtraj.operators.hvp.hessian import Forwards, difference_step
from geomtraj.problem import dense
from geomtraj.trees import rebuilt


class SplitLoss:
    """One batch's loss sum cut at the model's outputs: theta -> outputs, and (detached) outputs -> loss.

    Make it inside the loss's `evaluation`.

    Args:
        loss: The loss sum.
        tensors: The parameters to differentiate by.

    Attributes:
        returned: The model's floating-point outputs, as functions of the tensors.
        used: The places among them of those that the loss depends on.
        outputs: These, z.
        cut: The same values as leaves.
        gradients: dL/dz by them, as functions of them.
    """

    def __init__(self, loss: BatchLoss, tensors: Sequence[Tensor]):
        self.returned: list[Tensor] = []
        self.cut: list[Tensor] = []

        def detach(_module: Any, _inputs: Any, output: Any) -> Any:
            return rebuilt(output, self._detached)

        handle = loss.problem.model.register_forward_hook(detach)
        try:
            value = loss(tensors)
        finally:
            handle.remove()
        grads: tuple[Tensor | None, ...] = (None,) * len(self.cut)
        if value.requires_grad and self.cut:
            grads = torch.autograd.grad(value, self.cut, create_graph=True, allow_unused=True)
        self.used = [i for i, grad in enumerate(grads) if grad is not None]
        self.outputs = [self.returned[i] for i in self.used]
        self.cut = [self.cut[i] for i in self.used]
        self.gradients = [grad for grad in grads if grad is not None]

    def _detached(self, output: Tensor) -> Tensor:
        if not (output.is_floating_point() and output.requires_grad):
            return output
        self.returned.append(output)
        self.cut.append(output.detach().requires_grad_())
        return self.cut[-1]

    def curved(self, moved: Sequence[Tensor], batched: bool = False) -> list[Tensor]:
        """(d2L/dz2) dz for a change dz of the outputs, or for several where they are batched."""
        curved = [i for i, grad in enumerate(self.gradients) if grad.requires_grad]
        if not curved:
            return [torch.zeros_like(dz) for dz in moved]
        return _grads([self.gradients[i] for i in curved], self.cut, [moved[i] for i in curved], batched)


class GaussNewtonGraph(Graph):
    """The graph of the outputs, that of J^T u as a function of u, by which J v is made, and that of dL/dz."""

    def __init__(self, loss: BatchLoss):
        self._loss = loss
        self._leaves = [value.detach().requires_grad_() for value in loss.values]
        self._forwards = Forwards()
        with loss.evaluation(self._leaves):
            (self._split, self._dummies, self._transposed), self.held = with_saved_bytes(self._made)
        self._recomputes = self._forwards.any
        self._paths = [i for i, t in enumerate(self._transposed) if t.requires_grad]

    def _made(self) -> tuple[SplitLoss, list[Tensor], Sequence[Tensor]]:
        split = SplitLoss(self._loss, self._leaves)
        if self._loss.inspect is not None:
            for output in split.outputs:
                self._loss.inspect(output)
        dummies = [torch.zeros_like(z, requires_grad=True) for z in split.outputs]
        transposed: Sequence[Tensor] = ()
        if any(gradient.requires_grad for gradient in split.gradients):
            with self._forwards:
                transposed = torch.autograd.grad(
                    split.outputs, self._leaves, dummies, create_graph=True, allow_unused=True, materialize_grads=True
                )
        return split, dummies, transposed

    def backward(self, along: Sequence[Tensor], batched: bool = False) -> list[Tensor]:
        """The product along one direction, or along several where they are batched."""
        if not self._paths:
            return [torch.zeros_like(direction) for direction in along]
        with self._loss.evaluation(self._leaves) if self._recomputes else exact_arithmetic():
            reached, directions = [self._transposed[i] for i in self._paths], [along[i] for i in self._paths]
            moved = _grads(reached, self._dummies, directions, batched)
            bent = self._split.curved(moved, batched)
            found = _grads(self._split.outputs, self._leaves, bent, batched)
        return [dense(g) for g in found]

    def nodes(self) -> int:
        """Number of operations in the graphs."""
        return sum(1 for _ in nodes_of(*(t.grad_fn for t in (*self._transposed, *self._split.gradients))))


def forward(loss: BatchLoss, along: Sequence[Tensor]) -> list[Tensor]:
    """J v by dual numbers, then J^T (d2L/dz2) J v by one backward pass."""
    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(value.detach().requires_grad_(), direction)
            for value, direction in zip(loss.values, along, strict=True)
        ]
        outputs = _outputs(loss, duals)
        tangents = [forward_ad.unpack_dual(z).tangent for z in outputs]
        moved = [torch.zeros_like(z) if t is None else t.detach() for z, t in zip(outputs, tangents, strict=True)]
    return _pulled_back(loss, moved)


def differences(loss: BatchLoss, vector: Tensor) -> Tensor:
    """J v by central differences of the outputs, then J^T (d2L/dz2) J v by one backward pass."""
    theta = flat(loss.values)
    step = difference_step(theta, vector)
    if step == 0:
        return torch.zeros_like(vector)
    ahead, behind = (
        _outputs(loss, [row.detach().requires_grad_() for row in loss.rows(theta + h * vector)]) for h in (step, -step)
    )
    return flat(_pulled_back(loss, [(a - b).detach() / (2 * step) for a, b in zip(ahead, behind, strict=True)]))


def _outputs(loss: BatchLoss, tensors: Sequence[Tensor]) -> list[Tensor]:
    """All that the model returns with these parameters."""
    with loss.evaluation(tensors):
        return SplitLoss(loss, tensors).returned


def _pulled_back(loss: BatchLoss, moved: Sequence[Tensor]) -> list[Tensor]:
    """J^T (d2L/dz2) dz for a change dz of all that the model returns."""
    leaves = [value.detach().requires_grad_() for value in loss.values]
    with loss.evaluation(leaves):
        split = SplitLoss(loss, leaves)
        bent = split.curved([moved[i] for i in split.used])
        if not split.outputs:
            return [torch.zeros_like(value) for value in loss.values]
        return [dense(g) for g in _grads(split.outputs, leaves, bent)]


def _grads(of: Sequence[Tensor], by: Sequence[Tensor], along: Sequence[Tensor], batched: bool = False) -> list[Tensor]:
    """Gradients that leave the graph as it is, zeros where there is none; of several directions where batched."""
    found = torch.autograd.grad(
        of, by, along, retain_graph=True, allow_unused=True, is_grads_batched=batched
    )  # fmt: skip
    lead = along[0].shape[:1] if batched else ()
    return [b.new_zeros(*lead, *b.shape) if g is None else g for g, b in zip(found, by, strict=True)]


GAUSS_NEWTON = Curvature("Gauss-Newton matrix", GaussNewtonGraph, forward, differences)
