"""Matrices with a prescribed spectrum, and the one tolerance of the algorithms' tests."""

from functools import lru_cache

import pytest
import torch

from geomtraj.operators.matrix import MatrixOperator

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


def tolerance(dtype: torch.dtype) -> float:
    """Rounding that a chain of products and orthogonalisations may gather, relative to the norm of the matrix."""
    return 300 * torch.finfo(dtype).eps


@lru_cache(maxsize=64)
def orthogonal(size: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64)).Q


def matrix(eigenvalues, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Q diag(w) Q^T with a random orthogonal Q."""
    w = torch.as_tensor(eigenvalues, dtype=torch.float64)
    q = orthogonal(len(w), seed)
    a = (q * w) @ q.T
    return ((a + a.T) / 2).to(dtype)


def operator(eigenvalues, seed: int = 0, dtype: torch.dtype = torch.float64) -> MatrixOperator:
    return MatrixOperator(matrix(eigenvalues, seed, dtype))


def bulk(size: int, width: float = 0.1, seed: int = 0) -> torch.Tensor:
    return width * (2 * torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1)


SPECTRA = {
    "one": torch.tensor([-2.0], dtype=torch.float64),
    "zero": torch.zeros(90, dtype=torch.float64),
    "identity": torch.full((100,), 3.0, dtype=torch.float64),
    "small indefinite": torch.tensor([-4.0, -1, 0, 0, 2, 7, 7], dtype=torch.float64),
    "outliers at both ends": torch.cat([torch.tensor([-6.0, -3, -1.5, 1.7, 4, 9, 20]).double(), bulk(313)]),
    "multiplicities": torch.cat([torch.tensor([5.0] * 3 + [3.0] * 2 + [-4.0] * 3 + [-2.0]).double(), bulk(250)]),
    "low rank": torch.cat([torch.tensor([5.0, 5, 2, -1, -3]).double(), torch.zeros(195).double()]),
    "two clusters": torch.cat([torch.ones(70), -2 * torch.ones(60)]).double(),
    "nearly multiple": torch.cat([torch.tensor([6.0, 6 - 1e-7, 6 - 2e-7, -5, -5 + 1e-7]).double(), bulk(150)]),
    "no outliers": bulk(400, 1.0),
}
"""Indefinite spectra by name, P from 1 to 400."""
