"""The probes of one batch, site by site."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from geomtraj.diagonal.sites.clusters import Cluster, ClusterSums, Group, Place, group_of, plan
from geomtraj.diagonal.sites.signs import key_of, signs
from geomtraj.diagonal.sites.sited_graph import SitedGraph
from geomtraj.problem import Problem

SPREAD_TERMS = 1024
"""Pairs of an example and a probe from which standard errors are taken at least, where there are so many."""

PILOT = 3
"""Probes with which two ways of probing a weight are compared."""


class Tally:
    """Running sums by parameter, each with one more entry for what belongs nowhere."""

    def __init__(self, parameters: dict[str, Tensor]):
        self._values = {name: p.new_zeros(p.numel() + 1) for name, p in parameters.items()}
        self._variances = {name: p.new_zeros(p.numel() + 1) for name, p in parameters.items()}

    def add(self, name: str, index: Tensor | None, value: Tensor, variance: Tensor) -> None:
        """Add to the sums of one parameter at these places, or (None) at all of them."""
        for total, part in ((self._values[name], value), (self._variances[name], variance)):
            if index is None:
                total[: part.numel()] += part
            else:
                total.index_add_(0, index, part)

    def flat(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """The diagonal (P,) and its variances (P,)."""
        values = problem.layout.flatten({name: v[:-1] for name, v in self._values.items()})
        variances = problem.layout.flatten({name: v[:-1] for name, v in self._variances.items()})
        return values / problem.total_weight, variances / problem.total_weight**2


@dataclass
class Settings:
    """How to probe, the same for all batches."""

    samples: int
    seed: int
    examples: int
    on_entries: dict[Any, bool] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Probes whose spread about their mean is taken; more keep more values at once."""
        return 8 if self.examples <= 256 else 2

    @property
    def spread_samples(self) -> int:
        """Probes after which there is enough spread for standard errors."""
        return -(-SPREAD_TERMS // self.examples)


class BatchProber:
    """Adds one batch's estimates to a tally.

    Args:
        graph: The batch.
        tally: Where to add.
        numbers: Numbers (B,) of its examples in the data.
        settings: How to probe.
    """

    def __init__(self, graph: SitedGraph, tally: Tally, numbers: Tensor, settings: Settings):
        self.graph, self.tally, self.numbers, self.settings = graph, tally, numbers, settings
        self.samples = settings.samples

    def run(self) -> None:
        """Probe every group of sites that share entries of a parameter, one group after the other."""
        for sites, parts in plan(self.graph):
            if all(self.graph.is_flat(n) for n in sites):
                continue
            group = group_of(self.graph, sites, parts)
            if group.plain and all(m.positionwise for m in group.maps) and self.graph.is_local(sites[0]):
                self._local(group)
            else:
                self._coupled(group)

    def _key(self, purpose: str) -> int:
        return key_of(self.settings.seed, f"probing, {purpose}")

    def _signs(self, number: int, probe: int) -> Tensor:
        shape, dtype = self.graph.shape(number), self.graph.sites[number].eps.dtype
        return signs(self._key(f"site {number}"), self.numbers, probe, shape, dtype)

    def _local(self, group: Group) -> None:
        """A site whose positions do not couple: only v * u at each entry is needed, its outer product but once."""
        (number,) = group.sites
        positions, units = self.graph.shape(number)
        outputs = math.prod(self.graph.output_shape) if self.graph.factor is not None else math.inf
        if outputs <= min(units, self.samples) and self.graph.is_straight([number]):
            return self._gauss_newton(group)
        if units <= self.samples:
            diagonal = self._one_hot(number, units)
            spread = torch.zeros_like(diagonal)
        else:
            few = positions == 1 and outputs <= self.samples
            if few:
                self._gauss_newton(group)
            diagonal, spread = self._mean_and_spread(number, residual=few)
        for m in group.maps:
            self.tally.add(m.name, m.index, m.weighted(diagonal, 2), m.weighted(spread, 4))

    def _one_hot(self, number: int, units: int) -> Tensor:
        diagonal = self.graph.sites[number].eps.new_empty(len(self.numbers), *self.graph.shape(number))
        for unit in range(units):
            v = torch.zeros_like(diagonal)
            v[..., unit] = 1
            (u,) = self.graph.curvature([number], [v])
            diagonal[..., unit] = u[..., unit]
        return diagonal

    def _mean_and_spread(self, number: int, residual: bool = False) -> tuple[Tensor, Tensor]:
        mean = self.graph.sites[number].eps.new_zeros(len(self.numbers), *self.graph.shape(number))
        squares = torch.zeros_like(mean)
        for probe in range(self.samples):
            v = self._signs(number, probe)
            (u,) = self.graph.curvature([number], [v], residual)
            shift = (u * v).sub_(mean)
            mean.add_(shift, alpha=1 / (probe + 1))
            squares.addcmul_(shift, shift, value=probe / (probe + 1))
        return mean, squares * (1 / (self.samples * (self.samples - 1)) if self.samples > 1 else torch.nan)

    def _coupled(self, group: Group) -> None:
        residual = self.graph.factor is not None
        if residual:
            self._gauss_newton(group)
        if residual and self.graph.is_straight(group.sites):
            return
        sums = [ClusterSums(c, c.chunks) for c in group.clusters]
        self._probe(group, self._on_entries(group), range(self.samples), sums)
        for one in sums:
            self.tally.add(one.cluster.name, one.cluster.index, *one.estimate())

    def _gauss_newton(self, group: Group) -> None:
        """The diagonal of J^T F S F^T J: the mean of A(J^T F xi) * A(J^T F S xi), exact where z has few entries."""
        shape = self.graph.output_shape
        size = math.prod(shape)
        exact = size <= self.samples
        sums = [ClusterSums(c, c.chunks) for c in group.clusters]
        like = self.graph.sites[group.sites[0]].eps
        for start in range(0, size if exact else self.samples, self.settings.width):
            estimates: list[list[Callable[[slice], Tensor]]] = [[] for _ in sums]
            for k in range(start, min(start + self.settings.width, size if exact else self.samples)):
                if exact:
                    xi = torch.zeros(len(self.numbers), size, dtype=like.dtype, device=like.device)
                    xi[:, k] = 1
                    xi = xi.reshape(-1, *shape)
                else:
                    xi = signs(self._key("outputs"), self.numbers, k, shape, like.dtype)
                pulled = self.graph.factor_gradients(group.sites, xi)
                left, right = (dict(zip(group.sites, side, strict=True)) for side in pulled)
                for own, cluster in zip(estimates, group.clusters, strict=True):
                    own.append(_product(cluster, left, right))
            for one, own in zip(sums, estimates, strict=True):
                one.add(own, start < self.settings.spread_samples and not exact)
        for one in sums:
            value, variance = one.estimate()
            if exact:
                value, variance = value * size, torch.zeros_like(value)
            self.tally.add(one.cluster.name, one.cluster.index, value, variance)

    def _on_entries(self, group: Group) -> bool:
        """Whether signs on the parameters' entries give less spread here than signs on the outputs."""
        if not all(c.has_forward for c in group.clusters):
            return False
        if all(c.inputs == 1 for c in group.clusters):
            return True
        chosen, name = self.settings.on_entries, tuple(group.sites)
        if name not in chosen:
            spreads = []
            for on_entries in (False, True):
                # The first example alone decides, whatever its batch, by probes that the estimate does not use.
                sums = [ClusterSums(c, [slice(0, 1)]) for c in group.clusters]
                self._probe(group, on_entries, range(-PILOT, 0), sums)
                spreads.append(sum(float(one.variance.nan_to_num(0, 0, 0).sum()) for one in sums))
            chosen[name] = spreads[1] < spreads[0]
        return chosen[name]

    def _probe(self, group: Group, on_entries: bool, probes: range, sums: list[ClusterSums]) -> None:
        loops = [_Feedback(self.graph, c, self._key("feedback"), self.numbers) for c in group.clusters]
        for start in range(0, len(probes), self.settings.width):
            estimates: list[list[Callable[[slice], Tensor]]] = [[] for _ in sums]
            for probe in probes[start : start + self.settings.width]:
                for own, estimate in zip(estimates, self._estimates(group, on_entries, probe, loops), strict=True):
                    own.append(estimate)
            for one, own in zip(sums, estimates, strict=True):
                one.add(own, start < self.settings.spread_samples)

    def _estimates(
        self, group: Group, on_entries: bool, probe: int, loops: list[_Feedback]
    ) -> Iterable[Callable[[slice], Tensor]]:
        """For each cluster, the function from a range of examples to their estimates (rows, K) by one probe."""
        dtype = self.graph.sites[group.sites[0]].eps.dtype
        if on_entries:
            moved = [c.moved(self._key(f"entries {c.places}"), self.numbers, probe, dtype) for c in group.clusters]
            vs = [torch.stack([m[n] for m in moved if n in m]).sum(0) for n in group.sites]
        else:
            vs = [self._signs(n, probe) for n in group.sites]
        left = dict(zip(group.sites, vs, strict=True))
        us = self.graph.curvature(group.sites, vs, residual=self.graph.factor is not None)
        right = dict(zip(group.sites, us, strict=True))

        def estimate(cluster: Cluster, feedback: Callable[[slice], Tensor] | None) -> Callable[[slice], Tensor]:
            key = self._key(f"entries {cluster.places}")

            def of(rows: slice) -> Tensor:
                if on_entries:
                    product = cluster.signs(key, self.numbers, probe, rows, dtype) * cluster.mapped(right, rows)
                else:
                    product = cluster.mapped(left, rows) * cluster.mapped(right, rows)
                return product if feedback is None else product + feedback(rows)

            return of

        return [estimate(cluster, loop.estimate(probe)) for cluster, loop in zip(group.clusters, loops, strict=True)]


def _product(cluster: Cluster, left: dict[int, Tensor], right: dict[int, Tensor]) -> Callable[[slice], Tensor]:
    return lambda rows: cluster.mapped(left, rows) * cluster.mapped(right, rows)


class _Feedback:
    """What enters the second derivative where one use's input depends on another use of the same entries.

    If x(theta) is multiplied by theta again, the second derivative of <g, theta x(theta)> has the further term
    2 g dx/dtheta. With random signs rho in the place of x it is the mean of 2 A(g; rho) A(rho^T dx/deps).
    """

    def __init__(self, graph: SitedGraph, cluster: Cluster, key: int, numbers: Tensor):
        self._graph, self._cluster, self._key, self._numbers = graph, cluster, key, numbers
        self._sites = sorted({n for n, _ in cluster.places})
        found = [(place, graph.data(*place)) for place in cluster.places] if len(cluster.places) > 1 else []
        self._data: dict[Place, Tensor] = {place: data for place, data in found if data is not None}

    def estimate(self, probe: int) -> Callable[[slice], Tensor] | None:
        """The function from a range of examples to this term (rows, K), if there is one."""
        if not self._data:
            return None
        rho = {
            place: signs(self._key + 1009 * place[0] + place[1], self._numbers, probe, data.shape[1:], data.dtype)
            for place, data in self._data.items()
        }
        pulled = self._graph.pulled_back(list(self._data.values()), list(rho.values()), self._sites)
        right = dict(zip(self._sites, pulled, strict=True))
        left = {n: 2 * self._graph.gradient(n) for n, _ in self._data}
        return lambda rows: self._cluster.mapped(left, rows, rho) * self._cluster.mapped(right, rows)
