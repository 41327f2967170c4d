"""The diagonal of the Gauss-Newton part of one batch, for all groups of taps by the same passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import Accumulator, PositionSums, SharedSums
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.probe_groups import ProbeGroup

WIDTH = 8
"""Vectors that are treated side by side at most."""


def outputs(graph: LossGraph) -> float:
    """How many entries the output of one example has; infinite where the loss's curvature has no known factor."""
    return math.inf if graph.output_hessian is None else math.prod(graph.output_shape)


def gauss_newton_exact(graph: LossGraph, groups: list[ProbeGroup], accumulator: Accumulator) -> Iterator[int]:
    """Add the diagonal of J^T F S F^T J, exactly: the sum over one-hot xi of A(J^T F xi) * A(J^T F S xi).

    It is there when the iterator ends; on the way that yields the number of vectors done so far.
    """
    size = math.prod(graph.output_shape)

    def one_hot(k: int) -> Tensor:
        like = graph.taps[0].eps
        xi = torch.zeros(graph.examples, size, dtype=like.dtype, device=like.device)
        xi[:, k] = 1
        return xi.reshape(-1, *graph.output_shape)

    return _add(graph, groups, accumulator, size, one_hot, spread_of=0, exact=True)


def gauss_newton_sampled(
    graph: LossGraph,
    groups: list[ProbeGroup],
    accumulator: Accumulator,
    samples: int,
    xi: Callable[[int], Tensor],
    spread_of: int,
) -> None:
    """Add the mean over random xi in the place of one-hot ones; a standard error of sqrt(2 / (B samples)).

    Args:
        graph: The batch.
        groups: Where.
        accumulator: Where to add.
        samples: Number of random vectors.
        xi: The k-th of them, (B, *output_shape).
        spread_of: How many of them to take the spread of.
    """
    for _ in _add(graph, groups, accumulator, samples, xi, spread_of, exact=False):
        pass


def _add(
    graph: LossGraph,
    groups: list[ProbeGroup],
    accumulator: Accumulator,
    count: int,
    xi: Callable[[int], Tensor],
    spread_of: int,
    exact: bool,
) -> Iterator[int]:
    shared = {id(g): [SharedSums(c) for c in g.shared()] for g in groups if not g.positions_decouple}
    pointwise = {id(g): PositionSums() for g in groups if g.positions_decouple}
    for start, left, right in _passes(graph, groups, count, xi):
        for group in groups:
            if group.positions_decouple:
                number = group.taps[0]
                pointwise[id(group)].add(left[number] * right[number])
                continue
            for one, maps in zip(shared[id(group)], group.shared(), strict=True):
                vectors = left[group.taps[0]].shape[1]
                with_spread = start < spread_of and vectors > 1
                for rows in maps.chunks(vectors):
                    estimate = maps.vjp(left, rows)
                    one.add(estimate * (estimate if right is left else maps.vjp(right, rows)), with_spread)
                one.added(vectors, with_spread)
        yield start + 1
    for group in groups:
        if group.positions_decouple:
            pointwise[id(group)].add_to(group.maps(), accumulator, exact)
        else:
            for one in shared[id(group)]:
                one.add_to(accumulator, exact)


def _passes(
    graph: LossGraph, groups: list[ProbeGroup], count: int, xi: Callable[[int], Tensor]
) -> Iterator[tuple[int, dict[int, Tensor], dict[int, Tensor]]]:
    """Number of the first vector, and J^T F xi and J^T F S xi (B, k, T, U) by taps, for k vectors at a time."""
    numbers = [n for g in groups for n in g.taps]
    if not numbers:
        return
    width = min(g.width(WIDTH) for g in groups)
    for start in range(0, count, width):
        pulled = [graph.root_vjps(numbers, xi(k)) for k in range(start, min(start + width, count))]
        left = {n: torch.stack([p[0][i] for p in pulled], 1) for i, n in enumerate(numbers)}
        if pulled[0][0] is pulled[0][1]:
            yield start, left, left
        else:
            yield start, left, {n: torch.stack([p[1][i] for p in pulled], 1) for i, n in enumerate(numbers)}
