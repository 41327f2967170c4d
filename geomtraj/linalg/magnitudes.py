"""Sizes of eigenvalues: the largest, the median, and how many are negative or stand out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from geomtraj.errors import InputError
from geomtraj.linalg.chunks import at_least, chunk_width
from geomtraj.linalg.density import probe_runs
from geomtraj.linalg.lanczos import LanczosRun
from geomtraj.linalg.memory import plan
from geomtraj.operators.base import SymmetricOperator

OUTLIER = 0.1
"""An outlier is at least this share of the largest |eigenvalue|."""
NEGATIVE = 1e-3
"""An eigenvalue counts as negative below minus this share of the largest |eigenvalue|."""
ZERO = 4.0
"""Below this many roundings of the largest |eigenvalue| an eigenvalue cannot be told from zero."""
RESOLVED = 0.4
"""Largest share of the eigenvalues that one node near a quantile may stand for."""
CONVERGED = 0.01
"""Relative residual of a Ritz value that stands for an eigenvalue."""
LONGER = 4
"""Factor by which runs are lengthened where they do not resolve the median."""
SIGMAS = 1.96


class Bounded(NamedTuple):
    """A number with its 95 % interval; value = low = high where it is exact."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Magnitudes:
    """What `magnitudes` found.

    Attributes:
        largest: max |lambda|; its interval is the residual of the Ritz value.
        median: Median of |lambda|; 0 where it cannot be told from zero in this number type.
        ninth: 0.9 quantile of |lambda|.
        outliers: Number of eigenvalues with |lambda| >= 0.1 max |lambda|.
        negative: Share of eigenvalues below -0.001 max |lambda|.
        nodes: Ritz values of each probe, or all eigenvalues, ascending.
        weights: Share of the eigenvalues that each node stands for; each probe's sum to 1.
        exact: Whether the nodes are all eigenvalues.
        matvecs: Products with the operator.
        status: "ok", or what is not resolved or cannot be trusted.
    """

    largest: Bounded
    median: Bounded
    ninth: Bounded
    outliers: Bounded
    negative: Bounded
    nodes: list[np.ndarray]
    weights: list[np.ndarray]
    exact: bool
    matvecs: int
    status: str = "ok"


def magnitudes(
    H: SymmetricOperator, steps: int = 128, probes: int = 2, max_steps: int = 512, dense: int = 256, seed: int = 0
) -> Magnitudes:
    """Largest and median |lambda|, outliers and negative eigenvalues, by Lanczos quadrature or from all eigenvalues.

    Each probe's quadrature gives the distribution of |lambda| as nodes with weights; its quantiles are read by
    log-linear interpolation. Two things are uncertain. The start is random: the share that it gives to k of P
    eigenvalues follows Beta(k / 2, (P - k) / 2) whatever they are, which is a spread of about sqrt(2 q (1 - q) / P)
    around the quantile q. And the quadrature is coarse: between two nodes nothing is known. The interval takes both,
    the quantiles at q plus and minus 1.96 spreads and half the largest weight beside it. Where one node near the
    median stands for more than 0.4 of the eigenvalues, or that interval reaches the two smallest nodes, runs are made
    four times longer, up to `max_steps`, and if that does not do the interval reaches down to zero.

    On six blocks of a trained transformer (P = 1024 to 4096, ten starts each) 57 of 60 intervals held the median and 56
    of 60 the 0.9 quantile; one probe was off by a factor of 2.2 at most, and a median of 3e-6 of the largest was not
    resolved (`python benchmarks/median_eigenvalue.py --starts 10`).

    Args:
        H: The operator.
        steps: Products per probe at first.
        probes: Number of random starts.
        max_steps: Products per probe at most.
        dense: An operator of at most this size is made dense, and everything is exact.
        seed: Seed of the starts.

    Raises:
        InputError: steps or probes below 1, max_steps below steps, or dense below 0.

    Source:
        Chen, Trogdon, Ubaru 2021, "Analysis of stochastic Lanczos quadrature for spectrum approximation".
    """
    steps, probes = at_least("steps", steps, 1), at_least("probes", probes, 1)
    if at_least("max_steps", max_steps, 1) < steps:
        raise InputError(f"max_steps is {max_steps}: it must not be below steps, {steps}.")
    before, size = H.matvecs, H.shape[0]
    if not size:
        return _nothing("there are no eigenvalues", 0)
    if size <= at_least("dense", dense, 0):
        return _exact(H)
    while True:
        room = plan(H, min(steps, size), probes)
        runs = [_Run(run) for some in probe_runs(H, probes, seed, room) for run in some]
        finite = [run for run in runs if run.finite]
        found = _Distribution(finite, size, torch.finfo(H.dtype).eps) if finite else None
        longer = min(LONGER * steps, max_steps)
        if found is None or found.resolved or room.remark or longer <= steps or steps >= size:
            break
        steps = longer
    spent = H.matvecs - before
    if found is None:
        return _nothing(f"{probes} of {probes} probes met a non-finite product with the operator", spent)
    remarks = [f"{probes - len(finite)} of {probes} probes met a non-finite product"] if len(finite) < probes else []
    remarks += [room.remark] if room.remark else []
    return found.magnitudes(spent, steps, remarks)


class _Run:
    """What is kept of a Lanczos run: nodes, weights and residuals."""

    def __init__(self, run: LanczosRun):
        self.finite = run.status != "non-finite product"
        self.nodes, self.residuals = run.ritz.numpy(), run.residuals.numpy()
        weights = run.weights.numpy()
        self.weights = weights / weights.sum() if self.finite else weights


class _Distribution:
    """Distribution of the eigenvalues as the runs see it.

    Args:
        runs: At least one.
        size: Number of eigenvalues.
        eps: Rounding of the products.
    """

    def __init__(self, runs: Sequence[_Run], size: int, eps: float):
        self.runs, self.size = runs, size
        i, j = max(((i, j) for i, r in enumerate(runs) for j in (0, -1)), key=lambda at: abs(runs[at[0]].nodes[at[1]]))
        self.largest, self.residual = float(abs(runs[i].nodes[j])), float(runs[i].residuals[j])
        self.floor = ZERO * eps * self.largest
        nodes, residuals = (np.concatenate([getattr(r, name) for r in runs]) for name in ("nodes", "residuals"))
        weights = np.concatenate([r.weights for r in runs]) / len(runs)
        order = np.argsort(np.abs(nodes), kind="stable")
        self.sizes, self.weights, self.residuals = np.abs(nodes)[order], weights[order], residuals[order]
        self.places = np.cumsum(self.weights) - self.weights / 2

    @property
    def resolved(self) -> bool:
        """Whether the median lies among small weights, or is zero to rounding."""
        return self.is_zero(0.5) or self.quantile(0.5).low > 0

    def coarseness(self, share: float) -> float:
        """Largest weight of a node beside the quantile, in any run."""
        worst = 0.0
        for run in self.runs:
            order = np.argsort(np.abs(run.nodes), kind="stable")
            weights = run.weights[order]
            j = int(np.searchsorted(np.cumsum(weights), share))
            worst = max(worst, float(weights[max(j - 1, 0) : j + 2].max(initial=0.0)))
        return worst

    def is_zero(self, share: float) -> bool:
        """Whether converged nodes below the rounding hold the quantile."""
        zero = np.hypot(self.sizes, self.residuals) <= self.floor
        return float(self.weights[zero].sum()) - self.spread(share) > share

    def spread(self, share: float) -> float:
        """Half of the 95 % interval of the share that random starts give to that share of the eigenvalues."""
        return SIGMAS * math.sqrt(2 * share * (1 - share) / (len(self.runs) * self.size))

    def quantile(self, share: float) -> Bounded:
        """Quantile of |lambda|."""
        if self.is_zero(share):
            return Bounded(0.0, 0.0, self.floor)
        coarse = self.coarseness(share)
        margin = self.spread(share) + coarse / 2
        low, value, high = (self._at(share + d) for d in (-margin, 0.0, margin))
        # Below the two smallest nodes, a pair about zero perhaps, nothing is known.
        inside = share - margin >= self.places[min(2 * len(self.runs), self.places.size) - 1]
        return Bounded(value, low if coarse <= RESOLVED and inside and low > self.floor else 0.0, high)

    def _at(self, share: float) -> float:
        tiny = np.maximum(self.sizes, np.finfo(np.float64).tiny)
        return float(np.exp(np.interp(share, self.places, np.log(tiny))))

    def share(self, chosen: Callable[[np.ndarray], np.ndarray]) -> Bounded:
        """Share of the eigenvalues in a half-line that `chosen` picks from nodes."""
        value = sum(float(r.weights[chosen(r.nodes)].sum()) for r in self.runs) / len(self.runs)
        edges = []
        for run in self.runs:
            inside = chosen(run.nodes)
            changes = np.flatnonzero(inside[1:] != inside[:-1])
            edges.append(max((float(run.weights[c : c + 2].max()) for c in changes), default=0.0))
        margin = self.spread(min(max(value, 1 / self.size), 1 - 1 / self.size)) + max(edges) / 2
        return Bounded(value, max(value - margin, 0.0), min(value + margin, 1.0))

    def outliers(self) -> Bounded:
        """Number of eigenvalues that stand out: counted where they have converged, else P times their share."""
        limit = OUTLIER * self.largest
        for run in self.runs:
            out = np.abs(run.nodes) >= limit
            if (run.residuals[out] <= CONVERGED * np.abs(run.nodes[out])).all():
                return Bounded(*[float(out.sum())] * 3)
        above = [self.share(lambda x: x >= limit), self.share(lambda x: x <= -limit)]
        return Bounded(*(self.size * sum(part[i] for part in above) for i in range(3)))

    def magnitudes(self, matvecs: int, steps: int, remarks: list[str]) -> Magnitudes:
        """All of them."""
        median = self.quantile(0.5)
        if median.value == 0:
            remarks.append("the median |eigenvalue| is zero to rounding")
        elif median.low == 0:
            remarks.append(f"{steps} steps do not resolve the median |eigenvalue|")
        if self.residual > CONVERGED * self.largest:
            remarks.append(f"the largest |eigenvalue| has not converged: residual {self.residual:.2g}")
        return Magnitudes(
            Bounded(self.largest, max(self.largest - self.residual, 0.0), self.largest + self.residual),
            median,
            self.quantile(0.9),
            self.outliers(),
            self.share(lambda x: x < -NEGATIVE * self.largest),
            [run.nodes for run in self.runs],
            [run.weights for run in self.runs],
            False,
            matvecs,
            "; ".join(remarks) or "ok",
        )


def _exact(H: SymmetricOperator) -> Magnitudes:
    before = H.matvecs
    matrix = H.dense(chunk_width(H)).to("cpu", torch.float64)
    if not bool(torch.isfinite(matrix).all()):
        return _nothing("a product with the operator is not finite", H.matvecs - before)
    nodes = torch.linalg.eigvalsh((matrix + matrix.T) / 2).numpy()
    sizes = np.abs(nodes)
    largest, median, ninth = (float(np.quantile(sizes, q)) for q in (1.0, 0.5, 0.9))
    floor = ZERO * torch.finfo(H.dtype).eps * largest
    zero = Bounded(0.0, 0.0, floor)
    remarks = ["the median |eigenvalue| is zero to rounding"] if median <= floor else []
    return Magnitudes(
        _known(largest),
        zero if median <= floor else _known(median),
        zero if ninth <= floor else _known(ninth),
        _known((sizes >= OUTLIER * largest).sum()),
        _known((nodes < -NEGATIVE * largest).mean()),
        [nodes],
        [np.full(nodes.size, 1 / nodes.size)],
        True,
        H.matvecs - before,
        "; ".join(remarks) or "ok",
    )


def _known(value: float) -> Bounded:
    return Bounded(float(value), float(value), float(value))


def _nothing(reason: str, matvecs: int) -> Magnitudes:
    nothing = _known(math.nan)
    return Magnitudes(nothing, nothing, nothing, nothing, nothing, [], [], False, matvecs, reason)
