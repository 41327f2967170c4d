"""Double backward with the graph kept from vector to vector."""

from __future__ import annotations

from torch import Tensor

from geomtraj.operators.hvp.base import Curvature, Strategy, flat
from geomtraj.operators.hvp.batch_loss import BatchLoss


class DoubleBackward(Strategy):
    """Reverse over reverse: the graph is built once, and each vector runs backward through it.

    Attributes:
        graph: What each vector runs backward through.

    Source: Pearlmutter (1994), "Fast exact multiplication by the Hessian".
    """

    keeps = True
    in_one_pass = True

    def __init__(self, loss: BatchLoss, curvature: Curvature):
        super().__init__(loss, curvature)
        self.graph = curvature.graph(loss)
        self.held = self.graph.held

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """The product with one vector (P,), by one backward pass."""
        return self.graph.backward(self.loss.rows(vector))

    def block(self, rows: Tensor) -> Tensor:
        """The products (k, P), by one backward pass mapped over the vectors."""
        return flat(self.graph.backward(self.loss.rows(rows), batched=True), lead=1)
