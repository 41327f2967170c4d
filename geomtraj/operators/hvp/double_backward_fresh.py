"""Double backward through a graph that lives for one call."""

from __future__ import annotations

from torch import Tensor

from geomtraj.operators.hvp.base import Strategy
from geomtraj.operators.hvp.double_backward import DoubleBackward


class DoubleBackwardFresh(Strategy):
    """Reverse over reverse with the graph built anew in each call and freed behind its last vector."""

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """The product with one vector (P,), through a graph of its own."""
        return DoubleBackward(self.loss, self.curvature).pieces(vector)

    def products(self, rows: Tensor) -> Tensor:
        """The products (k, P), through one graph for all of them."""
        return DoubleBackward(self.loss, self.curvature).products(rows)
