"""Where each parameter tensor stands in the flat vector theta."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor

from geomtraj.errors import InputError, unknown_name


class Slot(NamedTuple):
    """The place of one parameter tensor: its slice of the flat vector and its own shape."""

    slice: slice
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.slice.stop - self.slice.start


class Layout(Mapping[str, Slot]):
    """The ordered map from parameter name to `Slot`; iterates over names in the order of the flat vector.

    Args:
        shapes: Name and shape of each parameter tensor, in order.
        aliases: Further names of tied tensors: alias -> the name in `shapes`.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], aliases: Mapping[str, str] | None = None):
        self._slots: dict[str, Slot] = {}
        start = 0
        for name, shape in shapes.items():
            size = 1
            for n in shape:
                size *= int(n)
            self._slots[name] = Slot(slice(start, start + size), tuple(int(n) for n in shape))
            start += size
        self.size = start
        self.aliases = dict(aliases or {})

    def __getitem__(self, name: str) -> Slot:
        return self._slots[self.aliases.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __repr__(self) -> str:
        rows = ", ".join(f"{name}: {slot.shape}" for name, slot in self._slots.items())
        return f"Layout({self.size} entries; {rows})"

    def select(self, globs: str | Iterable[str]) -> list[str]:
        """Names that match any of the globs, in layout order; a tied tensor matches under each of its names.

        Raises:
            InputError: A glob matches nothing; the message lists near names.
        """
        globs = [globs] if isinstance(globs, str) else list(globs)
        chosen: set[str] = set()
        for glob in globs:
            hits = {name for name in self._slots if fnmatchcase(name, glob)}
            hits |= {name for alias, name in self.aliases.items() if fnmatchcase(alias, glob)}
            if not hits:
                raise unknown_name("parameter or glob", glob, [*self._slots, *self.aliases])
            chosen |= hits
        if not chosen:
            raise InputError("an empty list of globs selects no parameter: pass None for all of them.")
        return [name for name in self._slots if name in chosen]

    def subset(self, names: Iterable[str]) -> Layout:
        """The layout of these parameters alone, packed without gaps."""
        names = list(names)
        aliases = {alias: name for alias, name in self.aliases.items() if name in names}
        return Layout({name: self._slots[name].shape for name in names}, aliases)

    def indices(self, names: Iterable[str]) -> Tensor:
        """Positions, shape (p,), of these parameters' entries in this layout's flat vector."""
        return torch.cat([torch.arange(self[n].slice.start, self[n].slice.stop) for n in names])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a flat vector (P,), or of vectors (k, P) row by row, in the shapes of the parameters."""
        lead = vector.shape[:-1]
        return {name: vector[..., s.slice].reshape(*lead, *s.shape) for name, s in self._slots.items()}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The flat vector (P,) of these tensors."""
        return torch.cat([tensors[name].reshape(-1) for name in self._slots])
