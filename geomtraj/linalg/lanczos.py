"""Lanczos tridiagonalisation with full re-orthogonalisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.linalg.chunks import at_least
from geomtraj.operators.base import SymmetricOperator

BREAKDOWN_EPS = 50.0
"""A remainder below this many units of rounding of ||A|| means that the Krylov space is invariant."""


@dataclass(frozen=True)
class LanczosRun:
    """The relation A Q = Q T + r e_m^T after m steps, and the Ritz pairs of T.

    Attributes:
        basis: Q, orthonormal columns (P, m), in the operator's dtype.
        alphas: Diagonal of T (m,), float64 on the CPU, like all that follow.
        betas: Off-diagonal of T (m - 1,) and, last, the norm of r.
        remainder: r (P,), in the operator's dtype.
        ritz: Ritz values (m,), ascending.
        weights: Squared first components of T's eigenvectors (m,): Gauss quadrature weights that sum to 1.
        residuals: ||A y - theta y|| of each Ritz pair (m,).
        matvecs: Products with the operator.
        status: "ok", "invariant subspace" where the run ended early because it is exact, or "non-finite product".
    """

    basis: Tensor
    alphas: Tensor
    betas: Tensor
    remainder: Tensor
    ritz: Tensor
    weights: Tensor
    residuals: Tensor
    matvecs: int
    status: str


def orthogonalise(basis: Tensor, vector: Tensor, scale: float) -> tuple[Tensor, Tensor, float, bool]:
    """The part of a vector (P,) orthogonal to the columns of `basis` (P, j), by classical Gram-Schmidt twice.

    Args:
        basis: Orthonormal columns.
        vector: The vector, not changed.
        scale: Norm of what rounding errors are relative to.

    Returns:
        The remainder (P,); the coefficients (j,), float64 on the CPU; the remainder's norm; and whether the
        vector lies in the span up to rounding, so that the remainder is noise.

    Source:
        Daniel, Gragg, Kaufman, Stewart 1976 (twice is enough, unless the second pass halves the norm again).
    """
    first = basis.T @ vector
    rest = vector - basis @ first
    once = float(torch.linalg.vector_norm(rest))
    second = basis.T @ rest
    rest = rest - basis @ second
    norm = float(torch.linalg.vector_norm(rest))
    noise = BREAKDOWN_EPS * torch.finfo(vector.dtype).eps * scale
    coefficients = first.to("cpu", torch.float64) + second.to("cpu", torch.float64)
    return rest, coefficients, norm, norm <= noise or norm < 0.5 * once


def lanczos(operator: SymmetricOperator, start: Tensor, steps: int) -> LanczosRun:
    """The first min(steps, P) Lanczos steps from a start vector (P,).

    The basis lies in one block of P * steps numbers on the operator's device. The run ends early where the Krylov
    space is invariant; its Ritz values are then exact eigenvalues.

    Raises:
        InputError: The start vector is zero or not finite, or steps < 1.

    Source:
        Golub and Van Loan, Matrix Computations, section 10.1 to 10.3.
    """
    size = operator.shape[0]
    steps = min(at_least("steps", steps, 1), size)
    norm = float(torch.linalg.vector_norm(start))
    if not 0 < norm < float("inf"):
        raise InputError(f"the start vector of a Lanczos run has norm {norm}: pass a finite, nonzero one.")
    basis = torch.empty(size, steps, dtype=operator.dtype, device=operator.device)
    rest = start.detach() / norm
    alphas: list[float] = []
    betas: list[float] = []
    scale = 0.0
    status = "ok"
    matvecs = 0
    for j in range(steps):
        basis[:, j] = rest if j == 0 else rest / betas[-1]
        product = operator @ basis[:, j]
        matvecs += 1
        length = float(torch.linalg.vector_norm(product))
        if not length < float("inf"):
            status = "non-finite product"
            break
        scale = max(scale, length)
        rest, coefficients, beta, degenerate = orthogonalise(basis[:, : j + 1], product, scale)
        alphas.append(float(coefficients[j]))
        betas.append(beta)
        if degenerate:
            status = "invariant subspace"
            break
    done = len(alphas)
    diagonal, coupling = torch.tensor(alphas, dtype=torch.float64), torch.tensor(betas, dtype=torch.float64)
    ritz, vectors = torch.linalg.eigh(tridiagonal(diagonal, coupling))
    return LanczosRun(
        basis=basis[:, :done],
        alphas=diagonal,
        betas=coupling,
        remainder=rest,
        ritz=ritz,
        weights=vectors[:1].square().sum(0),
        residuals=(coupling[-1:].sum() * vectors[-1:].sum(0)).abs(),
        matvecs=matvecs,
        status=status,
    )


def tridiagonal(alphas: Tensor, betas: Tensor) -> Tensor:
    """T (m, m) with diagonal `alphas` (m,) and off-diagonal `betas[:m - 1]`."""
    off = betas[: max(alphas.numel() - 1, 0)]
    matrix = torch.diag(alphas)
    if off.numel():
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    return matrix
