"""The spectrum of the Hessian: density, and eigenvalues at both ends, from one set of Lanczos runs."""

from __future__ import annotations

from dataclasses import dataclass

from geomtraj.linalg import spectral_density
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic


@dataclass(frozen=True)
class Spectrum(Statistic):
    """Spectral density and the k outermost eigenvalues at each end: quantities "lambda_max" and "lambda_min"."""

    name = "spectrum"
    title = "spectral density and extreme eigenvalues"

    steps: int = 64
    probes: int = 2
    k: int = 5
    tol: float = 1e-2
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """Each extreme eigenvalue with its residual as interval; nodes and weights of the density as details."""
        density = spectral_density(point.hessian, self.steps, self.probes, self.seed)
        ends = density.eigenvalues(self.k)
        quantities, remarks = {}, [] if density.status == "ok" else [density.status]
        for label, values, residuals in (
            ("lambda_max", ends.top, ends.top_residuals),
            ("lambda_min", ends.bottom, ends.bottom_residuals),
        ):
            value, residual = float(values[0]), float(residuals[0])
            quantities[label] = Quantity(value, value - residual, value + residual)
            if not residual <= self.tol * abs(value):
                remarks.append(f"{label} has not converged: residual {residual:.2g} at {value:.3g}")
        details = {
            "nodes": density.nodes.tolist(),
            "weights": density.weights.tolist(),
            "top": ends.top.tolist(),
            "top_residuals": ends.top_residuals.tolist(),
            "bottom": ends.bottom.tolist(),
            "bottom_residuals": ends.bottom_residuals.tolist(),
            "size": density.size,
        }
        return Outcome(quantities, details, "; ".join(remarks) or "ok", density.matvecs)
