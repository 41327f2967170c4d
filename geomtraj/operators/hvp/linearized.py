"""A curvature matrix of a batch as a recorded linear function, simplified once and run for each vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from geomtraj.errors import ComputationError
from geomtraj.isolation import exact_arithmetic
from geomtraj.operators.hvp.base import Curvature, Strategy, flat
from geomtraj.operators.hvp.batch_loss import BatchLoss
from geomtraj.operators.hvp.recording import record
from geomtraj.operators.hvp.simplifying import held_bytes, out_of_place, simplify


class LinearizedForwardOverReverse(Strategy):
    """Forward over reverse, linearised: its operations on the vector recorded once, the primal's results constants."""

    keeps: ClassVar[bool] = True
    in_one_pass: ClassVar[bool] = True

    def __init__(self, loss: BatchLoss, curvature: Curvature):
        super().__init__(loss, curvature)
        if loss.problem.objective.uses_func:
            raise ComputationError(
                "the loss calls the model inside a transform of torch.func, whose derivatives cannot be recorded: "
                "leave strategy='auto'."
            )
        inputs = [torch.zeros_like(value) for value in loss.values]
        self._program = simplify(record(self._along(), inputs))
        self._mapped: Callable[..., list[Tensor]] | None = None
        self.held = held_bytes(self._program)

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """The product with one vector (P,), by one run of the recorded operations."""
        with torch.no_grad(), exact_arithmetic():
            return list(self._program(*self.loss.rows(vector)))

    def block(self, rows: Tensor) -> Tensor:
        """The products (k, P), by one run of the recorded operations mapped over the vectors."""
        if self._mapped is None:
            self._mapped = torch.func.vmap(out_of_place(self._program))
        with torch.no_grad(), exact_arithmetic():
            return flat(self._mapped(*self.loss.rows(rows)), lead=1)

    def _along(self) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        return partial(self.curvature.forward, self.loss)


class LinearizedDoubleBackward(LinearizedForwardOverReverse):
    """Reverse over reverse, linearised: the backward pass through the gradient's graph recorded once."""

    def _along(self) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        return self.curvature.graph(self.loss).backward
