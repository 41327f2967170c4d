"""Which taps must be treated together, and what is known of the loss's second derivative there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomtraj.layers.graph import LossGraph
from geomtraj.layers.shared_entries import Place, SharedVjp
from geomtraj.layers.vjp_maps import VjpMap

WIDE = 2**20
"""Entries of a parameter from which fewer vectors are treated side by side."""


@dataclass
class SharedEntries:
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
class ProbeGroup:
    """Taps that share entries of a parameter, and the entries of parameters that enter there.

    Attributes:
        graph: The batch.
        taps: Numbers of the taps.
        shared_entries: What enters.
        positions_decouple: Whether this is one tap, positions there provably do not couple, and each use is on its own.
        piecewise_linear: Whether the model's output has no second derivative by the parameters that enter here.
    """

    graph: LossGraph
    taps: list[int]
    shared_entries: list[SharedEntries]
    positions_decouple: bool = False
    piecewise_linear: bool = False

    def shared(self) -> list[SharedVjp]:
        """The VJP maps of shared entries with their data, made anew."""
        maps = {n: self.graph.maps(n) for n in self.taps}
        return [
            SharedVjp(p.places, [maps[n][k] for n, k in p.places], p.repeated, self.graph.examples)
            for p in self.shared_entries
        ]

    def maps(self) -> list[VjpMap]:
        """The maps at a single tap with their data, made anew."""
        (number,) = self.taps
        return self.graph.maps(number)

    def name_of(self, part: SharedEntries) -> str:
        """The parameter that a part belongs to."""
        number, use = part.places[0]
        return self.graph.taps[number].uses[use].name

    def width(self, most: int) -> int:
        """How many vectors to treat side by side, at least two for a spread; the same for all batches."""
        return 2 if any(self._columns(p) > WIDE for p in self.shared_entries if not self.positions_decouple) else most

    def _columns(self, p: SharedEntries) -> int:
        alone = len(p.places) == 1 and not p.repeated
        number, use = p.places[0]
        return self.values if alone and self.graph.taps[number].uses[use].kind == "embedding" else p.entries.numel()

    @property
    def values(self) -> int:
        """How many values one example has at these taps."""
        shapes = [self.graph.shape(n) for n in self.taps]
        return sum(positions * units for positions, units in shapes)

    @property
    def feeds_itself(self) -> bool:
        """Whether a use of some entries multiplies what another use of them gave."""
        return any(self.graph.dependent_data(one.places) for one in self.shared_entries)

    @property
    def pointwise(self) -> bool:
        """Whether this is one tap, where each use is on its own and acts at each position alone."""
        if len(self.taps) > 1 or any(len(p.places) > 1 or p.repeated for p in self.shared_entries):
            return False
        return all(use.kind != "embedding" and use.spread is None for use in self.graph.taps[self.taps[0]].uses)


def probe_groups(graph: LossGraph) -> list[ProbeGroup]:
    """The groups of a graph but for those where the gradient is constant."""
    shared_entries = _shared_entries(graph)
    groups = [
        ProbeGroup(graph, taps, [p for p in shared_entries if p.places[0][0] in taps])
        for taps in _connected(shared_entries, len(graph.taps))
        if not all(graph.is_flat(n) for n in taps)
    ]
    _find_decoupled(graph, groups)
    if graph.output_hessian is not None:
        _find_piecewise_linear(graph, groups)
    return groups


def _find_decoupled(graph: LossGraph, groups: list[ProbeGroup]) -> None:
    """From the output backwards: what comes before a coupling of positions is coupled, or may be called so."""
    coupled = False
    for group in sorted(groups, key=lambda g: -max(g.taps)):
        if group.pointwise and (not coupled or graph.shape(group.taps[0])[0] == 1):
            group.positions_decouple = graph.positions_decouple(group.taps[0])
            coupled |= not group.positions_decouple


def _find_piecewise_linear(graph: LossGraph, groups: list[ProbeGroup]) -> None:
    """From the output backwards: what comes before a bend is bent, or may be called so."""
    for tried, group in enumerate(sorted(groups, key=lambda g: -max(g.taps))):
        if tried == 1 and graph.is_piecewise_linear([n for g in groups for n in g.taps]):
            for every in groups:
                every.piecewise_linear = not every.feeds_itself
            return
        if not graph.is_piecewise_linear(group.taps):
            return
        group.piecewise_linear = not group.feeds_itself


def _shared_entries(graph: LossGraph) -> list[SharedEntries]:
    shared_entries: dict[str, list[SharedEntries]] = {}
    for number, tap in enumerate(graph.taps):
        for k, use in enumerate(tap.uses):
            entries = _occurring(use.index)
            merged = SharedEntries(
                [(number, k)], entries, use.kind != "embedding" and use.index.numel() > entries.numel()
            )
            apart = []
            for other in shared_entries.get(use.name, []):
                if torch.isin(merged.entries, other.entries).any():
                    entries = torch.unique(torch.cat([merged.entries, other.entries]))
                    merged = SharedEntries(other.places + merged.places, entries, True)
                else:
                    apart.append(other)
            shared_entries[use.name] = [*apart, merged]
    return [p for own in shared_entries.values() for p in own]


def _occurring(index: Tensor) -> Tensor:
    """The entries that occur, ascending."""
    flat = index.flatten()
    if flat.numel() and flat[0] >= 0 and bool((flat[1:] > flat[:-1]).all()):
        return flat  # as in most uses: a whole parameter in its own order
    return torch.unique(flat[flat >= 0])


def _connected(shared_entries: list[SharedEntries], taps: int) -> list[list[int]]:
    leader = list(range(taps))

    def find(n: int) -> int:
        while leader[n] != n:
            n = leader[n]
        return n

    for p in shared_entries:
        for number, _ in p.places[1:]:
            leader[find(number)] = find(p.places[0][0])
    groups: dict[int, list[int]] = {}
    for n in range(taps):
        groups.setdefault(find(n), []).append(n)
    return list(groups.values())
