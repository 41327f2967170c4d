"""What a use of a parameter does to probes: maps from values at its site to derivatives by the parameter.

A map takes values v (B, T, U) on a site's perturbation to A(v), each example's derivative of <v, output> by the
parameter: (v^T x)_ij for a weight, sums over positions for a bias or a gain, sums over equal tokens for an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtraj.diagonal.sites.uses import ExampleAxis, Site, Use

ALL = slice(None)


class LinearMap:
    """A use with its data arranged by examples.

    Attributes:
        name: The parameter.
        index: Place in the flattened parameter of each column of `outer`; the parameter's size stands for none.
        by_rows: Whether `outer` has a row for each example.
        row_entries: Entries in such a row.
        positionwise: Whether the derivative at a position needs the values at that position alone.
        inputs: How many entries multiply into one value: 1 for a bias or a token, J for a weight.
        has_forward: Whether `forward` is there.
    """

    by_rows = True
    positionwise = True
    inputs = 1
    has_forward = True

    def __init__(self, use: Use, size: int):
        self.name, self.scale, self.size = use.name, use.scale, size
        flat = use.index.reshape(-1)
        self.index = torch.where(flat < 0, size, flat)
        self.row_entries = self.index.numel()

    def outer(self, v: Tensor, rows: slice = ALL, data: Tensor | None = None) -> Tensor:
        """A(v) of the examples in `rows`, (rows, K), with other data in the place of the map's own if given."""
        raise NotImplementedError

    def forward(self, z: Tensor, rows: slice = ALL) -> Tensor:
        """The change (rows, T, U) at the site when each example's parameter changes by z, (rows, K) as in `outer`."""
        raise NotImplementedError

    def forward_dense(self, z: Tensor, rows: slice = ALL) -> Tensor:
        """As `forward`, for z (rows, size + 1) by the parameter's own entries, and one more for none."""
        return self.forward(z[:, self.index], rows)

    def dense(self, v: Tensor, rows: slice = ALL, data: Tensor | None = None) -> Tensor:
        """As `outer`, by the parameter's own entries, and one more for none, (rows, size + 1)."""
        part = self.outer(v, rows, data)
        return part.new_zeros(part.shape[0], self.size + 1).index_add_(1, self.index, part)

    def summed(self, v: Tensor) -> Tensor:
        """A(v) summed over the examples, (size + 1,)."""
        part = self.outer(v).sum(0)
        return part.new_zeros(self.size + 1).index_add_(0, self.index, part)

    def weighted(self, d: Tensor, power: int) -> Tensor:
        """Sum over examples and positions of d (B, T, U) times the data to that power, (K,)."""
        raise NotImplementedError


class Weight(LinearMap):
    """A(v)_n = v_n^T x_n, in groups."""

    def __init__(self, use: Use, size: int, site: Site, axis: ExampleAxis):
        super().__init__(use, size)
        assert use.inputs is not None
        self._x = axis.positions(use.inputs().detach(), 2)  # (B, T, G, J)
        self._site, self._axis, self._spread = site, axis, use.spread
        self.positionwise = self.has_forward = use.spread is None
        self.inputs = self._x.shape[3]

    def _grouped(self, v: Tensor) -> Tensor:
        """Values (B, T, U) as (B, T, G, U / G)."""
        if self._spread is None:
            return v.unflatten(-1, (self._x.shape[2], -1))
        lead = self._site.moved(self._site.eps).shape[:-1]
        return self._axis.positions(self._spread(self._site.restored(self._axis.restored(v, lead))), 2)

    def outer(self, v: Tensor, rows: slice = ALL, data: Tensor | None = None) -> Tensor:
        """A(v) of the examples in `rows`, (rows, K)."""
        v, x = self._grouped(v)[rows], (self._x if data is None else data)[rows]
        return (self._product(v, x) if self._spread is None else self._product(x, v)).flatten(1)

    def forward(self, z: Tensor, rows: slice = ALL) -> Tensor:
        """The change x z^T (rows, T, U), not for a transposed convolution."""
        x = self._x[rows].transpose(1, 2)  # (B, G, T, J)
        z = z.reshape(len(z), x.shape[1], -1, x.shape[3])
        return (x @ z.transpose(2, 3)).transpose(1, 2).flatten(2) * self.scale

    def summed(self, v: Tensor) -> Tensor:
        """A(v) summed over the examples, (size + 1,)."""
        a, x = self._grouped(v).flatten(0, 1)[None], self._x.flatten(0, 1)[None]
        part = (self._product(a, x) if self._spread is None else self._product(x, a)).flatten()
        return part.new_zeros(self.size + 1).index_add_(0, self.index, part)

    def weighted(self, d: Tensor, power: int) -> Tensor:
        """Sum over examples and positions of d (B, T, U) times the inputs to that power, (K,)."""
        d, x = self._grouped(d).flatten(0, 1)[None], self._x.flatten(0, 1)[None]
        return self._product(d, x.pow(power)).flatten() * (self.scale ** (power - 1))

    def _product(self, v: Tensor, x: Tensor) -> Tensor:
        return (v.permute(0, 2, 3, 1) @ x.permute(0, 2, 1, 3)) * self.scale


class Channel(LinearMap):
    """A(v)_n = sum over positions of v_n, times a factor if there is one."""

    def __init__(self, use: Use, size: int, site: Site, axis: ExampleAxis):
        super().__init__(use, size)
        self._factor = None if use.factor is None else axis.positions(site.moved(use.factor.detach()))
        self._positions = axis.positions(site.moved(site.eps)).shape[1]

    def outer(self, v: Tensor, rows: slice = ALL, data: Tensor | None = None) -> Tensor:
        """A(v) of the examples in `rows`, (rows, U)."""
        factor = self._factor if data is None else data
        return (v[rows] if factor is None else v[rows] * factor[rows]).sum(1) * self.scale

    def forward(self, z: Tensor, rows: slice = ALL) -> Tensor:
        """The change at every position (rows, T, U)."""
        z = z[:, None].expand(-1, self._positions, -1) * self.scale
        return z if self._factor is None else z * self._factor[rows]

    def weighted(self, d: Tensor, power: int) -> Tensor:
        """Sum over examples and positions of d times the factor to that power, (U,)."""
        d = d if self._factor is None else d * self._factor.pow(power)
        return d.sum((0, 1)) * self.scale**power


class Gather(LinearMap):
    """A(v)_n = sum over the places that hold the same entry; no row for each example, but only what occurs."""

    by_rows = False
    positionwise = False

    def __init__(self, use: Use, size: int, site: Site, axis: ExampleAxis):
        super().__init__(use, size)
        placed = axis.positions(site.moved(use.index))
        self._shape, places = placed.shape, placed.flatten(1)
        self._places = torch.where(places < 0, size, places)  # (B, M)
        owners = torch.arange(len(places), device=places.device)[:, None] * (size + 1)
        occurring, self._inverse = torch.unique(self._places + owners, return_inverse=True)
        self.index = occurring % (size + 1)
        self.owners = occurring // (size + 1)
        self.row_entries = self._places.shape[1]

    def outer(self, v: Tensor, rows: slice = ALL, data: Tensor | None = None) -> Tensor:
        """A(v) (1, K) for the K pairs of an example and an entry that occurs in it."""
        sums = v.new_zeros(1, self.index.numel())
        return sums.index_add_(1, self._inverse.flatten(), v.reshape(1, -1)) * self.scale

    def forward(self, z: Tensor, rows: slice = ALL) -> Tensor:
        """The change (B, T, U) for z (1, K) by pairs of an example and an entry."""
        return z[0, self._inverse].reshape(self._shape) * self.scale

    def forward_dense(self, z: Tensor, rows: slice = ALL) -> Tensor:
        """The change (rows, T, U) for z (rows, size + 1)."""
        return z.gather(1, self._places[rows]).reshape(len(z), *self._shape[1:]) * self.scale

    def dense(self, v: Tensor, rows: slice = ALL, data: Tensor | None = None) -> Tensor:
        """A(v) of the examples in `rows` by the parameter's own entries, and one more for none, (rows, size + 1)."""
        v = v.flatten(1)[rows]
        return v.new_zeros(v.shape[0], self.size + 1).scatter_add_(1, self._places[rows], v) * self.scale


def data_of(use: Use, site: Site, axis: ExampleAxis) -> Tensor | None:
    """What the parameter is multiplied by, arranged as its map holds it, in the graph; None for ones."""
    if use.inputs is not None:
        return axis.positions(use.inputs(), 2)
    return None if use.factor is None else axis.positions(site.moved(use.factor))


def bound(use: Use, size: int, site: Site, axis: ExampleAxis) -> LinearMap:
    """The map of a use of a parameter with `size` entries."""
    kinds = {"linear": Weight, "channel": Channel, "gather": Gather}
    return kinds[use.kind](use, size, site, axis)


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
