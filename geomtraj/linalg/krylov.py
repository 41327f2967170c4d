"""A growing space whose products with the operator are known: what restarted and warm-started searches work in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geomtraj.linalg.lanczos import BREAKDOWN_EPS
from geomtraj.operators.base import SymmetricOperator

TWICE_IS_ENOUGH = 0.7
"""A second Gram-Schmidt pass is made where the first left less than this share of the vector's norm."""


def orthogonalise(basis: Tensor, vector: Tensor, scale: float) -> tuple[Tensor, Tensor, float, bool]:
    """The part of a vector (P,) orthogonal to the rows of `basis` (j, P), by classical Gram-Schmidt, twice if needed.

    Args:
        basis: Orthonormal rows.
        vector: The vector, not changed.
        scale: Norm of what rounding errors are relative to.

    Returns:
        The remainder (P,); the coefficients (j,), float64 on the CPU; the remainder's norm; and whether the
        vector lies in the span up to rounding, so that the remainder is noise.

    Source:
        Daniel, Gragg, Kaufman, Stewart 1976 (twice is enough, unless the second pass halves the norm again).
    """
    before = float(torch.linalg.vector_norm(vector))
    coefficients = basis @ vector
    rest = vector.addmv(basis.T, coefficients, alpha=-1.0)
    once = norm = float(torch.linalg.vector_norm(rest))
    coefficients = coefficients.to("cpu", torch.float64)
    if not once > TWICE_IS_ENOUGH * before:
        second = basis @ rest
        rest = rest.addmv(basis.T, second, alpha=-1.0)
        norm = float(torch.linalg.vector_norm(rest))
        coefficients = coefficients + second.to("cpu", torch.float64)
    noise = BREAKDOWN_EPS * torch.finfo(vector.dtype).eps * scale
    return rest, coefficients, norm, norm <= noise or norm < 0.5 * once


GROW_BY = 4
"""Rows by which a full space grows."""
DEPENDENT = 1e-2
"""Combinations of vectors shorter than this share of the longest one are left out: their images are too inexact."""


class KrylovSpace:
    """Orthonormal rows q_i, some of them expanded: H q_i = sum_j M[j, i] q_j over all rows j, for expanded i.

    A Lanczos run has one row that is not expanded yet, the next one; a block has several; a thick restart rotates the
    expanded rows among themselves. The Ritz pairs of the expanded rows have exact residuals: what M couples them to
    in the others.

    Args:
        H: The operator.
        capacity: Rows to begin with; the block grows when they are filled.

    Attributes:
        rows: The block (capacity, P), of which `used` rows are filled.
        M: Coefficients of the products (capacity, capacity), float64 on the CPU.
        expanded: Rows with a known product, in order of expansion.
        pending: Rows without.
        norm: Largest ||H q_i|| seen, a lower bound of ||H||.
        matvecs: Products made.
        finite: False once a product was not.

    Source:
        Stewart 2001, "A Krylov-Schur algorithm for large eigenproblems"; Wu and Simon 2000 (thick restart).
    """

    def __init__(self, H: SymmetricOperator, capacity: int):
        self.H = H
        self.rows = torch.empty(capacity, H.shape[0], dtype=H.dtype, device=H.device)
        self.M = torch.zeros(capacity, capacity, dtype=torch.float64)
        self.expanded: list[int] = []
        self.pending: list[int] = []
        self.norm = 0.0
        self.matvecs = 0
        self.finite = True

    @property
    def used(self) -> int:
        """Number of rows that are filled."""
        return len(self.expanded) + len(self.pending)

    def append(self, vector: Tensor) -> int | None:
        """Adds what of a vector (P,) is new to the space as a pending row; its index, or None if nothing is new."""
        length = float(torch.linalg.vector_norm(vector))
        rest, _, norm, noise = orthogonalise(self.rows[: self.used], vector, length)
        return None if noise else self._store(rest / norm)

    def _store(self, vector: Tensor) -> int:
        index = self.used
        if index == self.rows.shape[0]:
            self.rows = torch.cat([self.rows, self.rows.new_empty(GROW_BY, self.rows.shape[1])])
            self.M = torch.nn.functional.pad(self.M, (0, GROW_BY, 0, GROW_BY))
        self.rows[index] = vector
        self.M[index, :] = self.M[:, index] = 0.0
        self.pending.append(index)
        return index

    def expand(self, index: int) -> int | None:
        """Multiplies a pending row by H; the index of the pending row that is new by it, or None."""
        product = self.H @ self.rows[index]
        self.matvecs += 1
        return self._expand(index, product)

    def _expand(self, index: int, product: Tensor) -> int | None:
        length = float(torch.linalg.vector_norm(product))
        if not length < math.inf:
            self.finite = False
            return None
        self.norm = max(self.norm, length)
        used = self.used
        rest, coefficients, norm, noise = orthogonalise(self.rows[:used], product, self.norm)
        self.M[:used, index] = self.M[index, :used] = coefficients
        self.pending.remove(index)
        self.expanded.append(index)
        if noise:
            return None
        new = self._store(rest / norm)
        self.M[new, index] = self.M[index, new] = norm
        return new

    def turn(self, direction: Tensor) -> int | None:
        """Rotates the pending rows so that one of them is a given combination (w,) of them; its index, None for zero.

        The rotation is one Householder reflection; it changes nothing that the rows span.
        """
        length = float(torch.linalg.vector_norm(direction))
        if not length > BREAKDOWN_EPS * torch.finfo(self.rows.dtype).eps * self.norm:
            return None
        if len(self.pending) > 1:
            normal = direction / length
            normal[-1] += 1.0 if normal[-1] >= 0 else -1.0
            reflection = torch.eye(len(self.pending), dtype=torch.float64)
            reflection -= 2 * torch.outer(normal, normal) / normal.square().sum()
            rows = reflection.to(self.rows.device, self.rows.dtype) @ self.rows[self.pending]
            self.rows[self.pending] = rows
            for i in self.expanded:
                self.M[self.pending, i] = self.M[i, self.pending] = reflection @ self.M[self.pending, i]
        return self.pending[-1]

    def enter(self, vector: Tensor) -> int | None:
        """Makes the part of a vector (P,) that is orthogonal to the expanded rows a pending row; its index."""
        vector = vector / torch.linalg.vector_norm(vector)
        rest, coefficients, norm, noise = orthogonalise(self.rows[: self.used], vector, 1.0)
        if noise:
            return None
        self._store(rest / norm)
        direction = torch.cat([coefficients, torch.tensor([norm], dtype=torch.float64)])[self.pending]
        return self.turn(direction * max(self.norm, 1.0))

    def absorb(self, vectors: Tensor, images: Tensor) -> None:
        """Begins an empty space with the span of several vectors, expanded.

        Nearly dependent combinations of the vectors are left out.

        Args:
            vectors: Rows (m, P), each of a length near 1.
            images: H times them (m, P).
        """
        basis, factor = _orthonormal(vectors)
        images = factor @ images
        m = basis.shape[0]
        lengths = torch.linalg.vector_norm(images, dim=1)
        if not m or not torch.isfinite(lengths).all():
            self.finite = self.finite and not m
            return
        self.norm = max(self.norm, float(lengths.max()))
        self.rows[:m] = basis
        self.expanded = list(range(m))
        coefficients = images @ basis.T
        rest = images.addmm_(coefficients, basis, alpha=-1.0)
        again = rest @ basis.T
        rest = rest.addmm_(again, basis, alpha=-1.0)
        inner = (coefficients + again).to("cpu", torch.float64)
        self.M[:m, :m] = (inner + inner.T) / 2
        directions, upper = torch.linalg.qr(rest.T)
        left, lengths, right = torch.linalg.svd(upper.to("cpu", torch.float64), full_matrices=False)
        for j in range(m):
            if lengths[j] > BREAKDOWN_EPS * torch.finfo(self.rows.dtype).eps * self.norm:
                direction = directions @ left[:, j].to(directions.device, directions.dtype)
                new = self.append(direction)
                if new is not None:
                    self.M[new, :m] = self.M[:m, new] = lengths[j] * right[j]

    def ritz(self, among: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Ritz values (n,), ascending, and vectors (n, n) as coefficients of the expanded rows, or of some of them."""
        chosen = self.expanded if among is None else among
        return torch.linalg.eigh(self.M[chosen][:, chosen])

    def couplings(self, S: Tensor) -> Tensor:
        """Components (w, k) of the products of Ritz vectors, coefficients (n, k), along the pending rows."""
        return self.M[self.pending][:, self.expanded] @ S

    def combine(self, S: Tensor, among: list[int] | None = None) -> Tensor:
        """Rows (k, P) with coefficients S (n, k) of the expanded rows, or of some of them."""
        full = torch.zeros(self.used, S.shape[1], dtype=torch.float64)
        full[self.expanded if among is None else among] = S
        return full.T.to(self.rows.device, self.rows.dtype) @ self.rows[: self.used]

    def compress(self, S: Tensor) -> None:
        """Replaces the n expanded rows by k combinations of them, orthonormal coefficients (n, k)."""
        inner = S.T @ self.M[self.expanded][:, self.expanded] @ S
        coupling = self.couplings(S)
        kept, waiting = S.shape[1], len(self.pending)
        self.rows[: kept + waiting] = torch.cat([self.combine(S), self.rows[self.pending]])
        self.M.zero_()
        self.M[:kept, :kept] = inner
        self.M[kept : kept + waiting, :kept] = coupling
        self.M[:kept, kept : kept + waiting] = coupling.T
        self.expanded, self.pending = list(range(kept)), list(range(kept, kept + waiting))


def _orthonormal(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows (n, P), n <= m, that span all but nearly dependent rows (m, P), as factor @ vectors.

    Twice by the eigenvectors of the Gram matrix: products of matrices only, many times faster than Householder's QR.

    Source:
        Stathopoulos and Wu 2002, "A block orthogonalization procedure with constant synchronization requirements".
    """
    factor = torch.eye(vectors.shape[0], dtype=torch.float64)
    rows = vectors
    for _ in range(2):
        squares, turned = torch.linalg.eigh((rows @ rows.T).to("cpu", torch.float64))
        kept = squares > DEPENDENT**2 * squares[-1:].sum()
        step = turned[:, kept].T / squares[kept, None].sqrt()
        factor = step @ factor
        rows = step.to(rows.device, rows.dtype) @ rows
    return rows, factor.to(rows.device, rows.dtype)
