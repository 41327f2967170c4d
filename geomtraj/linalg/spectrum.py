"""Density, extreme eigenpairs and trace from one set of products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geomtraj.errors import InputError, unknown_name
from geomtraj.linalg.chunks import at_least
from geomtraj.linalg.density import SpectralDensity, density_of, probe_runs, quadrature
from geomtraj.linalg.eigen import Eigenpairs, default_basis, default_limit, padded
from geomtraj.linalg.ends import ENDS, best, better_than, certain, worst_of
from geomtraj.linalg.estimate import Estimate, mean_of_probes
from geomtraj.linalg.krylov import KrylovSpace
from geomtraj.linalg.lanczos import LanczosRun
from geomtraj.linalg.memory import plan
from geomtraj.linalg.search import Search
from geomtraj.operators.base import SymmetricOperator

COPIES = 1e-3
"""Eigenvalues closer than this share of the largest may be copies of one."""
DISTANCES = (0.5, 0.1, 0.01)
"""Ritz vectors are taken while they lie this far from the span of those taken before; what is nearer is a copy."""
BESIDE = 4
"""Ritz pairs kept of each run beside the k wanted ones."""


@dataclass(frozen=True)
class Spectrum:
    """What `spectrum` found with one set of products.

    Attributes:
        density: The spectral density, as `spectral_density` gives it.
        eigenpairs: Extreme eigenpairs, as `eigsh` gives them; their `matvecs` are those of the refinement alone.
        trace: The trace with its standard error over the probes.
        matvecs: Products in all.
        status: "ok", or what the density's and the eigenpairs' status say.
    """

    density: SpectralDensity
    eigenpairs: Eigenpairs
    trace: Estimate
    matvecs: int
    status: str = "ok"


def spectrum(
    H: SymmetricOperator,
    steps: int = 64,
    probes: int = 4,
    k: int = 10,
    which: str = "BE",
    tol: float = 1e-3,
    seed: int = 0,
    *,
    refine: int | None = None,
) -> Spectrum:
    """Spectral density, k extreme eigenpairs and trace of H from one set of Lanczos runs.

    The density is that of `spectral_density(H, steps, probes, seed)`. The Krylov spaces of its probes hold the extreme
    eigenpairs too: Ritz pairs of all runs span a space in which the best are found (Rayleigh-Ritz), without a further
    product, and with multiplicities up to the number of probes. Those whose residual is above `tol` are refined by
    more products, as in `eigsh`, and where as many copies of an eigenvalue show as there are probes, or the runs are
    too short or too few, `eigsh`'s check for missed ones is made.

    The trace is the sum of the converged eigenvalues, those at the edge of the wanted aside, plus what the probes say
    about the mean of the others, which takes the outliers out of its error.

    Args:
        H: The operator.
        steps: Products per run.
        probes: Number of runs.
        k: Number of eigenpairs.
        which: "LA", "SA", "LM" or "BE", as for `eigsh`.
        tol: Relative residual of the eigenpairs, as for `eigsh`.
        seed: Seed of the starts.
        refine: Most products to spend on refinement; as in `eigsh` if left out, 0 for none.

    Raises:
        InputError: steps, probes or k below 1, an unknown `which`, tol < 0, refine < 0.

    Source:
        Chen, Trogdon, Ubaru 2021 (density); Golub and Van Loan, Matrix Computations, section 10.1 (Ritz pairs);
        Meyer, Musco, Musco, Woodruff 2021, "Hutch++" (a trace with its large part taken out).
    """
    steps, probes = at_least("steps", steps, 1), at_least("probes", probes, 1)
    k = min(at_least("k", k, 1), max(H.shape[0], 1))
    if which not in ENDS:
        raise unknown_name("end of the spectrum", which, ENDS)
    if not tol >= 0:
        raise InputError(f"tol must not be negative, not {tol}.")
    before, room = H.matvecs, plan(H, steps, probes)
    quadratures, harvest = [], _Harvest(H, k, which)
    for runs in probe_runs(H, probes, seed, room):
        quadratures += [quadrature(run) for run in runs]
        for run in runs:
            harvest.add(run)
        del run, runs
    density = density_of(quadratures, H.shape[0], room, H.matvecs - before)
    basis = default_basis(k)
    limit = default_limit(basis) if refine is None else at_least("refine", refine, 0)
    space = harvest.space(k + basis)
    search = Search(space, k, which, tol, k + basis, limit, seed)
    search.limit_name = "refine"
    search.run(certain_copies=probes if certain(H.shape[0], steps, probes - 1) else 0)
    eigenpairs = padded(H, k, *search.result(), space.matvecs, search.status)
    remarks = [x for x in dict.fromkeys((density.status, eigenpairs.status)) if x != "ok"]
    spent = H.matvecs - before
    return Spectrum(density, eigenpairs, harvest.trace(eigenpairs, spent), spent, "; ".join(remarks) or "ok")


class _Harvest:
    """What is kept of each run once its basis is gone: its best Ritz pairs, its remainder and its first step."""

    def __init__(self, H: SymmetricOperator, k: int, which: str):
        self.H, self.k, self.which = H, k, which
        self.starts: list[Tensor] = []
        self.alphas: list[float] = []
        self.vectors: list[Tensor] = []
        self.values: list[Tensor] = []
        self.remainders: list[Tensor] = []
        self.last: list[Tensor] = []

    def add(self, run: LanczosRun) -> None:
        """Takes the Ritz vectors that `which` prefers; H times them is known by the run without a product."""
        if run.status == "non-finite product":
            self.alphas.append(math.nan)
            return
        basis, device = run.basis, self.H.device
        chosen = best(run.ritz, self.which, self.k + BESIDE)
        S = run.coefficients[:, chosen]
        self.vectors.append((S.T.to(basis.device, basis.dtype) @ basis.T).to(device))
        self.values.append(run.ritz[chosen])
        self.remainders.append(run.remainder.to(device, copy=True))
        self.last.append(S[-1:])
        self.starts.append(basis[:, 0].to(device, copy=True))
        self.alphas.append(float(run.alphas[0]))

    def space(self, capacity: int) -> KrylovSpace:
        """The space of all Ritz vectors; of an eigenvector that several runs found, the best copy.

        H V = V diag(values) + R last, with a remainder in R for each run.
        """
        width = sum(vectors.shape[0] for vectors in self.vectors)
        space = KrylovSpace(self.H, max(capacity, width) + len(self.alphas) + 1)
        if self.vectors:
            V, R = torch.cat(self.vectors), torch.stack(self.remainders)
            self.vectors, self.remainders = [], []
            values, last = torch.cat(self.values), torch.block_diag(*self.last)
            residuals = last.abs().T @ torch.linalg.vector_norm(R, dim=1).to("cpu", torch.float64)
            kept = independent((V @ V.T).to("cpu", torch.float64), residuals.argsort().tolist())
            V, values, last = V[kept], values[kept], last[:, kept]
            images = (V * values[:, None].to(V)).addmm_(last.T.to(V), R)
            space.absorb(V, images)
        space.finite = len(self.values) == len(self.alphas)
        return space

    def trace(self, pairs: Eigenpairs, matvecs: int) -> Estimate:
        """The sum of the converged eigenvalues, and the mean of the others times their number, one estimate a probe."""
        size = self.H.shape[0]
        if len(self.starts) < len(self.alphas):
            return mean_of_probes(torch.tensor(self.alphas, dtype=torch.float64), matvecs)
        apart = pairs.converged & self._complete(pairs.values)
        values, vectors = pairs.values[apart], pairs.vectors[:, apart.to(pairs.vectors.device)]
        known, others = float(values.sum()), size - values.numel()
        shares = (torch.stack(self.starts).to(vectors.dtype) @ vectors).to("cpu", torch.float64).square()
        rest = torch.tensor(self.alphas, dtype=torch.float64) - shares @ values
        per_probe = others * rest / (1 - shares.sum(1)) if others else torch.zeros(len(self.alphas))
        return mean_of_probes(known + per_probe, matvecs)

    def _complete(self, values: Tensor) -> Tensor:
        """Which eigenvalues (k,) have all their copies among the wanted: vectors of the others depend on the starts."""
        if values.numel() == self.H.shape[0]:
            return torch.ones_like(values, dtype=torch.bool)
        return better_than(values, *worst_of(values, self.which), COPIES * values.abs().max())


def independent(gram: Tensor, order: list[int]) -> list[int]:
    """Indices of vectors of length 1 with this Gram matrix (m, m), float64, whose span misses none by much.

    In the given order, but those that are far from the span of others before those that are near, so that few copies of
    a multiple eigenvector make a well-conditioned set.
    """
    kept: list[int] = []
    factor = torch.zeros_like(gram)
    for distance in DISTANCES:
        for i in (i for i in order if i not in kept):
            n = len(kept)
            along = torch.linalg.solve_triangular(factor[:n, :n], gram[kept, i, None], upper=False)[:, 0]
            square = float(gram[i, i] - along.square().sum())
            if square > distance**2:
                factor[n, :n], factor[n, n] = along, math.sqrt(square)
                kept.append(i)
    return kept
