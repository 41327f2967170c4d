"""The page of one analysis: what was found, figures, tables, what failed, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomtraj.reporting.pipeline import Draw, Drawn, write_page
from geomtraj.reporting.style import number
from geomtraj.reporting.summary import Answer
from geomtraj.reporting.template import render
from geomtraj.spreadsheets import csv_text


@dataclass(frozen=True)
class Sheet:
    """A table of the page and its CSV file.

    Attributes:
        name: Of the file, without ".csv".
        title: Heading.
        columns: Their names.
        rows: Cells: numbers, texts, or None where there is nothing.
        note: One or two sentences under the heading.
        shown: Whether the page shows it; the file is written in any case.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    shown: bool = True

    def csv(self) -> str:
        """The table as CSV, every number with all its digits."""
        return csv_text(self.columns, self.rows)


@dataclass(frozen=True)
class Content:
    """What an analysis's page shows.

    Attributes:
        title: Heading.
        question: What is asked, in a sentence or two.
        answers: What was found, computed from the numbers.
        draws: Functions that draw one figure each; called in the report's style.
        sheets: The tables.
    """

    title: str
    question: str
    answers: Sequence[Answer]
    draws: Sequence[Draw]
    sheets: Sequence[Sheet]


def analysis_page(path: str | Path, content: Content, problems: Sequence[str], provenance: Mapping[str, Any]) -> Path:
    """Write an analysis's page, with `figures/`, `tables/` and `provenance.json` beside it; the same input, same bytes.

    Args:
        path: The page; its folder is made if it is not there.
        content: What it shows.
        problems: What failed or was left out, one sentence each.
        provenance: Name -> how the page was made: command, versions, seeds, config.

    Raises:
        InputError: The page cannot be written.
    """
    files = {f"tables/{sheet.name}.csv": sheet.csv() for sheet in content.sheets}
    files["provenance.json"] = json.dumps(provenance, indent=1, default=str) + "\n"

    def html(figures: list[Drawn], reasons: list[str]) -> str:
        return render(
            "analysis.html.j2",
            {"cell": _cell},
            title=content.title,
            question=content.question,
            answers=content.answers,
            figures=figures,
            tables=content.sheets,
            problems=[*problems, *reasons],
            provenance={k: v if isinstance(v, str) else json.dumps(v, default=str) for k, v in provenance.items()},
        )

    return write_page(Path(path), content.draws, files, html, Path(path).parent)


def _cell(value: Any) -> str:
    if value is None or value == "" or (isinstance(value, float) and value != value):
        return "–"
    return number(value, 4) if isinstance(value, float) else str(value)
