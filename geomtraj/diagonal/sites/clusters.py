"""Which uses of parameters must be probed and summed together, and their estimates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geomtraj.diagonal.sites.linear_maps import Gather, LinearMap
from geomtraj.diagonal.sites.signs import signs, signs_at
from geomtraj.diagonal.sites.sited_graph import SitedGraph
from geomtraj.operators.memory import available_bytes

CHUNK_BYTES = 2**25
Place = tuple[int, int]
"""Number of a site and of a use there."""


class Cluster:
    """Uses of one parameter that share entries of it, so that their contributions are summed before multiplying.

    Attributes:
        name: The parameter.
        places: Where the uses are.
        index: Places of the columns of an estimate in the flattened parameter; None for all of them.
        chunks: Ranges of examples to treat one after the other.
    """

    def __init__(self, places: list[Place], maps: list[LinearMap], repeated: bool, examples: int):
        self.places, self._maps = places, maps
        self._alone = len(maps) == 1 and not repeated
        first = maps[0]
        self.name = first.name
        self.index = first.index if self._alone else None
        self._width = first.row_entries if self._alone else first.size + 1
        self.inputs = max(m.inputs for m in maps)
        self.has_forward = all(m.has_forward for m in maps)
        self.chunks = [slice(None)]
        if not self._alone or first.by_rows:
            room = min(CHUNK_BYTES, available_bytes(first.index.device) // 8)
            step = max(1, room // (6 * self._width * 8))
            self.chunks = [slice(i, min(i + step, examples)) for i in range(0, examples, step)]

    def mapped(self, values: dict[int, Tensor], rows: slice, data: dict[Place, Tensor] | None = None) -> Tensor:
        """A(values) summed over the uses, (rows, K); with `data`, only over the uses for which it gives other data."""
        if self._alone:
            return self._maps[0].outer(values[self.places[0][0]], rows)
        total: Tensor | float = 0.0
        for place, one in zip(self.places, self._maps, strict=True):
            if data is None or place in data:
                total = total + one.dense(values[place[0]], rows, None if data is None else data[place])
        assert isinstance(total, Tensor)
        return total

    def signs(self, key: int, numbers: Tensor, probe: int, rows: slice, dtype: torch.dtype) -> Tensor:
        """Random signs on the parameter's entries, each example its own, in the shape of `mapped`."""
        first = self._maps[0]
        if self._alone and isinstance(first, Gather):
            return signs_at(key, numbers[first.owners], first.index, probe, dtype)[None]
        return signs(key, numbers[rows], probe, (self._width,), dtype)

    def moved(self, key: int, numbers: Tensor, probe: int, dtype: torch.dtype) -> dict[int, Tensor]:
        """What the signs on the entries change at each site, (B, T, U)."""
        parts: dict[int, list[Tensor]] = {}
        for rows in self.chunks:
            z = self.signs(key, numbers, probe, rows, dtype)
            change: dict[int, Tensor] = {}
            for (number, _), one in zip(self.places, self._maps, strict=True):
                v = one.forward(z, rows) if self._alone else one.forward_dense(z, rows)
                change[number] = change[number] + v if number in change else v
            for number, v in change.items():
                parts.setdefault(number, []).append(v)
        return {number: torch.cat(vs) for number, vs in parts.items()}


@dataclass
class Group:
    """Sites that are probed together, and the clusters of uses there."""

    sites: list[int]
    clusters: list[Cluster] = field(default_factory=list)
    maps: list[LinearMap] = field(default_factory=list)

    @property
    def plain(self) -> bool:
        """Whether this is one site whose uses are each on their own."""
        return len(self.sites) == 1 and all(c.index is not None for c in self.clusters)


@dataclass
class _Part:
    places: list[Place]
    entries: Tensor
    repeated: bool


def plan(graph: SitedGraph) -> list[tuple[list[int], list[_Part]]]:
    """Sites by what must be probed together, each with the parts of parameters that it holds."""
    parts: dict[str, list[_Part]] = {}
    for number, site in enumerate(graph.sites):
        for k, use in enumerate(site.uses):
            entries = torch.unique(use.index[use.index >= 0])
            merged = _Part([(number, k)], entries, use.kind != "gather" and use.index.numel() > entries.numel())
            apart = []
            for other in parts.get(use.name, []):
                if torch.isin(merged.entries, other.entries).any():
                    entries = torch.unique(torch.cat([merged.entries, other.entries]))
                    merged = _Part(other.places + merged.places, entries, True)
                else:
                    apart.append(other)
            parts[use.name] = [*apart, merged]
    every = [part for own in parts.values() for part in own]
    return [(sites, [p for p in every if p.places[0][0] in sites]) for sites in _connected(every, len(graph.sites))]


def group_of(graph: SitedGraph, sites: list[int], parts: list[_Part]) -> Group:
    """The group with its maps, which hold the data."""
    maps = {n: graph.maps(n) for n in sites}
    clusters = [Cluster(p.places, [maps[n][k] for n, k in p.places], p.repeated, graph.examples) for p in parts]
    return Group(sites, clusters, [m for own in maps.values() for m in own])


def _connected(parts: list[_Part], sites: int) -> list[list[int]]:
    leader = list(range(sites))

    def find(n: int) -> int:
        while leader[n] != n:
            n = leader[n]
        return n

    for part in parts:
        for number, _ in part.places[1:]:
            leader[find(number)] = find(part.places[0][0])
    groups: dict[int, list[int]] = {}
    for n in range(sites):
        groups.setdefault(find(n), []).append(n)
    return list(groups.values())


class ClusterSums:
    """Sums over examples and probes of a cluster's estimates, and their spread over the probes within one call.

    Args:
        cluster: The cluster.
        chunks: Ranges of examples to sum over, one after the other.
    """

    def __init__(self, cluster: Cluster, chunks: list[slice]):
        self.cluster, self._chunks = cluster, chunks
        self._freedom = 0
        self._count = 0
        self._values: Tensor | float = 0.0
        self._spread: Tensor | float = 0.0

    def add(self, probes: list[Callable[[slice], Tensor]], with_spread: bool) -> None:
        """Add probes: functions from rows to estimates (rows, K)."""
        with_spread = with_spread and len(probes) > 1
        for rows in self._chunks:
            mean: Tensor | float = 0.0
            for k, estimate_of in enumerate(probes):
                estimate = estimate_of(rows)
                self._values = self._values + estimate.sum(0)
                if with_spread:
                    shift = estimate - mean
                    if k:
                        self._spread = self._spread + shift.square().sum(0).mul_(k / (k + 1))
                    mean = mean + shift / (k + 1)
        self._count += len(probes)
        if with_spread:
            self._freedom += len(probes) - 1

    @property
    def variance(self) -> Tensor:
        """Variance (K,) of one probe's sum over the examples."""
        if not isinstance(self._spread, Tensor):
            return torch.full_like(torch.as_tensor(self._values), torch.nan)
        return self._spread / self._freedom

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Mean over probes (K,), and its variance."""
        return torch.as_tensor(self._values) / self._count, self.variance / self._count
