"""The exact diagonal of one batch at a group of taps, by one-hot vectors that enter there."""

from __future__ import annotations

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import MeanVariance, Parts, PositionSums, SharedSums
from geomtraj.diagonals.estimator import WIDTH, GroupEstimator, Take, blocks
from geomtraj.diagonals.reuse import exact_reuse_terms
from geomtraj.layers.probe_groups import ProbeGroup


class UnitOneHots(GroupEstimator):
    """Where positions decouple: a vector for each unit, at all positions of all examples."""

    def __init__(self, group: ProbeGroup, take: Take):
        super().__init__(group, take)
        _, units = self.graph.shape(group.taps[0])
        self.blocks = blocks(units, 1)
        self._diagonals = {target: self.zeros(group.taps[0], 1) for target in self.targets}

    def take(self, vectors: range) -> None:
        """The second derivatives of these units."""
        (number,) = self.group.taps
        for unit in vectors:
            v = self.zeros(number, 1)
            v[..., unit] = 1
            for target, images in self.images({number: v}).items():
                self._diagonals[target][..., unit] = images[number][..., unit]

    def add_to(self, parts: Parts) -> None:
        """Add the exact diagonal."""
        for target, diagonal in self._diagonals.items():
            sums = PositionSums()
            sums.add(diagonal)
            sums.add_to(self.group.maps(), getattr(parts, target), exact=True)


class ValueOneHots(GroupEstimator):
    """A vector e for each position and unit of each tap: the sum over them of A(e) * A(d2L/deps2 e)."""

    def __init__(self, group: ProbeGroup, take: Take):
        super().__init__(group, take)
        self._sums: dict[str, list[SharedSums]] = {}
        self._ranges: dict[int, range] = {}
        self.blocks, start = [], 0
        for number in group.taps:
            positions, units = self.graph.shape(number)
            self._ranges[number] = range(start, start + positions * units)
            self.blocks += blocks(positions * units, group.width(WIDTH), start)
            start += positions * units

    def take(self, vectors: range) -> None:
        """Add the products of these vectors with their images."""
        self._sums = self._sums or {target: [SharedSums(maps) for maps in self.maps] for target in self.targets}
        (number,) = (n for n, own in self._ranges.items() if vectors.start in own)
        left = {n: self.zeros(n, len(vectors)) for n in self.group.taps}
        first = vectors.start - self._ranges[number].start
        left[number] += _one_hots(self.graph.shape(number), range(first, first + len(vectors))).to(left[number])
        for target, right in self.images(left).items():
            for one, maps in zip(self._sums[target], self.maps, strict=True):
                for rows in maps.chunks(len(vectors)):
                    one.add(maps.vjp(left, rows) * maps.vjp(right, rows))

    def add_to(self, parts: Parts) -> None:
        """Add the exact diagonal."""
        for target, sums in self._sums.items():
            for one, maps in zip(sums, self.maps, strict=True):
                for estimate in exact_reuse_terms(self.graph, maps) if target == self.reuse_target else ():
                    one.add(estimate)
                one.add_to(getattr(parts, target), exact=True)


class EntryOneHots(GroupEstimator):
    """A vector for each entry of the parameters, the same for all examples."""

    def __init__(self, group: ProbeGroup, take: Take):
        super().__init__(group, take)
        self.blocks, self._starts = [], [0]
        for one in group.shared_entries:
            self.blocks += blocks(one.entries.numel(), group.width(WIDTH), self._starts[-1])
            self._starts.append(self._starts[-1] + one.entries.numel())
        self._found: dict[str, list[list[Tensor]]] = {t: [[] for _ in group.shared_entries] for t in self.targets}

    def take(self, vectors: range) -> None:
        """The diagonal at these entries."""
        which = next(k for k, end in enumerate(self._starts[1:]) if vectors.start < end)
        maps, first = self.maps[which], vectors.start - self._starts[which]
        entries = self.group.shared_entries[which].entries[first : first + len(vectors)]
        chunks = maps.chunks(len(entries))
        moved = maps.jvp(lambda rows: maps.one_hot(entries, rows), chunks)
        left = {n: moved[n] if n in moved else self.zeros(n, len(entries)) for n in self.group.taps}
        for target, right in self.images(left).items():
            own = [(maps.vjp(right, rows) * maps.one_hot(entries, rows)).sum((0, 2)) for rows in chunks]
            self._found[target][which].append(torch.stack(own).sum(0))

    def add_to(self, parts: Parts) -> None:
        """Add the exact diagonal."""
        for target, found in self._found.items():
            accumulator = getattr(parts, target)
            for one, maps, values in zip(self.group.shared_entries, self.maps, found, strict=True):
                accumulator.add(maps.name, one.entries, MeanVariance(torch.cat(values)))
                for estimate in exact_reuse_terms(self.graph, maps) if target == self.reuse_target else ():
                    accumulator.add(maps.name, maps.index, MeanVariance(estimate.sum((0, 1))))


def _one_hots(shape: tuple[int, int], places: range) -> Tensor:
    """One-hot vectors (k, T, U) of one example at some of its T * U places."""
    chosen = torch.zeros(len(places), shape[0] * shape[1])
    chosen[torch.arange(len(places)), torch.arange(places.start, places.stop)] = 1
    return chosen.reshape(-1, *shape)
