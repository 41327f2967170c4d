"""The probes of one batch, group of taps by group of taps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import Accumulator, PositionSums, SharedSums
from geomtraj.diagonals.one_hot import by_units
from geomtraj.diagonals.output_vectors import WIDTH, gauss_newton_exact, gauss_newton_sampled, outputs
from geomtraj.hashed_signs import key_of, signs
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.probe_groups import ProbeGroup, probe_groups
from geomtraj.layers.shared_entries import Place, SharedVjp

SPREAD_TERMS = 1024
"""Pairs of an example and a probe from which standard errors are taken at least, where there are so many."""

PILOT = 3
"""Probes with which two ways of probing a weight are compared."""
PILOT_FROM = 32
"""Samples from which that comparison is worth its probes."""

FEW_OUTPUTS = 32
"""Entries of the output up to which the Gauss-Newton part is exact whatever the samples: the passes serve all taps."""


@dataclass
class Settings:
    """How to probe, the same for all batches."""

    samples: int
    seed: int
    examples: int
    on_entries: dict[Any, bool] = field(default_factory=dict)

    @property
    def spread_samples(self) -> int:
        """Probes after which there is enough spread for standard errors."""
        return -(-SPREAD_TERMS // self.examples)

    def key(self, purpose: str) -> int:
        """The key of the signs for some purpose."""
        return key_of(self.seed, f"probing, {purpose}")


class BatchProber:
    """Adds one batch's estimates to an accumulator.

    Args:
        graph: The batch.
        accumulator: Where to add.
        numbers: Numbers (B,) of its examples in the data.
        settings: How to probe.
    """

    def __init__(self, graph: LossGraph, accumulator: Accumulator, numbers: Tensor, settings: Settings):
        self.graph, self.accumulator, self.numbers, self.settings = graph, accumulator, numbers, settings
        self.samples = settings.samples

    def run(self) -> None:
        """The Gauss-Newton part of all groups together, then what is left of each, one after the other."""
        gauss_newton: list[ProbeGroup] = []
        rest: list[Callable[[], None]] = []
        few_outputs = outputs(self.graph) <= max(self.samples, FEW_OUTPUTS)
        for group in probe_groups(self.graph):
            split = self.graph.output_hessian is not None
            if group.positions_decouple:
                positions, units = self.graph.shape(group.taps[0])
                if group.piecewise_linear and few_outputs and outputs(self.graph) <= units:
                    gauss_newton.append(group)
                    continue
                if units <= self.samples:
                    rest.append(lambda group=group: _exhaust(by_units(group, self.accumulator)))  # type: ignore[misc]
                    continue
                split = few_outputs and positions == 1
            if split:
                gauss_newton.append(group)
            if not (split and group.piecewise_linear):
                rest.append(lambda group=group, split=split: self._probe(group, split))  # type: ignore[misc]
        self._gauss_newton(gauss_newton, few_outputs)
        for work in rest:
            work()

    def _gauss_newton(self, groups: list[ProbeGroup], exact: bool) -> None:
        if not groups:
            return
        if exact:
            return _exhaust(gauss_newton_exact(self.graph, groups, self.accumulator))
        dtype, key = self.graph.taps[0].eps.dtype, self.settings.key("outputs")

        def xi(k: int) -> Tensor:
            return signs(key, self.numbers, k, self.graph.output_shape, dtype)

        gauss_newton_sampled(self.graph, groups, self.accumulator, self.samples, xi, self.settings.spread_samples)

    def _probe(self, group: ProbeGroup, residual: bool) -> None:
        """Add the estimate by random signs of the whole derivative, or of the `residual` part."""
        if group.positions_decouple:
            sums = PositionSums()
            for probes in _blocks(range(self.samples), WIDTH):
                v = self._signs(group.taps[0], probes)
                (u,) = self.graph.curvature(group.taps, [v], residual)
                sums.add(u * v)
            return sums.add_to(group.maps(), self.accumulator)
        shared = group.shared()
        on_entries = self._on_entries(group, shared, residual)
        for one in self._sums(group, shared, residual, on_entries, range(self.samples), len(self.numbers)):
            one.add_to(self.accumulator)

    def _on_entries(self, group: ProbeGroup, shared: list[SharedVjp], residual: bool) -> bool:
        """Whether signs on the parameters' entries give less spread here than signs on the outputs."""
        if not all(c.has_jvp for c in shared):
            return False
        if all(c.inputs == 1 for c in shared):
            return True
        if self.samples < PILOT_FROM:
            return False
        chosen, name = self.settings.on_entries, tuple(group.taps)
        if name not in chosen:
            spreads = []
            for on_entries in (False, True):
                # The first example alone decides, whatever its batch, by probes that the estimate does not use.
                sums = self._sums(group, shared, residual, on_entries, range(-PILOT, 0), 1)
                spreads.append(sum(float(one.variance.nan_to_num(0, 0, 0).sum()) for one in sums))
            chosen[name] = spreads[1] < spreads[0]
        return chosen[name]

    def _sums(
        self, group: ProbeGroup, shared: list[SharedVjp], residual: bool, on_entries: bool, probes: range, examples: int
    ) -> list[SharedSums]:
        """Sums of the estimates by some probes over the first examples, for each of the shared entries."""
        sums = [SharedSums(c) for c in shared]
        loops = [_ReuseTerm(self.graph, c, self.settings.key("feedback"), self.numbers) for c in shared]
        pilot = examples < len(self.numbers)
        for block in _blocks(probes, group.width(WIDTH)):
            with_spread = pilot or (block[0] < self.settings.spread_samples and len(block) > 1)
            left = self._left(group, shared, on_entries, block)
            us = self.graph.curvature(group.taps, [left[n] for n in group.taps], residual)
            right = dict(zip(group.taps, us, strict=True))
            for one, maps, loop in zip(sums, shared, loops, strict=True):
                reuse = loop.estimate(block)
                for rows in [slice(0, examples)] if pilot else maps.chunks(len(block)):
                    if on_entries:
                        estimate = self._entries(maps, block, rows) * maps.vjp(right, rows)
                    else:
                        estimate = maps.vjp(left, rows) * maps.vjp(right, rows)
                    one.add(estimate if reuse is None else estimate + reuse(rows), with_spread)
                one.added(len(block), with_spread)
        return sums

    def _left(
        self, group: ProbeGroup, shared: list[SharedVjp], on_entries: bool, probes: Sequence[int]
    ) -> dict[int, Tensor]:
        """The random vectors (B, k, T, U) at each tap."""
        if not on_entries:
            return {n: self._signs(n, probes) for n in group.taps}
        total: dict[int, Tensor] = {}
        for maps in shared:
            chunks = maps.chunks(len(probes))
            for n, v in maps.jvp(lambda rows, c=maps: self._entries(c, probes, rows), chunks).items():  # type: ignore[misc]
                total[n] = total[n] + v if n in total else v
        return total

    def _entries(self, maps: SharedVjp, probes: Sequence[int], rows: slice) -> Tensor:
        key, dtype = self.settings.key(f"entries {maps.places}"), self.graph.taps[0].eps.dtype
        return maps.signs(key, self.numbers, probes, rows, dtype)

    def _signs(self, number: int, probes: Sequence[int]) -> Tensor:
        shape, dtype = self.graph.shape(number), self.graph.taps[number].eps.dtype
        key = self.settings.key(f"site {number}")
        return torch.stack([signs(key, self.numbers, probe, shape, dtype) for probe in probes], 1)


class _ReuseTerm:
    """What enters the second derivative where one use's input depends on another use of the same entries.

    If x(theta) is multiplied by theta again, the second derivative of <g, theta x(theta)> has the further term
    2 g dx/dtheta. With random signs rho in the place of x it is the mean of 2 A(g; rho) A(rho^T dx/deps).
    """

    def __init__(self, graph: LossGraph, maps: SharedVjp, key: int, numbers: Tensor):
        self._graph, self._shared, self._key, self._numbers = graph, maps, key, numbers
        self._taps = sorted({n for n, _ in maps.places})
        self._data = dict(graph.dependent_data(maps.places))

    def estimate(self, probes: Sequence[int]) -> Callable[[slice], Tensor] | None:
        """The function from a range of examples to this term (rows, k, K), if there is one."""
        if not self._data:
            return None
        rhos, pulled = [], []
        for probe in probes:
            rhos.append({place: self._rho(place, data, probe) for place, data in self._data.items()})
            found = self._graph.pulled_back(list(self._data.values()), list(rhos[-1].values()), self._taps)
            pulled.append(dict(zip(self._taps, (w.unsqueeze(1) for w in found), strict=True)))
        left = {n: 2 * self._graph.gradient(n).unsqueeze(1) for n, _ in self._data}

        def of(rows: slice) -> Tensor:
            mapped = self._shared.vjp
            each = [mapped(left, rows, rho) * mapped(right, rows) for rho, right in zip(rhos, pulled, strict=True)]
            return torch.cat(each, 1)

        return of

    def _rho(self, place: Place, data: Tensor, probe: int) -> Tensor:
        key = self._key + 1009 * place[0] + place[1]
        return signs(key, self._numbers, probe, tuple(data.shape[1:]), data.dtype)


def _exhaust(steps: Iterable[int]) -> None:
    for _ in steps:
        pass


def _blocks(probes: range, width: int) -> list[range]:
    return [probes[start : start + width] for start in range(0, len(probes), width)]
