"""The diagonal of the residual part by factored second derivatives, for all layers by the same two backward passes.

R = sum_o J_o^T C_o J_o over the operations o of a forward pass (see `geomtraj.layers.replay`). With C_o = E[w_o z_o^T]
for random w_o and z_o, independent between operations, u = sum_o J_o^T w_o and v = sum_o J_o^T z_o at a tap have the
mean E[A(u) * A(v)] = diag A(R), and each of them takes one backward pass from all operations at once, whatever the
number of layers.

Where C is diagonal, w = sqrt|c| xi and z = sign(c) w for random signs xi. Elsewhere w = m xi and z = C (xi / m), which
is unbiased for any m > 0; the noise is least where w and z are of equal size, m_i^4 = sum_j C_ij^2, which a few
products estimate. What bends directly at a tap with no second derivative between different entries, as an activation
does behind its layer, adds its diagonal exactly, and nothing of it to u and v at that tap.

Source: Martens, Sutskever, Swersky 2012, "Estimating the Hessian by back-propagating curvature".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import Accumulator, MeanVariance, Parts
from geomtraj.diagonals.estimator import Estimator
from geomtraj.diagonals.products import Pair, Products
from geomtraj.diagonals.sampling import Sampling
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.probe_groups import ProbeGroup
from geomtraj.layers.replay import Direct, NotReplayed, Operation, Replay

SIZE_PRODUCTS = 6
"""Products with an operation's second derivative from which the sizes m are taken."""
LEAST = (0.1, 1e-6)
"""What m^4 is at least, of its mean over the last axis and over the example."""


class Factored(Products):
    """The mean of A(u) * A(v) over random factors of the second derivatives of a batch's operations.

    Args:
        groups: Where.
        sampling: How many pairs.
        ids: Numbers (B,) of the examples in the data.
        otherwise: What to run where the batch cannot be run again operation by operation.

    Attributes:
        failed: Why it cannot, once that is found out; "" else.
    """

    target = "residual"

    def __init__(
        self, groups: list[ProbeGroup], sampling: Sampling, ids: Tensor, otherwise: Callable[[], list[Estimator]]
    ):
        spread_of = max(2, sampling.spread_samples)
        super().__init__(groups[0].graph, groups, sampling.samples, spread_of=spread_of, exact=False)
        self._ids, self._signs, self._otherwise = ids, sampling.signs("probing, factored"), otherwise
        self._alone = {group.taps[0] for group in groups if group.pointwise}
        self._places = {place for group in groups for part in group.shared_entries for place in part.places}
        self.replay: Replay | None = None
        self.failed = ""

    def run(self, parts: Parts) -> int:
        """Add the estimates, or those of what is run otherwise; see `Estimator`."""
        try:
            self.replay = self.replay or Replay(self.graph)
            return super().run(parts)
        except NotReplayed as error:
            self.failed = str(error)
            return sum(one.run(parts) for one in self._otherwise())
        finally:
            self.replay = None

    @cached_property
    def _operations(self) -> list[Operation]:
        assert self.replay is not None
        return self.replay.operations

    @cached_property
    def _sizes(self) -> list[list[Tensor]]:
        return [self._sizes_of(operation) for operation in self._operations]

    def pair(self, number: int) -> Pair:
        """The vectors u and v."""
        drawn = [self._draw(k, number) for k in range(len(self._operations))]
        return self._pulled([w for w, _ in drawn]), self._pulled([z for _, z in drawn])

    def add_to(self, parts: Parts) -> None:
        """Add the mean, and what operations directly at the taps contribute, exactly."""
        super().add_to(parts)
        for operation in self._operations:
            for direct in operation.direct.values():
                if direct.tap in self._alone:
                    self._add_direct(direct, parts.residual)

    def _add_direct(self, direct: Direct, accumulator: Accumulator) -> None:
        graph = self.graph
        at_tap = graph.arranged(direct.tap, _scattered(graph, direct, direct.curvature))
        for use, one in enumerate(graph.maps(direct.tap)):
            if (direct.tap, use) in self._places:
                accumulator.add(one.name, one.index, MeanVariance(one.weighted(at_tap, 2)))

    def _sizes_of(self, operation: Operation) -> list[Tensor]:
        if operation.diagonal is not None:
            return [operation.diagonal.abs().sqrt()]
        fourth = [torch.zeros_like(leaf) for leaf in operation.leaves]
        for k in range(SIZE_PRODUCTS):
            for total, u in zip(fourth, operation.product(operation.trial(k)), strict=True):
                total += u.square() / SIZE_PRODUCTS
        found = []
        for total, axis in zip(fourth, operation.axes, strict=True):
            rows = axis.first(total).flatten(1)
            mean = axis.placed(rows.mean(1, keepdim=True).expand_as(rows), total.shape)
            least = LEAST[0] * total.mean(-1, keepdim=True) + LEAST[1] * mean + torch.finfo(total.dtype).tiny
            found.append((total + least).sqrt().sqrt())
        return found

    def _draw(self, number: int, probe: int) -> tuple[list[Tensor], list[Tensor]]:
        operation, sizes = self._operations[number], self._sizes[number]
        xis = []
        for k, (m, axis) in enumerate(zip(sizes, operation.axes, strict=True)):
            own = self._signs.shifted(1009 * number + k)
            drawn = own.of_examples(self._ids, probe, (m.numel() // axis.examples,), m.dtype)
            xis.append(axis.placed(drawn, m.shape))
        w = [m * xi for m, xi in zip(sizes, xis, strict=True)]
        if operation.diagonal is not None:
            return w, [operation.diagonal.sign() * w[0]]
        return w, operation.product([xi / m for m, xi in zip(sizes, xis, strict=True)])

    def _pulled(self, along: Sequence[list[Tensor]]) -> dict[int, Tensor]:
        """What vectors at all that operations take are at the taps, but for what is directly there."""
        assert self.replay is not None
        sums: dict[int, tuple[Tensor, Tensor]] = {}
        found = {n: torch.zeros_like(self.graph.taps[n].eps) for n in self.taps}
        for operation, vectors in zip(self._operations, along, strict=True):
            for y, v in zip(operation.inputs, vectors, strict=True):
                sums[id(y)] = (y, sums[id(y)][1] + v) if id(y) in sums else (y, v)
            for k, direct in operation.direct.items():
                if direct.tap in self._alone:
                    found[direct.tap] -= _scattered(self.graph, direct, vectors[k])
        own = {n: self.graph.arranged(n, t) for n, t in found.items()}
        if not sums:
            return own
        ys, vs = zip(*sums.values(), strict=True)
        return {n: u + own[n] for n, u in self.replay.vjp(list(ys), list(vs), self.taps).items()}


def _scattered(graph: LossGraph, direct: Direct, values: Tensor) -> Tensor:
    """Values of what is directly at a tap, in the tap's shape."""
    eps = graph.taps[direct.tap].eps
    return eps.new_zeros(eps.numel()).index_add_(0, direct.places.flatten(), values.flatten()).reshape(eps.shape)
