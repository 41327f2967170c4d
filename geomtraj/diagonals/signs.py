"""The diagonal of one batch at a group of taps by random signs, each example with its own."""

from __future__ import annotations

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import Parts, PositionSums, SharedSums
from geomtraj.diagonals.estimator import WIDTH, GroupEstimator, Take, blocks
from geomtraj.diagonals.reuse import ReuseTerm
from geomtraj.diagonals.sampling import Sampling
from geomtraj.layers.probe_groups import ProbeGroup
from geomtraj.layers.shared_entries import SharedVjp


class _Signs(GroupEstimator):
    """The mean over random vectors v of A(v) * A(d2L/deps2 v).

    Args:
        group: The taps.
        take: Which second derivatives.
        sampling: How many vectors.
        ids: Numbers (B,) of the examples in the data.
    """

    def __init__(self, group: ProbeGroup, take: Take, sampling: Sampling, ids: Tensor):
        super().__init__(group, take)
        self.sampling, self.ids = sampling, ids
        self.blocks = blocks(sampling.samples, WIDTH if group.positions_decouple else group.width(WIDTH))

    def at_tap(self, number: int, vectors: range) -> Tensor:
        """Signs (B, k, T, U) at one tap."""
        shape, dtype = self.graph.shape(number), self.graph.taps[number].eps.dtype
        signs = self.sampling.signs(f"probing, site {number}")  # the name keeps the draws of a seed as they were
        return torch.stack([signs.of_examples(self.ids, k, shape, dtype) for k in vectors], 1)


class PositionSigns(_Signs):
    """Where positions decouple: products of different positions, which are noise, are left out."""

    def __init__(self, group: ProbeGroup, take: Take, sampling: Sampling, ids: Tensor):
        super().__init__(group, take, sampling, ids)
        self._sums = {target: PositionSums() for target in self.targets}

    def take(self, vectors: range) -> None:
        """Add the products of these vectors with their images."""
        (number,) = self.group.taps
        v = self.at_tap(number, vectors)
        for target, images in self.images({number: v}).items():
            self._sums[target].add(images[number] * v)

    def add_to(self, parts: Parts) -> None:
        """Add the mean."""
        for target, sums in self._sums.items():
            sums.add_to(self.group.maps(), getattr(parts, target))


class TapSigns(_Signs):
    """Signs on the outputs that the parameters give: one for each position and unit."""

    def __init__(self, group: ProbeGroup, take: Take, sampling: Sampling, ids: Tensor):
        super().__init__(group, take, sampling, ids)
        self._sums: dict[str, list[SharedSums]] = {}
        self._reuse: list[ReuseTerm] = []

    def take(self, vectors: range) -> None:
        """Add the products of these vectors with their images."""
        self._add(vectors, vectors.start < self.sampling.spread_samples and len(vectors) > 1, None)

    def pilot(self, vectors: range) -> float:
        """The spread of the first example's estimates by vectors that the estimate itself does not take."""
        for block in blocks(len(vectors), self.group.width(WIDTH), vectors.start):
            self._add(block, True, 1)
        return sum(float(one.variance.nan_to_num(0, 0, 0).sum()) for sums in self._sums.values() for one in sums)

    def add_to(self, parts: Parts) -> None:
        """Add the mean."""
        for target, sums in self._sums.items():
            for one in sums:
                one.add_to(getattr(parts, target))

    def left(self, vectors: range) -> dict[int, Tensor]:
        """The random vectors (B, k, T, U) at each tap."""
        return {n: self.at_tap(n, vectors) for n in self.group.taps}

    def on_entries(self, maps: SharedVjp, vectors: range, rows: slice, left: dict[int, Tensor]) -> Tensor:
        """A(v), (rows, k, K)."""
        return maps.vjp(left, rows)

    def _add(self, vectors: range, with_spread: bool, examples: int | None) -> None:
        """Add products over the first examples, or (None) all."""
        if not self._sums:
            self._sums = {target: [SharedSums(maps) for maps in self.maps] for target in self.targets}
            signs = self.sampling.signs("probing, feedback")
            self._reuse = [ReuseTerm(self.graph, maps, signs, self.ids) for maps in self.maps]
        left = self.left(vectors)
        for target, right in self.images(left).items():
            for one, maps, term in zip(self._sums[target], self.maps, self._reuse, strict=True):
                reuse = term.estimate(vectors) if target == self.reuse_target else None
                for rows in maps.chunks(len(vectors)) if examples is None else [slice(0, examples)]:
                    estimate = self.on_entries(maps, vectors, rows, left) * maps.vjp(right, rows)
                    one.add(estimate if reuse is None else estimate + reuse(rows), with_spread)
                one.added(len(vectors), with_spread)


class EntrySigns(TapSigns):
    """Signs on the entries of each example's own parameter; better for what has one input (Cauchy-Schwarz)."""

    def left(self, vectors: range) -> dict[int, Tensor]:
        """What the signs on the entries do at each tap (B, k, T, U)."""
        total: dict[int, Tensor] = {}
        for maps in self.maps:
            chunks = maps.chunks(len(vectors))
            for n, v in maps.jvp(lambda rows, m=maps: self._entries(m, vectors, rows), chunks).items():  # type: ignore[misc]
                total[n] = total[n] + v if n in total else v
        return total

    def on_entries(self, maps: SharedVjp, vectors: range, rows: slice, left: dict[int, Tensor]) -> Tensor:
        """The signs themselves, (rows, k, K)."""
        return self._entries(maps, vectors, rows)

    def _entries(self, maps: SharedVjp, vectors: range, rows: slice) -> Tensor:
        signs, dtype = self.sampling.signs(f"probing, entries {maps.places}"), self.graph.taps[0].eps.dtype
        if maps.pairs is not None:
            owners, entries = maps.pairs
            return torch.stack([signs.of_pairs(self.ids[owners], entries, k, dtype) for k in vectors])[None]
        return torch.stack([signs.of_examples(self.ids[rows], k, (maps.width,), dtype) for k in vectors], 1)
