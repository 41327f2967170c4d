"""The page: everything of a report in one HTML file, all text from users escaped."""

from __future__ import annotations

import math
import re

from geomtraj.comparing import Row, Table
from geomtraj.comparing.kinds import Kind
from geomtraj.comparing.naming import UNKNOWN
from geomtraj.reporting import remarks, runs, summary
from geomtraj.reporting.data import ReportData
from geomtraj.reporting.pipeline import Drawn
from geomtraj.reporting.style import number
from geomtraj.reporting.template import render


def page(data: ReportData, figures: list[Drawn], left_out: list[str], title: str, assets: str) -> str:
    """The HTML text.

    Args:
        data: The runs and their contrasts.
        figures: In the order of the page.
        left_out: Why figures are missing, one sentence each.
        title: Heading of the page.
        assets: The folder of its figures and tables, as links name it.
    """
    return render(
        "page.html.j2",
        {"interval": interval},
        title=title,
        assets=assets,
        names=list(data.everything),
        answers=summary.answers(data),
        no_answer=_no_answer(data),
        precision=summary.precision(data),
        figures=figures,
        tables=_tables(data),
        others=_others(data),
        contrast_files=[contrast_file(s, at) for s, at in data.tables],
        problems=[*runs.problems(data), *left_out],
        remark_columns=remarks.COLUMNS,
        remarks=[remark.row() for remark in remarks.remarks(data)],
        named=_named(data),
        group_columns=runs.GROUP_COLUMNS,
        group_rows=runs.groups_table(data),
        kinds=_kinds(data),
        primary=_primary(data),
        run_columns=runs.RUN_COLUMNS.split(", "),
        run_rows=runs.runs_table(data),
        cost=runs.cost(data),
        provenance=runs.provenance(data),
        configs=runs.configs(data),
    )


def _named(data: ReportData) -> list[str]:
    """The groups with their optimizers: "adam: Adam, learning rate 0.003, 3 runs"."""
    return [
        f"{group}: {name}, {f'learning rate {rate}, ' * (rate != UNKNOWN)}{count} run{'s' * (count != '1')}"
        for group, name, rate, _, count, _ in runs.groups_table(data)
    ]


def _no_answer(data: ReportData) -> str:
    """Why the question cannot be answered, where it cannot; empty otherwise."""
    if ("r_med", "loss") in data.tables:
        return ""
    if len(data.everything) < 2:
        return f"There is one optimizer only, {next(iter(data.everything))}: nothing can be contrasted."
    reason = data.missing["r_med", "loss"]
    return f"It cannot be answered from these runs: {reason}"


def _tables(data: ReportData) -> list[tuple[str, list[tuple[Row, Row | None]]]]:
    """R_med's ratios by comparison: each block's row at equal loss and its row at the same step."""
    main = data.tables.get(("r_med", "loss")) or data.tables.get(("r_med", "step"))
    if main is None:
        return []
    at_step = _by_name(data.tables.get(("r_med", "step")))
    at_loss = _by_name(data.tables.get(("r_med", "loss")))
    found: dict[str, list] = {}
    for row in main.overall():
        if row.label in data.explained:
            continue
        key = (row.numerator, row.denominator, row.label)
        found.setdefault(f"{row.numerator} / {row.denominator}", []).append((at_loss.get(key), at_step.get(key)))
    return list(found.items())


def _primary(data: ReportData) -> dict[str, tuple[Row | None, Row | None]]:
    """The primary answer of each comparison, at equal loss and at the same step."""
    found: dict[str, list[Row | None]] = {}
    for i, at in enumerate(("loss", "step")):
        table = data.tables.get(("r_med", at))
        for c in table.comparisons if table is not None else ():
            found.setdefault(f"{c.numerator} / {c.denominator}", [None, None])[i] = c.primary
    return {name: (rows[0], rows[1]) for name, rows in found.items() if any(rows)}


def _kinds(data: ReportData) -> list[tuple[str, list[tuple[Kind, Row | None, Row | None]]]]:
    """Ratios of kinds of layers by comparison, at equal loss and at the same step; none if every kind has one block."""
    main = data.tables.get(("r_med", "loss")) or data.tables.get(("r_med", "step"))
    if main is None or all(len(kind.labels) < 2 for kind in main.kinds):
        return []
    at = {
        where: {(k.row.numerator, k.row.denominator, k.name): k for k in table.kinds}
        for where in ("loss", "step")
        if (table := data.tables.get(("r_med", where))) is not None
    }
    found: dict[str, list] = {}
    for kind in main.kinds:
        if set(kind.labels) <= data.explained:
            continue
        key = (kind.row.numerator, kind.row.denominator, kind.name)
        rows = (at.get("loss", {}).get(key), at.get("step", {}).get(key))
        found.setdefault(f"{key[0]} / {key[1]}", []).append((kind, *(k.row if k else None for k in rows)))
    return list(found.items())


def _by_name(table: Table | None) -> dict[tuple[str, str, str], Row]:
    return {(r.numerator, r.denominator, r.label): r for r in table.overall()} if table else {}


def _others(data: ReportData) -> list[tuple[str, Row]]:
    """Ratios at equal loss of the other statistics."""
    return [
        (statistic, row)
        for (statistic, at), table in data.tables.items()
        if at == "loss" and statistic != "r_med"
        for row in table.overall()
    ]


def contrast_file(statistic: str, at: str) -> str:
    """Name of the CSV file of one contrast."""
    return f"contrast_{re.sub(r'[^0-9A-Za-z_.-]+', '_', statistic)}_{at}.csv"


def interval(row: Row) -> str:
    """A row's interval as text; a dash where there is none."""
    return "–" if math.isnan(row.low) else f"{number(row.low)} to {number(row.high)}"
