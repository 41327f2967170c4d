"""The diagonal by XDiag: low rank plus leave-one-out residual, with standard errors."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from geomtraj.diagonals.base import Cost, Diagonal, describe
from geomtraj.diagonals.exact import exact
from geomtraj.linalg.chunks import at_least, products
from geomtraj.operators.base import SymmetricOperator
from geomtraj.seeding import generator, rademacher
from geomtraj.status import Code, Remark


def xdiag(operator: SymmetricOperator, samples: int = 64, seed: int = 0) -> Diagonal:
    """XDiag with s = samples // 2 random sign vectors: 2 s products in all.

    With Y = H Omega and Q_(i) an orthonormal basis of Y without its column i, each

        d_i = diag(Q_(i) Q_(i)^T H) + omega_i * ((I - Q_(i) Q_(i)^T) H omega_i)

    is unbiased, because omega_i is independent of Q_(i); the result is their mean. H of rank below s comes out
    exactly. Where s >= P the P one-hot products cost less and are taken instead (method "exact").

    The standard error is the spread of the d_i over sqrt(s). They share most of Q, so it is no theorem that this is
    enough. Measured over 400 seeds on spectra with P = 200, root mean square error over root mean square standard
    error: 1.00 to 1.03 on flat ones, on ten outliers over a bulk and on 1/i, where 95 % t-intervals with s - 1 degrees
    of freedom hold 94 to 95 %; but 1.17 on 1/i^2 with 64 samples, with 90 % held, where the diagonal's error is 1 %.

    Args:
        operator: The operator.
        samples: Number of products; at least 2, and 4 for standard errors.
        seed: Seed of the signs.

    Raises:
        InputError: samples < 2.

    Source:
        Epperly, Tropp, Webber 2024, "XTrace: making the most of every sample in stochastic trace estimation",
        the section on XDiag.
    """
    count = at_least("samples", samples, 2) // 2
    size = operator.shape[0]
    if count >= size:
        return exact(operator)
    start = time.perf_counter()
    before = operator.matvecs
    like = torch.empty(0, dtype=operator.dtype, device=operator.device)
    signs = rademacher((count, size), generator(seed, "xdiag signs"), like).T
    images = products(operator, signs)
    if torch.isfinite(images).all():
        values, sem = leave_one_out(operator, signs, images)
    else:
        values, sem = (signs * images).mean(1), torch.full((size,), torch.nan).to(like)
    few = Remark(Code.FEW_SAMPLES, "one sign vector gives no standard errors: use at least 4 samples")
    status = describe(values, operator.blocks, [few] if count == 1 else [])
    cost = Cost(operator.matvecs - before, time.perf_counter() - start)
    return Diagonal(values, sem, operator.blocks, "xdiag", cost, status, torch.full_like(values, count - 1))


def leave_one_out(operator: SymmetricOperator, signs: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the leave-one-out estimates (P,) and its standard error (P,), from Omega and Y = H Omega (P, s).

    With Y = Q R and the unit vectors s_i proportional to column i of R^-T, Q_(i) Q_(i)^T = Q (I - s_i s_i^T) Q^T,
    so that no leave-one-out basis need be formed. Where Y has not full rank, a tiny number in the place of a zero
    on R's diagonal turns s_i into a direction that H maps to zero, up to rounding.
    """
    count = signs.shape[1]
    Q, R = torch.linalg.qr(images)
    R = R.to(torch.float64)
    pivots = R.diagonal()
    floor = torch.finfo(images.dtype).eps * pivots.abs().max() + torch.finfo(torch.float64).tiny
    pivots[pivots.abs() < floor] = floor
    inverse = torch.linalg.solve_triangular(R.T, torch.eye(count).to(R), upper=False)
    lengths = torch.linalg.vector_norm(inverse, dim=0)
    directions = (inverse / lengths).to(images.dtype)
    remainders = (1 / lengths).to(images.dtype)
    through = products(operator, Q)
    left = Q @ directions
    deviations = left * (signs * remainders - through @ directions)
    values = (Q * through).sum(1) + deviations.mean(1)
    if count == 1:
        return values, torch.full_like(values, torch.nan)
    return values, deviations.std(1) / count**0.5
