"""The contrast table: ratios of a statistic between optimizers, with their intervals over seeds."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from geomtraj.trajectory.files import write_bytes, write_json


@dataclass(frozen=True)
class Row:
    """One ratio, numerator over denominator, dimensionless, over the pairs of runs.

    Attributes:
        label: The quantity: block name, or the statistic's own name.
        numerator: Group above the line.
        denominator: Group below the line.
        at: Loss, step or time in seconds where the runs are compared; "all" for the mean log ratio over them all.
        ratio: Geometric mean over pairs.
        low: Lower end of the 95 % t-interval on the log scale; NaN with one pair.
        high: Upper end of it.
        n: Number of pairs.
        above: How many pairs have a ratio above 1.
        sign_test_p: Two-sided p of the sign test, for this row alone.
        t_test_p: Two-sided p of the paired t-test of the log ratios, for this row alone.
        holm_p: `t_test_p` after Holm's correction over the labels with the same groups and `at`.
        loss_ratio: Geometric mean of the pairs' losses there, numerator over denominator; 1 at equal loss.
        status: "ok", or what was left out or cannot be given.
    """

    label: str
    numerator: str
    denominator: str
    at: float | int | str
    ratio: float
    low: float
    high: float
    n: int
    above: int
    sign_test_p: float
    t_test_p: float
    holm_p: float
    loss_ratio: float
    status: str


@dataclass(frozen=True)
class Table:
    """Ratios between groups of runs; iterates over its rows.

    Attributes:
        statistic: What was compared.
        at: "loss", "step" or "time".
        rows: One row per comparison, label and place, the mean over all places ("all") last.
        notes: What was left out and why, one sentence each.
    """

    statistic: str
    at: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def caption(self) -> str:
        """What the numbers are."""
        where = {"loss": "equal loss", "step": "the same step", "time": "equal training time (seconds)"}[self.at]
        return (
            f"Ratio of {self.statistic} at {where}: geometric mean over pairs of runs, 95 % t-interval on the log "
            "scale. p of the sign test and of the t-test are per row; holm_p corrects the latter over blocks."
        )

    def overall(self) -> list[Row]:
        """The rows that take all places together, one per comparison and label."""
        return [row for row in self.rows if row.at == "all"]

    def csv_text(self) -> str:
        """The rows as CSV, one header line first."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return text.getvalue()

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
        content = asdict(self) | {"caption": self.caption, "rows": [asdict(row) for row in self.rows]}
        content["notes"] = list(self.notes)
        if path is not None:
            write_json(Path(path), content)
        return content

    def __str__(self) -> str:
        header = ["label", "ratio of", "at", "ratio", "95 % interval", "n", "above 1", "sign p", "Holm p", "loss ratio"]
        lines = [[*header, "status"]]
        for r in self.rows:
            place = r.at if isinstance(r.at, (str, int)) else f"{r.at:.4g}"
            interval, tests = f"[{r.low:.3g}, {r.high:.3g}]", [f"{r.sign_test_p:.3g}", f"{r.holm_p:.3g}"]
            names = [r.label, f"{r.numerator} / {r.denominator}", str(place)]
            seeds = [f"{r.ratio:.3g}", interval, str(r.n), f"{r.above} of {r.n}"]
            lines.append([*names, *seeds, *tests, f"{r.loss_ratio:.3g}", r.status])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        body = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([self.caption, "", *body, *([""] if self.notes else []), *(f"note: {n}" for n in self.notes)])
