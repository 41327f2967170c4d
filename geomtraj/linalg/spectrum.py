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
    """What is kept of each run once its basis is gone: its best Ritz pairs and its first step."""

    def __init__(self, H: SymmetricOperator, k: int, which: str):
        self.H, self.k, self.which = H, k, which
        self.starts: list[Tensor] = []
        self.alphas: list[float] = []
        self.vectors: list[Tensor] = []
        self.images: list[Tensor] = []

    def add(self, run: LanczosRun) -> None:
        """Takes the Ritz vectors that `which` prefers, and H times them, which the run knows without a product."""
        if run.status == "non-finite product":
            self.alphas.append(math.nan)
            return
        basis = run.basis
        chosen = best(run.ritz, self.which, self.k + BESIDE)
        S = run.coefficients[:, chosen].to(basis.device, basis.dtype)
        vectors = basis @ S
        images = vectors * run.ritz[chosen].to(basis.device, basis.dtype) + torch.outer(run.remainder, S[-1])
        self.vectors.append(vectors.to(self.H.device))
        self.images.append(images.to(self.H.device))
        self.starts.append(basis[:, 0].to(self.H.device, copy=True))
        self.alphas.append(float(run.alphas[0]))

    def space(self, capacity: int) -> KrylovSpace:
        """The space of all Ritz vectors."""
        width = sum(vectors.shape[1] for vectors in self.vectors)
        space = KrylovSpace(self.H, max(capacity, width) + len(self.alphas) + 1)
        if self.vectors:
            space.absorb(torch.cat(self.vectors, dim=1), torch.cat(self.images, dim=1))
        space.finite = len(self.vectors) == len(self.alphas)
        self.vectors, self.images = [], []
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
