"""How parameters are split into blocks and joined to blocks, as `gt.Problem(..., blocks=...)` is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from geomtraj.blocks import Block, Blocks, Cut, Kind, whole_parameter
from geomtraj.errors import InputError, unknown_name
from geomtraj.layout import Layout


@dataclass(frozen=True)
class Split:
    """How a tensor is cut along one axis; made by `split`."""

    dim: int
    names: tuple[str, ...]
    sizes: tuple[int, ...] | None
    groups: int

    def of(self, block: Block) -> list[Block]:
        """The parts of a block.

        Raises:
            InputError: It is not of one tensor, has no such axis, or is not divided by these parts.
        """
        if len(block.pieces) != 1:
            raise InputError(f"{block.name!r} joins {len(block.pieces)} tensors: split them before they are joined.")
        (piece,), shape, dim = block.pieces, block.shape, self.dim
        if not -len(shape) <= dim < len(shape):
            raise InputError(f"{block.name!r} of shape {shape} has no axis {dim} to be split along.")
        dim %= len(shape)
        ends = [0, *np.cumsum(self._sizes(block.name, shape, dim)).tolist()]
        cuts = [Cut(dim, self.groups, a, b) for a, b in itertools.pairwise(ends)]
        parts = [piece._replace(cuts=(*piece.cuts, cut)) for cut in cuts]
        return [Block(f"{block.name}[{n}]", p.shape, block.kind, (p,)) for n, p in zip(self.names, parts, strict=True)]

    def _sizes(self, name: str, shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
        length, runs = shape[dim], f"{self.groups} groups of " if self.groups > 1 else ""
        run, rest = divmod(length, self.groups)
        if self.sizes is None:
            if rest or run % len(self.names):
                raise InputError(
                    f"{name!r} of shape {shape} does not divide into {runs}{len(self.names)} equal parts along "
                    f"axis {dim}, which has {length} entries: give their sizes=, or another axis."
                )
            return (run // len(self.names),) * len(self.names)
        if rest or sum(self.sizes) != run:
            raise InputError(
                f"{name!r} of shape {shape} does not divide into {runs}parts of {self.sizes} along axis {dim}, which "
                f"has {length} entries and not {self.groups * sum(self.sizes)}."
            )
        return self.sizes


@dataclass(frozen=True)
class Join:
    """Blocks or parameters that become one block; made by `join`."""

    globs: tuple[str, ...]


def split(
    parts: int | None = None,
    dim: int = 0,
    names: Iterable[str] | None = None,
    *,
    sizes: Iterable[int] | None = None,
    groups: int = 1,
) -> Split:
    """How `gt.Problem(..., blocks={glob: gt.split(...)})` cuts each tensor that the glob names.

    Args:
        parts: Number of equal parts: 3 for a fused query-key-value matrix, the number of heads, 4 gates of an LSTM.
        dim: The axis; negative ones count from the last.
        names: The parts' names, which stand in brackets behind the tensor's; "0", "1", ... if left out.
        sizes: Lengths of the parts along the axis, for parts that are not equal.
        groups: Number of equal runs along the axis that are each cut in this way: the heads, where each has its own
            query, key and value rows next to each other, as in GPT-NeoX.

    Raises:
        InputError: Numbers that make no parts, names that do not fit their number, or a name twice.
    """
    if (parts is None) == (sizes is None):
        raise InputError("gt.split takes either a number of equal parts or their sizes=, one of the two.")
    lengths = None if sizes is None else tuple(_whole_number("sizes", n, 0) for n in sizes)
    count = _whole_number("parts", parts, 1) if lengths is None else len(lengths)
    if isinstance(names, str):
        raise InputError(f"names is the string {names!r}: give a tuple of {count} names.")
    chosen = tuple(map(str, range(count))) if names is None else tuple(names)
    if not count or len(chosen) != count or not all(isinstance(n, str) and n for n in chosen):
        raise InputError(f"gt.split has {count} parts and names {chosen}: give one name for each part.")
    if len(set(chosen)) < count:
        raise InputError(f"gt.split has names {chosen}, of which some are the same: each part needs its own.")
    return Split(_whole_number("dim", dim, None), chosen, lengths, _whole_number("groups", groups, 1))


def join(*globs: str) -> Join:
    """The blocks that the globs name as one: `gt.Problem(..., blocks={"layer 0": gt.join("layers.0.*")})`.

    Raises:
        InputError: No glob, or one that is no string.
    """
    if not globs or not all(isinstance(glob, str) for glob in globs):
        raise InputError(f"gt.join takes names or globs, such as gt.join('layers.0.*'), not {globs}.")
    return Join(globs)


def _whole_number(name: str, value: Any, least: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise InputError(f"gt.split's {name} must be an integer{bound}, not {value!r}.")
    return int(value)


class Recognised(NamedTuple):
    """What a model tells of its parameters.

    Attributes:
        splits: How fused query-key-value matrices and their biases are split, by name.
        unsure: Names of those that look fused, in an order that is not known.
        embeddings: Names of tables, and of positions and tokens that are learnt.
    """

    splits: dict[str, Split]
    unsure: tuple[str, ...]
    embeddings: frozenset[str]


def arranged(layout: Layout, told: Recognised | None, wanted: Any) -> Blocks:
    """The blocks of these parameters.

    Args:
        layout: The parameters.
        told: What is recognised of them.
        wanted: None for the splits that are recognised; False for none; or glob -> `Split`, or False to leave a
            parameter whole, and name -> `Join`: these in their order, and what is recognised of the other parameters.

    Raises:
        InputError: It is something else, names nothing or something twice, or a split does not fit.
    """
    splits, unsure, embeddings = told or Recognised({}, (), frozenset())
    kinds: dict[str, Kind] = {n: "embedding" for n in layout if n in embeddings and len(layout[n].shape) > 1}
    plan = _Plan(layout, kinds)
    if wanted is not False:
        for name in layout:
            if name in splits:
                plan.recognise(name, splits[name])
    if wanted is not None and wanted is not False:
        if not isinstance(wanted, Mapping):
            raise InputError(
                f"blocks is {wanted!r}: pass None to split fused matrices, False for one block for each parameter, or "
                "a mapping such as {'*.qkv.weight': gt.split(3, names=('q', 'k', 'v'))}."
            )
        for key, how in wanted.items():
            plan.apply(key, how)
    whole = {name for name in unsure if name in plan.current and name not in plan.claimed and wanted is not False}
    return Blocks(layout, sorted(plan.current.values(), key=lambda block: block.place), whole)


def _joined(name: str, members: list[Block]) -> Block:
    kinds = {block.kind for block in members}
    kind: Kind = "embedding" if "embedding" in kinds else "matrix" if "matrix" in kinds else "vector"
    if len(members) == 1:
        return replace(members[0], name=name)
    return Block(name, (sum(b.size for b in members),), kind, tuple(piece for b in members for piece in b.pieces))


class _Plan:
    """Blocks by name while entry after entry of `blocks=` changes them."""

    def __init__(self, layout: Layout, kinds: Mapping[str, Kind]):
        self.layout, self.kinds = layout, kinds
        self.current = {name: whole_parameter(layout, name, kinds.get(name)) for name in layout}
        self.of = {name: [name] for name in layout}  # names of the blocks that have entries of a parameter
        self.claimed: dict[str, str] = {}  # block name -> the entry that it is due to

    def recognise(self, name: str, how: Split) -> None:
        """Split one parameter, unless a part would have another one's name."""
        parts = how.of(self.current[name])
        if not any(part.name in self.current for part in parts):
            self.replace([self.current[name]], parts)

    def apply(self, key: Any, how: Any) -> None:
        """Carry out one entry of `blocks=`."""
        if not isinstance(key, str) or not (how is False or isinstance(how, (Split, Join))):
            raise InputError(
                f"blocks has the entry {key!r}: {how!r}; write glob: gt.split(...), glob: False for parameters that "
                "stay whole, or name: gt.join(globs)."
            )
        if isinstance(how, Join):
            members = list({b.name: b for glob in how.globs for b in self.targets(glob, key)}.values())
            self.replace(members, [_joined(key, members)], key)
            return
        for block in self.targets(key, key):
            self.replace([block], [block] if how is False else how.of(block), key)

    def targets(self, glob: str, key: str) -> list[Block]:
        """The blocks that a glob of an entry means; a parameter that was recognised as fused is whole again."""
        names: list[str] = [glob] if glob in self.current else []
        wholes: list[str] = []
        if not names:
            names, wholes = Blocks(self.layout, self.current.values()).meant(glob)
        if not names and not wholes:
            known = dict.fromkeys([*self.current, *self.layout, *self.layout.aliases])
            raise unknown_name("block, parameter or glob in blocks", glob, known)
        for parameter in dict.fromkeys([*wholes, *(n for n in names if n in self.layout)]):
            self.restore(parameter, key)
        found = [self.current[name] for name in dict.fromkeys([*wholes, *names]) if name in self.current]
        for block in found:
            if block.name in self.claimed and (block.whole or len(block.pieces) > 1):
                self.refuse(block.name, block.shape, key, self.claimed[block.name])
        return found

    def restore(self, parameter: str, key: str) -> None:
        """Make a parameter one block again, which it is or was before it was recognised as fused."""
        own = self.of[parameter]
        for name in own:
            if name in self.claimed:
                self.refuse(parameter, self.layout[parameter].shape, key, self.claimed[name])
        if own != [parameter]:
            whole = whole_parameter(self.layout, parameter, self.kinds.get(parameter))
            self.replace([self.current[name] for name in own], [whole])

    def refuse(self, name: str, shape: tuple[int, ...], key: str, earlier: str) -> None:
        raise InputError(
            f"blocks: {key!r} overlaps with {earlier!r}: both take {name!r} of shape {shape}; name it once."
        )

    def replace(self, old: list[Block], new: list[Block], key: str | None = None) -> None:
        """Put new blocks in the place of old ones, which hold the same entries."""
        for block in old:
            del self.current[block.name]
            self.claimed.pop(block.name, None)
            for parameter in block.parameters:
                self.of[parameter] = [name for name in self.of[parameter] if name != block.name]
        for block in new:
            taken = block.name in self.layout and not (block.whole and block.parameters == (block.name,))
            if taken or block.name in self.current or block.name == ALL:
                raise InputError(
                    f"blocks: {key!r} would make a block {block.name!r} of shape {block.shape}, and there is another "
                    "of that name: choose other names."
                )
            self.current[block.name] = block
            for parameter in block.parameters:
                self.of[parameter].append(block.name)
            if key is not None:
                self.claimed[block.name] = key


ALL = "all"
"""The label of all parameters together, which no block may have."""
