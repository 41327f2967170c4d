"""Functions without a second derivative, which autograd takes to be zero."""

from __future__ import annotations

from typing import Any

import torch

from geomtraj.errors import ComputationError
from geomtraj.graphs import nodes_of
from geomtraj.operators.hvp.batch_loss import BatchLoss


def check_functions(loss: BatchLoss) -> None:
    """Looks through the loss's graph for custom functions marked `once_differentiable`.

    torch itself raises only where the gradient that comes in depends on the parameters, and otherwise takes the second
    derivative to be zero.

    Raises:
        ComputationError: There is one.
    """
    leaves = [value.detach().requires_grad_() for value in loss.values]
    with loss.evaluation(leaves):
        value = loss(leaves)
    for node in nodes_of(value.grad_fn):
        function: Any = getattr(node, "_forward_cls", None)
        code = getattr(getattr(function, "backward", None), "__code__", None)
        if code is not None and code.co_filename == torch.autograd.function.__file__ and code.co_name == "wrapper":
            raise ComputationError(
                f"the model uses {function.__name__}, which is marked once_differentiable and so has no second "
                "derivative: replace it by plain torch operations, or pass strategy='differences' to gt.Hessian for "
                "finite differences of gradients."
            )
