"""The spectral density by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.linalg.chunks import at_least
from geomtraj.linalg.estimate import Estimate, mean_of_probes
from geomtraj.linalg.lanczos import lanczos
from geomtraj.operators.base import SymmetricOperator
from geomtraj.seeding import gaussian, generator

MARGIN_WIDTHS = 5.0
"""How far the grid of `on_grid` reaches beyond the outermost nodes, in kernel widths."""


class ExtremeValues(NamedTuple):
    """Ritz values at both ends, outermost first, each (k,), with ||H y - theta y|| of each.

    Attributes:
        top: Largest Ritz values, descending.
        top_residuals: Their residuals: an eigenvalue lies within that distance.
        bottom: Smallest Ritz values, ascending.
        bottom_residuals: Their residuals.
    """

    top: Tensor
    top_residuals: Tensor
    bottom: Tensor
    bottom_residuals: Tensor


@dataclass(frozen=True)
class SpectralDensity:
    """The distribution of the eigenvalues as weighted nodes, float64 on the CPU.

    Attributes:
        nodes: Ritz values (probes, steps), ascending in each row; a run that ended early repeats its last one.
        weights: Mass at each node (probes, steps), zero at repeated ones; all of them sum to 1.
        residuals: ||H y - theta y|| of each node (probes, steps).
        size: Number of eigenvalues P.
        matvecs: Products with the operator.
        status: "ok", or which probes met a non-finite product; their nodes and weights are NaN.
    """

    nodes: Tensor
    weights: Tensor
    residuals: Tensor
    size: int
    matvecs: int
    status: str = "ok"

    @property
    def top(self) -> float:
        """Largest Ritz value of all probes, a lower bound of the largest eigenvalue up to rounding."""
        return float(self.nodes.max())

    @property
    def bottom(self) -> float:
        """Smallest Ritz value of all probes, an upper bound of the smallest eigenvalue up to rounding."""
        return float(self.nodes.min())

    def eigenvalues(self, k: int = 10) -> ExtremeValues:
        """The k outermost Ritz values at each end, with residuals, from the best probe for that end.

        Ritz values never lie outside the eigenvalues that they stand for, so the best probe for the top is the one
        whose k largest sum to the most. One probe sees each multiple eigenvalue once; `eigsh` counts them. Fewer
        than k come back where P, the steps, or a run that ended early give fewer.

        Raises:
            InputError: k < 1.
        """
        k = at_least("k", k, 1)
        repeated = (self.nodes == self.nodes[:, -1:]) & (self.weights == 0)
        found = self.nodes.shape[1] - repeated.sum(1)
        rows = range(self.nodes.shape[0])
        k = min(k, int(found.max()))
        highs = [self.nodes[i, max(int(found[i]) - k, 0) : int(found[i])].flip(0) for i in rows]
        lows = [self.nodes[i, : min(k, int(found[i]))] for i in rows]
        usable = [i for i in rows if int(found[i]) >= k] or list(rows)
        high = max(usable, key=lambda i: float(highs[i].sum()))
        low = min(usable, key=lambda i: float(lows[i].sum()))
        end = int(found[high])
        high_residuals = self.residuals[high, max(end - k, 0) : end].flip(0)
        return ExtremeValues(highs[high], high_residuals, lows[low], self.residuals[low, : lows[low].numel()])

    def on_grid(self, n: int = 1000, width: float | None = None) -> tuple[Tensor, Tensor]:
        """The density smoothed with a Gaussian: grid points (n,) and density (n,), which integrates to 1.

        The grid covers the nodes and five widths on either side. Each value is the mean density of the grid cell
        around its point, so that an outlier narrower than a cell keeps its mass.

        Args:
            n: Number of grid points.
            width: Standard deviation of the Gaussian; by default the range of the nodes over the number of steps,
                about the distance of neighbouring nodes.

        Raises:
            InputError: n < 2, or a width that is not positive.
        """
        n = at_least("n", n, 2)
        low, high = self.bottom, self.top
        if width is None:
            width = (high - low) / self.nodes.shape[1]
            width = max(width, 1e-3 * max(abs(low), abs(high))) or 1e-3
        if width <= 0:
            raise InputError(f"the kernel width must be positive, not {width}.")
        x = torch.linspace(low - MARGIN_WIDTHS * width, high + MARGIN_WIDTHS * width, n, dtype=torch.float64)
        cell = float(x[1] - x[0])
        edges = torch.cat([x - cell / 2, x[-1:] + cell / 2])
        below = torch.zeros_like(edges)
        for nodes, weights in zip(self.nodes, self.weights, strict=True):
            below += torch.special.ndtr((edges[:, None] - nodes) / width) @ weights
        density = below.diff() / cell
        return x, density / torch.trapezoid(density, x)

    def moment(self, p: int) -> Estimate:
        """Mean of lambda^p over all eigenvalues, with its standard error over probes.

        The quadrature itself is exact up to p = 2 * steps - 1; only the probes are random.

        Raises:
            InputError: p < 0.
        """
        p = at_least("p", p, 0)
        probes = self.nodes.shape[0]
        return mean_of_probes(probes * (self.weights * self.nodes**p).sum(1), self.matvecs)


def spectral_density(H: SymmetricOperator, steps: int = 64, probes: int = 4, seed: int = 0) -> SpectralDensity:
    """Spectral density of H from `probes` Lanczos runs of `steps` products each.

    Each run starts from a random direction on the unit sphere. With ceil(12 / t + 1/2) steps the Wasserstein
    distance to the true spectrum is below t times its range, for large P with a single probe; 64 steps give t = 0.19
    guaranteed, and far less in practice.

    Args:
        H: The operator.
        steps: Products per run; a run ends after P of them.
        probes: Number of runs.
        seed: Seed of the starts.

    Raises:
        InputError: steps or probes below 1.

    Source:
        Chen, Trogdon, Ubaru 2021, "Analysis of stochastic Lanczos quadrature for spectrum approximation".
    """
    steps, probes = at_least("steps", steps, 1), at_least("probes", probes, 1)
    rng = generator(seed, "spectral density starts")
    like = torch.empty(0, dtype=H.dtype, device=H.device)
    nodes, weights, residuals = torch.full((3, probes, steps), math.nan, dtype=torch.float64)
    matvecs, failed = 0, []
    for i in range(probes):
        run = lanczos(H, gaussian((H.shape[0],), rng, like), steps)
        matvecs += run.matvecs
        if run.status == "non-finite product":
            failed.append(i)
            continue
        m = run.ritz.numel()
        nodes[i, :m], nodes[i, m:] = run.ritz, run.ritz[-1]
        weights[i, :m], weights[i, m:] = run.weights / (probes * run.weights.sum()), 0.0
        residuals[i, :m], residuals[i, m:] = run.residuals, run.residuals[-1]
    status = f"{len(failed)} of {probes} probes met a non-finite product with the operator" if failed else "ok"
    return SpectralDensity(nodes, weights, residuals, H.shape[0], matvecs, status)
