"""Uses of parameters that share entries and are therefore summed before multiplying."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from geomtraj.layers.vjp_maps import EmbeddingVjp, VjpMap
from geomtraj.memory import available_bytes

CHUNK_BYTES = 2**25
Place = tuple[int, int]
"""Number of a tap and of a use there."""


def factor_bytes(device: torch.device) -> int:
    """Bytes that one of the factors of a product of two maps may take."""
    return min(CHUNK_BYTES, available_bytes(device) // 8) // 4


class SharedVjp:
    """Uses of one parameter that share entries of it, so that their contributions are summed before multiplying.

    Attributes:
        name: The parameter.
        places: Where the uses are.
        index: Places of the columns of an estimate in the flattened parameter; None for all of them.
        width: Number K of columns, unless they belong to single examples.
    """

    def __init__(self, places: list[Place], maps: list[VjpMap], repeated: bool, examples: int):
        self.places, self._maps = places, maps
        self._alone = len(maps) == 1 and not repeated
        first = maps[0]
        self._device = first.index.device
        self.name = first.name
        self.index = first.index if self._alone else None
        self.width = first.row_entries if self._alone else first.size + 1
        self.inputs = max(m.inputs for m in maps)
        self.has_jvp = all(m.has_jvp for m in maps)
        self._alone_by_pairs = self._alone and not first.by_rows
        self._examples = examples

    def chunks(self, width: int) -> list[slice]:
        """Ranges of examples to treat one after the other with `width` vectors each."""
        if self._alone_by_pairs:
            return [slice(None)]
        step = max(1, factor_bytes(self._device) // (self.width * 8 * width))
        return [slice(i, min(i + step, self._examples)) for i in range(0, self._examples, step)]

    def vjp(self, values: dict[int, Tensor], rows: slice, data: dict[Place, Tensor] | None = None) -> Tensor:
        """A(values) summed over the uses, (rows, k, K), for values (B, k, T, U) by taps.

        With `data` only over the uses for which it gives other data.
        """
        if self._alone:
            return self._maps[0].vjp(values[self.places[0][0]], rows)
        total: Tensor | float = 0.0
        for place, one in zip(self.places, self._maps, strict=True):
            if data is None or place in data:
                total = total + one.vjp_dense(values[place[0]], rows, None if data is None else data[place])
        assert isinstance(total, Tensor)
        return total

    @property
    def pairs(self) -> tuple[Tensor, Tensor] | None:
        """The example and the entry (K,) of each column, where an embedding's columns belong to single examples."""
        first = self._maps[0]
        return (first.owners, first.index) if self._alone and isinstance(first, EmbeddingVjp) else None

    def one_hot(self, entries: Tensor, rows: slice) -> Tensor:
        """One-hot vectors (rows, k, K) at k entries of the parameter, in the shape of `vjp`."""
        columns = torch.arange(self.width, device=self._device) if self.index is None else self.index
        first = self._maps[0]
        chosen = (columns == entries[:, None]).to(first.dtype)
        return chosen.expand(1 if self._alone_by_pairs else len(range(self._examples)[rows]), *chosen.shape)

    def jvp(self, z_of: Callable[[slice], Tensor], chunks: list[slice]) -> dict[int, Tensor]:
        """What changes z of the entries, (rows, k, K) for a range of examples, do at each tap, (B, k, T, U)."""
        parts: dict[int, list[Tensor]] = {}
        for rows in chunks:
            z = z_of(rows)
            change: dict[int, Tensor] = {}
            for (number, _), one in zip(self.places, self._maps, strict=True):
                v = one.jvp(z, rows) if self._alone else one.jvp_dense(z, rows)
                change[number] = change[number] + v if number in change else v
            for number, v in change.items():
                parts.setdefault(number, []).append(v)
        return {number: torch.cat(vs) for number, vs in parts.items()}
