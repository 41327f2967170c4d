"""R_med of the Gauss-Newton part of the Hessian diagonal."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from geomtraj.diagonals import diagonal
from geomtraj.diagonals.gauss_newton import NoSplit
from geomtraj.errors import ExamplesInteract
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic
from geomtraj.statistics.r_med import ALL, outcome_of, r_med


@dataclass(frozen=True)
class GaussNewtonDiagonal(Statistic):
    """max over median of the diagonal of G = J^T (d2L/dz2) J: quantities by block name, and "all".

    G is what R_med of the whole Hessian is led by in a trained network, comes from backward passes that serve all
    layers at once, and has the same small relative error for every entry. Details are those of `r_med`, each block's
    own remarks among them. NaN, with the reason as status, where the loss cannot be taken apart at the model's output
    or examples depend on each other.

    Attributes:
        samples: Backward passes, where the output has more entries than that.
        seed: Of the random signs.
    """

    name = "gauss_newton_diagonal"
    title = "R_med of the Gauss-Newton part"

    samples: int = 64
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """The ratio with its interval for each block."""
        try:
            found = diagonal(point.problem, "gauss_newton", self.samples, self.seed, point.theta)
        except (NoSplit, ExamplesInteract) as error:
            return Outcome({label: Quantity(math.nan) for label in (*point.problem.blocks, ALL)}, status=str(error))
        ratios = r_med(found)
        missing = [f"{label}: {r.status}" for label, r in ratios.items() if not math.isfinite(r.value)]
        return replace(outcome_of(ratios, found.cost.matvecs), status="; ".join(missing) or "ok")
