"""The exact diagonal of one batch at a group of taps, by one-hot vectors that enter there."""

from __future__ import annotations

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import Accumulator, MeanVariance, PositionSums, SharedSums
from geomtraj.diagonals.estimator import WIDTH, GroupEstimator, blocks
from geomtraj.diagonals.reuse import exact_reuse_terms
from geomtraj.layers.probe_groups import ProbeGroup


class UnitOneHots(GroupEstimator):
    """Where positions decouple: a vector for each unit, at all positions of all examples."""

    def __init__(self, group: ProbeGroup):
        super().__init__(group)
        _, units = group.graph.shape(group.taps[0])
        self.blocks = blocks(units, 1)
        self._diagonal = self.zeros(group.taps[0], 1)

    def take(self, vectors: range) -> None:
        """The second derivatives of these units."""
        (number,) = self.group.taps
        for unit in vectors:
            v = torch.zeros_like(self._diagonal)
            v[..., unit] = 1
            (u,) = self.graph.curvature([number], [v])
            self._diagonal[..., unit] = u[..., unit]

    def add_to(self, accumulator: Accumulator) -> None:
        """Add the exact diagonal."""
        sums = PositionSums()
        sums.add(self._diagonal)
        sums.add_to(self.group.maps(), accumulator, exact=True)


class ValueOneHots(GroupEstimator):
    """A vector e for each position and unit of each tap: the sum over them of A(e) * A(d2L/deps2 e)."""

    def __init__(self, group: ProbeGroup):
        super().__init__(group)
        self._sums = list[SharedSums]()
        self._ranges: dict[int, range] = {}
        self.blocks, start = [], 0
        for number in group.taps:
            positions, units = group.graph.shape(number)
            self._ranges[number] = range(start, start + positions * units)
            self.blocks += blocks(positions * units, group.width(WIDTH), start)
            start += positions * units

    def take(self, vectors: range) -> None:
        """Add the products of these vectors with their images."""
        graph, group = self.graph, self.group
        self._sums = self._sums or [SharedSums(maps) for maps in self.maps]
        (number,) = (n for n, own in self._ranges.items() if vectors.start in own)
        left = {n: self.zeros(n, len(vectors)) for n in group.taps}
        first = vectors.start - self._ranges[number].start
        left[number] += _one_hots(graph.shape(number), range(first, first + len(vectors))).to(left[number])
        found = graph.curvature(group.taps, [left[n] for n in group.taps])
        right = dict(zip(group.taps, found, strict=True))
        for one, maps in zip(self._sums, self.maps, strict=True):
            for rows in maps.chunks(len(vectors)):
                one.add(maps.vjp(left, rows) * maps.vjp(right, rows))

    def add_to(self, accumulator: Accumulator) -> None:
        """Add the exact diagonal."""
        for one, maps in zip(self._sums, self.maps, strict=True):
            for estimate in exact_reuse_terms(self.graph, maps):
                one.add(estimate)
            one.add_to(accumulator, exact=True)


class EntryOneHots(GroupEstimator):
    """A vector for each entry of the parameters, the same for all examples."""

    def __init__(self, group: ProbeGroup):
        super().__init__(group)
        self.blocks, start = [], 0
        self._starts = [0]
        for one in group.shared_entries:
            self.blocks += blocks(one.entries.numel(), group.width(WIDTH), start)
            start += one.entries.numel()
            self._starts.append(start)
        self._found: list[list[Tensor]] = [[] for _ in group.shared_entries]

    def take(self, vectors: range) -> None:
        """The diagonal at these entries."""
        graph, group = self.graph, self.group
        which = next(k for k, end in enumerate(self._starts[1:]) if vectors.start < end)
        maps, first = self.maps[which], vectors.start - self._starts[which]
        entries = group.shared_entries[which].entries[first : first + len(vectors)]
        chunks = maps.chunks(len(entries))
        moved = maps.jvp(lambda rows: maps.one_hot(entries, rows), chunks)
        left = [moved[n] if n in moved else self.zeros(n, len(entries)) for n in group.taps]
        right = dict(zip(group.taps, graph.curvature(group.taps, left), strict=True))
        own = [(maps.vjp(right, rows) * maps.one_hot(entries, rows)).sum((0, 2)) for rows in chunks]
        self._found[which].append(torch.stack(own).sum(0))

    def add_to(self, accumulator: Accumulator) -> None:
        """Add the exact diagonal."""
        for one, maps, found in zip(self.group.shared_entries, self.maps, self._found, strict=True):
            accumulator.add(maps.name, one.entries, MeanVariance(torch.cat(found)))
            for estimate in exact_reuse_terms(self.graph, maps):
                accumulator.add(maps.name, maps.index, MeanVariance(estimate.sum((0, 1))))


def _one_hots(shape: tuple[int, int], places: range) -> Tensor:
    """One-hot vectors (k, T, U) of one example at some of its T * U places."""
    chosen = torch.zeros(len(places), shape[0] * shape[1])
    chosen[torch.arange(len(places)), torch.arange(places.start, places.stop)] = 1
    return chosen.reshape(-1, *shape)
