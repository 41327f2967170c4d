"""Losses that a curvature matrix cannot be made of, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geomtraj.errors import ComputationError, GeomtrajError, InputError
from geomtraj.failures import is_out_of_memory
from geomtraj.graphs import nodes_of
from geomtraj.operators.hvp.batch_loss import BatchLoss
from geomtraj.operators.hvp.gauss_newton import SplitLoss
from geomtraj.problem import Problem, dense, leaves


def check_reached(problem: Problem) -> None:
    """The loss must depend on a selected parameter.

    Raises:
        ComputationError: It does not.
    """
    if set(problem.unused) == set(problem.layout):
        raise ComputationError(
            "no selected parameter reaches the loss, so its Hessian is zero: loss(model, batch) must compute with "
            "the model it is given, without torch.no_grad() or .detach() on the way."
        )


def check_functions(*values: Tensor) -> None:
    """Looks through the graphs of these tensors for custom functions marked `once_differentiable`.

    torch itself raises only where the gradient that comes in depends on the parameters, and otherwise takes the second
    derivative to be zero.

    Raises:
        ComputationError: There is one.
    """
    for node in nodes_of(*(value.grad_fn for value in values)):
        function: Any = getattr(node, "_forward_cls", None)
        code = getattr(getattr(function, "backward", None), "__code__", None)
        if code is not None and code.co_filename == torch.autograd.function.__file__ and code.co_name == "wrapper":
            raise ComputationError(
                f"the model uses {function.__name__}, which is marked once_differentiable and so has no second "
                "derivative: replace it by plain torch operations, or pass strategy='finite-differences' to "
                "gt.Hessian for finite differences of gradients."
            )


def check_split(loss: BatchLoss, parameters: Mapping[str, Tensor]) -> None:
    """The chain rule through the model's outputs must give the whole gradient of this batch.

    Raises:
        InputError: It does not, so that there is no Gauss-Newton matrix.
    """
    own = leaves(parameters)
    tensors = list(own.values())
    with loss.evaluation(tensors):
        try:
            split = SplitLoss(loss, tensors)
        except RuntimeError as error:
            known = isinstance(error, GeomtrajError) or is_out_of_memory(error)
            if known or not loss.problem.value(parameters, loss.batch).numel():
                raise
            raise InputError(
                "the loss takes derivatives through model(...), otherwise than through what it returns, so there is no "
                "Gauss-Newton matrix: use gt.Hessian."
            ) from error
        _compare_split(loss, own, split)


def _compare_split(loss: BatchLoss, own: dict[str, Tensor], split: SplitLoss) -> None:
    targets = list(own.values())
    whole = loss(targets)
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    expected = torch.autograd.grad(whole, targets, **options) if whole.requires_grad else ()
    if split.outputs:
        through = torch.autograd.grad(split.outputs, targets, [g.detach() for g in split.gradients], **options)
    else:
        through = tuple(torch.zeros_like(p) for p in targets)
    scale = max((float(dense(e).abs().max()) for e in expected if e.numel()), default=0.0)
    tolerance = 1e4 * torch.finfo(loss.problem.dtype).eps * scale
    for name, a, b in zip(own, map(dense, expected), map(dense, through), strict=False):
        if not torch.allclose(a, b, rtol=1e-2, atol=tolerance, equal_nan=True):
            raise InputError(
                f"the loss depends on {name!r} otherwise than through what model(...) returns, so there is no "
                "Gauss-Newton matrix: call model(...) once in loss(model, batch) and compute the losses from its "
                "output alone, or use gt.Hessian."
            )
