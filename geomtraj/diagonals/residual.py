"""Products with the residual part of the Hessian: second derivatives of the loss linearised at the model's output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from geomtraj.diagonals.gauss_newton import NoSplit, no_split
from geomtraj.layers.output_hessian import OutputRecorder, close
from geomtraj.operators.hessian import Hessian
from geomtraj.problem import Problem


class Residual(Hessian):
    """R = H - G (P, P) at theta: sum_k g_k d2z_k, z the model's output and g the loss's gradient by it.

    Its diagonal is small next to G's where the network is trained, and its products carry none of the noise of G's
    entries off the diagonal.

    Args:
        problem: The loss.
        theta: Where to measure (P,); a copy of the current parameters if left out.

    Raises:
        NoSplit: The loss does not depend on theta through one output of the model alone.
        InputError, ComputationError: As for `Hessian`.
    """

    def __init__(self, problem: Problem, theta: Tensor | None = None):
        super().__init__(_Linearised(problem), theta, "double-backward")  # differences of gradients would move g too


def reaches_through_output(problem: Problem, theta: Tensor, names: Iterable[str]) -> bool:
    """Whether these parameters reach the loss through one output of the model alone."""
    try:
        linearised = _Linearised(problem).gradient(theta)
    except NoSplit:
        return False
    whole = problem.gradient(theta)
    return all(close(linearised[slot.slice], whole[slot.slice]) for slot in (problem.layout[name] for name in names))


class _Linearised(Problem):
    """A problem whose loss is <g, z> with g as it is at the parameters that are asked for."""

    def __init__(self, problem: Problem):
        self.__dict__.update(problem.__dict__)
        self.check, self.guard = False, None  # g is held, so that differences of gradients are others

    def losses(self, parameters: Any, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Linearised losses (B,) of one batch.

        Raises:
            NoSplit: The loss does not depend on the parameters through one output of the model.
        """
        with OutputRecorder(self.model) as recorder:
            losses, weights = super().losses(parameters, batch)
        total = losses.sum() if weights is None else (losses * weights).sum()
        if not total.requires_grad:
            return losses.detach(), None
        outputs = recorder.outputs
        found = torch.autograd.grad(total, outputs, retain_graph=True, allow_unused=True) if outputs else ()
        used = [(z, g) for z, g in zip(outputs, found, strict=True) if g is not None]
        if len(used) != 1 or len(used[0][0]) != len(losses):
            raise no_split()
        z, g = used[0]
        return z * g.detach(), None
