"""The shape of the path that training has taken, beside that of a random walk; no product is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from geomtraj.errors import TrajectoryError
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic
from geomtraj.status import Code, Remark, Status

WALKS = 100
"""Random walks whose spread gives the null's interval."""
BLOCK_BYTES = 2**28
"""Parameters that are held at once while inner products are taken."""


@dataclass(frozen=True)
class Path(Statistic):
    """The share of the first principal component, and the turn, of the path up to each iterate.

    With rows theta_s - theta_0 for the recorded iterates s up to here: "pc1" is lambda_1 / sum lambda of their Gram
    matrix, and "pc1_null" what an isotropic random walk with the same steps between its records has, in as many
    dimensions (mean, and the range of 95 % of walks): 8 / pi^2 = 81 % of a long uncentred walk, 6 / pi^2 = 61 % of a
    centred one and about 70 % with rows of length 1. "turning" is the angle in radians between the moves to and from
    this iterate, 0 for a straight path, and "turning_null" that of a walk, pi / 2 +- 1.96 / sqrt(P).

    All numbers of the path itself are exact. They belong to the iterates as recorded: other schedules, other numbers.

    Cost: no product; each iterate is read once for a run of measurements, however many iterates are measured.

    Attributes:
        centred: Whether the rows' mean is taken off.
        normalised: Whether rows are scaled to length 1 (after centring).
        seed: Of the random walks.

    Source: arXiv 2602.23696 for the claim, whose null it does not draw; the Gram matrix of a walk is min(s, t).
    """

    name = "path"
    title = "shape of the path, beside a random walk's"
    needs = ("trajectory", "before")

    centred: bool = False
    normalised: bool = False
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """The path from the first recorded iterate to this one."""
        steps, gram, unread = _gram(point)
        here = point.iterate.step
        if here not in steps:
            return Outcome({}, status=Status([Remark(Code.LEFT_OUT, "this iterate is not a part of its trajectory")]))
        count = steps.index(here) + 1
        remarks = []
        if unread:
            text = f"{len(unread)} iterates cannot be read and are left out of the path"
            remarks.append(Remark(Code.LEFT_OUT, text))
        quantities = {}
        moved = gram[1:count, 1:count]
        if count < 3 or not np.trace(moved) > 0:
            text = "fewer than two moves were recorded up to here" if count < 3 else "nothing has moved"
            remarks.append(Remark(Code.LEFT_OUT, f"pc1: {text}, so there are no components", "pc1"))
        else:
            quantities["pc1"] = Quantity.exact(share(self._formed(moved)))
            quantities["pc1_null"] = self._null(np.array(steps[1:count]) - steps[0], point.problem.size)
        turn = turning(gram, count - 1)
        if turn is None:
            remarks.append(Remark(Code.NOTE, "turning is not there: one of the moves to and from here is missing"))
        else:
            quantities["turning"] = Quantity.exact(turn)
            half = 1.96 / math.sqrt(point.problem.size)
            quantities["turning_null"] = Quantity(math.pi / 2, max(math.pi / 2 - half, 0.0), math.pi / 2 + half)
        gone = math.sqrt(max(float(gram[count - 1, count - 1]), 0.0))
        return Outcome(quantities, {"iterates": count, "distance": gone}, Status(remarks))

    def _formed(self, gram: np.ndarray) -> np.ndarray:
        """The Gram matrix of the rows as they are asked for."""
        return formed(gram, self.centred, self.normalised)

    def _null(self, times: np.ndarray, size: int) -> Quantity:
        """The first component's share of random walks in `size` dimensions, recorded at these times."""
        covariance = np.minimum.outer(times, times).astype(np.float64)
        root = np.linalg.cholesky(covariance)
        rng = np.random.default_rng(abs(int(self.seed)))
        walks = max(min(WALKS, 10**8 // len(times) ** 3), 20)
        shares = sorted(share(self._formed(root @ wishart(len(times), size, rng) @ root.T)) for _ in range(walks))
        low, high = np.quantile(shares, [0.025, 0.975])
        return Quantity(float(np.mean(shares)), float(low), float(high))


def share(gram: np.ndarray) -> float:
    """The largest of the eigenvalues over their sum."""
    return float(np.linalg.eigvalsh(gram)[-1] / np.trace(gram))


def formed(gram: np.ndarray, centred: bool, normalised: bool) -> np.ndarray:
    """The Gram matrix (T, T) of rows that are centred, then scaled to length 1."""
    if centred:
        gram = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    if normalised:
        lengths = np.sqrt(np.clip(np.diag(gram), 0, None))
        lengths[lengths == 0] = 1.0
        gram = gram / np.outer(lengths, lengths)
    return gram


def wishart(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """X X' / size of a Gaussian matrix X (count, size), by Bartlett's factor where it is wide."""
    if size < count:
        X = rng.standard_normal((count, size))
        return X @ X.T / size
    factor = np.tril(rng.standard_normal((count, count)), -1)
    factor[np.diag_indices(count)] = np.sqrt(rng.chisquare(size - np.arange(count)))
    return factor @ factor.T / size


def turning(gram: np.ndarray, place: int) -> float | None:
    """The angle between the moves to and from a row of theta_s - theta_0; None where one is missing or zero."""
    if not 0 < place < len(gram) - 1:
        return None
    b, h, a = place - 1, place, place + 1
    to = gram[h, h] - 2 * gram[b, h] + gram[b, b]
    back = gram[a, a] - 2 * gram[a, h] + gram[h, h]
    if not (to > 0 and back > 0):
        return None
    cosine = (gram[h, a] - gram[h, h] - gram[b, a] + gram[b, h]) / math.sqrt(to * back)
    return math.acos(min(max(float(cosine), -1.0), 1.0))


def _gram(point: Point) -> tuple[list[int], np.ndarray, list[int]]:
    """Steps of the readable iterates, inner products of theta_s - theta_0 of each two, and steps of the others."""
    cache = point.history.cache
    if "gram" not in cache:
        cache["gram"] = _streamed(point, point.history.trajectory)
    return cache["gram"]


def _streamed(point: Point, trajectory: Any) -> tuple[list[int], np.ndarray, list[int]]:
    steps = list(trajectory.steps)

    def read(step: int) -> torch.Tensor | None:
        try:
            return point.problem.layout.flatten(trajectory.at_step(step).parameters).double()
        except TrajectoryError:
            return None

    start = next(theta for theta in map(read, steps) if theta is not None)  # at least this point's own was read
    block = max(int(BLOCK_BYTES // (8 * max(start.numel(), 1))), 1)
    gram = np.zeros((len(steps), len(steps)))

    def row(step: int) -> torch.Tensor:
        theta = read(step)
        return torch.full_like(start, math.nan) if theta is None else theta - start

    for first in range(0, len(steps), block):
        held = torch.stack([row(step) for step in steps[first : first + block]])
        last = first + len(held)
        gram[first:last, first:last] = (held @ held.T).numpy()
        for place in range(last, len(steps)):
            gram[first:last, place] = gram[place, first:last] = (held @ row(steps[place])).numpy()
    whole = [i for i in range(len(steps)) if math.isfinite(gram[i, i])]
    return [steps[i] for i in whole], gram[np.ix_(whole, whole)], [s for i, s in enumerate(steps) if i not in whole]
