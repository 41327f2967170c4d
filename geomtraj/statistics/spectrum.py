"""The spectrum of the Hessian: density, eigenvalues at both ends and trace, from one set of Lanczos runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from geomtraj.linalg import spectrum
from geomtraj.linalg.chunks import at_least
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic
from geomtraj.status import Code, Remark, Status


@dataclass(frozen=True)
class Spectrum(Statistic):
    """Spectral density, extreme eigenvalues and trace: quantities "lambda_max", "lambda_min" and "trace".

    All of it comes from steps * probes products and those of the refinement, as in `gt.spectrum`.

    Attributes:
        steps: Lanczos steps of each run.
        probes: Number of runs.
        k: Number of eigenvalues, half of them at each end.
        tol: Residual, relative to the eigenvalue, up to which one has converged.
        refine: Most products to spend on eigenvalues that have not; None for as many as `gt.eigsh` would, 0 for none.
        seed: Of the starts.
    """

    name = "spectrum"
    title = "spectral density, extreme eigenvalues and trace"

    steps: int = 64
    probes: int = 4
    k: int = 10
    tol: float = 1e-3
    refine: int | None = None
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """Each extreme eigenvalue with its residual as interval; nodes and weights of the density as details."""
        at_least("k", self.k, 2)
        found = spectrum(point.hessian, self.steps, self.probes, self.k, "BE", self.tol, self.seed, refine=self.refine)
        density, pairs = found.density, found.eigenpairs
        values, residuals = pairs.values[~pairs.values.isnan()], pairs.residuals[~pairs.values.isnan()]
        half = -(-self.k // 2)  # where k is odd the upper end has one more
        highest, lowest = min(half, values.numel()), max(values.numel() - self.k // 2, 0)
        ends = {
            "lambda_max": (values[:highest], residuals[:highest]),
            "lambda_min": (values[lowest:].flip(0), residuals[lowest:].flip(0)),
        }
        quantities, status = {}, Status.read(density.status)
        for label, (extreme, errors) in ends.items():
            value, residual = (float(extreme[0]), float(errors[0])) if extreme.numel() else (math.nan, math.nan)
            quantities[label] = Quantity(value, value - residual, value + residual)
            if not residual <= self.tol * abs(value):
                text = f"{label} has not converged: residual {residual:.2g} at {value:.3g}"
                status = status.plus(Remark(Code.NOT_CONVERGED, text, label))
        quantities["trace"] = Quantity.with_sem(found.trace.value, found.trace.sem)
        details = {
            "nodes": density.nodes.tolist(),
            "weights": density.weights.tolist(),
            "top": ends["lambda_max"][0].tolist(),
            "top_residuals": ends["lambda_max"][1].tolist(),
            "bottom": ends["lambda_min"][0].tolist(),
            "bottom_residuals": ends["lambda_min"][1].tolist(),
            "size": density.size,
        }
        return Outcome(quantities, details, status, found.matvecs)
