"""The scalars logged while training runs: one JSON object a line in log.jsonl."""

from __future__ import annotations

import json
import math
import numbers
import os
import re
import threading
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch

from geomtraj.errors import GeomtrajWarning, InputError, TrajectoryError
from geomtraj.trajectory.files import read_json, read_text, replace_file, vanished, write_all, write_error
from geomtraj.trajectory.manifest import NAME as MANIFEST

NAME = "log.jsonl"
RESERVED = ("step", "wall_time", "_row", "_crc")
NEXT = "_next/"
"""Before the name of an optimizer's setting that a scheduler changed between an iterate and the step from it."""

_ENDING = re.compile(r', "_row": (\d{1,18}), "_crc": "([0-9a-f]{8})"\}$')


class LogWriter:
    """Appends rows to the log; each is handed over at once, so that a killed process loses none.

    A row ends with its number in the file and a checksum of the row: {"step": 3, "loss": 1.5, "_row": 7,
    "_crc": "0a12b3c4"}.
    """

    def __init__(self, folder: Path):
        self._path = folder / NAME
        self._turn = threading.Lock()
        self._file: TextIOWrapper | None = None
        self.rows = 0

    def start(self, last_step: int) -> None:
        """Drop the rows after `last_step`, which training will write again, and open the log.

        Raises:
            TrajectoryError: The disk is full; the old log stays.
        """
        rows = [row for row in inspect_log(self._path.parent).rows if row["step"] <= last_step]
        text = "".join(_line(row, number) for number, row in enumerate(rows))
        replace_file(self._path, lambda descriptor: write_all(descriptor, text.encode()))
        self.rows = len(rows)
        try:
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise write_error(self._path, error) from error

    def append(self, row: Mapping[str, float]) -> None:
        """Append one row.

        Raises:
            TrajectoryError: The disk is full, or the log was removed or renamed; the rows before are kept.
        """
        with self._turn:
            self._append(row)

    def _append(self, row: Mapping[str, float]) -> None:
        if self._file is None:
            raise InputError("the log is closed.")
        try:
            here, there = os.fstat(self._file.fileno()), os.stat(self._path)
        except OSError:
            raise vanished(self._path) from None
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise vanished(self._path)
        try:
            self._file.write(_line(row, self.rows))
            self._file.flush()
        except OSError as error:
            raise write_error(self._path, error) from error
        self.rows += 1

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


@dataclass(frozen=True)
class LogReading:
    """What could be read of a log.

    Attributes:
        rows: One row per logged step, in order: step, wall_time and the scalars (the last of each name).
        lines: Numbers of the lines that are damaged and were passed over, from 1.
        missing: How many rows are gone altogether.
        written: How many rows were read, several for a step that was logged in several calls.
        torn: Whether the last line is one that a killed process left half-written.
    """

    rows: list[dict[str, Any]]
    lines: tuple[int, ...] = ()
    missing: int = 0
    torn: bool = False
    written: int = 0

    @property
    def passed_over(self) -> int:
        """How many rows are lost."""
        return len(self.lines) + self.missing

    def described(self) -> str:
        """What was passed over, in words."""
        parts = []
        if self.lines:
            shown = ", ".join(map(str, self.lines[:5])) + (" and more" if len(self.lines) > 5 else "")
            parts.append(f"{len(self.lines)} damaged rows were passed over (line {shown})")
        if self.missing:
            parts.append(f"{self.missing} rows are gone")
        return " and ".join(parts) or "every row is whole"

    def logged(self) -> list[dict[str, Any]]:
        """The rows without changed settings of the optimizer."""
        return [row for row in map(logged, self.rows) if len(row) > 2]

    def warn(self, folder: Path) -> list[str]:
        """Warn of what was passed over in the log of a run; gives the sentence, or none where every row is whole."""
        if not self.passed_over:
            return []
        sentence = f"{folder / NAME}: {self.described()}; `geomtraj verify` lists what is left."
        warnings.warn(sentence, GeomtrajWarning, stacklevel=4)
        return [sentence]


def read_log(folder: Path, *, settings: bool = False) -> list[dict[str, Any]]:
    """One row per logged step, in order: step, wall_time and the scalars (the last of each name).

    A row that a killed process left half-written is passed over; a warning counts those that are damaged.

    Args:
        folder: The trajectory's folder.
        settings: Whether to give changed settings of the optimizer too, whose names begin with `NEXT`.

    Raises:
        TrajectoryError: The log is there and cannot be read.
    """
    reading = inspect_log(folder)
    reading.warn(folder)
    return reading.rows if settings else reading.logged()


def logged(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without changed settings of the optimizer."""
    return {name: value for name, value in row.items() if not name.startswith(NEXT)}


def inspect_log(folder: Path) -> LogReading:
    """The log of the run in `folder`; damaged rows are passed over and counted.

    Raises:
        TrajectoryError: The log is there and cannot be read.
    """
    path = folder / NAME
    try:
        text = read_text(path, errors="replace")
    except FileNotFoundError:
        return LogReading([])
    except OSError as error:
        raise TrajectoryError(
            f"{path} cannot be read ({error.strerror or error}): make it readable, or remove it to go on without."
        ) from error
    lines = text.split("\n")
    torn = bool(lines.pop())
    parsed = [_parse(line) for line in lines]
    checked = _has_checksums(folder) or any(row is not None and row.number is not None for row in parsed)
    rows: dict[int, dict[str, Any]] = {}
    bad: list[int] = []
    expected = missing = 0
    for line, row in enumerate(parsed, 1):
        if row is None or (checked and row.number is None):
            bad.append(line)
            expected += 1
            continue
        if row.number is not None:
            missing += max(row.number - expected, 0)
            expected = row.number + 1
        rows.setdefault(row.scalars["step"], {}).update(row.scalars)
    whole = sum(row is not None for row in parsed) - sum(parsed[line - 1] is not None for line in bad)
    return LogReading([rows[step] for step in sorted(rows)], tuple(bad), missing, torn, whole)


@dataclass(frozen=True)
class _Row:
    scalars: dict[str, Any]
    number: int | None  # None in a log of format 1, whose rows carry no checksum


def _has_checksums(folder: Path) -> bool:
    """Whether the run's manifest is of a format whose logs carry them: a line without one is then damaged."""
    try:
        version = read_json(folder / MANIFEST).get("format_version")
    except TrajectoryError:
        return False
    return isinstance(version, int) and version >= 2


def _parse(line: str) -> _Row | None:
    """The row in a line, None where it is damaged."""
    ending = _ENDING.search(line)
    if ending:
        line = f"{line[: ending.start()]}}}"
        if f"{zlib.crc32(f'[{line}, {ending[1]}]'.encode()):08x}" != ending[2]:
            return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or "_row" in row or "_crc" in row:
        return None
    if not _whole(row.get("step")) or not _number(row.get("wall_time", 0.0)):
        return None
    if not all(_number(value) for value in row.values()):
        return None
    return _Row(row, int(ending[1]) if ending else None)


def _line(row: Mapping[str, Any], number: int) -> str:
    crc = zlib.crc32(json.dumps([row, number]).encode())
    return json.dumps({**row, "_row": number, "_crc": f"{crc:08x}"}) + "\n"


def _number(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**1000)


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
