"""The spectral density by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.linalg.chunks import at_least
from geomtraj.linalg.estimate import Estimate, mean_of_probes
from geomtraj.linalg.lanczos import LanczosRun, lanczos
from geomtraj.linalg.memory import Room, plan
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
        status: "ok", or how many probes met a non-finite product (their nodes and weights are NaN), or what was cut
            for lack of memory.
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
    """Spectral density of H from `probes` Lanczos runs of `steps` products each, side by side.

    Each run starts from a random direction on the unit sphere. With ceil(12 / t + 1/2) steps the Wasserstein
    distance to the true spectrum is below t times its range, for large P with a single probe; 64 steps give t = 0.19
    guaranteed, and far less in practice.

    The bases take probes * steps * P numbers. Where half of the free memory does not hold them, the runs go in turn,
    then with their bases on the CPU, then with fewer steps; the status tells the last two.

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
    before, room = H.matvecs, plan(H, steps, probes)
    quadratures = [quadrature(run) for runs in probe_runs(H, probes, seed, room) for run in runs]
    return density_of(quadratures, H.shape[0], room, H.matvecs - before)


def probe_runs(H: SymmetricOperator, probes: int, seed: int, room: Room) -> Iterator[list[LanczosRun]]:
    """Lanczos runs from random starts, as many at once as there is room for; the starts depend on the seed alone."""
    rng = generator(seed, "spectral density starts")
    like = torch.empty(0, dtype=H.dtype, device=H.device)
    for first in range(0, probes, room.together):
        count = min(room.together, probes - first)
        starts = torch.stack([gaussian((H.shape[0],), rng, like) for _ in range(count)], dim=1)
        yield lanczos(H, starts, room.steps, room.device)


class Quadrature(NamedTuple):
    """What the density keeps of a run: Ritz values (m,), their weights and residuals; None if a product failed."""

    ritz: Tensor
    weights: Tensor
    residuals: Tensor


def quadrature(run: LanczosRun) -> Quadrature | None:
    """The Gauss quadrature of a run."""
    return None if run.status == "non-finite product" else Quadrature(run.ritz, run.weights, run.residuals)


def density_of(quadratures: list[Quadrature | None], size: int, room: Room, matvecs: int) -> SpectralDensity:
    """The density whose nodes are the Ritz values of all runs."""
    probes = len(quadratures)
    nodes, weights, residuals = torch.full((3, probes, room.steps), math.nan, dtype=torch.float64)
    for i, found in enumerate(quadratures):
        if found is not None:
            m = found.ritz.numel()
            nodes[i, :m], nodes[i, m:] = found.ritz, found.ritz[-1]
            weights[i, :m], weights[i, m:] = found.weights / (probes * found.weights.sum()), 0.0
            residuals[i, :m], residuals[i, m:] = found.residuals, found.residuals[-1]
    failed = sum(found is None for found in quadratures)
    remarks = [f"{failed} of {probes} probes met a non-finite product with the operator"] if failed else []
    remarks += [room.remark] if room.remark else []
    return SpectralDensity(nodes, weights, residuals, size, matvecs, "; ".join(remarks) or "ok")
