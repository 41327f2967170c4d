"""The search behind `eigsh`: Lanczos with thick restarts, warm starts, and a check for what it cannot see."""

from __future__ import annotations

import torch
from torch import Tensor

from geomtraj.linalg.ends import best, better_than, nothing_better, sort_for_output, worst_of
from geomtraj.linalg.krylov import KrylovSpace
from geomtraj.seeding import gaussian, generator

SMALL_FRACTION = 1e-2
"""An eigenvalue below this fraction of ||H|| need only be as accurate as one of that size."""
ROUNDING_FLOOR = 50.0
"""No residual is asked to be below this many units of rounding of ||H||."""
ROUNDING_OF_A_PRODUCT = 4.0
"""No residual is reported to be below this many units of rounding of ||H||."""
LEAST_PATIENCE = 8
"""Products that the check may take at least."""
NON_FINITE = "a product with the operator was not finite"


def tolerances(values: Tensor, norm: float, tol: float, dtype: torch.dtype) -> Tensor:
    """The residual (k,) up to which each pair counts as converged."""
    relative = tol * values.abs().clamp(min=SMALL_FRACTION * norm)
    return relative.clamp(min=ROUNDING_FLOOR * torch.finfo(dtype).eps * norm)


def at_rounding(residuals: Tensor, norm: float, dtype: torch.dtype) -> Tensor:
    """Residuals (k,), none of them better than the rounding of a product of an operator of this norm."""
    return residuals.clamp(min=ROUNDING_OF_A_PRODUCT * torch.finfo(dtype).eps * norm)


class Search:
    """Grows a space until its best k Ritz pairs have converged and a check finds nothing better outside of it.

    Attributes:
        space: The space; a search may begin with one that is not empty.
        active: Expanded rows at which it is cut back to the wanted ones and some more.
        status: "ok", or what went wrong.
        limit_name: What the caller names the limit of products.
    """

    def __init__(self, space: KrylovSpace, k: int, which: str, tol: float, active: int, limit: int, seed: int):
        self.space, self.k, self.which, self.tol, self.active, self.limit = space, k, which, tol, active, limit
        self.rng = generator(seed, "eigsh starts")
        self.low = self.high = 0.0
        self.status = "ok"
        self.limit_name = "max_matvecs"

    @property
    def _exhausted(self) -> bool:
        return self.space.matvecs >= self.limit or not self.space.finite

    def run(self, certain_copies: int = 0) -> None:
        """Searches until all pairs have converged and nothing better is left outside of the space.

        Args:
            certain_copies: With this many random starts in the space already, it misses nothing but copies of an
                eigenvalue beyond their number; 0 if that is not so.
        """
        checked = False
        while True:
            self._converge()
            checked = checked or (self._converged() and self._most_copies() < certain_copies)
            if self._exhausted or checked:
                break
            checked = self._nothing_is_missed()
            certain_copies = 0
        if not self.space.finite:
            self.status = f"{NON_FINITE} (product {self.space.matvecs})"
        elif self._exhausted:
            self.status = self._out_of_products(checked)

    def _converged(self) -> bool:
        return self.space.finite and len(self.space.expanded) >= self.k and bool(self.result()[3].all())

    def _most_copies(self) -> int:
        """The largest number of wanted Ritz values that cannot be told apart."""
        ritz, _ = self.space.ritz()
        values = ritz[self._wanted(ritz)].sort().values
        near = values.diff() <= 2 * self._tolerances(values)[1:]
        longest = count = 1
        for same in near.tolist():
            count = count + 1 if same else 1
            longest = max(longest, count)
        return longest

    def _converge(self) -> None:
        """Expands until the best k Ritz pairs have converged."""
        space = self.space
        while not self._exhausted:
            if len(space.expanded) >= self.k:
                ritz, S = space.ritz()
                wanted = self._wanted(ritz)
                couplings = space.couplings(S[:, wanted])
                bounds = self._tolerances(ritz[wanted])
                missing = torch.linalg.vector_norm(couplings, dim=0) > bounds
                if not missing.any():
                    return
                if len(space.expanded) >= self.active:
                    self._restart(ritz, S)
                    continue
                directions = torch.linalg.svd(couplings[:, missing] / bounds[missing]).U
                space.turn(directions[:, 0] * max(space.norm, 1.0))
                space.expand(space.pending[-1])
            elif space.pending:
                space.expand(space.pending[0])
            else:
                space.append(self._random())

    def _nothing_is_missed(self) -> bool:
        """Whether no eigenvalue outside of the space is better than the k-th one inside.

        A space grown from one vector holds one vector of each eigenspace. So a Lanczos run is made in the complement
        of all that is there, from a random start. What has converged inside, wanted or not, is gone from there, so a
        further copy of a wanted eigenvalue stands out and shows within few steps.
        """
        space, patience = self.space, max(self.space.matvecs, LEAST_PATIENCE)
        ritz, _ = space.ritz()
        before = ritz[self._wanted(ritz)]
        low, high = worst_of(before, self.which)
        following: int | None = None
        chain: list[int] = []
        spent = 0
        while True:
            if self._exhausted:
                return False
            full = len(space.expanded) >= self.active
            if full:
                self._restart(*space.ritz())
            if full or not chain:
                following, chain = space.enter(self._random()), []
            if following is None:
                break
            chain.append(following)
            space.expand(following)
            spent += 1
            found, _ = space.ritz(chain)
            if better_than(found, low, high, self._tolerances(found)).any():
                return False
            if spent >= patience or nothing_better(found, low, high, self.low, self.high, space.H.shape[0], len(chain)):
                break
            following = space.turn(space.M[space.pending, following].clone())
        ritz, _ = space.ritz()
        values = ritz[self._wanted(ritz)]
        return self._count_better(values, low, high) <= self._count_better(before, low, high)

    def _count_better(self, values: Tensor, low: float, high: float) -> int:
        return int(better_than(values, low, high, self._tolerances(values)).sum())

    def _random(self) -> Tensor:
        return gaussian((self.space.H.shape[0],), self.rng, self.space.rows)

    def _tolerances(self, values: Tensor) -> Tensor:
        return tolerances(values, max(abs(self.low), abs(self.high)), self.tol, self.space.H.dtype)

    def _wanted(self, ritz: Tensor) -> Tensor:
        """Indices of the best k Ritz values."""
        self.low, self.high = min(self.low, float(ritz.min())), max(self.high, float(ritz.max()))
        return best(ritz, self.which, self.k)

    def _restart(self, ritz: Tensor, S: Tensor) -> None:
        """Thick restart: keeps the wanted Ritz pairs and half of the room that is left beside them."""
        kept = self.k + (len(self.space.expanded) - self.k) // 2
        self.space.compress(S[:, best(ritz, self.which, min(kept, len(self.space.expanded) - 1))])

    def _out_of_products(self, checked: bool) -> str:
        *_, converged = self.result()
        done, spent = int(converged.sum()), self.space.matvecs
        if done == self.k:
            return "ok" if checked else f"all pairs converged, but multiplicities are unchecked after {spent} products"
        return f"{done} of {self.k} pairs converged after {spent} products: raise {self.limit_name} or tol"

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values, vectors (P, k), residuals and whether they converged, in the order of the output."""
        space = self.space
        if not space.expanded or not space.finite:
            nothing = torch.empty(0, dtype=torch.float64)
            return nothing, space.rows[:0].T, nothing, nothing.bool()
        ritz, S = space.ritz()
        wanted = sort_for_output(ritz, self._wanted(ritz), self.which)
        values = ritz[wanted]
        residuals = torch.linalg.vector_norm(space.couplings(S[:, wanted]), dim=0)
        residuals = at_rounding(residuals, max(abs(self.low), abs(self.high)), space.H.dtype)
        return values, space.combine(S[:, wanted]).T, residuals, residuals <= self._tolerances(values)
