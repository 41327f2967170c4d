"""The page: everything of a report in one HTML file, all text from users escaped."""

from __future__ import annotations

import base64
import math
import re

from geomtraj.comparing import Row, Table
from geomtraj.comparing.kinds import Kind
from geomtraj.comparing.naming import UNKNOWN
from geomtraj.reporting import remarks, runs, summary
from geomtraj.reporting.material import Drawing, Material
from geomtraj.reporting.style import number
from geomtraj.reporting.template import render


def page(
    material: Material, drawings: list[tuple[Drawing, bytes]], left_out: list[str], title: str, assets: str
) -> str:
    """The HTML text.

    Args:
        material: The runs and their contrasts.
        drawings: The figures with their SVG, in the order of the page.
        left_out: Why figures are missing, one sentence each.
        title: Heading of the page.
        assets: The folder of its figures and tables, as links name it.
    """
    return render(
        "page.html.j2",
        {"interval": interval},
        title=title,
        assets=assets,
        names=list(material.everything),
        answers=summary.answers(material),
        no_answer=_no_answer(material),
        precision=summary.precision(material),
        figures=[(d, base64.b64encode(svg).decode("ascii")) for d, svg in drawings],
        tables=_tables(material),
        others=_others(material),
        contrast_files=[contrast_file(s, at) for s, at in material.tables],
        problems=[*runs.problems(material), *left_out],
        remark_columns=remarks.COLUMNS,
        remarks=[remark.row() for remark in remarks.remarks(material)],
        named=_named(material),
        group_columns=runs.GROUP_COLUMNS,
        group_rows=runs.groups_table(material),
        kinds=_kinds(material),
        primary=_primary(material),
        run_columns=runs.RUN_COLUMNS.split(", "),
        run_rows=runs.runs_table(material),
        cost=runs.cost(material),
        provenance=runs.provenance(material),
        configs=runs.configs(material),
    )


def _named(material: Material) -> list[str]:
    """The groups with their optimizers: "adam: Adam, learning rate 0.003, 3 runs"."""
    return [
        f"{group}: {name}, {f'learning rate {rate}, ' * (rate != UNKNOWN)}{count} run{'s' * (count != '1')}"
        for group, name, rate, _, count, _ in runs.groups_table(material)
    ]


def _no_answer(material: Material) -> str:
    """Why the question cannot be answered, where it cannot; empty otherwise."""
    if ("r_med", "loss") in material.tables:
        return ""
    if len(material.everything) < 2:
        return f"There is one optimizer only, {next(iter(material.everything))}: nothing can be contrasted."
    reason = material.missing["r_med", "loss"]
    return f"It cannot be answered from these runs: {reason}"


def _tables(material: Material) -> list[tuple[str, list[tuple[Row, Row | None]]]]:
    """R_med's ratios by comparison: each block's row at equal loss and its row at the same step."""
    main = material.tables.get(("r_med", "loss")) or material.tables.get(("r_med", "step"))
    if main is None:
        return []
    at_step = _by_name(material.tables.get(("r_med", "step")))
    at_loss = _by_name(material.tables.get(("r_med", "loss")))
    found: dict[str, list] = {}
    for row in main.overall():
        if row.label in material.explained:
            continue
        key = (row.numerator, row.denominator, row.label)
        found.setdefault(f"{row.numerator} / {row.denominator}", []).append((at_loss.get(key), at_step.get(key)))
    return list(found.items())


def _primary(material: Material) -> dict[str, tuple[Row | None, Row | None]]:
    """The primary answer of each comparison, at equal loss and at the same step."""
    found: dict[str, list[Row | None]] = {}
    for i, at in enumerate(("loss", "step")):
        table = material.tables.get(("r_med", at))
        for c in table.comparisons if table is not None else ():
            found.setdefault(f"{c.numerator} / {c.denominator}", [None, None])[i] = c.primary
    return {name: (rows[0], rows[1]) for name, rows in found.items() if any(rows)}


def _kinds(material: Material) -> list[tuple[str, list[tuple[Kind, Row | None, Row | None]]]]:
    """Ratios of kinds of layers by comparison, at equal loss and at the same step; none if every kind has one block."""
    main = material.tables.get(("r_med", "loss")) or material.tables.get(("r_med", "step"))
    if main is None or all(len(kind.labels) < 2 for kind in main.kinds):
        return []
    at = {
        where: {(k.row.numerator, k.row.denominator, k.name): k for k in table.kinds}
        for where in ("loss", "step")
        if (table := material.tables.get(("r_med", where))) is not None
    }
    found: dict[str, list] = {}
    for kind in main.kinds:
        if set(kind.labels) <= material.explained:
            continue
        key = (kind.row.numerator, kind.row.denominator, kind.name)
        rows = (at.get("loss", {}).get(key), at.get("step", {}).get(key))
        found.setdefault(f"{key[0]} / {key[1]}", []).append((kind, *(k.row if k else None for k in rows)))
    return list(found.items())


def _by_name(table: Table | None) -> dict[tuple[str, str, str], Row]:
    return {(r.numerator, r.denominator, r.label): r for r in table.overall()} if table else {}


def _others(material: Material) -> list[tuple[str, Row]]:
    """Ratios at equal loss of the other statistics."""
    return [
        (statistic, row)
        for (statistic, at), table in material.tables.items()
        if at == "loss" and statistic != "r_med"
        for row in table.overall()
    ]


def contrast_file(statistic: str, at: str) -> str:
    """Name of the CSV file of one contrast."""
    return f"contrast_{re.sub(r'[^0-9A-Za-z_.-]+', '_', statistic)}_{at}.csv"


def interval(row: Row) -> str:
    """A row's interval as text; a dash where there is none."""
    return "–" if math.isnan(row.low) else f"{number(row.low)} to {number(row.high)}"
