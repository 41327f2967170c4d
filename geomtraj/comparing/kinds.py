"""Kinds of layers: the same block at every depth, for tables and figures of models with hundreds of blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from geomtraj.comparing.logs import Logs
from geomtraj.comparing.matrices import ALL
from geomtraj.comparing.primary import mean_over, primary_row
from geomtraj.comparing.row import Row
from geomtraj.inference.ratios import holm


@dataclass(frozen=True)
class Kind:
    """The blocks of one kind and their mean ratio.

    Attributes:
        name: "blocks.*.mlp.up.weight".
        labels: The blocks.
        row: Geometric mean of their ratios, runs as units, with Holm's correction over the kinds.
    """

    name: str
    labels: tuple[str, ...]
    row: Row


def kind_of(label: str) -> str:
    """A label with its numbers left out: blocks of one kind differ in them alone."""
    return re.sub(r"(?<![^.\[])\d+(?![^.\]])", "*", label)


def by_kind(labels: Iterable[str]) -> dict[str, list[str]]:
    """Kind -> its blocks, in the order of their first appearance; "all" is none."""
    found: dict[str, list[str]] = {}
    for label in labels:
        if label != ALL:
            found.setdefault(kind_of(label), []).append(label)
    return found


def kinds_of(logs: Logs, numerator: str, denominator: str) -> tuple[Kind, ...]:
    """The kinds of a comparison."""
    groups = by_kind(logs.labels)
    rows = [
        primary_row(mean_over(logs, logs.at(tuple(labels))), logs, name, numerator, denominator)
        for name, labels in groups.items()
    ]
    adjusted = holm([row.t_test_p for row in rows]).tolist()
    return tuple(
        Kind(name, tuple(labels), replace(row, holm_p=p))
        for (name, labels), row, p in zip(groups.items(), rows, adjusted, strict=True)
    )
