"""Batch sharpness: the curvature that minibatch steps meet along their own gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

from geomtraj.operators.guard import check_derivatives
from geomtraj.problem import dense, leaves
from geomtraj.statistics.base import Outcome, Point, Statistic, without
from geomtraj.statistics.means import mean_of
from geomtraj.status import Code, Remark, Status


@dataclass(frozen=True)
class BatchSharpness(Statistic):
    """E_B[g_B' H_B g_B / |g_B|^2], g_B and H_B of the loss on minibatch B, drawn without replacement: "sharpness".

    SGD without momentum at learning rate lr is at the edge of stability where it is 2 / lr. `pilot` minibatches say how
    many are needed for the relative half-width `tolerance`, and take no part in the result: the others are drawn after
    their number is fixed, so that the t-interval over them holds whatever the number turned out to be. A minibatch as
    large as the data gives the exact number, g' H g / |g|^2.

    Cost: for each minibatch a gradient and a product of its examples alone; 8 and up to 256 minibatches.

    Attributes:
        batch_size: Examples of a minibatch; as many as there are where there are fewer.
        tolerance: Relative half-width of the 95 % interval that is aimed at.
        pilot: Minibatches that choose the number.
        most: Minibatches at most.
        seed: Of the draws.

    Source: Andreyev and Beneventano (2024), arXiv 2412.20553; with momentum: arXiv 2604.14108.
    """

    name = "batch_sharpness"
    title = "curvature along minibatch gradients"

    batch_size: int = 32
    tolerance: float = 0.05
    pilot: int = 8
    most: int = 256
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """The mean over minibatches at one iterate."""
        size = min(self.batch_size, point.problem.examples)
        remarks = []
        if size < self.batch_size:
            remarks.append(Remark(Code.REPLACED, f"minibatches of {size}: there are no more examples"))
        if size == point.problem.examples:
            found = self._sharpness(point, 1, "all")
            number = 1
        else:
            tried = self._sharpness(point, max(self.pilot, 2), "pilot")
            number = self._enough(tried)
            found = self._sharpness(point, number, "batches")
        flat = number - len(found)
        if flat:
            text = f"the gradient is zero on {flat} of {number} minibatches, which are left out"
            remarks.append(Remark(Code.LEFT_OUT, text))
        if not found:
            return without("the gradient is zero on every minibatch: there is no direction to look along", Code.ZERO)
        quantity = mean_of(found, of=1 if size == point.problem.examples else None)
        details = {"batches": number, "batch_size": size, "thresholds": _thresholds(point)}
        return Outcome({"sharpness": quantity}, details, Status(remarks), self._spent(number, size, point))

    def _spent(self, number: int, size: int, point: Point) -> int:
        """Products, each of a minibatch's Hessian."""
        return number + (0 if size == point.problem.examples else max(self.pilot, 2))

    def _enough(self, tried: list[float]) -> int:
        """Minibatches for the wanted half-width, at least as many as the pilot's."""
        low, high = max(self.pilot, 2), max(self.most, 2)
        if len(tried) < 2 or not np.mean(tried):
            return high
        half = self.tolerance * abs(float(np.mean(tried)))
        spread = float(np.std(tried, ddof=1)) * float(stdtrit(len(tried) - 1, 0.975))
        return int(min(max(math.ceil((spread / half) ** 2), low), high)) if half else high

    def _sharpness(self, point: Point, count: int, purpose: str) -> list[float]:
        """The quotient on each of so many minibatches whose gradient is not zero."""
        problem = point.problem
        check_derivatives(problem, point.theta)
        size = min(self.batch_size, problem.examples)
        seed = self.seed if purpose != "pilot" else _other(self.seed)
        found = []
        for batch in point.minibatches(size, count, seed):
            parameters = leaves(problem.layout.unflatten(point.theta))
            with problem.session(), problem.holding(parameters):
                losses, weights = problem.losses(parameters, batch)
                mean = losses.mean() if weights is None else (losses * weights).sum() / weights.sum()
                quotient = _quotient(mean, list(parameters.values()))
            if quotient is not None:
                found.append(quotient)
        return found


def _quotient(mean: torch.Tensor, parameters: list[torch.Tensor]) -> float | None:
    """G'Hg / |g|^2 of one loss; None where its gradient is zero."""
    if not mean.requires_grad:
        return None
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    g = torch.autograd.grad(mean, parameters, create_graph=True, **options)
    fixed = [dense(x.detach()) for x in g]
    square = sum(float(x.double().square().sum()) for x in fixed)
    if not square > 0:
        return None
    along = sum((dense(x) * v).sum() for x, v in zip(g, fixed, strict=True))
    if not isinstance(along, torch.Tensor) or not along.requires_grad:
        return 0.0
    product = torch.autograd.grad(along, parameters, **options)
    return sum(float((dense(x).double() * v.double()).sum()) for x, v in zip(product, fixed, strict=True)) / square


def _other(seed: int) -> int:
    """A seed whose draws have nothing to do with those of `seed`."""
    return 7919 * (int(seed) + 1) + 2**31


def _thresholds(point: Point) -> dict[str, float]:
    """Where SGD stands at the edge of stability, as far as the iterate knows its learning rate."""
    if point._history is None:
        return {}
    rate = point.iterate.learning_rate
    return {"2/lr": 2 / rate} if rate else {}
