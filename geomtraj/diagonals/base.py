"""The diagonal with its error bars, as every method returns it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from geomtraj.blocks import Blocks
from geomtraj.display import clipped, html_table
from geomtraj.layout import Layout
from geomtraj.status import Code, Remark, Status


@dataclass(frozen=True)
class Cost:
    """What a measurement took: products with the operator, and seconds."""

    matvecs: int
    seconds: float


@dataclass(frozen=True)
class Part:
    """One part of a diagonal: its entries, their standard errors and the degrees of freedom of these, (P,) each.

    Attributes:
        values: Entries; NaN where a parameter enters in ways for which the part was not taken.
        sem: Standard errors, zero where an entry is exact.
        dof: Degrees of freedom, infinite where an entry is exact.
    """

    values: Tensor
    sem: Tensor
    dof: Tensor


@dataclass(frozen=True, repr=False)
class Diagonal:
    """The diagonal of a curvature matrix.

    Attributes:
        values: H_ii (P,), in the operator's dtype and on its device; entries that are not finite stay as they are.
        sem: Standard error of each entry (P,); zeros for "exact".
        blocks: Ordered map from name to `Block`: what numbers per layer belong to. (A `Layout` is taken for one block
            for each parameter.)
        method: The method that made it; what "auto" chose.
        cost: Products and seconds.
        status: "ok", or what is wrong, a `Status`: its remarks name the parameter or block that they are about.
        dof: Degrees of freedom of each standard error (P,), from how the spreads of its parts differ (Satterthwaite);
            infinite where an entry is exact. None if unknown.
        gauss_newton: The diagonal of J^T (d2L/dz2) J, z the model's output; None by "hutchinson" and "xdiag" and where
            the loss cannot be taken apart there.
        residual: What is left of the Hessian's: `values` is the sum of both, unless they are `gauss_newton`'s own.

    Source: Satterthwaite 1946, "An approximate distribution of estimates of variance components", for `dof`.
    """

    values: Tensor
    sem: Tensor
    blocks: Blocks
    method: str
    cost: Cost
    status: str = "ok"
    dof: Tensor | None = None
    gauss_newton: Part | None = None
    residual: Part | None = None

    def __post_init__(self) -> None:
        if isinstance(self.blocks, Layout):
            object.__setattr__(self, "blocks", Blocks(self.blocks))

    def __repr__(self) -> str:
        made = f"{self.method}, {self.cost.matvecs} products, {self.cost.seconds:.3g} s"
        return f"Diagonal({self.values.numel()} entries in {len(self.blocks)} blocks; {made}; {clipped(self.status)})"

    def _repr_html_(self) -> str:
        rows = []
        for name in self.blocks:
            values, sem = (part.double().reshape(-1) for part in self.block(name))
            root = [float(part.square().mean().sqrt()) if part.numel() else math.nan for part in (values, sem)]
            rows.append((name, values.numel(), *root))
        caption = f"Diagonal by {self.method}: {self.status}"
        return html_table(caption, ("block", "entries", "root mean square", "of its standard errors"), rows)

    def block(self, name: str) -> tuple[Tensor, Tensor]:
        """Entries and standard errors of one block or parameter, each in its own shape.

        Raises:
            InputError: There is no such block.
        """
        block = self.blocks.find(name)
        return block.take(self.values).reshape(block.shape), block.take(self.sem).reshape(block.shape)


def describe(values: Tensor, blocks: Blocks, remarks: Iterable[Remark] = ()) -> Status:
    """The status of a diagonal (P,): the remarks, and each block's number of entries that are not finite."""
    remarks, finite = list(remarks), torch.isfinite(values)
    if not finite.all():
        for name, block in blocks.items():
            bad = block.size - int(block.take(finite).sum())
            if bad:
                text = f"{bad} of {block.size} entries of {name} are not finite"
                remarks.append(Remark(Code.NOT_FINITE, text, name))
    return Status(remarks)
