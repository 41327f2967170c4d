"""Which sites must be treated together, and what is known of the loss's second derivative there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomtraj.layers.graph import SitedGraph
from geomtraj.layers.shared_entries import Cluster, Place
from geomtraj.layers.vjp_maps import LinearMap

WIDE = 2**20
"""Entries of a parameter from which fewer vectors are treated side by side."""


@dataclass
class Part:
    """The uses of one parameter that share entries.

    Attributes:
        places: Where they are.
        entries: The entries of the flattened parameter.
        repeated: Whether an entry occurs more than once.
    """

    places: list[Place]
    entries: Tensor
    repeated: bool


@dataclass
class Group:
    """Sites that share entries of a parameter, and the parts of parameters that enter there.

    Attributes:
        graph: The batch.
        sites: Numbers of the sites.
        parts: What enters.
        local: Whether this is one site, positions there provably do not couple, and each use is on its own.
        straight: Whether the model's output has no second derivative within these sites.
    """

    graph: SitedGraph
    sites: list[int]
    parts: list[Part]
    local: bool = False
    straight: bool = False

    def clusters(self) -> list[Cluster]:
        """The clusters with their data, made anew."""
        maps = {n: self.graph.maps(n) for n in self.sites}
        return [
            Cluster(p.places, [maps[n][k] for n, k in p.places], p.repeated, self.graph.examples) for p in self.parts
        ]

    def maps(self) -> list[LinearMap]:
        """The maps at a single site with their data, made anew."""
        (number,) = self.sites
        return self.graph.maps(number)

    def width(self, most: int) -> int:
        """How many vectors to treat side by side, at least two for a spread; the same for all batches."""
        return 2 if any(self._columns(p) > WIDE for p in self.parts if not self.local) else most

    def _columns(self, part: Part) -> int:
        alone = len(part.places) == 1 and not part.repeated
        number, use = part.places[0]
        return self.values if alone and self.graph.sites[number].uses[use].kind == "gather" else part.entries.numel()

    @property
    def values(self) -> int:
        """How many values one example has at these sites."""
        shapes = [self.graph.shape(n) for n in self.sites]
        return sum(positions * units for positions, units in shapes)

    @property
    def pointwise(self) -> bool:
        """Whether this is one site, where each use is on its own and acts at each position alone."""
        if len(self.sites) > 1 or any(len(p.places) > 1 or p.repeated for p in self.parts):
            return False
        return all(use.kind != "gather" and use.spread is None for use in self.graph.sites[self.sites[0]].uses)


def groups_of(graph: SitedGraph) -> list[Group]:
    """The groups of a graph but for those where the gradient is constant."""
    parts = _parts(graph)
    groups = [
        Group(graph, sites, [p for p in parts if p.places[0][0] in sites])
        for sites in _connected(parts, len(graph.sites))
        if not all(graph.is_flat(n) for n in sites)
    ]
    _find_local(graph, groups)
    if graph.factor is not None:
        _find_straight(graph, groups)
    return groups


def _find_local(graph: SitedGraph, groups: list[Group]) -> None:
    """From the output backwards: what comes before a coupling of positions is coupled, or may be called so."""
    coupled = False
    for group in sorted(groups, key=lambda g: -max(g.sites)):
        if group.pointwise and (not coupled or graph.shape(group.sites[0])[0] == 1):
            group.local = graph.is_local(group.sites[0])
            coupled |= not group.local


def _find_straight(graph: SitedGraph, groups: list[Group]) -> None:
    """From the output backwards: what comes before a bend is bent, or may be called so."""
    for tried, group in enumerate(sorted(groups, key=lambda g: -max(g.sites))):
        if tried == 1 and graph.is_straight([n for g in groups for n in g.sites]):
            for every in groups:
                every.straight = True
            return
        group.straight = graph.is_straight(group.sites)
        if not group.straight:
            return


def _parts(graph: SitedGraph) -> list[Part]:
    parts: dict[str, list[Part]] = {}
    for number, site in enumerate(graph.sites):
        for k, use in enumerate(site.uses):
            entries = _occurring(use.index)
            merged = Part([(number, k)], entries, use.kind != "gather" and use.index.numel() > entries.numel())
            apart = []
            for other in parts.get(use.name, []):
                if torch.isin(merged.entries, other.entries).any():
                    entries = torch.unique(torch.cat([merged.entries, other.entries]))
                    merged = Part(other.places + merged.places, entries, True)
                else:
                    apart.append(other)
            parts[use.name] = [*apart, merged]
    return [part for own in parts.values() for part in own]


def _occurring(index: Tensor) -> Tensor:
    """The entries that occur, ascending."""
    flat = index.flatten()
    if flat.numel() and flat[0] >= 0 and bool((flat[1:] > flat[:-1]).all()):
        return flat  # as in most uses: a whole parameter in its own order
    return torch.unique(flat[flat >= 0])


def _connected(parts: list[Part], sites: int) -> list[list[int]]:
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
