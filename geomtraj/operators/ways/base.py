"""What a way of multiplying by a Hessian is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from geomtraj.operators.batch_loss import BatchLoss


class Way(ABC):
    """Products with the Hessian of one batch's loss sum.

    A subclass prepares in `__init__` whatever does not depend on the vectors, and defines `product`.

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
    def product(self, vector: Tensor) -> Tensor:
        """The product with one vector (P,)."""

    def products(self, rows: Tensor) -> Tensor:
        """The products (k, P) with the rows of (k, P), one after the other."""
        products = [self.product(row) for row in rows]
        return torch.stack(products) if len(products) > 1 else products[0].unsqueeze(0)

    def block(self, rows: Tensor) -> Tensor:
        """The products (k, P) with the rows of (k, P), in one pass where the way has one."""
        return self.products(rows)


def flat(tensors: list[Tensor], lead: int = 0) -> Tensor:
    """The tensors, each behind `lead` common axes, side by side."""
    return torch.cat([t.reshape(*t.shape[:lead], -1) for t in tensors], dim=lead)
