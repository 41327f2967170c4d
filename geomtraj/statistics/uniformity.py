"""How uniform the leading singular vectors of the weights are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic
from geomtraj.status import Code, Remark, Status


def max_over_median(x: Tensor) -> float:
    """The largest over the median of nonnegative numbers x, a pure number; inf where the median is 0, NaN if all are.

    The median is the mean of the two middle values, as in R_med.
    """
    x = x.detach().double().flatten()
    if not x.numel() or not torch.isfinite(x).all():
        return math.nan
    ordered = x.sort().values
    n = ordered.numel()
    median, largest = float(ordered[(n - 1) // 2] + ordered[n // 2]) / 2, float(ordered[-1])
    if median == 0:
        return math.inf if largest > 0 else math.nan
    return largest / median


@dataclass(frozen=True)
class Uniformity:
    """Max over median of the squared entries of a matrix's first singular vectors; 1 if all |entries| are equal.

    Attributes:
        left: Of the left one, over rows (output units, or tokens of an embedding).
        right: Of the right one, over columns.
        share: First singular value squared over the squared Frobenius norm, from 1 / rank to 1.
    """

    left: float
    right: float
    share: float


def uniformity(weight: Tensor) -> Uniformity:
    """Uniformity of the first singular vectors of a weight (rows, ...), its further axes taken as one."""
    matrix = weight.detach().double().flatten(1)
    if not torch.isfinite(matrix).all() or not bool(matrix.any()):
        return Uniformity(math.nan, math.nan, math.nan)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    share = float(values[0] ** 2 / values.square().sum())
    return Uniformity(max_over_median(left[:, 0].square()), max_over_median(right[0].square()), share)


@dataclass(frozen=True)
class SingularVectors(Statistic):
    """Max over median of the squares of the first singular vectors' entries: "NAME left" and "NAME right".

    One pair for each block of two axes or more; the share that the first singular value holds stands in the
    details. In a two-layer linear network whose weights are of rank one, R_med of the first weight is its "left" and
    R_med of the second one its "right".

    Source: Jiang, Malik, Li (2023), "How does adaptive optimization impact local neural network geometry?",
        arXiv 2211.02254, section 4.
    """

    name = "singular_vectors"
    title = "uniformity of leading singular vectors"

    def measure(self, point: Point) -> Outcome:
        """Exact numbers; {"left", "right", "share"} by block as details."""
        matrices = {name: block for name, block in point.problem.blocks.items() if len(block.shape) > 1 and block.size}
        found = {name: uniformity(block.take(point.theta).reshape(block.shape)) for name, block in matrices.items()}
        sides = {
            f"{name} {side}": Quantity.exact(value)
            for name, u in found.items()
            for side, value in (("left", u.left), ("right", u.right))
        }
        details = {name: {"left": u.left, "right": u.right, "share": u.share} for name, u in found.items()}
        zero = [name for name, u in found.items() if math.isnan(u.share)]
        sided = [(name, f"{name} {side}") for name in zero for side in ("left", "right")]
        remarks = [Remark(Code.ZERO, f"zero: {name}", label) for name, label in sided]
        return Outcome(sides, details, Status(remarks if found else [Remark(Code.LEFT_OUT, "no block has two axes")]))
