"""How objects show themselves in a notebook: short lines and small tables."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

MOST_ROWS = 60
"""Rows of a table in a notebook; the rest is counted."""


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A small HTML table; numbers with four digits, and what is not a number of ours escaped.

    Args:
        caption: Text above the table.
        columns: Heads of the columns.
        rows: Their cells.
    """
    listed = list(rows)
    more = f"<p>... and {len(listed) - MOST_ROWS} more rows</p>" if len(listed) > MOST_ROWS else ""
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell(value))}</td>' for value in row)}</tr>" for row in listed[:MOST_ROWS]
    )
    return f"<p>{html.escape(caption)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


class InFields:
    """A dataclass that a notebook shows as a table of its fields."""

    def _repr_html_(self) -> str:
        rows = [(f.name, getattr(self, f.name)) for f in fields(self)]  # type: ignore[arg-type]
        return html_table(type(self).__name__, ("", ""), rows)


def cell(value: Any) -> str:
    """A value as a table's cell."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def interval(low: float, high: float) -> str:
    """An interval such as "[1.2, 3.4]"; empty where it is not known, or the number is exact."""
    return "" if math.isnan(low) or math.isnan(high) or low == high else f"[{low:.4g}, {high:.4g}]"


def clipped(text: str, most: int = 80) -> str:
    """A text that is not longer than so many characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
