"""The (1,1)-norm of the Hessian, from products with Cauchy vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.integrate import quad
from scipy.special import beta

from geomtraj.errors import InputError
from geomtraj.seeding import generator
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic, without
from geomtraj.statistics.means import mean_of
from geomtraj.status import Code


@dataclass(frozen=True)
class L1Norm(Statistic):
    """sum_ij |H_ij|, "norm", and what it is of P ||H||_2, "ratio".

    With v of independent standard Cauchy entries, (Hv)_i is Cauchy with scale sum_j |H_ij|: the median of |(Hv)_i| over
    `width` products, over what it is for a standard Cauchy variable, is an unbiased estimate of that row. Their sum
    over all rows is one for the norm; `groups` of them give the mean and its 95 % t-interval. ||H||_2 comes from a
    Lanczos search. The ratio is 1 where H is one block of equal |entries| seen from its top eigenvector, and
    lambda-bar / ||H||_2 where H is diagonal; Adam's guarantees replace P ||H||_2 by the norm.

    Cost: `groups` times `width` products, and a search for one eigenvalue.

    Attributes:
        groups: Independent estimates.
        width: Products of each, an odd number of at least 5.
        seed: Of the vectors.

    Source: Xie, Mohamadi, Li (2024), arXiv 2410.08198, section 4; medians of Cauchy projections: Indyk (2006).
    """

    name = "l1_norm"
    title = "(1,1)-norm of the Hessian"

    groups: int = 8
    width: int = 7
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """The norm and its ratio to P ||H||_2."""
        if self.groups < 2 or self.width < 5 or self.width % 2 == 0:
            raise InputError(f"l1_norm takes groups >= 2 and an odd width >= 5, not {self.groups} and {self.width}.")
        H, size = point.hessian, point.problem.size
        before = H.matvecs
        rng = generator(self.seed, "Cauchy probes")
        sums = []
        for _ in range(self.groups):
            angles = (torch.rand(size, self.width, generator=rng, dtype=torch.float64) - 0.5) * math.pi
            products = H @ torch.tan(angles).to(H.device, H.dtype)
            sums.append(float(products.abs().median(1).values.double().sum()) / median_of_cauchy(self.width))
        if not np.isfinite(sums).all():
            return without("products with the Hessian are not finite", Code.NOT_FINITE)
        norm = mean_of(sums)
        largest = point.eigenpairs(1, "LM", tol=1e-3)
        top, doubt = abs(float(largest.values[0])), float(largest.residuals[0])
        if not top > 0:
            return without("the Hessian is zero", Code.ZERO)
        ratio = Quantity(
            norm.value / (size * top), norm.low / (size * (top + doubt)), norm.high / (size * max(top - doubt, 1e-300))
        )
        details = {"spectral_norm": top}
        return Outcome({"norm": norm, "ratio": ratio}, details, matvecs=H.matvecs - before)


@lru_cache(maxsize=10)
def median_of_cauchy(count: int) -> float:
    """The expected median of |x| over an odd number of independent standard Cauchy variables."""
    middle = (count + 1) // 2
    density = lambda u: math.tan(math.pi * u / 2) * (u * (1 - u)) ** (middle - 1)  # noqa: E731
    return quad(density, 0, 1)[0] / beta(middle, middle)
