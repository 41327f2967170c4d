"""The loss along the optimizer's own next step: what it gains, what curvature costs it, and how sharp its path is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.operators import GGN
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic, without
from geomtraj.statistics.means import mean_of
from geomtraj.status import Code, Remark, Status


@dataclass(frozen=True)
class Directional(Statistic):
    """Gain, penalty and sharpness along the step d that the optimizer takes next, with its stored state.

    With g and H of the problem's loss: "gain" -g'd, what the loss falls by to first order; "penalty" d'Hd / 2, what
    curvature takes away; "sharpness" d'Hd / |d|^2; "relative" d'Hd / (-g'd), of which a step of 2 / relative times d
    gains nothing on a quadratic. Where d is zero there is no sharpness, and the status says so.

    Cost: one gradient, one step of the optimizer and one product; with `batch_size` a step and a product for each.

    Attributes:
        batch_size: None for the step on the problem's loss, without error; else the mean over steps on minibatches of
            so many examples, with its 95 % t-interval. "sharpness" and "relative" are means over steps too.
        batches: Number of minibatches.
        gauss_newton: Whether to add "gauss_newton", the share d'Gd / d'Hd of the Gauss-Newton matrix, at one more
            product; it means something where the loss is convex in the model's output.
        seed: Of the minibatches.

    Source: Pan and Li (2023), arXiv 2306.00204 (directional sharpness); gain and penalty: arXiv 2606.04662.
    """

    name = "directional"
    title = "along the optimizer's own next step"
    needs = ("optimizer",)

    batch_size: int | None = None
    batches: int = 16
    gauss_newton: bool = False
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """The quantities at one iterate."""
        if self.batch_size is None:
            steps = [point.next_update()]
        else:
            drawn = point.minibatches(min(self.batch_size, point.problem.examples), self.batches, self.seed)
            steps = [point.next_update(batch) for batch in drawn]
        moving = [d for d in steps if d.any()]
        if not moving:
            return without("the optimizer's next step is zero: nothing changes along it", Code.ZERO)
        before = point.hessian.matvecs
        D = torch.stack(moving, 1)
        products = point.hessian @ D
        forms = _forms(D, products)
        lengths, gains = _forms(D, D), -(point.gradient.double() @ D.double())
        found = {"gain": gains, "penalty": forms / 2, "sharpness": forms / lengths, "relative": forms / gains}
        remarks = []
        if self.gauss_newton:
            try:
                found["gauss_newton"] = _forms(D, GGN(point.problem, point.theta) @ D) / forms
            except InputError as error:
                remarks.append(Remark(Code.LEFT_OUT, f"gauss_newton: {error}", "gauss_newton"))
        still, climbing = len(steps) - len(moving), int((gains <= 0).sum())
        if still:
            remarks.append(Remark(Code.LEFT_OUT, f"{still} of {len(steps)} steps are zero and are left out"))
        if climbing:
            text = f"{climbing} of {len(steps)} steps do not go downhill (-g'd <= 0)"
            remarks.append(Remark(Code.OTHER, text, "relative"))
        sampled = None if self.batch_size is None else len(moving)
        quantities = {label: _quantity(v, sampled) for label, v in found.items() if torch.isfinite(v).all()}
        return Outcome(quantities, {}, Status(remarks), point.hessian.matvecs - before)


def _forms(a: Tensor, b: Tensor) -> Tensor:
    """a_j'b_j of the columns, (k,) in float64."""
    return (a.double() * b.double()).sum(0)


def _quantity(values: Tensor, sampled: int | None) -> Quantity:
    """The one exact value, or the mean of several with its interval."""
    return Quantity.exact(float(values[0])) if sampled is None else mean_of(values.tolist())
