"""Figures, tables and the page that answer the question; the only place with matplotlib, imported when it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geomtraj.measuring.results import Results

if TYPE_CHECKING:
    from geomtraj.reporting.analysis import Content, Sheet, analysis_page
    from geomtraj.reporting.data import ReportFigure, Skipped, listed
    from geomtraj.reporting.forests import Estimates, Forest, draw_forests
    from geomtraj.reporting.panels import Mark, Panel, draw_panels
    from geomtraj.reporting.style import COLOURS, number, short
    from geomtraj.reporting.summary import ADAPTIVE, SGD, WIDE, Answer

__all__ = [
    "ADAPTIVE", "COLOURS", "SGD", "WIDE", "Answer",
    "Content", "Estimates", "Forest", "Mark", "Panel", "ReportFigure", "Sheet",
    "Skipped", "analysis_page", "draw_forests", "draw_panels", "listed", "number", "report", "short",
]  # fmt: skip

_HOMES = {
    "analysis": ("Content", "Sheet", "analysis_page"),
    "data": ("ReportFigure", "Skipped", "listed"),
    "forests": ("Estimates", "Forest", "draw_forests"),
    "panels": ("Mark", "Panel", "draw_panels"),
    "style": ("COLOURS", "number", "short"),
    "summary": ("ADAPTIVE", "SGD", "WIDE", "Answer"),
}


def __getattr__(name: str) -> Any:
    """What pages are made of, imported when it is asked for: matplotlib takes a second."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def report(
    groups: Mapping[str, Sequence[Results]],
    path: str | Path = "report.html",
    title: str | None = None,
    levels: int = 5,
) -> Path:
    """One self-contained HTML page, with its figures as PDF and SVG and its tables as CSV in folders beside it.

    The page answers from the data whether the optimizers travelled through different terrain; it goes on without
    runs that diverged and without statistics that were not measured, and says so. The same results give the same
    bytes.

    Args:
        groups: Name of the optimizer -> the results of its runs, one per seed; the first is the one the others are
            compared with.
        path: The page; `figures/` and `tables/` go into a folder of its name beside it, `report_files/` for
            `report.html`.
        title: Heading of the page.
        levels: How many losses to compare at.

    Returns:
        The path of the page.

    Raises:
        InputError: Groups or `levels` of another form, no measurement at all, or a path that cannot be written.
    """
    from geomtraj.reporting.api import write_report

    return write_report(groups, path, title, levels)
