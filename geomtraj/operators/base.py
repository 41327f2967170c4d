"""What every curvature matrix can do: multiply, restrict to a block, become dense or a SciPy operator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geomtraj.blocks import Block, Blocks, whole_parameter
from geomtraj.errors import ComputationError, InputError
from geomtraj.isolation import in_plain_torch
from geomtraj.layout import Layout

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

DENSE_LIMIT_BYTES = 4 * 2**30


class SymmetricOperator(ABC):
    """A symmetric matrix (P, P) known by its products with vectors.

    A subclass passes its layout, dtype and device to `__init__` and defines `_matmat`.

    Attributes:
        layout: Where the parameter tensors stand in a vector of length P.
        blocks: What numbers per layer belong to, by name.
        dtype: Number type of the products.
        device: Device of the products.
        matvecs: Number of vectors multiplied so far.
    """

    def __init__(self, layout: Layout, dtype: torch.dtype, device: torch.device | str, blocks: Blocks | None = None):
        self.layout = layout
        self.blocks = Blocks(layout) if blocks is None else blocks
        self.dtype = dtype
        self.device = torch.device(device)
        self.matvecs = 0

    @property
    def shape(self) -> tuple[int, int]:
        """The pair (P, P)."""
        return (self.layout.size, self.layout.size)

    @abstractmethod
    def _matmat(self, vectors: Tensor) -> Tensor:
        """Products with the columns of `vectors` (P, k), of this operator's dtype and device."""

    @in_plain_torch
    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Product with a vector (P,) or with each column of (P, k).

        Raises:
            InputError: The operand is no tensor, or its shape, dtype or device is not the operator's.
        """
        if not isinstance(vectors, Tensor):
            raise InputError(
                f"an operator multiplies torch tensors, not {type(vectors).__name__}: convert with torch.as_tensor."
            )
        size = self.layout.size
        if vectors.dim() not in (1, 2) or vectors.shape[0] != size:
            raise InputError(
                f"cannot multiply the {size} x {size} operator with a tensor of shape {tuple(vectors.shape)}: "
                f"pass ({size},) or ({size}, k)."
            )
        if vectors.dtype != self.dtype or vectors.device != self.device:
            raise InputError(
                f"the operator is {self.dtype} on {self.device}, the vector {vectors.dtype} on {vectors.device}: "
                "move it with .to(H.device, H.dtype)."
            )
        columns = (vectors.clone() if vectors.is_inference() else vectors).detach().reshape(size, -1)
        product = self._matmat(columns)
        self.matvecs += columns.shape[1]
        return product.reshape(vectors.shape)

    def block(self, globs: str | Iterable[str]) -> SymmetricOperator:
        """The principal block of the blocks or parameters that match the globs; an exact name wins over a glob.

        Its rows stand in the order of theta where all of some parameters match, else block after block.

        Raises:
            InputError: A glob matches nothing.
        """
        return PrincipalBlock(self, self.blocks.select(globs))

    @in_plain_torch
    def dense(self, chunk: int = 64) -> Tensor:
        """The whole matrix (P, P), by P products, `chunk` columns at a time.

        Raises:
            ComputationError: The matrix would need more than 4 GiB.
        """
        size = self.layout.size
        needed = size * size * torch.empty((), dtype=self.dtype).element_size()
        if needed > DENSE_LIMIT_BYTES:
            raise ComputationError(
                f"a dense {size} x {size} matrix needs {needed / 2**30:.1f} GiB: take a block with .block(glob), "
                "or gt.eigsh and gt.diagonal, which need only products."
            )
        columns = []
        for start in range(0, size, chunk):
            width = min(chunk, size - start)
            one_hot = torch.zeros(size, width, dtype=self.dtype, device=self.device)
            one_hot[start + torch.arange(width), torch.arange(width)] = 1
            columns.append(self @ one_hot)
        return torch.cat(columns, dim=1)

    def to_scipy(self) -> LinearOperator:
        """This operator for SciPy: NumPy arrays in and out, on the CPU."""
        from scipy.sparse.linalg import LinearOperator

        numpy_dtype = torch.empty((), dtype=self.dtype).numpy().dtype

        def multiply(array):
            vectors = torch.as_tensor(array.astype(numpy_dtype, copy=True), device=self.device)
            return (self @ vectors).cpu().numpy()

        return LinearOperator(
            self.shape, matvec=multiply, rmatvec=multiply, matmat=multiply, rmatmat=multiply, dtype=numpy_dtype
        )


class PrincipalBlock(SymmetricOperator):
    """Rows and columns of some blocks of another operator; `matvecs` of that operator counts its products too."""

    def __init__(self, operator: SymmetricOperator, chosen: list[Block]):
        chosen = [block.within(operator.layout) for block in chosen]
        blocks = operator.blocks.around(chosen)
        if blocks.size == sum(block.size for block in chosen):
            indices = operator.layout.indices(blocks.layout)
        else:
            indices = torch.cat([block.indices for block in chosen])
            layout = Layout({block.name: block.shape for block in chosen})
            blocks = Blocks(layout, [whole_parameter(layout, block.name, block.kind) for block in chosen])
        super().__init__(blocks.layout, operator.dtype, operator.device, blocks)
        self._operator = operator
        self._indices = indices.to(operator.device)

    def _matmat(self, vectors: Tensor) -> Tensor:
        padded = vectors.new_zeros(self._operator.shape[0], vectors.shape[1])
        padded[self._indices] = vectors
        return (self._operator @ padded)[self._indices]
