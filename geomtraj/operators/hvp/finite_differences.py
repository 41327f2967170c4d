"""Finite differences along the vector."""

from __future__ import annotations

from torch import Tensor

from geomtraj.operators.hvp.base import Strategy


class FiniteDifferences(Strategy):
    """Central differences, for models without a second derivative: two evaluations for each vector.

    Where the loss has kinks within a step (ReLU, max-pooling), differences measure those, not the matrix: on such
    models they are of no use in float32.
    """

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """The product with one vector (P,), from both sides of theta."""
        return [self.curvature.differences(self.loss, vector)]
