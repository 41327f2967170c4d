"""Sums of estimates over examples and vectors, their spread, and where they end up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from geomtraj.diagonal.sites.clusters import Cluster
from geomtraj.diagonal.sites.linear_maps import LinearMap
from geomtraj.problem import Problem


class Tally:
    """Running sums by parameter, each with one more entry for what belongs nowhere."""

    def __init__(self, parameters: Mapping[str, Tensor]):
        self._values = {name: p.new_zeros(p.numel() + 1) for name, p in parameters.items()}
        self._variances = {name: p.new_zeros(p.numel() + 1) for name, p in parameters.items()}

    def add(self, name: str, index: Tensor | None, value: Tensor, variance: Tensor | None = None) -> None:
        """Add to the sums of one parameter at these places, or (None) at all of them; no variance: it is exact."""
        for total, part in ((self._values[name], value), (self._variances[name], variance)):
            if part is None:
                continue
            if index is None:
                total[: part.numel()] += part
            else:
                total.index_add_(0, index, part)

    def flat(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """The diagonal (P,) and its variances (P,)."""
        flat = [problem.layout.flatten({n: v[:-1] for n, v in own.items()}) for own in (self._values, self._variances)]
        values, variances = problem.over_ranks(torch.stack(flat))
        return values / problem.total_weight, variances / problem.total_weight**2


class ClusterSums:
    """Sums over examples and vectors of a cluster's estimates, and their spread over the vectors of one call."""

    def __init__(self, cluster: Cluster):
        self._name, self._index = cluster.name, cluster.index  # not the cluster, which holds data
        self._freedom = self._count = 0
        self._values: Tensor | float = 0.0
        self._spread: Tensor | float = 0.0

    def add(self, estimates: Tensor, with_spread: bool = False) -> None:
        """Add estimates (rows, k, K) of a range of examples."""
        self._values = self._values + estimates.sum((0, 1))
        if with_spread:
            self._spread = self._spread + (estimates - estimates.mean(1, keepdim=True)).square_().sum((0, 1))

    def added(self, count: int, with_spread: bool = False) -> None:
        """Say that `count` vectors have been added for every range of examples."""
        self._count += count
        self._freedom += (count - 1) * with_spread

    @property
    def total(self) -> Tensor:
        """Sum (K,) over all vectors."""
        return torch.as_tensor(self._values)

    @property
    def variance(self) -> Tensor:
        """Variance (K,) of one vector's sum over the examples; NaN where no spread was taken."""
        if not self._freedom:
            return torch.full_like(self.total, torch.nan)
        return torch.as_tensor(self._spread) / self._freedom

    def tally(self, tally: Tally, exact: bool = False) -> None:
        """Add the mean over vectors with its variance, or if `exact` their sum."""
        if exact:
            tally.add(self._name, self._index, self.total)
        else:
            tally.add(self._name, self._index, self.total / self._count, self.variance / self._count)


class PointwiseSums:
    """Sums over vectors at each value of a site whose positions do not couple, and their spread."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, products: Tensor) -> None:
        """Add products (B, k, T, U) of what two vectors are at each value, k vectors for each example."""
        count, before = products.shape[1], self._count
        mean = products.mean(1)
        shift = mean - self._mean
        self._count += count
        self._mean = self._mean + shift * (count / self._count)
        self._squares = self._squares + (products - mean.unsqueeze(1)).square_().sum(1)
        if before:
            self._squares = self._squares + shift.square() * (before * count / self._count)

    def tally(self, maps: Iterable[LinearMap], tally: Tally, exact: bool = False) -> None:
        """Add the mean over vectors with its variance, or if `exact` their sum, for every use at the site."""
        mean, count = torch.as_tensor(self._mean), self._count
        if exact:
            for m in maps:
                tally.add(m.name, m.index, m.weighted(mean * count, 2))
            return
        spread = (
            torch.as_tensor(self._squares) / (count * (count - 1)) if count > 1 else torch.full_like(mean, torch.nan)
        )
        for m in maps:
            tally.add(m.name, m.index, m.weighted(mean, 2), m.weighted(spread, 4))
