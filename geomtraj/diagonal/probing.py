"""The diagonal by random signs on activations, each example with its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from geomtraj.diagonal.base import Cost, Diagonal, describe
from geomtraj.diagonal.clusters import Cluster, ClusterSums, Group, Place, group_of, plan
from geomtraj.diagonal.parameter_probes import probe_parameters
from geomtraj.diagonal.signs import key_of, signs
from geomtraj.diagonal.sited_graph import SitedGraph
from geomtraj.errors import InputError
from geomtraj.linalg.chunks import at_least
from geomtraj.problem import Problem

SPREAD_TERMS = 1024
"""Pairs of an example and a probe from which standard errors are taken at least, where there are so many."""

PILOT = 3
"""Probes with which two ways of probing a weight are compared."""


def probing(problem: Problem, samples: int = 64, seed: int = 0, theta: Tensor | None = None) -> Diagonal:
    """The Hessian diagonal by random signs for each example, with standard errors; all entries of a weight at once.

    Perturbations eps are added wherever a parameter enters linearly: (B, T, U) at the output of a weight. With random
    signs v there and u = (d2L_n/deps2) v, the estimate for the weight's entry (i, j) is the sum over examples n of
    (v_n^T x_n)_ij (u_n^T x_n)_ij. Each example has signs of its own, so the noise averages over examples as well as
    over probes. What is done beyond that, with what it gave on a trained one-layer GPT (P = 12,984, 64 sequences of 32,
    error relative to the block's norm at 64 probes, for qkv / attention out / mlp up / mlp down / head):

    - All sites at once: 1.3 / .20 / 1.6 / .23 / .51. Each site on its own: .10 / .069 / .12 / .058 / .027, for 1.5
      times the time (a site's pass starts at that site, and its outer products are the same): kept.
    - Where a site's positions provably do not couple (after the last attention, and wherever there is one position:
      every pair of positions is tried, for exact zeros), products of different positions are left out, which are
      noise: .014 / .013 / .014 / .002 for the last four; outer products are then taken once, not for each probe. Where
      such a site has at most `samples` units, one-hot vectors in their place make it exact.
    - H = J^T (d2L/dz2) J + R where the loss at the model's output z is diagonal or softmax-like, which is found out by
      trying. The first part comes from squares, with a relative error of sqrt(2 / (N samples)), or exactly where z has
      at most `samples` entries; R vanishes within a layer of a piecewise linear network. Together .067 for qkv.
    - Signs on the entries of each example's own parameter in the place of signs on outputs: embedding .16 to .092,
      first norm .15 to .023. Always better for what has one input (biases, norms, tokens; Cauchy-Schwarz); for weights
      three probes on the first example decide.
    - Uses of the same entries (tied weights, repeated modules) are summed before multiplying; where the input of one
      depends on another, 2 g dx/dtheta is added, without which a tied embedding is off by half.
    - No gain: signs that are products of one sign per position and one per unit (cheaper outer products, 0.7 to 1.2
      times the error), more than one site at once, Hadamard signs.

    A parameter whose uses do not add up to its true gradient, or do not belong to one example each, is probed in
    parameter space instead, one example's copy at a time; the status says so.

    The standard error is the spread over probes, example by example: the N examples are no sample but all that L
    averages over. Measured variance of standardised errors: 0.96 to 1.07 on that GPT for 4 to 32 probes; up to 1.4 with
    40 pairs of an example and a probe, as of Student's t with few degrees of freedom. The same holds in rows of an
    embedding whose token occurs in few examples.

    Signs belong to the example, so that other batches of the same data give the same numbers up to rounding.

    Args:
        problem: The loss. Its examples must not depend on each other.
        samples: Probes for each site; one gives no standard errors, which the status says.
        seed: Seed of the signs.
        theta: Where to measure (P,); the problem's current parameters if left out.

    Returns:
        The diagonal; `cost.matvecs` counts derivatives along one vector, from one site each, over the whole data.

    Raises:
        InputError: samples < 1, theta does not fit, or examples depend on each other: batch statistics, or an example
            alone has another loss than in its batch.

    Source:
        Martens, Sutskever, Swersky 2012, "Estimating the Hessian by back-propagating curvature", for signs on
        activations. Dangel, Kunstner, Hennig 2020, "BackPACK", for the exact Gauss-Newton diagonal.
    """
    samples = at_least("samples", samples, 1)
    _refuse_batch_statistics(problem)
    start = time.perf_counter()
    parameters = problem.layout.unflatten(problem.checked(theta))
    tally = _Tally(parameters)
    settings = _Settings(samples, seed, problem.examples)
    elsewhere: dict[str, str] = {}
    products = batches = first = 0
    with problem.session():
        for batch in problem.batches:
            graph = _sound_graph(problem, parameters, elsewhere, batch)
            numbers = torch.arange(first, first + graph.examples, device=problem.device)
            _BatchProber(graph, tally, numbers, settings).run()
            products += graph.products
            del graph
            if elsewhere:
                add = tally.add
                products += probe_parameters(problem, parameters, elsewhere, batch, numbers, samples, seed, add)
            first += len(numbers)
            batches += 1
    values, variances = tally.flat(problem)
    remarks = [f"{name}: {how}" for name, how in elsewhere.items()]
    if samples == 1:
        remarks.append("one sample gives no standard errors: use at least two")
    status = describe(values, problem.layout, "; ".join(remarks))
    cost = Cost(round(products / batches), time.perf_counter() - start)
    return Diagonal(values, variances.clamp_min(0).sqrt(), problem.layout, "probing", cost, status)


class _Tally:
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
class _Settings:
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


def _refuse_batch_statistics(problem: Problem) -> None:
    if problem.batch_statistics:
        raise InputError(
            f"{', '.join(map(repr, problem.batch_statistics[:3]))} computes batch statistics, so the examples of a "
            "batch depend on each other, which method 'probing' cannot handle: pass mode='eval' to the Problem, or "
            "take method 'xdiag'."
        )


def _sound_graph(problem: Problem, parameters: dict[str, Tensor], elsewhere: dict[str, str], batch: Any) -> SitedGraph:
    """The batch's graph over all parameters whose uses are accounted for; the others are added to `elsewhere`."""
    while True:
        graph = SitedGraph(problem, parameters, [n for n in parameters if n not in elsewhere], batch)
        failed = set(graph.failed)
        if not failed:
            coupled = [n for n in range(len(graph.sites)) if not graph.independent(n)]
            failed = {use.name for n in coupled for use in graph.sites[n].uses}
        if not failed:
            return graph
        elsewhere |= {name: "" for name in parameters if name in failed}


class _BatchProber:
    """Adds one batch's estimates to a tally.

    Args:
        graph: The batch.
        tally: Where to add.
        numbers: Numbers (B,) of its examples in the data.
        settings: How to probe.
    """

    def __init__(self, graph: SitedGraph, tally: _Tally, numbers: Tensor, settings: _Settings):
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
        if units <= self.samples:
            diagonal = self._one_hot(number, units)
            spread = torch.zeros_like(diagonal)
        elif positions == 1 and self.graph.factor is not None and math.prod(self.graph.output_shape) <= self.samples:
            self._gauss_newton(group)
            if self.graph.is_straight([number]):
                return
            diagonal, spread = self._mean_and_spread(number, residual=True)
        else:
            diagonal, spread = self._mean_and_spread(number)
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
