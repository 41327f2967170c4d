"""What a way of multiplying by a Hessian is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from geomtraj.operators.hvp.batch_loss import BatchLoss


class Way(ABC):
    """Products with the Hessian of one batch's loss sum.

    A subclass prepares in `__init__` whatever does not depend on the vectors, and defines `pieces`.

    Attributes:
        keeps: Whether it prepares anything worth keeping from one product to the next.
        in_one_pass: Whether it can multiply several vectors in one pass.
        held: Bytes that it keeps.
    """

    keeps: ClassVar[bool] = False
    in_one_pass: ClassVar[bool] = False

    def __init__(self, loss: BatchLoss):
        self.loss = loss
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
        """The products (k, P) with the rows of (k, P), in one pass where the way has one."""
        return self.products(rows)


def flat(tensors: list[Tensor], lead: int = 0, out: Tensor | None = None) -> Tensor:
    """The tensors, each behind `lead` common axes, side by side; in `out` if given."""
    return torch.cat([t.detach().reshape(*t.shape[:lead], -1) for t in tensors], dim=lead, out=out)
