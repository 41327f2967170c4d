"""Blocks: the parts of theta that a number "per layer" belongs to, one for each parameter or as they are split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from geomtraj.errors import InputError, unknown_name
from geomtraj.layout import Layout, Slot, each_glob, matching

Kind = Literal["matrix", "embedding", "vector"]
Vector = TypeVar("Vector", Tensor, np.ndarray)


class Cut(NamedTuple):
    """A part of one axis: positions `start` to `stop` of each of its `groups` equal runs."""

    dim: int
    groups: int
    start: int
    stop: int


class Piece(NamedTuple):
    """One parameter tensor, or what is left of it after some cuts."""

    parameter: str
    slot: Slot
    cuts: tuple[Cut, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape after the cuts."""
        shape = list(self.slot.shape)
        for cut in self.cuts:
            shape[cut.dim] = cut.groups * (cut.stop - cut.start)
        return tuple(shape)

    def take(self, vectors: Tensor) -> Tensor:
        """The entries (..., *shape) of flat vectors (..., P): a view where they stand next to each other."""
        lead = vectors.shape[:-1]
        found = vectors[..., self.slot.slice].reshape((*lead, *self.slot.shape))
        for dim, groups, start, stop in self.cuts:
            axis = len(lead) + dim
            found = found.unflatten(axis, (groups, found.shape[axis] // groups))
            found = found.narrow(axis + 1, start, stop - start).flatten(axis, axis + 1)
        return found

    def indices(self) -> Tensor:
        """Positions (n,) of the entries in a flat vector."""
        start, stop = self.slot.slice.start, self.slot.slice.stop
        local = Piece(self.parameter, Slot(slice(0, stop - start), self.slot.shape), self.cuts)
        return local.take(torch.arange(start, stop)).reshape(-1)


@dataclass(frozen=True, repr=False)
class Block:
    """Entries of theta that are measured together: a parameter tensor, a part of one, or several of them.

    Attributes:
        name: The parameter's name, for a part with the part's behind it ("blocks.0.qkv.weight[q]"), or the name given
            to what was joined.
        shape: Shape of the entries; (n,) where several tensors are joined.
        kind: "matrix" (two axes or more, convolutions' weights too), "embedding" (of two axes or more, but a table or
            an added position) or "vector". What is joined is an embedding or a matrix if any of its members is one.
        pieces: What it consists of, in order.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    pieces: tuple[Piece, ...]

    def __repr__(self) -> str:
        return f"Block({self.name!r}, {self.shape}, {self.kind})"

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that it has entries of."""
        return tuple(dict.fromkeys(piece.parameter for piece in self.pieces))

    @property
    def parameter(self) -> str:
        """Name of its parameter; the names of several with commas between them."""
        return ", ".join(self.parameters)

    @property
    def size(self) -> int:
        """Number of entries n."""
        return math.prod(self.shape)

    @property
    def place(self) -> tuple[int, ...]:
        """What orders blocks: where its first parameter begins in theta, and where its part of that does."""
        return min((piece.slot.slice.start, *(cut.start for cut in piece.cuts)) for piece in self.pieces)

    @property
    def whole(self) -> bool:
        """Whether it holds all entries of its parameters."""
        return not any(piece.cuts for piece in self.pieces)

    @property
    def indices(self) -> Tensor:
        """Positions (n,) of its entries in theta, in the order of `take`."""
        return torch.cat([piece.indices() for piece in self.pieces])

    def take(self, vector: Vector) -> Vector:
        """Its entries (n,) of a flat vector (P,), tensor or array; (..., n) of (..., P)."""
        if not isinstance(vector, Tensor):
            return self.take(torch.from_numpy(np.ascontiguousarray(vector))).numpy()
        lead = vector.shape[:-1]
        parts = [piece.take(vector).reshape(*lead, math.prod(piece.shape)) for piece in self.pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def within(self, layout: Layout) -> Block:
        """The same entries of a vector of another layout that has its parameters."""
        return replace(self, pieces=tuple(piece._replace(slot=layout[piece.parameter]) for piece in self.pieces))


def whole_parameter(layout: Layout, name: str, kind: Kind | None = None) -> Block:
    """All of one parameter; its kind by its number of axes if that is all that is known."""
    slot = layout[name]
    return Block(name, slot.shape, kind or ("matrix" if len(slot.shape) > 1 else "vector"), (Piece(name, slot),))


class Blocks(Mapping[str, Block]):
    """The ordered map from block name to `Block`: every entry of theta is in one of them.

    A name of a tied tensor's other place finds its block too. Iterates in the order of the parameters.

    Args:
        layout: Where the parameters stand in theta.
        blocks: The blocks; one for each parameter if left out.
        unsure: Names of parameters that look fused and are whole, since the order in them is not known.
    """

    def __init__(self, layout: Layout, blocks: Iterable[Block] | None = None, unsure: Iterable[str] = ()):
        self.layout = layout
        self.unsure = tuple(unsure)
        blocks = [whole_parameter(layout, name) for name in layout] if blocks is None else blocks
        self._blocks = {block.name: block for block in blocks}
        self._of: dict[str, list[Block]] = {name: [] for name in layout}
        for block in self._blocks.values():
            for name in block.parameters:
                self._of[name].append(block)
        self._aliases = {
            alias + block.name.removeprefix(name): block.name
            for alias, name in layout.aliases.items()
            for block in self._of[name]
            if block.name.startswith(name) and block.parameters == (name,)
        }

    def __getitem__(self, name: str) -> Block:
        return self._blocks[self._aliases.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def size(self) -> int:
        """Number of entries P of theta."""
        return self.layout.size

    def __repr__(self) -> str:
        told = [f"{len(self)} blocks of {len(self.layout)} parameters with {self.size} entries"]
        told += [f"{name} {block.shape}" for name, block in self._blocks.items() if name not in self.layout]
        told += [f"{name} {self[name].shape} looks fused, in an order that is not known" for name in self.unsure]
        more = [f"and {len(told) - 10} more"] if len(told) > 11 else []
        return f"Blocks({'; '.join([*(told[:10] if more else told), *more])})"

    def of_parameter(self, name: str) -> list[Block]:
        """The blocks that have entries of this parameter."""
        return list(self._of[self.layout.aliases.get(name, name)])

    def select(self, globs: str | Iterable[str]) -> list[Block]:
        """The blocks that any of the globs names, in order; a parameter's name or a glob over it means all of it.

        A parameter that is only a part of a joined block comes as a block of its own.

        Raises:
            InputError: A glob names neither a block nor a parameter, or two of them name overlapping entries.
        """
        chosen: dict[str, Block] = {}
        parameters: set[str] = set()
        for glob in each_glob(globs):
            names, wholes = self.meant(glob)
            if not names and not wholes:
                known = dict.fromkeys([*self._blocks, *self._aliases, *self.layout, *self.layout.aliases])
                raise unknown_name("block, parameter or glob", glob, known)
            chosen |= {name: self[name] for name in names}
            parameters |= set(wholes)
        if not chosen and not parameters:
            raise InputError("an empty list of globs selects no block.")
        return self._together(chosen, parameters)

    def find(self, name: str) -> Block:
        """The one block of this name, or that this glob or parameter's name means.

        Raises:
            InputError: There is none, or the glob means several.
        """
        if name in self:
            return self[name]
        if name in self.layout:
            return self._whole(self.layout.aliases.get(name, name))
        found = self.select(name)
        if len(found) > 1:
            raise InputError(f"{name!r} means {len(found)} blocks, {found[0].name!r} among them: name one.")
        return found[0]

    def meant(self, glob: str) -> tuple[list[str], list[str]]:
        """Names of the blocks and of the parameters that a glob means: an exact name is nothing else."""
        if glob in self:
            return [self._aliases.get(glob, glob)], []
        if glob in self.layout:
            return [], [self.layout.aliases.get(glob, glob)]
        names = matching(glob, [*self._blocks, *self._aliases])
        wholes = matching(glob, [*self.layout, *self.layout.aliases])
        return [self._aliases.get(n, n) for n in names], [self.layout.aliases.get(n, n) for n in wholes]

    def _together(self, chosen: dict[str, Block], parameters: set[str]) -> list[Block]:
        own = {block.name: block for name in parameters for block in self._of[name]}
        chosen |= {name: block for name, block in own.items() if parameters.issuperset(block.parameters)}
        apart = {p for p in parameters if any(block.name not in chosen for block in self._of[p])}
        chosen = {name: block for name, block in chosen.items() if not apart.issuperset(block.parameters)}
        for name in apart:
            for block in chosen.values():
                if name in block.parameters:
                    raise InputError(f"{block.name!r} and {name!r} overlap: ask for one of them at a time.")
        found = [*chosen.values(), *(self._whole(name) for name in apart)]
        return sorted(found, key=lambda block: block.place)

    def _whole(self, name: str) -> Block:
        kinds = {block.kind for block in self._of[name]}
        return whole_parameter(self.layout, name, kinds.pop() if len(kinds) == 1 else None)

    def around(self, chosen: list[Block]) -> Blocks:
        """Some blocks in the layout of all parameters that they have entries of, which they need not fill."""
        layout = self.layout.subset(self.layout.ordered(name for block in chosen for name in block.parameters))
        return Blocks(layout, [block.within(layout) for block in chosen])

    def signature(self) -> str:
        """What tells these blocks from others of the same layout; empty for one block a parameter."""
        if all(name in self.layout and block.whole for name, block in self._blocks.items()):
            return ""
        return repr([(b.name, [(p.parameter, *map(tuple, p.cuts)) for p in b.pieces]) for b in self.values()])
