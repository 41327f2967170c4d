"""Extreme eigenpairs of an indefinite operator by Lanczos with thick restarts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geomtraj.display import clipped, html_table
from geomtraj.errors import InputError, unknown_name
from geomtraj.linalg.chunks import at_least
from geomtraj.linalg.ends import ENDS, best, sort_for_output
from geomtraj.linalg.krylov import KrylovSpace
from geomtraj.linalg.search import NON_FINITE, Search, at_rounding, tolerances
from geomtraj.operators.base import SymmetricOperator


@dataclass(frozen=True, repr=False)
class Eigenpairs:
    """Extreme eigenpairs, in the order that `eigsh` gives for `which`.

    Attributes:
        values: Eigenvalues (k,), float64 on the CPU; NaN where none was found.
        vectors: Orthonormal eigenvectors as columns (P, k), in the operator's dtype and on its device.
        residuals: ||H v - lambda v|| of each pair (k,), float64 on the CPU: an eigenvalue of H lies within that
            distance. Never below the rounding of a product, 4 eps ||H||.
        converged: Whether each residual is within the tolerance (k,), bool.
        matvecs: Products with the operator, those of the check for multiplicities included.
        status: "ok", or what went wrong.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: Tensor
    matvecs: int
    status: str = "ok"

    def __repr__(self) -> str:
        shown = ", ".join(f"{float(v):.4g}" for v in self.values[:5]) + (", ..." if len(self.values) > 5 else "")
        done = f"{int(self.converged.sum())} of {len(self.converged)} converged"
        return f"Eigenpairs({shown}; {done}, {self.matvecs} products; {clipped(self.status)})"

    def _repr_html_(self) -> str:
        rows = zip(self.values.tolist(), self.residuals.tolist(), self.converged.tolist(), strict=True)
        caption = f"{len(self.values)} eigenpairs, {self.matvecs} products: {self.status}"
        return html_table(caption, ("eigenvalue", "residual", "converged"), rows)


def eigsh(
    H: SymmetricOperator,
    k: int = 10,
    which: str = "LA",
    tol: float = 1e-4,
    seed: int = 0,
    *,
    start: Tensor | None = None,
    basis: int | None = None,
    max_matvecs: int | None = None,
) -> Eigenpairs:
    """The k extreme eigenpairs of H, multiplicities counted.

    Order of the result: "LA" the largest, descending; "SA" the smallest, ascending; "LM" the largest in absolute
    value, by descending absolute value; "BE" ceil(k / 2) from the top and floor(k / 2) from the bottom, all
    descending. With k > P all P pairs come back.

    A pair has converged when ||H v - lambda v|| <= tol * max(|lambda|, 0.01 ||H||), where ||H|| is the largest
    |Ritz value|, and in any case when it is within 50 units of rounding of ||H||. The error of the eigenvalue
    is of the order of the residual squared over the gap to the next one.

    One Krylov space sees each multiple eigenvalue once. So when the pairs have converged, a Lanczos run is made from a
    random vector in the complement of all that was searched, until a missed pair that beats the k-th one by 2 % of the
    spectrum's width would have shown with probability 0.999 (a bound for any spectrum), or as many products are spent
    on that as on the search before. What shows joins the search. All that has converged on the way, wanted or not, is
    gone from the complement, so that takes few products. An operator with P no larger than the search space is made
    dense instead.

    Measured by `benchmarks/eigsh.py`: with 20 outliers above a bulk, P = 2000, k = 10, "LA" 33 or 34 products with the
    check (ARPACK, which checks nothing, 29; with 40 vectors as here, 41). At iterates of a digits network and of a
    two-layer GPT, 1 to 20 steps apart, tol = 1e-3: 31 to 63 products cold, 27 to 50 with `start`, 6 to 17 % fewer on
    average: a cold search is short already. Beginning with all earlier vectors as a block took more, not fewer.

    Args:
        H: The operator.
        k: Number of pairs.
        which: "LA", "SA", "LM" or "BE".
        tol: Relative residual asked for.
        seed: Seed of the start vectors.
        start: Vectors (P, m) near the wanted ones, such as those of the last iterate; the search begins from their sum
            and not from a random vector. They change the number of products, not the result.
        basis: Vectors kept beside the k converged ones; more memory, fewer products. Default max(2 k + 20, 40).
        max_matvecs: Products after which the search gives up. Default max(1000, 20 * basis).

    Returns:
        The pairs; those that did not converge in time are there too, marked. Where the operator gives a non-finite
        product the values are NaN and the status says so.

    Raises:
        InputError: An unknown `which`, k < 1, tol < 0, a basis that is not larger than k + 2, or a start of another
            shape or with a sum that is zero or not finite.

    Source:
        Wu and Simon 2000, Stewart 2001 (thick restart); Kuczynski and Wozniakowski 1992 (the probability).
    """
    k = min(at_least("k", k, 1), max(H.shape[0], 1))
    if which not in ENDS:
        raise unknown_name("end of the spectrum", which, ENDS)
    if not tol >= 0:
        raise InputError(f"tol must not be negative, not {tol}.")
    basis = default_basis(k) if basis is None else at_least("basis", basis, k + 3)
    if H.shape[0] <= k + basis:
        return _dense(H, k, which, tol)
    limit = default_limit(basis) if max_matvecs is None else at_least("max_matvecs", max_matvecs, 1)
    space = KrylovSpace(H, k + basis + 2)
    if start is not None:
        space.append(_sum_of(start, H))
    search = Search(space, k, which, tol, k + basis, limit, seed)
    search.run()
    return padded(H, k, *search.result(), space.matvecs, search.status)


def _sum_of(start: Tensor, H: SymmetricOperator) -> Tensor:
    if start.dim() != 2 or start.shape[0] != H.shape[0]:
        raise InputError(
            f"start has shape {tuple(start.shape)}: pass vectors as columns, ({H.shape[0]}, m), such as the `vectors` "
            "of another call."
        )
    total = start.detach().to(H.device, H.dtype).sum(1)
    length = float(torch.linalg.vector_norm(total))
    if not 0 < length < math.inf:
        raise InputError(f"the start vectors have a sum of norm {length}: pass finite ones that do not cancel.")
    return total


def default_basis(k: int) -> int:
    """Vectors that a search for k pairs keeps beside the wanted ones."""
    return max(2 * k + 20, 40)


def default_limit(basis: int) -> int:
    """Products after which a search gives up."""
    return max(1000, 20 * basis)


def _dense(H: SymmetricOperator, k: int, which: str, tol: float) -> Eigenpairs:
    """The pairs of a small operator, from all of its columns."""
    size = H.shape[0]
    matrix = H.dense().to("cpu", torch.float64)
    if not torch.isfinite(matrix).all():
        return padded(H, k, torch.empty(0), torch.empty(size, 0), torch.empty(0), torch.empty(0), size, NON_FINITE)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    norm = float(values.abs().max())
    chosen = sort_for_output(values, best(values, which, k), which)
    values, vectors = values[chosen], vectors[:, chosen].to(H.dtype).to(torch.float64)
    residuals = torch.linalg.vector_norm(matrix @ vectors - vectors * values, dim=0)
    residuals = at_rounding(residuals, norm, H.dtype)
    converged = residuals <= tolerances(values, norm, tol, H.dtype)
    status = "ok" if converged.all() else "the products are not symmetric to within the tolerance"
    return Eigenpairs(values, vectors.to(H.device, H.dtype), residuals, converged, size, status)


def padded(
    H: SymmetricOperator,
    k: int,
    values: Tensor,
    vectors: Tensor,
    residuals: Tensor,
    converged: Tensor,
    matvecs: int,
    status: str,
) -> Eigenpairs:
    """The pairs there are, followed by NaN up to k of them."""
    missing = k - values.numel()
    nan = torch.full((missing,), math.nan, dtype=torch.float64)
    nan_vectors = torch.full((H.shape[0], missing), math.nan, dtype=H.dtype, device=H.device)
    return Eigenpairs(
        torch.cat([values.to(torch.float64), nan]),
        torch.cat([vectors.to(H.device, H.dtype), nan_vectors], dim=1),
        torch.cat([residuals.to(torch.float64), nan]),
        torch.cat([converged.bool(), torch.zeros(missing, dtype=torch.bool)]),
        matvecs,
        status,
    )
