"""The contract of estimators: each adds one batch's estimates to accumulators, at a cost that it tells."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum

from torch import Tensor

from geomtraj.diagonals.accumulators import Parts
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.probe_groups import ProbeGroup
from geomtraj.layers.shared_entries import SharedVjp

WIDTH = 8
"""Vectors that are treated side by side at most."""


class Take(Enum):
    """Which second derivatives an estimator at taps takes, and what of the diagonal they give."""

    WHOLE = "the loss's; parts are not told apart"
    GAUSS_NEWTON = "the loss's, whose residual part vanishes"
    RESIDUAL = "the linearised loss's; the Gauss-Newton part comes from elsewhere"
    BOTH = "both; their difference is the Gauss-Newton part"


def to_take(group: ProbeGroup, gauss_newton_elsewhere: bool) -> Take | None:
    """What an estimator has to take at a group of taps; None for nothing."""
    if group.graph.output_hessian is None:
        return Take.WHOLE
    if group.piecewise_linear:
        return None if gauss_newton_elsewhere else Take.GAUSS_NEWTON
    return Take.RESIDUAL if gauss_newton_elsewhere else Take.BOTH


class Estimator(ABC):
    """Estimates of some entries of one batch's diagonal.

    Attributes:
        vectors: How many vectors it takes.
        remark: What is to be said of the entries; "" for nothing.
    """

    vectors: int
    remark = ""

    @abstractmethod
    def run(self, parts: Parts) -> int:
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
    def add_to(self, parts: Parts) -> None:
        """Add what all vectors gave."""

    def run(self, parts: Parts) -> int:
        """Take what is left of the vectors, and add what all of them gave; see `Estimator`."""
        before = self.graph.products
        for block in self.blocks[self._done :]:
            self.take(block)
        self._done = len(self.blocks)
        self.add_to(parts)
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
        take: Which second derivatives.

    Attributes:
        targets: Names of the accumulators that they go to.
    """

    def __init__(self, group: ProbeGroup, take: Take):
        super().__init__(group.graph)
        self.group, self._take = group, take
        both = ("gauss_newton", "residual")
        self.targets = both if take is Take.BOTH else (take.name.lower(),)
        self._maps: list[SharedVjp] | None = None

    @property
    def maps(self) -> list[SharedVjp]:
        """The maps of the group's shared entries; they hold data, so only while vectors are taken."""
        if self._maps is None:
            self._maps = self.group.shared()
        return self._maps

    def run(self, parts: Parts) -> int:
        """Take what is left of the vectors, and add what all of them gave; see `Estimator`."""
        cost = super().run(parts)
        self._maps = None
        return cost

    def seconds(self) -> float:
        """What all vectors will take, told from the first ones, which are taken with that."""
        found = super().seconds()
        self._maps = None
        return found

    def images(self, left: Mapping[int, Tensor]) -> dict[str, dict[int, Tensor]]:
        """For each target the second derivatives by the taps, times vectors (B, k, T, U) at each tap."""
        taps, found = self.group.taps, {}
        vectors = [left[n] for n in taps]
        if self._take in (Take.RESIDUAL, Take.BOTH):
            found["residual"] = self.graph.curvature(taps, vectors, residual=True)
        if self._take is not Take.RESIDUAL:
            whole = self.graph.curvature(taps, vectors)
            if self._take is Take.BOTH:
                whole = [u - r for u, r in zip(whole, found["residual"], strict=True)]
            found[self.targets[0]] = whole
        return {target: dict(zip(taps, found[target], strict=True)) for target in self.targets}

    @property
    def reuse_target(self) -> str:
        """Where a reuse term goes: it is a second derivative of the output."""
        return self.targets[-1]

    def zeros(self, number: int, width: int) -> Tensor:
        """Zeros (B, width, T, U) at one tap."""
        eps = self.graph.taps[number].eps
        return eps.new_zeros(self.graph.examples, width, *self.graph.shape(number))


def blocks(count: int, width: int, start: int = 0) -> list[range]:
    """The numbers from `start` on in blocks of at most `width`."""
    return [range(k, min(k + width, start + count)) for k in range(start, start + count, width)]
