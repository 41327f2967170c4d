"""The optimizer's next step, layer by layer: its size, its stable rank, how near it is to an orthogonal matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic, without
from geomtraj.status import Code, Remark, Status

MEASURES = ("stable_rank", "orthogonality", "rms")


@dataclass(frozen=True)
class Updates(Statistic):
    """Stable rank, orthogonality and size of the next step D of each weight matrix.

    With its r singular values s: "stable_rank" sum s^2 / max s^2; "orthogonality" (sum s)^2 / (r sum s^2), 1 where
    they agree, as in Muon's steps, and 1 / r for rank one; "rms" |D|_F / sqrt(entries). The plain labels are the means
    over all matrices, those of one are "0.weight: rms". Convolutions are matrices of their first axis by all others.
    All numbers are exact; the arrays hold the singular values by block.

    Cost: one gradient, one step of the optimizer, and the singular values of every matrix; no product.

    Attributes:
        per_block: Whether to give the numbers of each matrix too.

    Source: orthogonality of layers' updates: arXiv 2410.19964; stable rank: Rudelson and Vershynin (2007).
    """

    name = "updates"
    title = "the optimizer's own next step, layer by layer"
    needs = ("optimizer",)

    per_block: bool = True

    def measure(self, point: Point) -> Outcome:
        """The numbers of each matrix that moves, and their means."""
        d = point.next_update()
        found: dict[str, dict[str, float]] = {}
        arrays, remarks = {}, []
        for name, block in point.problem.blocks.items():
            if block.kind == "vector" or len(block.shape) < 2:
                continue
            D = block.take(d).reshape(block.shape[0], -1)
            if not D.any():
                remarks.append(Remark(Code.ZERO, f"{name}: its next step is zero", name))
                continue
            s = torch.linalg.svdvals(D.double())
            found[name] = described(s, D.numel())
            arrays[name] = s.cpu().numpy()
        if not found:
            return without("no weight matrix moves in the optimizer's next step", Code.ZERO)
        quantities = {m: Quantity.exact(float(np.mean([f[m] for f in found.values()]))) for m in MEASURES}
        if self.per_block:
            quantities |= {f"{name}: {m}": Quantity.exact(f[m]) for name, f in found.items() for m in MEASURES}
        return Outcome(quantities, {}, Status(remarks), 0, arrays)


def described(s: Tensor, entries: int) -> dict[str, float]:
    """The measures of a matrix with these singular values, float64, and so many entries."""
    square = float(s.square().sum())
    return {
        "stable_rank": square / float(s.max()) ** 2,
        "orthogonality": float(s.sum()) ** 2 / (s.numel() * square),
        "rms": (square / entries) ** 0.5,
    }
