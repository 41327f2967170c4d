"""The spectrum of the Hessian: density, eigenvalues at both ends and trace, from one set of Lanczos runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from geomtraj.linalg import spectrum
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic


@dataclass(frozen=True)
class Spectrum(Statistic):
    """Spectral density, the k outermost eigenvalues at each end, trace: "lambda_max", "lambda_min", "trace".

    All of it comes from steps * probes products; `refine` more at most go into eigenvalues that have not converged.
    """

    name = "spectrum"
    title = "spectral density, extreme eigenvalues and trace"

    steps: int = 64
    probes: int = 2
    k: int = 5
    tol: float = 1e-2
    refine: int = 0
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """Each extreme eigenvalue with its residual as interval; nodes and weights of the density as details."""
        found = spectrum(
            point.hessian, self.steps, self.probes, 2 * self.k, "BE", self.tol, self.seed, refine=self.refine
        )
        density, pairs = found.density, found.eigenpairs
        values, residuals = pairs.values[~pairs.values.isnan()], pairs.residuals[~pairs.values.isnan()]
        highest, lowest = min(self.k, values.numel()), max(values.numel() - self.k, 0)
        ends = {
            "lambda_max": (values[:highest], residuals[:highest]),
            "lambda_min": (values[lowest:].flip(0), residuals[lowest:].flip(0)),
        }
        quantities, remarks = {}, [] if density.status == "ok" else [density.status]
        for label, (extreme, errors) in ends.items():
            value, residual = (float(extreme[0]), float(errors[0])) if extreme.numel() else (math.nan, math.nan)
            quantities[label] = Quantity(value, value - residual, value + residual)
            if not residual <= self.tol * abs(value):
                remarks.append(f"{label} has not converged: residual {residual:.2g} at {value:.3g}")
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
        return Outcome(quantities, details, "; ".join(remarks) or "ok", found.matvecs)
