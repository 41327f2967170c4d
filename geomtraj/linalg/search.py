"""Thick-restart Lanczos with deflation: the search behind `eigsh`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geomtraj.linalg.chunks import products
from geomtraj.linalg.ends import best, better_than, nothing_better, sort_for_output, worst_of
from geomtraj.linalg.lanczos import orthogonalise
from geomtraj.operators.base import SymmetricOperator
from geomtraj.seeding import gaussian, generator

SMALL_FRACTION = 1e-2
"""An eigenvalue below this fraction of ||H|| need only be as accurate as one of that size."""
ROUNDING_FLOOR = 50.0
"""No residual is asked to be below this many units of rounding of ||H||."""
ROUNDING_OF_A_PRODUCT = 4.0
"""No residual is reported to be below this many units of rounding of ||H||."""
LOCK_AT = 0.5
"""Share of the tolerance at which pairs are locked, since later ones are coupled to them through their residuals."""
CHECK_EVERY = 4
"""Products between two looks at the Ritz values."""
NON_FINITE = "a product with the operator was not finite"


def tolerances(values: Tensor, norm: float, tol: float, dtype: torch.dtype) -> Tensor:
    """The residual (k,) up to which each pair counts as converged."""
    relative = tol * values.abs().clamp(min=SMALL_FRACTION * norm)
    return relative.clamp(min=ROUNDING_FLOOR * torch.finfo(dtype).eps * norm)


def at_rounding(residuals: Tensor, norm: float, dtype: torch.dtype) -> Tensor:
    """Residuals (k,), none of them better than the rounding of a product of an operator of this norm."""
    return residuals.clamp(min=ROUNDING_OF_A_PRODUCT * torch.finfo(dtype).eps * norm)


class Search:
    """Sweeps of thick-restart Lanczos, each in the space orthogonal to the pairs that earlier ones locked.

    One block of vectors holds the locked pairs X first, then the active basis V, so that each product w = H v is
    orthogonalised against both at once: H V = V T + X G + v_next b^T, with T, G and b in float64 on the CPU.
    """

    def __init__(self, H: SymmetricOperator, k: int, which: str, tol: float, basis: int, limit: int, seed: int):
        self.H, self.k, self.which, self.tol, self.limit = H, k, which, tol, limit
        self.rng = generator(seed, "eigsh starts")
        self.active = basis
        self.block = torch.empty(H.shape[0], k + basis + 1, dtype=H.dtype, device=H.device)
        self.values = self.residuals = torch.empty(0, dtype=torch.float64)
        self.norm = self.low = self.high = 0.0
        self.matvecs = 0
        self.status = "ok"

    def sweep(self, patience: int) -> bool:
        """One start vector's worth of pairs, locked; True when there is nothing better left to find.

        Args:
            patience: Products to spend while nothing better than the locked pairs shows.
        """
        locked, count, spent, used = self.values.numel(), 0, 0, 0
        T = torch.zeros(self.active, self.active, dtype=torch.float64)
        G = torch.zeros(locked, self.active, dtype=torch.float64)
        following = self._random_start(locked)
        while True:
            self.block[:, locked + count] = following
            product = self.H @ self.block[:, locked + count]
            self.matvecs += 1
            spent += 1
            length = float(torch.linalg.vector_norm(product))
            if not length < math.inf:
                self.status = f"{NON_FINITE} (product {self.matvecs})"
                return True
            self.norm = max(self.norm, length)
            used = locked + count + 1
            rest, coefficients, beta, invariant = orthogonalise(self.block[:, :used], product, self.norm)
            G[:, count] = coefficients[:locked]
            T[: count + 1, count] = T[count, : count + 1] = coefficients[locked:]
            count += 1
            exhausted = self.matvecs >= self.limit
            if count == self.active or invariant or exhausted or spent % CHECK_EVERY == 0:
                ritz, S = torch.linalg.eigh(T[:count, :count])
                coupling, residuals = G[:, :count] @ S, (beta * S[-1]).abs()
                wanted = self._wanted(ritz)
                if exhausted or self._settled(ritz, residuals, wanted, invariant, spent, patience):
                    self._lock(S[:, wanted], ritz[wanted], residuals[wanted], coupling[:, wanted])
                    if exhausted:
                        self.status = self._out_of_products(before=locked)
                    return exhausted or (not wanted.numel() and locked == self.k)
                if count == self.active:
                    keep = self._kept(ritz, wanted.numel())
                    V = self.block[:, locked : locked + count]
                    self.block[:, locked : locked + keep.numel()] = V @ S[:, keep].to(V.device, V.dtype)
                    T.zero_()
                    T[: keep.numel(), : keep.numel()] = torch.diag(ritz[keep])
                    G[:, : keep.numel()] = coupling[:, keep]
                    count = keep.numel()
            following = rest / beta

    def _random_start(self, locked: int) -> Tensor:
        start = gaussian((self.H.shape[0],), self.rng, self.block)
        start = start / torch.linalg.vector_norm(start)
        rest, _, norm, _ = orthogonalise(self.block[:, :locked], start, 1.0)
        return rest / norm

    def _tolerances(self, values: Tensor) -> Tensor:
        norm = max(abs(self.low), abs(self.high))
        return tolerances(values, norm, self.tol, self.H.dtype)

    def _wanted(self, ritz: Tensor) -> Tensor:
        """Indices of the Ritz values that belong to the best k beside the locked ones."""
        self.low, self.high = min(self.low, float(ritz.min())), max(self.high, float(ritz.max()))
        locked = self.values.numel()
        chosen = best(torch.cat([self.values, ritz]), self.which, self.k)
        chosen = chosen[chosen >= locked] - locked
        if locked < self.k:
            return chosen
        low, high = worst_of(self.values, self.which)
        return chosen[better_than(ritz[chosen], low, high, self._tolerances(ritz[chosen]))]

    def _settled(
        self, ritz: Tensor, residuals: Tensor, wanted: Tensor, invariant: bool, spent: int, patience: int
    ) -> bool:
        """Whether this sweep has what its start vector can give."""
        if invariant:
            return True
        if wanted.numel():
            enough = wanted.numel() + self.values.numel() >= self.k
            return enough and bool((residuals <= LOCK_AT * self._tolerances(ritz))[wanted].all())
        if spent >= max(patience, 2 * CHECK_EVERY):
            return True
        low, high = worst_of(self.values, self.which)
        return nothing_better(ritz, low, high, self.low, self.high, self.H.shape[0], spent)

    def _kept(self, ritz: Tensor, wanted: int) -> Tensor:
        """Indices of the Ritz pairs to restart with: the wanted ones and half of the room that is left."""
        wanted = max(wanted, 1)
        return best(ritz, self.which, min(wanted + (self.active - wanted) // 2, self.active - 2))

    def _lock(self, S: Tensor, ritz: Tensor, residuals: Tensor, coupling: Tensor) -> None:
        """Adds Ritz pairs, V S with values `ritz` (w,), to the locked ones and keeps the best k.

        Args:
            S: Coefficients (active, w).
            ritz: Ritz values (w,).
            residuals: What of H y - theta y stands orthogonal to X (w,).
            coupling: X^T H y (locked, w), the rest of it: as large as the residuals of X allow.
        """
        locked = self.values.numel()
        V = self.block[:, locked : locked + S.shape[0]]
        vectors = torch.cat([self.block[:, :locked], V @ S.to(V.device, V.dtype)], dim=1)
        values = torch.cat([self.values, ritz])
        new = torch.hypot(residuals, torch.linalg.vector_norm(coupling, dim=0))
        residuals = torch.cat([self.residuals, new])
        if (new > self._tolerances(ritz)).any() and torch.linalg.vector_norm(coupling) > 0:
            vectors, values, residuals = self._rotate(vectors)
        chosen = best(values, self.which, self.k)
        self.values, self.residuals = values[chosen], residuals[chosen]
        self.block[:, : chosen.numel()] = vectors[:, chosen.to(vectors.device)]

    def _rotate(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz vectors, values and residuals in the span of orthonormal vectors (P, m), by m fresh products."""
        images = products(self.H, vectors)
        self.matvecs += vectors.shape[1]
        projected = (vectors.T @ images).to("cpu", torch.float64)
        ritz, S = torch.linalg.eigh((projected + projected.T) / 2)
        rotation = S.to(vectors.device, vectors.dtype)
        vectors = vectors @ rotation
        rest = images @ rotation - vectors * ritz.to(vectors.device, vectors.dtype)
        return vectors, ritz, torch.linalg.vector_norm(rest, dim=0).to("cpu", torch.float64)

    def _out_of_products(self, before: int) -> str:
        done = int((self.residuals <= self._tolerances(self.values)).sum())
        if done == self.k == before:
            return f"all pairs converged, but multiplicities are unchecked after {self.matvecs} products"
        return f"{done} of {self.k} pairs converged after {self.matvecs} products: raise max_matvecs or tol"

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values, vectors, residuals and whether they converged, of the locked pairs in the order of the output."""
        order = sort_for_output(self.values, torch.arange(self.values.numel()), self.which)
        residuals = at_rounding(self.residuals, max(abs(self.low), abs(self.high)), self.H.dtype)
        converged = residuals <= self._tolerances(self.values)
        if self.status == "ok" and not converged.all():
            self.status = f"{int(converged.sum())} of {self.k} pairs converged"
        return self.values[order], self.block[:, order.to(self.block.device)], residuals[order], converged[order]
