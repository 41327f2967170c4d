"""Forward over reverse: forward mode along the vector."""

from __future__ import annotations

from torch import Tensor

from geomtraj.operators.hvp.base import Strategy


class ForwardOverReverse(Strategy):
    """Forward over reverse: dual numbers along each vector, and nothing kept.

    Custom autograd functions need a `jvp`.

    Source: Pearlmutter (1994), "Fast exact multiplication by the Hessian", section 3.
    """

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """The product with one vector (P,), from one evaluation with dual numbers."""
        return self.curvature.forward(self.loss, self.loss.rows(vector))
