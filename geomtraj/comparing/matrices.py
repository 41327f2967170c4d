"""Which blocks the primary question is about: the weight matrices that are multiplied, by default."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from geomtraj.errors import InputError
from geomtraj.layout import matching
from geomtraj.measuring.results import Results

ALL = "all"
LOOKED_UP = ("embed", "embedding", "embeddings", "wte", "wpe", "emb", "position", "positions")
LOOKED_UP_ENDS = ("_embed", "_emb", "_embedding", "_embeddings", "_encoding")


@dataclass(frozen=True)
class Choice:
    """The blocks whose mean is the primary answer, and why others are not among them.

    Attributes:
        labels: The blocks.
        words: What they are, in words: "weight matrices"; the label where there is only one.
        others: Reason -> blocks that are not among them, such as embeddings.
    """

    labels: tuple[str, ...]
    words: str
    others: dict[str, tuple[str, ...]]


def choose(runs: Sequence[Results], labels: Sequence[str], over: str | Sequence[str] | None = None) -> Choice:
    """The blocks of the primary question.

    Without `over` these are the weight matrices: blocks of two or more dimensions that are not embeddings. Where no
    block's shape is known, all blocks are taken; a statistic of one quantity has no choice.

    Args:
        runs: Where shapes and kinds stand: in the measurements' details, else in the manifests.
        labels: The statistic's labels.
        over: Labels, or globs of labels, in place of the weight matrices.

    Raises:
        InputError: `over` fits no label.
    """
    blocks = [label for label in labels if label != ALL]
    if over is not None:
        return _given(labels, over)
    if len(blocks) < 2:
        alone = tuple(blocks or labels)
        return Choice(alone, alone[0] if alone else "", {})
    shapes, modules, told = shapes_of(runs), _modules(runs), _told(runs)
    if not any(label in told or label in shapes or base(label) in shapes for label in blocks):
        named = any(r.manifest.get("parameters") for r in runs)
        return Choice((), "", {}) if named else Choice(tuple(blocks), "blocks of unknown shape", {})
    kinds = {label: told.get(label) or _kind(label, shapes, modules) for label in blocks}
    chosen, embeddings, vectors = (
        tuple(b for b in blocks if kinds[b] == kind) for kind in ("matrix", "embedding", "vector")
    )
    others = {"embeddings": embeddings, "fewer than two dimensions": vectors}
    return Choice(chosen, "weight matri" + ("x" if len(chosen) == 1 else "ces"), {k: v for k, v in others.items() if v})


def _kind(label: str, shapes: dict[str, Sequence[int]], modules: dict[str, str]) -> str:
    """Whether a block is a "matrix", an "embedding" or a "vector", by its shape, its module and its name."""
    if not is_matrix(label, shapes):
        return "vector"
    return "embedding" if is_embedding(label, modules) else "matrix"


def shapes_of(runs: Iterable[Results]) -> dict[str, Sequence[int]]:
    """Shape of each parameter and block, as far as manifests and measurements tell."""
    found: dict[str, Sequence[int]] = {}
    for r in runs:
        found |= r.manifest.get("parameters") or {}
        found |= {label: x for label, x in _details(r, "shape").items() if isinstance(x, (list, tuple))}
    return found


def base(label: str) -> str:
    """The parameter that a block is a part of: "attention.qkv.weight" for "attention.qkv.weight[q]"."""
    return label[: label.index("[")] if label.endswith("]") and "[" in label else label


def is_matrix(label: str, shapes: dict[str, Sequence[int]]) -> bool:
    """Whether a block is a weight tensor of two or more dimensions."""
    return len(_shape(label, shapes)) > 1


def is_embedding(label: str, modules: dict[str, str]) -> bool:
    """Whether a block's rows are looked up or added, not multiplied: by what holds it, else by its name."""
    name = base(label)
    kind = modules.get(name)
    if kind == "embedding":
        return True
    *path, leaf = name.split(".")
    if kind is not None and leaf == "weight":
        return False
    words = [word for word in [*path, *([] if leaf in ("weight", "bias") else [leaf])] if not word.isdigit()]
    last = words[-1].lower() if words else ""
    return last in LOOKED_UP or last.endswith(LOOKED_UP_ENDS)


def _given(labels: Sequence[str], over: str | Sequence[str]) -> Choice:
    wanted = [over] if isinstance(over, str) else list(over)
    if not wanted or not all(isinstance(name, str) for name in wanted):
        raise InputError("over must be a label, a glob or a list of them, such as 'blocks.*.weight'.")
    found: dict[str, None] = {}
    for name in wanted:
        fits = matching(name, labels)
        if not fits:
            some = ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
            raise InputError(f"over={name!r} fits none of the labels ({some}).")
        found |= dict.fromkeys(fits)
    return Choice(tuple(found), "chosen block" + "s" * (len(found) != 1), {})


def _shape(label: str, shapes: dict[str, Sequence[int]]) -> Sequence[int]:
    return shapes.get(label, shapes.get(base(label), ()))


def _modules(runs: Iterable[Results]) -> dict[str, str]:
    """What holds each parameter, as the manifests tell."""
    return {name: kind for r in runs for name, kind in (r.manifest.get("kinds") or {}).items()}


def _told(runs: Iterable[Results]) -> dict[str, str]:
    """The kind of each block, as far as measurements tell."""
    return {
        label: kind
        for r in runs
        for label, kind in _details(r, "kind").items()
        if kind in ("matrix", "embedding", "vector")
    }


def _details(r: Results, field: str) -> dict[str, Any]:
    """Kind or shape by label, as measurements tell them; blocks are the same at every iterate."""
    found: dict[str, Any] = {}
    for m in r.measurements[:64]:
        blocks = m.made.get("blocks")
        for label, about in blocks.items() if isinstance(blocks, dict) else ():
            if isinstance(about, (list, tuple)) and len(about) == 2:
                found[label] = about[0 if field == "kind" else 1]
    return found
