"""The reuse term: what enters the diagonal where one use's input depends on another use of the same entries.

If x(theta) is multiplied by theta again, the second derivative of <g, theta x(theta)> has the further term
2 g dx/dtheta. With random signs rho in the place of x it is the mean of 2 A(g; rho) A(rho^T dx/deps), and the sum with
one-hot ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from geomtraj.diagonals.sampling import Signs
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.shared_entries import Place, SharedVjp


class ReuseTerm:
    """Estimates of the reuse term of shared entries.

    Args:
        graph: The batch.
        maps: The maps of the shared entries.
        signs: Random signs.
        ids: Numbers (B,) of the examples in the data.
    """

    def __init__(self, graph: LossGraph, maps: SharedVjp, signs: Signs, ids: Tensor):
        self._graph, self._shared, self._signs, self._ids = graph, maps, signs, ids
        self._taps = sorted({n for n, _ in maps.places})
        self._data = graph.dependent_data(maps.places)

    def estimate(self, vectors: Sequence[int]) -> Callable[[slice], Tensor] | None:
        """The function from a range of examples to this term (rows, k, K), if there is one."""
        if not self._data:
            return None
        rhos, pulled = [], []
        for vector in vectors:
            rhos.append({place: self._rho(place, data, vector) for place, data in self._data.items()})
            found = self._graph.pulled_back(list(self._data.values()), list(rhos[-1].values()), self._taps)
            pulled.append(dict(zip(self._taps, (w.unsqueeze(1) for w in found), strict=True)))
        left = {n: 2 * self._graph.gradient(n).unsqueeze(1) for n, _ in self._data}

        def of(rows: slice) -> Tensor:
            vjp = self._shared.vjp
            each = [vjp(left, rows, rho) * vjp(right, rows) for rho, right in zip(rhos, pulled, strict=True)]
            return torch.cat(each, 1)

        return of

    def _rho(self, place: Place, data: Tensor, vector: int) -> Tensor:
        signs = self._signs.shifted(1009 * place[0] + place[1])
        return signs.of_examples(self._ids, vector, tuple(data.shape[1:]), data.dtype)


def exact_reuse_terms(graph: LossGraph, maps: SharedVjp) -> Iterator[Tensor]:
    """Estimates (rows, 1, K) whose sum is the reuse term."""
    taps = sorted({n for n, _ in maps.places})
    for place, data in graph.dependent_data(maps.places).items():
        left = {n: 2 * graph.gradient(n).unsqueeze(1) for n in taps}
        for k in range(data[0].numel()):
            rho: dict[Place, Tensor] = {place: torch.zeros_like(data)}
            rho[place].flatten(1)[:, k] = 1
            pulled = graph.pulled_back([data], [rho[place]], taps)
            right = {n: w.unsqueeze(1) for n, w in zip(taps, pulled, strict=True)}
            for rows in maps.chunks(1):
                yield maps.vjp(left, rows, rho) * maps.vjp(right, rows)
