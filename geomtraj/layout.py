"""Where each parameter tensor stands in the flat vector theta."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import translate
from typing import NamedTuple

import torch
from torch import Tensor

from geomtraj.errors import InputError, unknown_name


def matching(glob: str, names: Iterable[str]) -> list[str]:
    """Those of the names that a glob means: the name itself if there is one, else those that fit its pattern.

    Parameters and blocks have names such as `conv[0].weight` and `qkv.weight[q]`, so brackets are read as they stand
    first, and as a set of characters (`layers.[01].*`) where that finds nothing.
    """
    names = list(names)
    if glob in names:
        return [glob]
    return _fitting(glob.replace("[", "[[]"), names) or _fitting(glob, names)


def _fitting(pattern: str, names: list[str]) -> list[str]:
    fits = re.compile(translate(pattern)).match
    return [name for name in names if fits(name)]


def each_glob(globs: str | Iterable[str]) -> list[str]:
    """One glob or several as a list.

    Raises:
        InputError: They are something else.
    """
    found = [globs] if isinstance(globs, str) else list(globs) if isinstance(globs, Iterable) else [globs]
    for glob in found:
        if not isinstance(glob, str):
            raise InputError(f"names and globs must be strings, such as 'layers.0.*', not {glob!r}.")
    return found


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
            size = math.prod(int(n) for n in shape)
            self._slots[name] = Slot(slice(start, start + size), tuple(int(n) for n in shape))
            start += size
        self.size = start
        self.aliases = dict(aliases or {})
        self._position = {name: number for number, name in enumerate(self._slots)}

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

        A glob that is a name means that one, whatever brackets and stars are in it; see `matching`.

        Raises:
            InputError: A glob matches nothing; the message lists near names.
        """
        chosen: set[str] = set()
        for glob in each_glob(globs):
            hits = [glob] if glob in self else matching(glob, [*self._slots, *self.aliases])
            if not hits:
                raise unknown_name("parameter or glob", glob, [*self._slots, *self.aliases])
            chosen |= {self.aliases.get(name, name) for name in hits}
        if not chosen:
            raise InputError("an empty list of globs selects no parameter: pass None for all of them.")
        return self.ordered(chosen)

    def ordered(self, names: Iterable[str]) -> list[str]:
        """These names in layout order, each once."""
        return sorted(set(names), key=lambda name: self._position[name])

    def subset(self, names: Iterable[str]) -> Layout:
        """The layout of these parameters alone, packed without gaps."""
        names = dict.fromkeys(names)
        aliases = {alias: name for alias, name in self.aliases.items() if name in names}
        return Layout({name: self._slots[name].shape for name in names}, aliases)

    def indices(self, names: Iterable[str]) -> Tensor:
        """Positions, shape (p,), of these parameters' entries in this layout's flat vector."""
        return torch.cat([torch.arange(0), *(torch.arange(self[n].slice.start, self[n].slice.stop) for n in names)])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a flat vector (P,), or of vectors (k, P) row by row, in the shapes of the parameters."""
        lead = vector.shape[:-1]
        return {name: vector[..., s.slice].reshape((*lead, *s.shape)) for name, s in self._slots.items()}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The flat vector (P,) of these tensors."""
        return torch.cat([tensors[name].reshape(-1) for name in self._slots])
