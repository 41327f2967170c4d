"""The generalised Gauss-Newton matrix of a Problem's loss."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from geomtraj.errors import GeomtrajError, InputError
from geomtraj.failures import in_one_sentence, is_out_of_memory
from geomtraj.isolation import exact_arithmetic
from geomtraj.operators.base import PrincipalBlock, SymmetricOperator
from geomtraj.operators.guard import check_derivatives
from geomtraj.problem import Problem, dense, leaves
from geomtraj.trees import rebuilt


class GGN(SymmetricOperator):
    """The generalised Gauss-Newton matrix (P, P), G = sum_batches J^T (d2L/dz2) J, at theta.

    z is what `model(...)` returns inside the loss, every floating-point tensor of it. G is positive semidefinite
    where the loss is convex in z, and equals the Hessian where z is linear in theta.

    Args:
        problem: The loss.
        theta: Where to measure, shape (P,); a copy of the current parameters if left out.

    Raises:
        InputError: theta does not fit, or the loss does not depend on theta through the outputs of `model(...)`
            alone (it calls parts of the model, or adds a term in the parameters), so that G is not defined.

    Source: Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent".
    """

    def __init__(self, problem: Problem, theta: Tensor | None = None):
        super().__init__(problem.layout, problem.dtype, problem.device, problem.blocks)
        self.problem = problem
        self.theta = problem.checked(theta)
        self._parameters = problem.layout.unflatten(self.theta)
        check_derivatives(problem, self.theta)
        with in_one_sentence(), problem.session(), problem.holding(self._parameters):
            for batch in itertools.islice(problem.batches, 1):
                _check_split(problem, self._parameters, batch)

    def block(self, globs: str | Iterable[str]) -> SymmetricOperator:
        """The principal block of what matches; its products differentiate by the parameters of that alone."""
        chosen = self.blocks.select(globs)
        blocks = self.blocks.around(chosen)
        part = object.__new__(type(self))
        SymmetricOperator.__init__(part, blocks.layout, self.dtype, self.device, blocks)
        part.problem, part.theta, part._parameters = self.problem, self.theta, self._parameters
        return part if blocks.size == sum(block.size for block in chosen) else PrincipalBlock(part, chosen)

    def _matmat(self, vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        own = leaves({name: self._parameters[name] for name in self.layout})
        values = self._parameters | own
        with in_one_sentence(), self.problem.session(), exact_arithmetic(), self.problem.holding(values):
            for batch in self.problem.batches:
                split = _SplitLoss(self.problem, values, batch)
                for j in range(vectors.shape[1]):
                    along = [vectors[slot.slice, j].reshape(slot.shape) for slot in self.layout.values()]
                    rows = split.product(list(own.values()), along)
                    total[:, j] += torch.cat([dense(row).reshape(-1) for row in rows])
        return self.problem.over_ranks(total, of=vectors) / self.problem.total_weight


class _SplitLoss:
    """One batch's loss sum cut at the model's outputs: theta -> outputs, and (detached) outputs -> loss."""

    def __init__(self, problem: Problem, parameters: Mapping[str, Tensor], batch: Any):
        self.outputs: list[Tensor] = []
        self.cut: list[Tensor] = []

        def detach(_module: Any, _inputs: Any, output: Any) -> Any:
            return rebuilt(output, self._detached)

        handle = problem.model.register_forward_hook(detach)
        try:
            value = problem.batch_sum(parameters, batch)
        finally:
            handle.remove()
        grads: tuple[Tensor | None, ...] = (None,) * len(self.cut)
        if value.requires_grad and self.cut:
            grads = torch.autograd.grad(value, self.cut, create_graph=True, allow_unused=True)
        used = [i for i, grad in enumerate(grads) if grad is not None]
        self.value = value
        self.outputs = [self.outputs[i] for i in used]
        self.cut = [self.cut[i] for i in used]
        self.gradients = [grad for grad in grads if grad is not None]

    def _detached(self, output: Tensor) -> Tensor:
        if not (output.is_floating_point() and output.requires_grad):
            return output
        self.outputs.append(output)
        self.cut.append(output.detach().requires_grad_())
        return self.cut[-1]

    def product(self, parameters: list[Tensor], along: list[Tensor]) -> tuple[Tensor, ...]:
        """J^T (d2L/dz2) J along one direction."""
        curved = [i for i, grad in enumerate(self.gradients) if grad.requires_grad]
        if not curved:
            return tuple(torch.zeros_like(p) for p in parameters)
        dummies = [torch.zeros_like(z, requires_grad=True) for z in self.outputs]
        transposed = torch.autograd.grad(
            self.outputs, parameters, dummies, create_graph=True, allow_unused=True, materialize_grads=True
        )
        reached = [(t, a) for t, a in zip(transposed, along, strict=True) if t.requires_grad]
        if not reached:
            return tuple(torch.zeros_like(p) for p in parameters)
        moved = torch.autograd.grad(
            [t for t, _ in reached], dummies, [a for _, a in reached], allow_unused=True, materialize_grads=True
        )
        bent = torch.autograd.grad(
            [self.gradients[i] for i in curved], self.cut, [moved[i] for i in curved],
            retain_graph=True, allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        return torch.autograd.grad(
            self.outputs, parameters, bent, retain_graph=True, allow_unused=True, materialize_grads=True
        )


def _check_split(problem: Problem, parameters: Mapping[str, Tensor], batch: Any) -> None:
    """The chain rule through the cut must give the whole gradient of this batch."""
    own = leaves(parameters)
    try:
        split = _SplitLoss(problem, own, batch)
    except RuntimeError as error:
        if isinstance(error, GeomtrajError) or is_out_of_memory(error) or not problem.value(parameters, batch).numel():
            raise
        raise InputError(
            "the loss takes derivatives through model(...), otherwise than through what it returns, so there is no "
            "Gauss-Newton matrix: use gt.Hessian."
        ) from error
    with problem.holding(own):
        return _compare_split(problem, own, split, batch)


def _compare_split(problem: Problem, own: dict[str, Tensor], split: _SplitLoss, batch: Any) -> None:
    whole = problem.batch_sum(own, batch)
    targets = list(own.values())
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    expected = torch.autograd.grad(whole, targets, **options) if whole.requires_grad else ()
    if split.outputs:
        through = torch.autograd.grad(split.outputs, targets, [g.detach() for g in split.gradients], **options)
    else:
        through = tuple(torch.zeros_like(p) for p in targets)
    scale = max((float(dense(e).abs().max()) for e in expected if e.numel()), default=0.0)
    tolerance = 1e4 * torch.finfo(problem.dtype).eps * scale
    for name, a, b in zip(own, map(dense, expected), map(dense, through), strict=False):
        if not torch.allclose(a, b, rtol=1e-2, atol=tolerance, equal_nan=True):
            raise InputError(
                f"the loss depends on {name!r} otherwise than through what model(...) returns, so there is no "
                "Gauss-Newton matrix: call model(...) once in loss(model, batch) and compute the losses from its "
                "output alone, or use gt.Hessian."
            )
