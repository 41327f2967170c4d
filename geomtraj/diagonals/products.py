"""Sums of products A(u) * A(v) over vectors that serve all groups of taps of a batch."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import Accumulator, Parts, PositionSums, SharedSums
from geomtraj.diagonals.estimator import WIDTH, GraphEstimator, blocks
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.probe_groups import ProbeGroup

Pair = tuple[dict[int, Tensor], dict[int, Tensor]]
"""Two vectors (B, T, U) at each tap, by its number; the same object twice if they are the same."""


class Products(GraphEstimator):
    """Sums over pairs of vectors u and v at the taps of A(u) * A(v).

    Args:
        graph: The batch.
        groups: Where.
        count: Number of pairs.
        spread_of: How many of them to take the spread of.
        exact: Whether their sum is the diagonal; else their mean.

    Attributes:
        target: Name of the accumulator that they go to.
    """

    target: str

    def __init__(self, graph: LossGraph, groups: list[ProbeGroup], count: int, *, spread_of: int, exact: bool):
        super().__init__(graph)
        self.groups = groups
        self.taps = [n for g in groups for n in g.taps]
        self.blocks = blocks(count if self.taps else 0, min((g.width(WIDTH) for g in groups), default=1))
        self._spread_of, self._exact = spread_of, exact
        self._at_positions = [(g, PositionSums()) for g in groups if g.positions_decouple]
        self._shared = [(g, [SharedSums(c) for c in g.shared()]) for g in groups if not g.positions_decouple]

    @abstractmethod
    def pair(self, number: int) -> Pair:
        """One pair."""

    def take(self, vectors: range) -> None:
        """Add the products of these pairs."""
        left, right = self._pairs(vectors)
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
        for group in self.groups:
            self.add_group_to(group, getattr(parts, self.target))

    def add_group_to(self, group: ProbeGroup, accumulator: Accumulator) -> None:
        """Add the estimate at one group of taps."""
        for other, at_positions in self._at_positions:
            if other is group:
                at_positions.add_to(group.maps(), accumulator, self._exact)
        for other, sums in self._shared:
            for one in sums if other is group else ():
                one.add_to(accumulator, self._exact)

    def _pairs(self, vectors: range) -> Pair:
        """Pairs side by side, (B, k, T, U) by taps."""
        pairs = [self.pair(k) for k in vectors]
        left = {n: torch.stack([u[n] for u, _ in pairs], 1) for n in self.taps}
        if pairs[0][0] is pairs[0][1]:
            return left, left
        return left, {n: torch.stack([v[n] for _, v in pairs], 1) for n in self.taps}
