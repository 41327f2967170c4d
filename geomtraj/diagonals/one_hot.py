"""The exact diagonal of one batch at a group of taps, by one-hot vectors that enter there.

Each function adds a group's diagonal to an accumulator when it is exhausted, and yields the number of vectors done so
far, so that their time can be told from the first ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import Accumulator, MeanVariance, PositionSums, SharedSums
from geomtraj.diagonals.output_vectors import WIDTH
from geomtraj.layers.probe_groups import ProbeGroup
from geomtraj.layers.shared_entries import Place, SharedVjp


def by_units(group: ProbeGroup, accumulator: Accumulator) -> Iterator[int]:
    """Where positions do not couple: a vector for each unit, at all positions of all examples."""
    graph, (number,) = group.graph, group.taps
    positions, units = graph.shape(number)
    eps, sums = graph.taps[number].eps, PositionSums()
    diagonal = torch.zeros(graph.examples, positions, units, dtype=eps.dtype, device=eps.device)
    for unit in range(units):
        v = torch.zeros_like(diagonal)
        v[..., unit] = 1
        (u,) = graph.curvature([number], [v.unsqueeze(1)])
        diagonal[..., unit] = u[:, 0, :, unit]
        yield unit + 1
    sums.add(diagonal.unsqueeze(1))
    sums.add_to(group.maps(), accumulator, exact=True)


def by_values(group: ProbeGroup, accumulator: Accumulator) -> Iterator[int]:
    """A vector e for each position and unit of each tap: the sum over them of A(e) * A(d2L/deps2 e)."""
    graph, shared = group.graph, group.shared()
    sums = [SharedSums(c) for c in shared]
    done = 0
    for number in group.taps:
        for chosen in _blocks(graph.shape(number), group.width(WIDTH)):
            left = {n: _zeros(group, n, len(chosen)) for n in group.taps}
            left[number] += chosen.to(left[number])
            found = graph.curvature(group.taps, [left[n] for n in group.taps])
            right = dict(zip(group.taps, found, strict=True))
            for one, maps in zip(sums, shared, strict=True):
                for rows in maps.chunks(len(chosen)):
                    one.add(maps.vjp(left, rows) * maps.vjp(right, rows))
            done += len(chosen)
            yield done
    for one, maps in zip(sums, shared, strict=True):
        for estimate in _reuse_terms(group, maps):
            one.add(estimate)
            done += 1
            yield done
        one.add_to(accumulator, exact=True)


def by_entries(group: ProbeGroup, accumulator: Accumulator) -> Iterator[int]:
    """A vector for each entry of the parameters, the same for all examples."""
    graph, done = group.graph, 0
    for part, maps in zip(group.shared_entries, group.shared(), strict=True):
        found = []
        for entries in part.entries.split(group.width(WIDTH)):
            chunks = maps.chunks(len(entries))
            moved = maps.jvp(lambda rows, e=entries, c=maps: c.one_hot(e, rows), chunks)  # type: ignore[misc]
            left = [moved[n] if n in moved else _zeros(group, n, len(entries)) for n in group.taps]
            right = dict(zip(group.taps, graph.curvature(group.taps, left), strict=True))
            own = [(maps.vjp(right, rows) * maps.one_hot(entries, rows)).sum((0, 2)) for rows in chunks]
            found.append(torch.stack(own).sum(0))
            done += len(entries)
            yield done
        accumulator.add(maps.name, part.entries, MeanVariance(torch.cat(found)))
        for estimate in _reuse_terms(group, maps):
            accumulator.add(maps.name, maps.index, MeanVariance(estimate.sum((0, 1))))
            done += 1
            yield done


def _reuse_terms(group: ProbeGroup, maps: SharedVjp) -> Iterator[Tensor]:
    """Estimates (rows, 1, K) whose sum is the term that comes where one use's input depends on another use.

    It is that of `probing.batch_prober`, with one-hot inputs in the place of random ones.
    """
    graph = group.graph
    taps = sorted({n for n, _ in maps.places})
    for place, data in graph.dependent_data(maps.places):
        left = {n: 2 * graph.gradient(n).unsqueeze(1) for n in taps}
        for k in range(data[0].numel()):
            rho: dict[Place, Tensor] = {place: torch.zeros_like(data)}
            rho[place].flatten(1)[:, k] = 1
            pulled = graph.pulled_back([data], [rho[place]], taps)
            right = {n: w.unsqueeze(1) for n, w in zip(taps, pulled, strict=True)}
            for rows in maps.chunks(1):
                yield maps.vjp(left, rows, rho) * maps.vjp(right, rows)


def _blocks(shape: tuple[int, int], width: int) -> Iterator[Tensor]:
    """One-hot vectors (k, T, U) of one example."""
    positions, units = shape
    for start in range(0, positions * units, width):
        stop = min(start + width, positions * units)
        chosen = torch.zeros(stop - start, positions * units)
        chosen[torch.arange(stop - start), torch.arange(start, stop)] = 1
        yield chosen.reshape(-1, positions, units)


def _zeros(group: ProbeGroup, number: int, width: int) -> Tensor:
    eps = group.graph.taps[number].eps
    shape = (group.graph.examples, width, *group.graph.shape(number))
    return torch.zeros(shape, dtype=eps.dtype, device=eps.device)
