"""Preconditioned sharpness: the top eigenvalue of the Hessian in the optimizer's own coordinates, and its threshold."""

from __future__ import annotations

from dataclasses import dataclass

from geomtraj.linalg import eigsh
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic, without
from geomtraj.statistics.preconditioners import Unknown, preconditioned
from geomtraj.status import Code, Remark, Status


@dataclass(frozen=True)
class PreconditionedSharpness(Statistic):
    """lambda_1(P^-1/2 H P^-1/2), P from the optimizer's stored state: "sharpness"; where it is unstable: "threshold".

    P = sqrt(v_hat) + eps for Adam, and what each of SGD, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta, ASGD
    and Muon divides by; the threshold is that of the recursion with P held fixed, 2 / lr for gradient descent,
    (2 + 2 b) / lr for heavy ball, (2 + 2 b) / ((1 - b) lr) = 38 / lr for Adam, with weight decay
    (`geomtraj.statistics.preconditioners`). Full-batch training hovers at it. Before the first step of an adaptive
    optimizer there is no P, and the status says so.

    Cost: a Lanczos search for one eigenvalue, 20 to 60 products.

    Attributes:
        tol: Residual, relative to the eigenvalue, up to which it has converged.
        seed: Of the start.

    Source: Cohen et al. (2022), arXiv 2207.14484, section 3.
    """

    name = "preconditioned_sharpness"
    title = "sharpness in the optimizer's own coordinates"
    needs = ("optimizer",)

    tol: float = 1e-3
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """The eigenvalue with its residual as interval, and the threshold."""
        groups = point.history.groups
        before = point.hessian.matvecs
        try:
            operator, threshold = preconditioned(point.hessian, groups, point.theta)
        except Unknown as error:
            return without(str(error))
        pairs = eigsh(operator, 1, "LA", self.tol, self.seed)
        value, residual = float(pairs.values[0]), float(pairs.residuals[0])
        quantities = {
            "sharpness": Quantity(value, value - residual, value + residual),
            "threshold": Quantity.exact(threshold),
        }
        status = Status()
        if not pairs.converged.all():
            text = f"sharpness has not converged: residual {residual:.2g} at {value:.3g}"
            status = status.plus(Remark(Code.NOT_CONVERGED, text, "sharpness"))
        details = {"optimizer": sorted({group.kind for group in groups}), "ratio": value / threshold}
        return Outcome(quantities, details, status, point.hessian.matvecs - before)
