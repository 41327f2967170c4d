"""The user's own tables: text and label from a CSV, sentence pairs from a TSV."""

from __future__ import annotations

import csv
import io
import warnings

from geomtraj.errors import InputError
from geomtraj.tasks.pydoc_lm import read_text


def read_labelled(path: str, text_column: str, label_column: str) -> list[tuple[str, str]]:
    """Text and label of every row of a CSV file with a header; rows in which one is empty are left out.

    Raises:
        InputError: The file is missing, not UTF-8 or no CSV, or lacks a column.

    Warns:
        UserWarning: How many rows were left out.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        columns = list(reader.fieldnames or ())
        for column in (text_column, label_column):
            if column not in columns:
                raise InputError(
                    f"{path} has no column {column!r} (its header: {', '.join(map(repr, columns)) or 'none'}): "
                    "name the columns by text_column and label_column."
                )
        rows = [((row[text_column] or "").strip(), (row[label_column] or "").strip()) for row in reader]
    except csv.Error as error:
        raise InputError(f"line {reader.line_num} of {path} is no CSV ({error}): correct it.") from error
    return _whole(rows, path, "text or label")


def read_pairs(path: str, source_column: int, target_column: int) -> list[tuple[str, str]]:
    """Both sentences of every line of a file with tabs between columns and no header, columns counted from 1.

    Blank lines and pairs in which one side is empty are left out.

    Raises:
        InputError: The file is missing or not UTF-8, or a line lacks a column.

    Warns:
        UserWarning: How many lines were left out.
    """
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        cells = [cell.strip() for cell in line.split("\t")]
        for option, column in {"source_column": source_column, "target_column": target_column}.items():
            if line.strip() and column > len(cells):
                raise InputError(
                    f"line {number} of {path} has no column {column} ({len(cells)} with tabs between them): "
                    f"complete that line, or choose another {option}."
                )
        if line.strip():
            pairs.append((cells[source_column - 1], cells[target_column - 1]))
    return _whole(pairs, path, "source or target")


def _whole(rows: list[tuple[str, str]], path: str, what: str) -> list[tuple[str, str]]:
    whole = [row for row in rows if all(row)]
    if len(whole) < len(rows):
        warnings.warn(
            f"{len(rows) - len(whole)} of {len(rows)} rows of {path} have an empty {what}: left out.", stacklevel=2
        )
    return whole
