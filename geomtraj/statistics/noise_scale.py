"""The gradient noise scale: the batch size at which a minibatch gradient's noise equals its signal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.problem import dense, leaves
from geomtraj.sampling import gathered
from geomtraj.seeding import generator
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic, without
from geomtraj.statistics.means import mean_of
from geomtraj.status import Code, Remark, Status


@dataclass(frozen=True)
class NoiseScale(Statistic):
    """tr(Sigma) / |g|^2, "simple", and tr(H Sigma) / g'Hg, "curved", in examples.

    Sigma is the covariance of the examples' gradients over the problem's N examples, N grad(w_i L_i) / sum(w) each,
    whose mean is g. With g and g'Hg exact, both numerators are means over examples drawn without replacement, so that
    their t-intervals, narrowed by the share that was drawn, are those of the ratios; with all examples drawn they are
    exact. A gradient of zero leaves nothing to divide by, and the status says so.

    Cost: one gradient for each of `samples` examples, and `products` + 1 Hessian-vector products.

    Attributes:
        samples: Examples for "simple"; all of them where there are fewer.
        products: Examples for "curved", among the others.
        seed: Of the draw.

    Source: McCandlish, Kaplan, Amodei (2018), arXiv 1812.06162, section 2.
    """

    name = "noise_scale"
    title = "gradient noise scale"

    samples: int = 64
    products: int = 16
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """Both scales at one iterate."""
        problem = point.problem
        if problem.batch_statistics:
            raise InputError(
                f"{problem.batch_statistics[0]} takes statistics of the batch, so that no example has a gradient of "
                "its own: make the Problem with mode='eval'."
            )
        N, g = problem.examples, point.gradient.double()
        square = float(g @ g)
        if not square > 0:
            return without("the gradient is zero: the noise has no signal to be compared with", Code.ZERO)
        draw = torch.randperm(N, generator=generator(self.seed, "noise scale"))[: max(self.samples, 1)]
        apart = [example_gradient(point, batch) - g for batch in gathered(problem, list(draw[:, None]))]
        traces = [float(d @ d) for d in apart]
        quantities = {"simple": _over(mean_of(traces, of=N), square)}
        few = torch.stack(apart[: max(self.products, 1)], 1).to(problem.dtype)
        before = point.hessian.matvecs
        bent = point.hessian @ point.gradient
        form = float(bent.double() @ g)
        remarks = []
        if form > 0:
            forms = ((point.hessian @ few).double() * few.double()).sum(0).tolist()
            quantities["curved"] = _over(mean_of(forms, of=N), form)
        else:
            text = "g'Hg is not positive: the loss does not curve up along its gradient, so there is no “curved”"
            remarks.append(Remark(Code.LEFT_OUT, text, "curved"))
        details = {"trace": quantities["simple"].value * square, "examples": N, "drawn": len(apart)}
        return Outcome(quantities, details, Status(remarks), point.hessian.matvecs - before)


def example_gradient(point: Point, batch: object) -> Tensor:
    """An example's gradient N grad(w L) / sum(w), shape (P,), float64: their mean over all examples is the gradient."""
    problem = point.problem
    parameters = leaves(problem.layout.unflatten(point.theta))
    with problem.session(), problem.holding(parameters):
        value = problem.batch_sum(parameters, batch)
        if not value.requires_grad:
            return torch.zeros(problem.size, dtype=torch.float64, device=problem.device)
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
    flat = torch.cat([dense(x).reshape(-1) for x in found]).double()
    return flat * (problem.examples / problem.total_weight)


def _over(q: Quantity, by: float) -> Quantity:
    return Quantity(q.value / by, q.low / by, q.high / by)
