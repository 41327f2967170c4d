"""Critical sharpness: how far along the optimizer's next step the loss falls, from losses alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic, without
from geomtraj.status import Code

FARTHEST = 40
"""Doublings, and halvings, of the step after which the search gives up."""


@dataclass(frozen=True)
class CriticalSharpness(Statistic):
    """2 / eta_c, with eta_c the smallest multiple of the optimizer's next step d that raises the loss: "critical".

    L(theta + eta d) > L(theta) is looked for by doubling (or halving) eta from 1, then bracketed by bisection until its
    ends differ by a factor of 1 + `tolerance`; the interval is the bracket's. On a quadratic eta_c = 2 (-g'd) / d'Hd,
    so that the value is d'Hd / (-g'd), "relative" of `directional`. A loss that rises and falls again between two
    doublings is not seen.

    Cost: one step of the optimizer and 5 to 8 losses, no product.

    Attributes:
        tolerance: Relative width of the bracket.

    Source: Kalra et al. (2026), arXiv 2601.16979, section 3.
    """

    name = "critical_sharpness"
    title = "critical sharpness along the optimizer's own next step"
    needs = ("optimizer",)

    tolerance: float = 1 / 16

    def measure(self, point: Point) -> Outcome:
        """The value with its bracket at one iterate."""
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance is {self.tolerance}: choose it between 0 and 1.")
        d = point.next_update()
        if not d.any():
            return without("the optimizer's next step is zero: no multiple of it raises the loss", Code.ZERO)
        search = _Search(point, d)
        bracket = search.bracket()
        if isinstance(bracket, str):
            return without(bracket, Code.LEFT_OUT, {"losses": search.losses})
        low, high = bracket
        while high > low * (1 + self.tolerance):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if search.rises(middle) else (middle, high)
        quantity = Quantity(2 / math.sqrt(low * high), 2 / high, 2 / low)
        return Outcome({"critical": quantity}, {"bracket": [low, high], "losses": search.losses})


class _Search:
    """Where along a direction the loss first rises above where it stands.

    Attributes:
        losses: How many were evaluated.
    """

    def __init__(self, point: Point, d: Tensor):
        self._point, self._d, self.losses = point, d, 0
        self._here = point.loss

    def rises(self, eta: float) -> bool:
        """Whether the loss at eta is above that here; one that is not finite is."""
        self.losses += 1
        return not float(self._point.problem.loss(self._point.theta + eta * self._d)) <= self._here

    def bracket(self) -> tuple[float, float] | str:
        """The last eta that does not raise the loss and one of twice its size that does; or why there is none."""
        eta = 1.0
        if self.rises(eta):
            for _ in range(FARTHEST):
                eta /= 2
                if not self.rises(eta):
                    return eta, 2 * eta
            return "the loss rises however short the step: it does not go downhill"
        for _ in range(FARTHEST):
            eta *= 2
            if self.rises(eta):
                return eta / 2, eta
        return f"the loss does not rise up to {eta:.2g} times the step"
