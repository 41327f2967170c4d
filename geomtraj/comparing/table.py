"""The contrast table: the primary answer, and the ratios of single labels with their intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomtraj.comparing.kinds import Kind
from geomtraj.comparing.primary import Comparison
from geomtraj.comparing.row import Row
from geomtraj.display import html_table, interval
from geomtraj.spreadsheets import csv_text, dataframe
from geomtraj.trajectory.files import write_bytes, write_json

if TYPE_CHECKING:
    import pandas

PLACES = {"loss": "at equal loss", "step": "at the same step", "time": "at equal training time"}
COLUMNS = tuple(f.name for f in fields(Row))
MOST_PRINTED = 200
"""Rows at single places that are printed; the rest is counted."""


@dataclass(frozen=True, repr=False)
class Table:
    """Ratios between groups of runs; iterates over the rows of single labels.

    The primary answer is one question fixed before looking: the ratio over the weight matrices, with runs as units.
    Single blocks are the second, exploratory table, with Holm's correction over them.

    Attributes:
        statistic: What was compared.
        at: "loss", "step" or "time".
        rows: One row per comparison, label and place, the mean over all places ("all") last.
        notes: What was left out and why, one sentence each.
        comparisons: The primary answer of each group against the first one.
        kinds: The ratios of kinds of layers, such as "blocks.*.mlp.up.weight", of every comparison.
    """

    statistic: str
    at: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    kinds: tuple[Kind, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Table({self.statistic} {PLACES[self.at]}, {len(self.rows)} rows; {self.verdict})"

    def _repr_html_(self) -> str:
        rows = [*(c.primary for c in self.comparisons if c.primary is not None), *self.overall()]
        cells = [
            (r.label, f"{r.numerator} / {r.denominator}", r.ratio, interval(r.low, r.high), r.n, r.above, r.holm_p)
            for r in rows
        ]
        columns = ("label", "ratio of", "ratio", "95 % interval", "n", "above 1", "Holm p")
        return html_table(f"{self.verdict} {self.caption}", columns, cells)

    @property
    def primary(self) -> Row | None:
        """The primary answer's row, of the first comparison; None where nothing can be said."""
        return self.comparisons[0].primary if self.comparisons else None

    @property
    def verdict(self) -> str:
        """The primary answer of the first comparison in a sentence that begins with "above", "below" or "undecided"."""
        return self.comparisons[0].verdict if self.comparisons else "undecided: no two groups were compared."

    @property
    def caption(self) -> str:
        """What the numbers are."""
        seconds = " (seconds)" if self.at == "time" else ""
        return (
            f"Ratio of {self.statistic} {PLACES[self.at]}{seconds}: geometric mean over pairs of runs, 95 % t-interval "
            "on the log scale, never narrower than the single values' own intervals make it. p of the sign test and of "
            "the t-test are per row; holm_p corrects the latter over blocks."
        )

    def overall(self) -> list[Row]:
        """The rows that take all places together, one per comparison and label."""
        return [row for row in self.rows if row.at == "all"]

    def csv_text(self) -> str:
        """The rows as CSV, one header line first."""
        return csv_text(COLUMNS, (_cells(row) for row in self.rows))

    def to_dataframe(self) -> pandas.DataFrame:
        """The rows as a pandas table, one column for each attribute of a row.

        Raises:
            InputError: pandas is not installed.
        """
        return dataframe(COLUMNS, (_cells(row) for row in self.rows))

    def to_latex(self) -> str:
        """The primary answers and each label's row over all places as a LaTeX tabular, for the package booktabs."""
        rows = [*(c.primary for c in self.comparisons if c.primary is not None), *self.overall()]
        columns = r" & & ratio & 95\,\% interval & $n$ & above 1 & $p$ (Holm) \\"
        head = ["\\begin{tabular}{llrrrrr}", "\\toprule", f"ratio of {_escaped(self.statistic)}{columns}", "\\midrule"]
        return "\n".join([*head, *map(_latex, rows), "\\bottomrule", "\\end{tabular}", ""])

    def to_csv(self, path: str | Path) -> Path:
        """Writes `csv_text` to a file.

        Raises:
            TrajectoryError: The file cannot be written.
        """
        write_bytes(Path(path), self.csv_text().encode())
        return Path(path)

    def to_json(self, path: str | Path | None = None) -> dict[str, Any]:
        """The table in JSON's types, with Python's NaN and Infinity; also written to `path` if one is given.

        Raises:
            TrajectoryError: The file cannot be written.
        """
        content = {
            "statistic": self.statistic,
            "at": self.at,
            "verdict": self.verdict,
            "primary": None if self.primary is None else asdict(self.primary),
            "comparisons": [asdict(c) for c in self.comparisons],
            "kinds": [asdict(kind) for kind in self.kinds],
            "caption": self.caption,
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
        }
        if path is not None:
            write_json(Path(path), content)
        return content

    def __str__(self) -> str:
        """The verdict, the primary row and each label's row, then single places, then notes."""
        answers = [text for c in self.comparisons for text in (c.verdict, *c.remarks)]
        primary = [c.primary for c in self.comparisons if c.primary is not None]
        single = [row for row in self.rows if row.at != "all"]
        parts = [*answers, "", *_lines([*primary, *self.overall()])]
        if single:
            parts += ["", "At single places:", *_lines(single[:MOST_PRINTED])]
            if len(single) > MOST_PRINTED:
                parts.append(f"... and {len(single) - MOST_PRINTED} more rows: to_csv writes them all.")
        return "\n".join([*parts, "", self.caption, *(f"note: {n}" for n in self.notes)])


def _cells(row: Row) -> list[Any]:
    return [getattr(row, name) for name in COLUMNS]


def _latex(row: Row) -> str:
    """One line of a tabular."""
    unknown = "--"
    interval = unknown if math.isnan(row.low) else f"[{_number(row.low)}, {_number(row.high)}]"
    cells = [
        _escaped(row.label), _escaped(f"{row.numerator} / {row.denominator}"), _number(row.ratio), interval, str(row.n),
        str(row.above), _number(row.holm_p),
    ]  # fmt: skip
    return " & ".join(cells) + r" \\"


def _number(x: float) -> str:
    if not math.isfinite(x):
        return "--" if math.isnan(x) else r"$\infty$"
    text = f"{x:.3g}"
    mantissa, e, exponent = text.partition("e")
    return rf"${mantissa}\cdot 10^{{{int(exponent)}}}$" if e else text


def _escaped(text: str) -> str:
    """Text with LaTeX's own signs as what they look like."""
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    signs |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
    return "".join(signs.get(sign, sign) for sign in text)


def _lines(rows: Sequence[Row]) -> list[str]:
    """The rows as lines of a table of fixed width, a header first."""
    header = ["label", "ratio of", "at", "ratio", "95 % interval", "n", "above 1", "sign p", "Holm p", "loss ratio"]
    lines = [[*header, "status"]]
    for r in rows:
        place = r.at if isinstance(r.at, (str, int)) else f"{r.at:.4g}"
        interval, tests = f"[{r.low:.3g}, {r.high:.3g}]", [f"{r.sign_test_p:.3g}", f"{r.holm_p:.3g}"]
        names = [r.label, f"{r.numerator} / {r.denominator}", str(place)]
        seeds = [f"{r.ratio:.3g}", interval, str(r.n), f"{r.above} of {r.n}"]
        lines.append([*names, *seeds, *tests, f"{r.loss_ratio:.3g}", r.status])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
