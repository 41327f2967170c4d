"""How much of the Hessian lies between layers: the share of its squared entries off the diagonal blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit

from geomtraj.seeding import generator, rademacher
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic, without
from geomtraj.status import Code

COLUMNS = 8
"""Products at a time."""


@dataclass(frozen=True)
class CrossLayer(Statistic):
    """sum over pairs of blocks b != c of |H_bc|_F^2, over |H|_F^2: "share".

    A random sign vector on block c alone gives |H_bc v_c|^2 for every b in one product, whose mean over signs is
    |H_bc|_F^2. The interval is the jackknife's over the probes (95 %, t). The array "norms" (blocks, blocks) holds the
    estimates of |H_bc|_F, in the order of the details' "blocks".

    Cost: `probes` products for each block.

    Attributes:
        probes: Sign vectors for each block.
        seed: Of the signs.
    """

    name = "cross_layer"
    title = "share of the Hessian between layers"

    probes: int = 4
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """The share at one iterate."""
        H, blocks = point.hessian, list(point.hessian.blocks.values())
        if len(blocks) < 2:
            return without("there is one block: nothing lies between layers", Code.LEFT_OUT)
        before = H.matvecs
        rng = generator(self.seed, "block probes")
        like = torch.empty(0, dtype=H.dtype, device=H.device)
        squares = np.zeros((max(self.probes, 1), len(blocks), len(blocks)))
        jobs = [(probe, c) for probe in range(len(squares)) for c in range(len(blocks))]
        for start in range(0, len(jobs), COLUMNS):
            part = jobs[start : start + COLUMNS]
            V = torch.zeros(H.shape[0], len(part), dtype=H.dtype, device=H.device)
            for column, (_, c) in enumerate(part):
                V[blocks[c].indices.to(H.device), column] = rademacher((blocks[c].size,), rng, like)
            products = (H @ V).T
            for b, block in enumerate(blocks):
                lengths = block.take(products).double().square().sum(1).tolist()
                for (probe, c), length in zip(part, lengths, strict=True):
                    squares[probe, b, c] = length
        squares = (squares + squares.transpose(0, 2, 1)) / 2
        if not np.isfinite(squares).all():
            return without("products with the Hessian are not finite", Code.NOT_FINITE)
        if not squares.sum() > 0:
            return without("the Hessian is zero", Code.ZERO)
        details = {"blocks": [block.name for block in blocks]}
        arrays = {"norms": np.sqrt(squares.mean(0))}
        return Outcome({"share": _interval(squares)}, details, matvecs=H.matvecs - before, arrays=arrays)


def share(squares: np.ndarray) -> float:
    """What lies off the diagonal of sums of squares (blocks, blocks)."""
    total = float(squares.sum())
    return max(1 - float(np.trace(squares)) / total, 0.0) if total else math.nan


def _interval(squares: np.ndarray) -> Quantity:
    value, probes = share(squares.mean(0)), len(squares)
    if probes < 2:
        return Quantity(value)
    left = np.array([share(np.delete(squares, i, 0).mean(0)) for i in range(probes)])
    sem = math.sqrt((probes - 1) / probes * float(((left - left.mean()) ** 2).sum()))
    half = float(stdtrit(probes - 1, 0.975)) * sem
    return Quantity(value, max(value - half, 0.0), min(value + half, 1.0))
