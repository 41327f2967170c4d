"""The linearised product of a batch, compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geomtraj.errors import ComputationError
from geomtraj.operators.hvp.base import Curvature
from geomtraj.operators.hvp.batch_loss import BatchLoss
from geomtraj.operators.hvp.linearized import LinearizedForwardOverReverse


class Compiled(LinearizedForwardOverReverse):
    """The recorded linear function through `torch.compile`: about a minute of compiling, then fewer passes over memory.

    Raises:
        ComputationError: There is no working compiler.
    """

    in_one_pass = False

    def __init__(self, loss: BatchLoss, curvature: Curvature):
        super().__init__(loss, curvature)
        self._program: Any = torch.compile(self._program, dynamic=False)
        try:
            self.pieces(torch.zeros_like(torch.cat([value.reshape(-1) for value in loss.values])))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the compiler raises
            reason = str(error).strip().splitlines()
            raise ComputationError(
                f"the products could not be compiled ({reason[0] if reason else type(error).__name__}): install a "
                "C++ compiler that torch.compile can use, or leave strategy='auto'."
            ) from error

    def block(self, rows: Tensor) -> Tensor:
        """The products (k, P), one after the other."""
        return self.products(rows)
