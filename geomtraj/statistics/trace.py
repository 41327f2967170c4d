"""The trace of the Hessian."""

from __future__ import annotations

from dataclasses import dataclass

from geomtraj.linalg import trace
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic


@dataclass(frozen=True)
class Trace(Statistic):
    """tr H by Hutchinson's estimator: quantity "trace" with its normal interval.

    It makes its own products, so that the number for given settings does not depend on what else is measured.
    `Spectrum` has a "trace" from the products of its density, at no further cost.

    Attributes:
        probes: Number of products.
        seed: Of the random signs.
    """

    name = "trace"
    title = "trace of the Hessian"

    probes: int = 32
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """The trace with its standard error."""
        estimate = trace(point.hessian, self.probes, self.seed)
        return Outcome(
            {"trace": Quantity.with_sem(float(estimate.value), float(estimate.sem))},
            status=estimate.status,
            matvecs=estimate.matvecs,
        )
