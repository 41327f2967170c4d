"""Lanczos tridiagonalisation with full re-orthogonalisation, several runs side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.linalg.chunks import at_least
from geomtraj.operators.base import SymmetricOperator

BREAKDOWN_EPS = 50.0
"""A remainder below this many units of rounding of ||A|| means that the Krylov space is invariant."""
LOOK_EVERY = 16
"""Steps between two looks at whether all runs have ended, on a device where a look waits for the device."""


@dataclass(frozen=True)
class LanczosRun:
    """The relation A Q = Q T + r e_m^T after m steps, and the Ritz pairs of T.

    Attributes:
        basis: Q, orthonormal columns (P, m), in the operator's dtype.
        alphas: Diagonal of T (m,), float64 on the CPU, like all that follow.
        betas: Off-diagonal of T (m - 1,) and, last, the norm of r.
        remainder: r (P,), in the operator's dtype.
        ritz: Ritz values (m,), ascending.
        coefficients: Ritz vectors in the basis, columns (m, m).
        status: "ok", "invariant subspace" where the run ended early because it is exact, or "non-finite product".
    """

    basis: Tensor
    alphas: Tensor
    betas: Tensor
    remainder: Tensor
    ritz: Tensor
    coefficients: Tensor
    status: str

    @property
    def last_components(self) -> Tensor:
        """Component along r / ||r|| of A y - theta y for each Ritz pair (m,): all of it, up to rounding."""
        return self.betas[-1:].sum() * self.coefficients[-1:].sum(0)

    @property
    def weights(self) -> Tensor:
        """Squared first components of T's eigenvectors (m,): Gauss quadrature weights that sum to 1."""
        return self.coefficients[:1].square().sum(0)

    @property
    def residuals(self) -> Tensor:
        """||A y - theta y|| of each Ritz pair (m,)."""
        return self.last_components.abs()


def lanczos(
    operator: SymmetricOperator, starts: Tensor, steps: int, device: torch.device | None = None
) -> list[LanczosRun]:
    """The first min(steps, P) Lanczos steps from each of the start vectors (P, S), one block of products per step.

    Each product loses its two coefficients of the three-term recurrence first and then one classical Gram-Schmidt
    pass against the whole basis, which makes two passes where it matters: the other coefficients are rounding. The
    basis of each run is one block of steps * P numbers with a row per vector, so that a pass reads it twice in order.
    Nothing in the loop waits for a GPU but a look at the lengths every 16 steps. The loop ends early where the Krylov
    spaces of all runs are invariant; their Ritz values are then exact eigenvalues.

    Args:
        operator: The operator A.
        starts: Start vectors (P, S).
        steps: Products per run.
        device: Where the bases lie; the operator's device if left out. The passes are computed there.

    Raises:
        InputError: A start vector is zero or not finite, or steps < 1.

    Source:
        Golub and Van Loan, Matrix Computations, section 10.1 to 10.3; Daniel, Gragg, Kaufman, Stewart 1976 (twice is
        enough, unless the second pass halves the norm again).
    """
    size, runs = starts.shape
    steps = min(at_least("steps", steps, 1), size)
    norms = torch.linalg.vector_norm(starts, dim=0)
    for norm in norms.tolist():
        if not 0 < norm < float("inf"):
            raise InputError(f"the start vector of a Lanczos run has norm {norm}: pass a finite, nonzero one.")
    device = operator.device if device is None else device
    bases = torch.empty(runs, steps, size, dtype=operator.dtype, device=device)
    history = _History(runs, steps, operator.dtype, device)
    bases[:, 0] = (starts.detach() / norms).T
    look = looks(operator.device)
    done = 0
    for j in range(steps):
        columns = bases[:, j].to(operator.device).T
        rest = (operator @ columns).T.to(device).contiguous()
        done = j + 1
        history.lengths[:, j] = torch.linalg.vector_norm(rest, dim=1)
        if j:
            rest.addcmul_(bases[:, j - 1], history.betas[:, j - 1, None], value=-1.0)
        alphas = torch.linalg.vecdot(rest, bases[:, j])
        rest.addcmul_(bases[:, j], alphas[:, None], value=-1.0)
        history.before[:, j] = torch.linalg.vector_norm(rest, dim=1)
        for i in range(runs):
            coefficients = bases[i, :done] @ rest[i]
            rest[i].addmv_(bases[i, :done].T, coefficients, alpha=-1.0)
            alphas[i] += coefficients[j]
        history.alphas[:, j] = alphas
        betas = torch.linalg.vector_norm(rest, dim=1)
        history.betas[:, j] = betas
        if done % look == 0 and bool(history.ended(done).any(1).all()):
            break
        if done < steps:
            torch.div(rest, torch.where(betas > 0, betas, 1)[:, None], out=bases[:, done])
    return history.runs(done, bases, rest)


def looks(device: torch.device) -> int:
    """Steps between two looks at whether the runs have ended; a look at a GPU's numbers waits for it."""
    return 1 if device.type == "cpu" else LOOK_EVERY


class _History:
    """What each step of each run left behind, on the device, (S, steps) each."""

    def __init__(self, runs: int, steps: int, dtype: torch.dtype, device: torch.device):
        self.alphas, self.betas, self.before, self.lengths = torch.zeros(4, runs, steps, dtype=dtype, device=device)

    def ended(self, done: int) -> Tensor:
        """Whether a run should have ended at each step (S, done): not finite, or the remainder is noise."""
        betas, before, lengths = self.betas[:, :done], self.before[:, :done], self.lengths[:, :done]
        scale = lengths.nan_to_num().cummax(dim=1).values
        noise = BREAKDOWN_EPS * torch.finfo(betas.dtype).eps * scale
        return (betas <= noise) | (betas < 0.5 * before) | ~torch.isfinite(lengths)

    def runs(self, done: int, bases: Tensor, last: Tensor) -> list[LanczosRun]:
        """The runs, each cut where it should have ended; `last` are the remainders (S, P) after `done` steps."""
        ended = self.ended(done).cpu()
        alphas, betas, lengths = (x[:, :done].to("cpu", torch.float64) for x in (self.alphas, self.betas, self.lengths))
        found = []
        for i in range(bases.shape[0]):
            status, m = "ok", done
            if ended[i].any():
                m = int(ended[i].int().argmax()) + 1
                status = "invariant subspace"
                if not torch.isfinite(lengths[i, m - 1]):
                    m, status = m - 1, "non-finite product"
            remainder = last[i] if m == done else bases[i, m] * self.betas[i, max(m - 1, 0)]
            T = tridiagonal(alphas[i, :m], betas[i, :m])
            ritz, coefficients = torch.linalg.eigh(T)
            found.append(LanczosRun(bases[i, :m].T, alphas[i, :m], betas[i, :m], remainder, ritz, coefficients, status))
        return found


def tridiagonal(alphas: Tensor, betas: Tensor) -> Tensor:
    """T (m, m) with diagonal `alphas` (m,) and off-diagonal `betas[:m - 1]`."""
    off = betas[: max(alphas.numel() - 1, 0)]
    matrix = torch.diag(alphas)
    if off.numel():
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    return matrix
