"""Figures, tables and the page that answer the question; the only place with matplotlib, imported when it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from geomtraj.measuring.results import Results

__all__ = ["report"]


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
    from geomtraj.reporting.api import write_report  # matplotlib takes a second to import

    return write_report(groups, path, title, levels)
