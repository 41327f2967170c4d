"""Double backward through a graph that lives for one call."""

from __future__ import annotations

from torch import Tensor

from geomtraj.operators.hvp.base import Way
from geomtraj.operators.hvp.double_backward import Kept


class Fresh(Way):
    """Reverse over reverse with the gradient's graph built anew in each call and freed behind its last vector."""

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """The product with one vector (P,), through a graph of its own."""
        return Kept(self.loss).pieces(vector)

    def products(self, rows: Tensor) -> Tensor:
        """The products (k, P), through one graph for all of them."""
        return Kept(self.loss).products(rows)
