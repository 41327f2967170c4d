"""Texts of CSV files, in which no cell can be taken for a formula; and tables of pandas, where that is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from geomtraj.errors import InputError

if TYPE_CHECKING:
    import pandas

FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The rows as CSV, one header line first; numbers with all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([harmless(cell) if type(cell) is str else cell for cell in row] for row in rows)
    return text.getvalue()


def harmless(cell: str) -> str:
    """A text as it is, behind an apostrophe where spreadsheets would run it as a formula.

    Source: OWASP, "CSV Injection".
    """
    if not cell.startswith(FORMULAS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def dataframe(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> pandas.DataFrame:
    """The rows as a pandas table.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise InputError("to_dataframe needs pandas, which is not installed: pip install pandas.") from None
    return pandas.DataFrame.from_records(list(rows), columns=list(columns))
