"""The diagonal with its error bars, as every method returns it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomtraj.layout import Layout


@dataclass(frozen=True)
class Cost:
    """What a measurement took: products with the operator, and seconds."""

    matvecs: int
    seconds: float


@dataclass(frozen=True)
class Diagonal:
    """The diagonal of a curvature matrix.

    Attributes:
        values: H_ii (P,), in the operator's dtype and on its device; entries that are not finite stay as they are.
        sem: Standard error of each entry (P,); zeros for "exact".
        blocks: Name -> `Slot` of each parameter tensor.
        method: The method that made it; what "auto" chose.
        cost: Products and seconds.
        status: "ok", or per block what is wrong with it.
        dof: Degrees of freedom of each standard error (P,), from how the spreads of its parts differ (Satterthwaite);
            infinite where an entry is exact. None if unknown.

    Source: Satterthwaite 1946, "An approximate distribution of estimates of variance components", for `dof`.
    """

    values: Tensor
    sem: Tensor
    blocks: Layout
    method: str
    cost: Cost
    status: str = "ok"
    dof: Tensor | None = None

    def block(self, name: str) -> tuple[Tensor, Tensor]:
        """Entries and standard errors of one parameter tensor, each in its own shape.

        Raises:
            InputError: There is no such block.
        """
        (name,) = self.blocks.select([name])
        slot = self.blocks[name]
        return self.values[slot.slice].reshape(slot.shape), self.sem[slot.slice].reshape(slot.shape)


def describe(values: Tensor, blocks: Layout, remark: str = "") -> str:
    """The status of a diagonal (P,): "ok", or the remark and each block's number of entries that are not finite."""
    remarks = [remark] if remark else []
    finite = torch.isfinite(values)
    if not finite.all():
        for name, slot in blocks.items():
            bad = slot.size - int(finite[slot.slice].sum())
            if bad:
                remarks.append(f"{bad} of {slot.size} entries of {name} are not finite")
    return "; ".join(remarks) or "ok"
