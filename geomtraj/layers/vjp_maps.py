"""What a use of a parameter does to probes: maps from values at its tap to derivatives by the parameter.

A map takes values v (B, k, T, U) on a tap's perturbation, k vectors for each example, to A(v), each example's
derivative of <v, output> by the parameter: (v^T x)_ij for a weight, sums over positions for a bias or a gain, sums over
equal tokens for an embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtraj.layers.parameter_use import ExampleAxis, ParameterUse, Tap

ALL = slice(None)


class VjpMap(ABC):
    """A use with its data arranged by examples.

    Attributes:
        name: The parameter.
        dtype: Number type of the values.
        index: Place in the flattened parameter of each column of `vjp`; the parameter's size stands for none.
        by_rows: Whether `vjp` has a row for each example.
        row_entries: Entries in such a row.
        positionwise: Whether the derivative at a position needs the values at that position alone.
        inputs: How many entries multiply into one value: 1 for a bias or a token, J for a weight.
        has_jvp: Whether `jvp` is there.
    """

    by_rows = True
    positionwise = True
    inputs = 1
    has_jvp = True

    def __init__(self, use: ParameterUse, size: int, tap: Tap):
        self.name, self.scale, self.size, self.dtype = use.name, use.scale, size, tap.eps.dtype
        flat = use.index.reshape(-1)
        self.index = torch.where(flat < 0, size, flat)
        self.row_entries = self.index.numel()

    @abstractmethod
    def vjp(self, v: Tensor, rows: slice = ALL, data: Tensor | None = None) -> Tensor:
        """A(v) of the examples in `rows`, (rows, k, K), with other data in the place of the map's own if given."""

    @abstractmethod
    def jvp(self, z: Tensor, rows: slice = ALL) -> Tensor:
        """The change (rows, k, T, U) at the tap when each example's parameter changes by z, as in `vjp`."""

    @abstractmethod
    def weighted(self, d: Tensor, power: int) -> Tensor:
        """Sum over examples and positions of d (B, T, U) times the data to that power, (K,)."""

    def jvp_dense(self, z: Tensor, rows: slice = ALL) -> Tensor:
        """As `jvp`, for z (rows, k, size + 1) by the parameter's own entries, and one more for none."""
        return self.jvp(z[..., self.index], rows)

    def vjp_dense(self, v: Tensor, rows: slice = ALL, data: Tensor | None = None) -> Tensor:
        """As `vjp`, by the parameter's own entries, and one more for none, (rows, k, size + 1)."""
        part = self.vjp(v, rows, data)
        return part.new_zeros(*part.shape[:2], self.size + 1).index_add_(2, self.index, part)

    def summed(self, v: Tensor) -> Tensor:
        """A(v) summed over the examples for v (B, T, U), (size + 1,)."""
        part = self.vjp(v.unsqueeze(1)).sum((0, 1))
        return part.new_zeros(self.size + 1).index_add_(0, self.index, part)


class LinearVjp(VjpMap):
    """A(v)_n = v_n^T x_n, in groups."""

    def __init__(self, use: ParameterUse, size: int, tap: Tap, axis: ExampleAxis):
        super().__init__(use, size, tap)
        assert use.inputs is not None
        self._x = axis.positions(use.inputs().detach(), 2)  # (B, T, G, J)
        self._tap, self._axis, self._spread = tap, axis, use.spread
        self.positionwise = self.has_jvp = use.spread is None
        self.inputs = self._x.shape[3]

    def _grouped(self, v: Tensor) -> Tensor:
        """Values (B, k, T, U) as (B, k, T, G, U / G)."""
        if self._spread is None:
            return v.unflatten(-1, (self._x.shape[2], -1))
        lead = self._tap.moved(self._tap.eps).shape[:-1]
        each = [self._spread(self._tap.restored(self._axis.restored(one, lead))) for one in v.unbind(1)]
        return torch.stack([self._axis.positions(one, 2) for one in each], 1)

    def vjp(self, v: Tensor, rows: slice = ALL, data: Tensor | None = None) -> Tensor:
        """A(v) of the examples in `rows`, (rows, k, K)."""
        part = self._product(self._grouped(v)[rows], (self._x if data is None else data)[rows])
        return (part if self._spread is None else part.transpose(3, 4)).flatten(2)

    def jvp(self, z: Tensor, rows: slice = ALL) -> Tensor:
        """The change x z^T (rows, k, T, U), not for a transposed convolution."""
        x = self._x[rows].transpose(1, 2)  # (B, G, T, J)
        z = z.unflatten(2, (x.shape[1], -1, x.shape[3])).permute(0, 2, 4, 1, 3)  # (B, G, J, k, U / G)
        change = (x @ z.flatten(3)).unflatten(3, z.shape[3:])  # (B, G, T, k, U / G)
        return change.permute(0, 3, 2, 1, 4).flatten(3) * self.scale

    def summed(self, v: Tensor) -> Tensor:
        """A(v) summed over the examples for v (B, T, U), (size + 1,)."""
        part = self._together(self._grouped(v.unsqueeze(1)), self._x)
        return part.new_zeros(self.size + 1).index_add_(0, self.index, part)

    def weighted(self, d: Tensor, power: int) -> Tensor:
        """Sum over examples and positions of d (B, T, U) times the inputs to that power, (K,)."""
        return self._together(self._grouped(d.unsqueeze(1)), self._x.to(d.dtype).pow(power)) * self.scale ** (power - 1)

    def _together(self, v: Tensor, x: Tensor) -> Tensor:
        """The products (K,) summed over examples, by one matrix product."""
        part = self._product(v.transpose(0, 1).flatten(1, 2).unsqueeze(1), x.flatten(0, 1)[None])
        return (part if self._spread is None else part.transpose(3, 4)).flatten()

    def _product(self, v: Tensor, x: Tensor) -> Tensor:
        """Values (B, k, T, G, U) times data (B, T, G, J), summed over positions, (B, k, G, U, J)."""
        probes, units = v.shape[1], v.shape[4]
        part = v.permute(0, 3, 1, 4, 2).flatten(2, 3) @ x.permute(0, 2, 1, 3)
        return part.unflatten(2, (probes, units)).transpose(1, 2) * self.scale


class ScaleVjp(VjpMap):
    """A(v)_n = sum over positions of v_n, times a factor if there is one."""

    def __init__(self, use: ParameterUse, size: int, tap: Tap, axis: ExampleAxis):
        super().__init__(use, size, tap)
        self._factor = None if use.factor is None else axis.positions(tap.moved(use.factor.detach()))
        self._positions = axis.positions(tap.moved(tap.eps)).shape[1]

    def vjp(self, v: Tensor, rows: slice = ALL, data: Tensor | None = None) -> Tensor:
        """A(v) of the examples in `rows`, (rows, k, U)."""
        factor = self._factor if data is None else data
        return (v[rows] if factor is None else v[rows] * factor[rows].unsqueeze(1)).sum(2) * self.scale

    def jvp(self, z: Tensor, rows: slice = ALL) -> Tensor:
        """The change at every position (rows, k, T, U)."""
        z = z.unsqueeze(2).expand(-1, -1, self._positions, -1) * self.scale
        return z if self._factor is None else z * self._factor[rows].unsqueeze(1)

    def weighted(self, d: Tensor, power: int) -> Tensor:
        """Sum over examples and positions of d times the factor to that power, (U,)."""
        d = d if self._factor is None else d * self._factor.to(d.dtype).pow(power)
        return d.sum((0, 1)) * self.scale**power


class EmbeddingVjp(VjpMap):
    """A(v)_n = sum over the places that hold the same entry; no row for each example, but only what occurs."""

    by_rows = False
    positionwise = False

    def __init__(self, use: ParameterUse, size: int, tap: Tap, axis: ExampleAxis):
        super().__init__(use, size, tap)
        placed = axis.positions(tap.moved(use.index))
        self._shape, places = placed.shape, placed.flatten(1)
        self._places = torch.where(places < 0, size, places)  # (B, M)
        owners = torch.arange(len(places), device=places.device)[:, None] * (size + 1)
        occurring, self._inverse = torch.unique(self._places + owners, return_inverse=True)
        self.index = occurring % (size + 1)
        self.owners = occurring // (size + 1)
        self.row_entries = self._places.shape[1]

    def vjp(self, v: Tensor, rows: slice = ALL, data: Tensor | None = None) -> Tensor:
        """A(v) (1, k, K) for the K pairs of an example and an entry that occurs in it."""
        sums = v.new_zeros(v.shape[1], self.index.numel())
        return sums.index_add_(1, self._inverse.flatten(), v.transpose(0, 1).flatten(1))[None] * self.scale

    def jvp(self, z: Tensor, rows: slice = ALL) -> Tensor:
        """The change (B, k, T, U) for z (1, k, K) by pairs of an example and an entry."""
        change = z[0][:, self._inverse].reshape(z.shape[1], *self._shape)
        return change.transpose(0, 1) * self.scale

    def jvp_dense(self, z: Tensor, rows: slice = ALL) -> Tensor:
        """The change (rows, k, T, U) for z (rows, k, size + 1)."""
        return z.gather(2, self._occurring(z, rows)).unflatten(2, self._shape[1:]) * self.scale

    def vjp_dense(self, v: Tensor, rows: slice = ALL, data: Tensor | None = None) -> Tensor:
        """A(v) of the examples in `rows` by the parameter's own entries, and one more for none, (rows, k, size + 1)."""
        v = v[rows].flatten(2)
        sums = v.new_zeros(*v.shape[:2], self.size + 1)
        return sums.scatter_add_(2, self._occurring(v, rows), v) * self.scale

    def weighted(self, d: Tensor, power: int) -> Tensor:
        """Sum of d (B, T, U) over the places that hold the same entry, (K,)."""
        return self.vjp(d.unsqueeze(1))[0, 0] * self.scale ** (power - 1)

    def _occurring(self, like: Tensor, rows: slice) -> Tensor:
        return self._places[rows].unsqueeze(1).expand(-1, like.shape[1], -1)


def data_of(use: ParameterUse, tap: Tap, axis: ExampleAxis) -> Tensor | None:
    """What the parameter is multiplied by, arranged as its map holds it, in the graph; None for ones."""
    if use.inputs is not None:
        return axis.positions(use.inputs(), 2)
    return None if use.factor is None else axis.positions(tap.moved(use.factor))


def vjp_map(use: ParameterUse, size: int, tap: Tap, axis: ExampleAxis) -> VjpMap:
    """The map of a use of a parameter with `size` entries."""
    kinds: dict[str, type[LinearVjp | ScaleVjp | EmbeddingVjp]] = {
        "linear": LinearVjp,
        "scale": ScaleVjp,
        "embedding": EmbeddingVjp,
    }
    return kinds[use.kind](use, size, tap, axis)


def patches(
    x: Tensor, kernel: Sequence[int], groups: int, space: Sequence[int] | None, *,
    stride: Sequence[int], dilation: Sequence[int], sides: Sequence[tuple[int, int]],
) -> Tensor:  # fmt: skip
    """What each output location of a convolution of x (B, C, *space) sees: (B, *locations, groups, C / groups * k).

    Args:
        x: The tensor that the kernel slides over.
        kernel: Sizes of the kernel.
        groups: Number of groups of channels.
        space: Numbers of locations to keep; None for all.
        stride: Steps of the kernel.
        dilation: Distances between its entries.
        sides: Zero padding before and behind, for each axis.
    """
    dims = len(kernel)
    x = F.pad(x, [side for pair in reversed(sides) for side in pair])
    for axis, (k, step, distance) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(axis, distance * (k - 1) + 1, step)[..., ::distance]
        if space is not None:
            x = x.narrow(axis, 0, space[axis - 2])
    x = x.movedim(1, 1 + dims)  # (B, *locations, C, *kernel)
    return x.unflatten(1 + dims, (groups, -1)).flatten(2 + dims)
