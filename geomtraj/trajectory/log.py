"""The scalars logged while training runs: one JSON object a line in log.jsonl."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch

from geomtraj.errors import InputError
from geomtraj.trajectory.files import write_bytes, write_error

NAME = "log.jsonl"
RESERVED = ("step", "wall_time")


class LogWriter:
    """Appends rows to the log; each is handed over at once, so that a killed process loses none."""

    def __init__(self, folder: Path):
        self._path = folder / NAME
        self._file: TextIOWrapper | None = None

    def append(self, row: Mapping[str, float]) -> None:
        """Append one row.

        Raises:
            TrajectoryError: The disk is full; the rows before are kept.
        """
        try:
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise write_error(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:  # a row left in the buffer by a full disk
                raise write_error(self._path, error) from error


def check_scalars(scalars: Mapping[str, Any]) -> dict[str, float]:
    """The scalars as plain numbers.

    Raises:
        InputError: A name is taken, or a value is no number and no tensor with one.
    """
    plain: dict[str, float] = {}
    for name, value in scalars.items():
        if name in RESERVED:
            raise InputError(f"the log keeps {name!r} itself: log your number under another name.")
        if isinstance(value, torch.Tensor) and value.dim() == 0 and not value.is_complex():
            value = value.item()
        if not isinstance(value, numbers.Real):
            shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
            raise InputError(
                f"rec.log takes numbers and 0-d tensors, but {name} is a {type(value).__name__}{shape}: "
                "log one number, such as its mean."
            )
        plain[name] = int(value) if isinstance(value, numbers.Integral) else float(value)
    return plain


def non_finite_loss(scalars: Mapping[str, float]) -> bool:
    """Whether a scalar named "loss" or "..._loss" is NaN or infinite."""
    return any(name.endswith("loss") and not math.isfinite(value) for name, value in scalars.items())


def read_log(folder: Path) -> list[dict[str, Any]]:
    """One row per logged step, in order: step, wall_time and the scalars (the last of each name).

    A row that a killed process left half-written is passed over.
    """
    try:
        text = (folder / NAME).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, KeyError, TypeError):
            continue
        rows.setdefault(step, {}).update(row)
    return [rows[step] for step in sorted(rows)]


def keep_log_until(folder: Path, step: int) -> None:
    """Drop the rows after `step`, which training will write again.

    Raises:
        TrajectoryError: The disk is full; the old log stays.
    """
    if (folder / NAME).exists():
        rows = [row for row in read_log(folder) if row["step"] <= step]
        write_bytes(folder / NAME, "".join(json.dumps(row) + "\n" for row in rows).encode())
