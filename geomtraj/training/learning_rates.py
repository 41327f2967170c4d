"""Learning rates by task and optimizer, as the sweep chose them; learning_rates.json is part of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geomtraj.training.optimizers import entry
from geomtraj.trajectory.files import read_json, write_json

PATH = Path(__file__).with_name("learning_rates.json")


def swept(task: str, optimizer: str, path: Path = PATH) -> dict[str, Any] | None:
    """The sweep's entry for this pair, {"lr": ..., "sweep": {...}}, or None where none was run."""
    return read_json(path).get(task, {}).get(optimizer) if path.exists() else None


def learning_rate(task: str, optimizer: str) -> float:
    """The learning rate of this optimizer on this task: the swept one, else the optimizer's fallback.

    Raises:
        InputError: Unknown optimizer.
    """
    fallback = entry(optimizer).lr
    chosen = swept(task, optimizer)
    return fallback if chosen is None else float(chosen["lr"])


def save(task: str, entries: dict[str, dict[str, Any]], path: Path = PATH) -> None:
    """Put entries, one for each optimizer, into the file; the others stay."""
    table = read_json(path) if path.exists() else {}
    table[task] = {**table.get(task, {}), **entries}
    write_json(path, {name: dict(sorted(table[name].items())) for name in sorted(table)})
