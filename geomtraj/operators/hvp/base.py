"""What a strategy of multiplying by a curvature matrix is, and what it has to know of the matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from geomtraj.operators.hvp.batch_loss import BatchLoss


class Graph(ABC):
    """What autograd needs for products with a matrix of one batch: made once, gone through backward for each vector.

    Attributes:
        held: Bytes that it keeps.
    """

    held: int

    @abstractmethod
    def backward(self, along: Sequence[Tensor], batched: bool = False) -> list[Tensor]:
        """The product along one direction, given and returned in the shapes of the parameters.

        Args:
            along: The direction, a tensor for each parameter.
            batched: Whether there are several directions, along a first axis of each tensor.
        """

    @abstractmethod
    def nodes(self) -> int:
        """Number of operations that a product goes back through."""


@dataclass(frozen=True)
class Curvature:
    """A curvature matrix of one batch's loss sum, by the three kinds of derivatives that products can be made of.

    Attributes:
        name: What the matrix is called.
        graph: Double backward.
        forward: Forward mode: the product along one direction, as by `Graph.backward`.
        differences: Finite differences: the product with one vector (P,).
    """

    name: str
    graph: Callable[[BatchLoss], Graph]
    forward: Callable[[BatchLoss, Sequence[Tensor]], list[Tensor]]
    differences: Callable[[BatchLoss, Tensor], Tensor]


class Strategy(ABC):
    """Products with a curvature matrix of one batch's loss sum.

    A subclass prepares in `__init__` whatever does not depend on the vectors, and defines `pieces`.

    Args:
        loss: The batch's loss sum.
        curvature: Which matrix of it.

    Attributes:
        keeps: Whether it prepares anything worth keeping from one product to the next.
        in_one_pass: Whether it can multiply several vectors in one pass.
        held: Bytes that it keeps.
    """

    keeps: ClassVar[bool] = False
    in_one_pass: ClassVar[bool] = False

    def __init__(self, loss: BatchLoss, curvature: Curvature):
        self.loss, self.curvature = loss, curvature
        self.held = 0

    @abstractmethod
    def pieces(self, vector: Tensor) -> list[Tensor]:
        """The product with one vector (P,), cut into tensors that give (P,) when they are laid side by side."""

    def products(self, rows: Tensor) -> Tensor:
        """The products (k, P) with the rows of (k, P), one after the other."""
        found = torch.empty_like(rows, memory_format=torch.contiguous_format)
        for row, place in zip(rows, found, strict=True):
            flat(self.pieces(row), out=place)
        return found

    def block(self, rows: Tensor) -> Tensor:
        """The products (k, P) with the rows of (k, P), in one pass where the strategy has one."""
        return self.products(rows)


def flat(tensors: Sequence[Tensor], lead: int = 0, out: Tensor | None = None) -> Tensor:
    """The tensors, each behind `lead` common axes, side by side; in `out` if given."""
    return torch.cat([t.detach().reshape(*t.shape[:lead], -1) for t in tensors], dim=lead, out=out)
