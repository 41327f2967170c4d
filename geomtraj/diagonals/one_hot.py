"""The exact diagonal of one batch at a group of sites, by one-hot vectors that enter there.

Each function adds a group's diagonal to a tally when it is exhausted, and yields the number of vectors done so far, so
that their time can be told from the first ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import ClusterSums, PointwiseSums, Sum, Tally
from geomtraj.diagonals.output_vectors import WIDTH
from geomtraj.layers.probe_groups import Group
from geomtraj.layers.shared_entries import Cluster, Place


def by_units(group: Group, tally: Tally) -> Iterator[int]:
    """Where positions do not couple: a vector for each unit, at all positions of all examples."""
    graph, (number,) = group.graph, group.sites
    positions, units = graph.shape(number)
    eps, sums = graph.sites[number].eps, PointwiseSums()
    diagonal = torch.zeros(graph.examples, positions, units, dtype=eps.dtype, device=eps.device)
    for unit in range(units):
        v = torch.zeros_like(diagonal)
        v[..., unit] = 1
        (u,) = graph.curvature([number], [v.unsqueeze(1)])
        diagonal[..., unit] = u[:, 0, :, unit]
        yield unit + 1
    sums.add(diagonal.unsqueeze(1))
    sums.tally(group.maps(), tally, exact=True)


def by_values(group: Group, tally: Tally) -> Iterator[int]:
    """A vector e for each position and unit of each site: the sum over them of A(e) * A(d2L/deps2 e)."""
    graph, clusters = group.graph, group.clusters()
    sums = [ClusterSums(c) for c in clusters]
    done = 0
    for number in group.sites:
        for chosen in _blocks(graph.shape(number), group.width(WIDTH)):
            left = {n: _zeros(group, n, len(chosen)) for n in group.sites}
            left[number] += chosen.to(left[number])
            found = graph.curvature(group.sites, [left[n] for n in group.sites])
            right = dict(zip(group.sites, found, strict=True))
            for one, cluster in zip(sums, clusters, strict=True):
                for rows in cluster.chunks(len(chosen)):
                    one.add(cluster.mapped(left, rows) * cluster.mapped(right, rows))
            done += len(chosen)
            yield done
    for one, cluster in zip(sums, clusters, strict=True):
        for estimate in _feedback(group, cluster):
            one.add(estimate)
            done += 1
            yield done
        one.tally(tally, exact=True)


def by_entries(group: Group, tally: Tally) -> Iterator[int]:
    """A vector for each entry of the parameters, the same for all examples."""
    graph, done = group.graph, 0
    for part, cluster in zip(group.parts, group.clusters(), strict=True):
        found = []
        for entries in part.entries.split(group.width(WIDTH)):
            chunks = cluster.chunks(len(entries))
            moved = cluster.moved(lambda rows, e=entries, c=cluster: c.one_hot(e, rows), chunks)  # type: ignore[misc]
            left = [moved[n] if n in moved else _zeros(group, n, len(entries)) for n in group.sites]
            right = dict(zip(group.sites, graph.curvature(group.sites, left), strict=True))
            own = [(cluster.mapped(right, rows) * cluster.one_hot(entries, rows)).sum((0, 2)) for rows in chunks]
            found.append(torch.stack(own).sum(0))
            done += len(entries)
            yield done
        tally.add(cluster.name, part.entries, Sum(torch.cat(found)))
        for estimate in _feedback(group, cluster):
            tally.add(cluster.name, cluster.index, Sum(estimate.sum((0, 1))))
            done += 1
            yield done


def _feedback(group: Group, cluster: Cluster) -> Iterator[Tensor]:
    """Estimates (rows, 1, K) whose sum is the term that comes where one use's input depends on another use.

    It is that of `probing.batch_prober`, with one-hot inputs in the place of random ones.
    """
    graph = group.graph
    sites = sorted({n for n, _ in cluster.places})
    for place, data in graph.dependent_data(cluster.places):
        left = {n: 2 * graph.gradient(n).unsqueeze(1) for n in sites}
        for k in range(data[0].numel()):
            rho: dict[Place, Tensor] = {place: torch.zeros_like(data)}
            rho[place].flatten(1)[:, k] = 1
            pulled = graph.pulled_back([data], [rho[place]], sites)
            right = {n: w.unsqueeze(1) for n, w in zip(sites, pulled, strict=True)}
            for rows in cluster.chunks(1):
                yield cluster.mapped(left, rows, rho) * cluster.mapped(right, rows)


def _blocks(shape: tuple[int, int], width: int) -> Iterator[Tensor]:
    """One-hot vectors (k, T, U) of one example."""
    positions, units = shape
    for start in range(0, positions * units, width):
        stop = min(start + width, positions * units)
        chosen = torch.zeros(stop - start, positions * units)
        chosen[torch.arange(stop - start), torch.arange(start, stop)] = 1
        yield chosen.reshape(-1, positions, units)


def _zeros(group: Group, number: int, width: int) -> Tensor:
    eps = group.graph.sites[number].eps
    shape = (group.graph.examples, width, *group.graph.shape(number))
    return torch.zeros(shape, dtype=eps.dtype, device=eps.device)
