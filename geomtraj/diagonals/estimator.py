"""The contract of estimators: each adds one batch's estimates to an accumulator, at a cost that it tells."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from torch import Tensor

from geomtraj.diagonals.accumulators import Accumulator
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.probe_groups import ProbeGroup
from geomtraj.layers.shared_entries import SharedVjp

WIDTH = 8
"""Vectors that are treated side by side at most."""


class Estimator(ABC):
    """Estimates of some entries of one batch's diagonal.

    Attributes:
        vectors: How many vectors it takes.
        remark: What is to be said of the entries; "" for nothing.
    """

    vectors: int
    remark = ""

    @abstractmethod
    def run(self, accumulator: Accumulator) -> int:
        """Add the estimates.

        Returns:
            The derivatives of the batch along one vector that were taken.
        """


class GraphEstimator(Estimator):
    """An estimator by derivatives of a batch's graph, some vectors at a time.

    Args:
        graph: The batch.

    Attributes:
        blocks: The numbers of the vectors, as they are treated side by side.
    """

    blocks: list[range]

    def __init__(self, graph: LossGraph):
        self.graph = graph
        self._done = 0

    @property
    def vectors(self) -> int:  # type: ignore[override]
        """How many vectors it takes."""
        return sum(map(len, self.blocks))

    @abstractmethod
    def take(self, vectors: range) -> None:
        """Take these vectors."""

    @abstractmethod
    def add_to(self, accumulator: Accumulator) -> None:
        """Add what all vectors gave."""

    def run(self, accumulator: Accumulator) -> int:
        """Take what is left of the vectors, and add what all of them gave; see `Estimator`."""
        before = self.graph.products
        for block in self.blocks[self._done :]:
            self.take(block)
        self._done = len(self.blocks)
        self.add_to(accumulator)
        return self.graph.products - before

    def seconds(self) -> float:
        """What all vectors will take, told from the first ones, which are taken with that."""
        start = time.perf_counter()
        self.take(self.blocks[0])
        self._done = 1
        return (time.perf_counter() - start) * self.vectors / len(self.blocks[0])


class GroupEstimator(GraphEstimator):
    """An estimator at one group of taps.

    Args:
        group: The taps.
    """

    def __init__(self, group: ProbeGroup):
        super().__init__(group.graph)
        self.group = group
        self._maps: list[SharedVjp] | None = None

    @property
    def maps(self) -> list[SharedVjp]:
        """The maps of the group's shared entries; they hold data, so only while vectors are taken."""
        if self._maps is None:
            self._maps = self.group.shared()
        return self._maps

    def run(self, accumulator: Accumulator) -> int:
        """Take what is left of the vectors, and add what all of them gave; see `Estimator`."""
        cost = super().run(accumulator)
        self._maps = None
        return cost

    def seconds(self) -> float:
        """What all vectors will take, told from the first ones, which are taken with that."""
        found = super().seconds()
        self._maps = None
        return found

    def zeros(self, number: int, width: int) -> Tensor:
        """Zeros (B, width, T, U) at one tap."""
        eps = self.graph.taps[number].eps
        return eps.new_zeros(self.graph.examples, width, *self.graph.shape(number))


def blocks(count: int, width: int, start: int = 0) -> list[range]:
    """The numbers from `start` on in blocks of at most `width`."""
    return [range(k, min(k + width, start + count)) for k in range(start, start + count, width)]
