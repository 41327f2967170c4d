"""A symmetric matrix in memory as an operator: the oracle of every algorithm's test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.layout import Layout
from geomtraj.operators.base import SymmetricOperator


class MatrixOperator(SymmetricOperator):
    """Wraps a symmetric matrix so that every algorithm of geomtraj takes it.

    Args:
        matrix: A real symmetric tensor or array (P, P).
        blocks: Name and shape of the parameter tensors along its rows; one block "matrix" if left out.

    Raises:
        InputError: The matrix is not real, not square or not symmetric, or the blocks do not fill it.
    """

    def __init__(self, matrix: Tensor, blocks: Mapping[str, Sequence[int]] | None = None):
        matrix = torch.as_tensor(matrix)
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.is_floating_point():
            raise InputError(
                f"a MatrixOperator wraps a real square matrix, not {matrix.dtype} of shape {tuple(matrix.shape)}."
            )
        finite = matrix.detach()[torch.isfinite(matrix.detach())]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        asymmetry = float((matrix - matrix.T).detach().nan_to_num(0.0, 0.0, 0.0).abs().max()) if matrix.numel() else 0.0
        if asymmetry > 1e3 * torch.finfo(matrix.dtype).eps * scale:
            raise InputError(
                f"the matrix is not symmetric (entries differ by up to {asymmetry:.3g}): "
                "if that is meant, pass (A + A.T) / 2."
            )
        layout = Layout(blocks if blocks is not None else {"matrix": (matrix.shape[0],)})
        if layout.size != matrix.shape[0]:
            raise InputError(
                f"the blocks hold {layout.size} entries, the matrix has {matrix.shape[0]} rows: make them agree."
            )
        super().__init__(layout, matrix.dtype, matrix.device)
        self._matrix = matrix.detach()

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self._matrix @ vectors
