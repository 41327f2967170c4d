"""The diagonal of the Gauss-Newton part of one batch, for all groups of taps by the same passes."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import Parts, PositionSums, SharedSums
from geomtraj.diagonals.estimator import WIDTH, GraphEstimator, blocks
from geomtraj.diagonals.sampling import Sampling
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.probe_groups import ProbeGroup

FEW_OUTPUTS = 32
"""Entries of the output up to which one-hot vectors take the place of random ones, whatever the samples."""


def outputs(graph: LossGraph) -> float:
    """How many entries the output of one example has; infinite where the loss's curvature has no known factor."""
    return math.inf if graph.output_hessian is None else math.prod(graph.output_shape)


class _OutputVectors(GraphEstimator):
    """Sums over vectors xi of A(J^T F xi) * A(J^T F S xi).

    Args:
        graph: The batch.
        groups: Where.
        count: Number of vectors.
        spread_of: How many of them to take the spread of.
        exact: Whether their sum is the diagonal; else their mean.
    """

    def __init__(self, graph: LossGraph, groups: list[ProbeGroup], count: int, *, spread_of: int, exact: bool):
        super().__init__(graph)
        self.groups = groups
        self.taps = [n for g in groups for n in g.taps]
        self.blocks = blocks(count if self.taps else 0, min((g.width(WIDTH) for g in groups), default=1))
        self._spread_of, self._exact = spread_of, exact
        self._at_positions = [(g, PositionSums()) for g in groups if g.positions_decouple]
        self._shared = [(g, [SharedSums(c) for c in g.shared()]) for g in groups if not g.positions_decouple]

    @abstractmethod
    def vector(self, number: int) -> Tensor:
        """One vector for each example, (B, *output_shape)."""

    def take(self, vectors: range) -> None:
        """Add the squares of these vectors."""
        left, right = self._pulled(vectors)
        for group, at_positions in self._at_positions:
            number = group.taps[0]
            at_positions.add(left[number] * right[number])
        for group, sums in self._shared:
            for one, maps in zip(sums, group.shared(), strict=True):
                with_spread = vectors.start < self._spread_of and len(vectors) > 1
                for rows in maps.chunks(len(vectors)):
                    estimate = maps.vjp(left, rows)
                    one.add(estimate * (estimate if right is left else maps.vjp(right, rows)), with_spread)
                one.added(len(vectors), with_spread)

    def add_to(self, parts: Parts) -> None:
        """Add the diagonal's estimate."""
        for group, at_positions in self._at_positions if self.taps else ():
            at_positions.add_to(group.maps(), parts.gauss_newton, self._exact)
        for _, sums in self._shared:
            for one in sums:
                one.add_to(parts.gauss_newton, self._exact)

    def _pulled(self, vectors: range) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """J^T F xi and J^T F S xi (B, k, T, U) by taps."""
        pulled = [self.graph.root_vjps(self.taps, self.vector(k)) for k in vectors]
        left = {n: torch.stack([p[0][i] for p in pulled], 1) for i, n in enumerate(self.taps)}
        if pulled[0][0] is pulled[0][1]:
            return left, left
        return left, {n: torch.stack([p[1][i] for p in pulled], 1) for i, n in enumerate(self.taps)}


class OutputOneHots(_OutputVectors):
    """The diagonal of J^T F S F^T J, exactly: the sum over one-hot xi, one for each entry of the output."""

    def __init__(self, graph: LossGraph, groups: list[ProbeGroup]):
        super().__init__(graph, groups, math.prod(graph.output_shape), spread_of=0, exact=True)

    def vector(self, number: int) -> Tensor:
        """The same one-hot vector for each example."""
        like = self.graph.taps[0].eps
        xi = torch.zeros(self.graph.examples, math.prod(self.graph.output_shape), dtype=like.dtype, device=like.device)
        xi[:, number] = 1
        return xi.reshape(-1, *self.graph.output_shape)


class OutputSigns(_OutputVectors):
    """The mean over random signs xi in the place of one-hot ones: a relative error of sqrt(2 / (B samples))."""

    def __init__(self, graph: LossGraph, groups: list[ProbeGroup], sampling: Sampling, ids: Tensor, purpose: str):
        super().__init__(graph, groups, sampling.samples, spread_of=sampling.spread_samples, exact=False)
        self._signs, self._ids = sampling.signs(purpose), ids

    def vector(self, number: int) -> Tensor:
        """Signs of each example's own."""
        dtype = self.graph.taps[0].eps.dtype
        return self._signs.of_examples(self._ids, number, self.graph.output_shape, dtype)
