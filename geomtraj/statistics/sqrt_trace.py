"""tr |Diag H|^(1/2): what Adam under label noise is said to lower, where SGD lowers tr H."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic
from geomtraj.statistics.r_med import ALL


@dataclass(frozen=True)
class SqrtTrace(Statistic):
    """sum_i |H_ii|^(1/2) of each block and of all parameters ("all"), from the diagonal of the Hessian.

    An exact diagonal gives exact numbers. From an estimated one the value is that of the estimates, which noise makes
    larger where entries are smaller than their standard errors; the interval takes each entry to the ends of its own
    95 % t-interval (zero included where the sign is not known), so that it is wide where much of the diagonal is noise.

    Cost: one diagonal (`gt.diagonal`), shared with other statistics at the point that ask for the same.

    Attributes:
        method: As for `gt.diagonal`.
        samples: As for `gt.diagonal`.
        seed: Of its probes.

    Source: arXiv 2511.02773 (label noise and Adam).
    """

    name = "sqrt_trace"
    title = "tr |Diag H|^(1/2)"

    method: str = "auto"
    samples: int = 64
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """The sums at one iterate."""
        known = point.has("diagonal", self.method, self.samples, self.seed)
        found = point.diagonal(self.method, self.samples, self.seed)
        values, half = found.values.double().cpu(), found.sem.double().cpu()
        dof = torch.full_like(half, torch.inf) if found.dof is None else found.dof.double().cpu()
        half = half * torch.from_numpy(np.asarray(stdtrit(dof.clamp(1, 1e9).numpy(), 0.975)))
        quantities = {name: _sum(block.take(values), block.take(half)) for name, block in point.problem.blocks.items()}
        quantities[ALL] = _sum(values, half)
        details = {"method": found.method, "trace": float(values.sum())}
        return Outcome(quantities, details, found.status, 0 if known else found.cost.matvecs)


def _sum(values: Tensor, half: Tensor) -> Quantity:
    size = values.abs()
    low, high = (size - half).clamp(min=0).sqrt().sum(), (size + half).sqrt().sum()
    return Quantity(float(size.sqrt().sum()), float(low), float(high))
