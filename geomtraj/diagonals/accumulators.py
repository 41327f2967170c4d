"""Sums of estimates over examples and vectors, their spread, and where they end up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from geomtraj.layers.shared_entries import SharedVjp
from geomtraj.layers.vjp_maps import VjpMap
from geomtraj.layout import Layout


class MeanVariance(NamedTuple):
    """A sum of random terms (K,), its variance, and how uncertain that is; None for what is exact.

    Attributes:
        value: The sum.
        variance: The sum of the terms' variances v_c.
        variance_of_variance: The sum of 2 v_c^2 / (f_c + 2), f_c the degrees of freedom of v_c: 2 (sum v_c)^2 over it,
            less 2, are those of the sum. In float64: squares of variances leave float32's range.
    """

    value: Tensor
    variance: Tensor | None = None
    variance_of_variance: Tensor | None = None


class Accumulator:
    """Running sums by parameter, each with one more entry for what belongs nowhere, and which entries have any."""

    def __init__(self, layout: Layout, device: torch.device):
        self._totals = {
            name: torch.zeros(4, slot.size + 1, dtype=torch.float64, device=device) for name, slot in layout.items()
        }

    def add(self, name: str, index: Tensor | None, part: MeanVariance) -> None:
        """Add to the sums of one parameter at these places, or (None) at all of them."""
        *totals, touched = self._totals[name]
        if index is None:
            touched[:-1] = 1
        else:
            touched.index_fill_(0, index, 1)
        for total, more in zip(totals, part, strict=True):
            if more is None:
                continue
            if index is None:
                total[: more.numel()] += more
            else:
                total.index_add_(0, index, more.to(total.dtype))

    def sums(self) -> Tensor:
        """Values, variances, their variances, and 1 where anything was added, (4, P)."""
        return torch.cat([total[:, :-1] for total in self._totals.values()], 1)


class Parts(NamedTuple):
    """The accumulators of a diagonal: what was taken apart, and what was not.

    Attributes:
        gauss_newton: Of the Gauss-Newton part.
        residual: Of the residual part.
        whole: Of entries where the two parts are not told from each other.
    """

    gauss_newton: Accumulator
    residual: Accumulator
    whole: Accumulator

    @classmethod
    def of(cls, layout: Layout, device: torch.device) -> Parts:
        """Empty ones for these parameters, on this device."""
        return cls(*(Accumulator(layout, device) for _ in range(3)))

    def sums(self) -> Tensor:
        """The sums (3, 4, P) of the three, in this order."""
        return torch.stack([one.sums() for one in self])


class SharedSums:
    """Sums over examples and vectors of estimates of shared entries, and their spread over the vectors of one call."""

    def __init__(self, maps: SharedVjp):
        self._name, self._index = maps.name, maps.index  # not the maps, which hold data
        self._freedom = self._count = 0
        self._values: Tensor | float = 0.0
        self._spread: Tensor | float = 0.0
        self._variance_of_variance: Tensor | float = 0.0

    def add(self, estimates: Tensor, with_spread: bool = False) -> None:
        """Add estimates (rows, k, K) of a range of examples."""
        self._values = self._values + estimates.sum((0, 1))
        if with_spread:
            spread = (estimates - estimates.mean(1, keepdim=True)).square_().sum(1)
            self._spread = self._spread + spread.sum(0)
            squares = spread.double().square_().sum(0)
            self._variance_of_variance = self._variance_of_variance + 2 * squares / (estimates.shape[1] + 1)

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

    def add_to(self, accumulator: Accumulator, exact: bool = False) -> None:
        """Add the mean over vectors with its variance, or if `exact` their sum."""
        if exact:
            part = MeanVariance(self.total)
        else:
            scale = (self._freedom * self._count) ** 2
            uncertainty = torch.as_tensor(self._variance_of_variance) / scale if scale else None
            part = MeanVariance(self.total / self._count, self.variance / self._count, uncertainty)
        accumulator.add(self._name, self._index, part)


class PositionSums:
    """Sums over vectors at each value of a tap whose positions do not couple, and their spread."""

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

    def add_to(self, maps: Iterable[VjpMap], accumulator: Accumulator, exact: bool = False) -> None:
        """Add the mean over vectors with its variance, or if `exact` their sum, for every use at the tap."""
        mean, count = torch.as_tensor(self._mean), self._count
        if exact:
            for m in maps:
                accumulator.add(m.name, m.index, MeanVariance(m.weighted(mean * count, 2)))
            return
        variance = torch.as_tensor(self._squares) / (count * (count - 1) if count > 1 else torch.nan)
        uncertainty = 2 * variance.double().square() / (count + 1)
        for m in maps:
            part = MeanVariance(m.weighted(mean, 2), m.weighted(variance, 4), m.weighted(uncertainty, 8))
            accumulator.add(m.name, m.index, part)
