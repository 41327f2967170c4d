"""How far the Hessian's leading eigenvectors have moved, how localised they are, what of the gradient they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomtraj.linalg import Eigenpairs, eigsh
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic, without
from geomtraj.status import Code, Remark, Status


@dataclass(frozen=True)
class Eigenvectors(Statistic):
    """The k leading eigenvectors V = (v_1 .. v_k) of the Hessian, and what became of those of the iterate before, W.

    "displacement" 1 - (v_1'w_1)^2; "overlap" |V'W|_F^2 / k; "participation" P sum_i v_1i^4, 3 for a Gaussian vector and
    P for one entry alone; "gradient_share" |V'g|^2 / |g|^2. Beside each its value for random directions:
    "displacement_null" 1 - 1/P, "overlap_null" and "gradient_share_null" k/P, "participation_null" 3 P / (P + 2). The
    arrays hold "vectors" (P, k) in float32 and "values" (k,).

    An eigenvector is known up to the angle residual / gap, with the distance to the next eigenvalue for the gap; the
    intervals of displacement and overlap come from it, and are wide where eigenvalues nearly meet.

    W is the stored result at the iterate before, if there is one; else it is searched for there, which takes as many
    products again. The vectors there are also where the search here begins, which saves products and changes the
    numbers within those angles alone: how many and which iterates were measured before does not matter beyond them.

    Cost: a Lanczos search for k + 1 eigenpairs (`gt.eigsh`), and another one where the iterate before has none. Warm
    starts save little beside that: 306 and 368 products for 337 and 423 with k = 1 (Adam and SGD with momentum, 13
    iterates 5 steps apart), 459 and 673 for 470 and 684 with k = 5 (`benchmarks/warm_starts.py`).

    Attributes:
        k: Number of eigenvectors.
        tol: Residual, relative to the eigenvalue, up to which one has converged.
        warm: Whether a search begins at the vectors of the iterate before.
        seed: Of the start.

    Source: arXiv 2606.30226 (displacement, overlap, localisation); the nulls: moments of a uniform unit vector.
    """

    name = "eigenvectors"
    title = "movement and localisation of the leading eigenvectors"
    needs = ("trajectory",)

    k: int = 5
    tol: float = 1e-3
    warm: bool = True
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """The eigenvectors of one iterate against those of the one before."""
        size, remarks, spent = point.problem.size, [], 0
        k = max(min(self.k, size), 1)
        earlier = None
        if point.before is None:
            text = "no iterate stands before this one, so that nothing tells how far the vectors moved"
            remarks.append(Remark(Code.NOTE, text))
        else:
            earlier, spent = self._earlier(point, k)
        warm = earlier.vectors if earlier is not None and self.warm else None
        pairs = self._search(point, k, warm)
        spent += pairs.matvecs
        found = _Known.of(pairs, k)
        if not found.vectors.isfinite().all():
            return without("no eigenvectors were found: products with the Hessian are not finite", Code.NOT_FINITE)
        if not pairs.converged[:k].all():
            remarks.append(Remark(Code.NOT_CONVERGED, f"{int((~pairs.converged[:k]).sum())} of {k} have not converged"))
        quantities = _here(found, point.gradient.double().cpu(), size)
        if "gradient_share" not in quantities:
            text = "gradient_share: the gradient is zero and has no direction"
            remarks.append(Remark(Code.ZERO, text, "gradient_share"))
        if earlier is not None:
            quantities |= _moved(found, earlier, size)
        arrays = {"vectors": found.vectors.float().numpy(), "values": found.values.numpy()}
        details = {
            "values": found.values.tolist(),
            "angles": found.angles.tolist(),
            "warm": warm is not None,
        }
        return Outcome(quantities, details, Status(remarks), spent, arrays)

    def _earlier(self, point: Point, k: int) -> tuple[_Known | None, int]:
        """The vectors at the iterate before, stored ones or new ones, and the products that those took."""
        stored = point.history.found_before(self)
        if stored is not None and "vectors" in stored.arrays:
            vectors = torch.from_numpy(np.array(stored.arrays["vectors"])).double()
            values = torch.from_numpy(np.array(stored.arrays["values"])).double()
            if vectors.shape == (point.problem.size, k):
                return _Known(values, vectors, torch.tensor(stored.details["angles"]).double()), 0
        with point.history.standing_before(point.problem) as other:
            if not math.isfinite(other.loss):
                return None, 0
            pairs = self._search(other, k, None)
        found = _Known.of(pairs, k)
        return (found if found.vectors.isfinite().all() else None), pairs.matvecs

    def _search(self, point: Point, k: int, start: Tensor | None) -> Eigenpairs:
        options: dict[str, Any] = {}
        if start is not None:
            near = start.sum(1, keepdim=True)
            if float(near.norm()) > 0:
                options["start"] = start.to(point.problem.device, point.problem.dtype)
        return eigsh(point.hessian, min(k + 1, point.problem.size), "LA", self.tol, self.seed, **options)


@dataclass(frozen=True)
class _Known:
    """Leading eigenpairs, and up to which angle each vector is known; all float64 on the CPU."""

    values: Tensor
    vectors: Tensor
    angles: Tensor

    @classmethod
    def of(cls, pairs: Eigenpairs, k: int) -> _Known:
        values = pairs.values.double()
        gaps = torch.full((k,), math.inf, dtype=torch.float64)
        for i in range(k):
            others = torch.cat([values[:i], values[i + 1 :]])
            if others.numel():
                gaps[i] = (values[i] - others).abs().min()
        angles = (pairs.residuals[:k].double() / gaps.clamp(min=1e-300)).clamp(max=math.pi / 2).nan_to_num(math.pi / 2)
        return cls(values[:k], pairs.vectors[:, :k].double().cpu(), angles)


def _here(found: _Known, g: Tensor, size: int) -> dict[str, Quantity]:
    k = found.values.numel()
    quantities = {
        "participation": Quantity.exact(size * float(found.vectors[:, 0].pow(4).sum())),
        "participation_null": Quantity.exact(3 * size / (size + 2)),
    }
    if float(g @ g) > 0:
        quantities["gradient_share"] = Quantity.exact(float((found.vectors.T @ g).square().sum() / (g @ g)))
        quantities["gradient_share_null"] = Quantity.exact(k / size)
    return quantities


def _moved(found: _Known, earlier: _Known, size: int) -> dict[str, Quantity]:
    k = found.values.numel()
    between = found.vectors.T @ earlier.vectors
    angle = math.acos(min(abs(float(between[0, 0])), 1.0))
    doubt = float(found.angles[0] + earlier.angles[0])
    low, high = max(angle - doubt, 0.0), min(angle + doubt, math.pi / 2)
    overlap = min(float(between.square().sum()) / k, 1.0)
    # A subspace turned by an angle changes each cosine by no more than its sine.
    slack = 2 * float((found.angles.sin() + earlier.angles.sin()).sum()) / k
    return {
        "displacement": Quantity(math.sin(angle) ** 2, math.sin(low) ** 2, math.sin(high) ** 2),
        "displacement_null": Quantity.exact(1 - 1 / size),
        "overlap": Quantity(overlap, max(overlap - slack, 0.0), min(overlap + slack, 1.0)),
        "overlap_null": Quantity.exact(k / size),
    }
