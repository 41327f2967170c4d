"""The loss and the norm of its gradient."""

from __future__ import annotations

from dataclasses import dataclass

from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic


@dataclass(frozen=True)
class Loss(Statistic):
    """L(theta) and ||grad L(theta)|| on the problem's batches: exact numbers."""

    name = "loss"
    title = "loss and gradient norm"

    def measure(self, point: Point) -> Outcome:
        """Quantities "loss" and "gradient_norm"."""
        norm = float(point.problem.gradient(point.theta).norm())
        return Outcome({"loss": Quantity.exact(point.loss), "gradient_norm": Quantity.exact(norm)})
