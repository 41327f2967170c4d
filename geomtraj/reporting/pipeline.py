"""How every page comes about: its figures are drawn in one style and written, then its tables, then the page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from geomtraj.reporting.data import ReportFigure, Skipped
from geomtraj.reporting.files import check_writable, write, write_drawing
from geomtraj.reporting.style import plain_style

Draw = Callable[[], ReportFigure | Skipped]
Drawn = tuple[ReportFigure, str]
"""A figure and its SVG in base 64."""


def write_page(
    path: Path,
    draws: Sequence[Draw],
    files: Mapping[str, str],
    html: Callable[[list[Drawn], list[str]], str],
    assets: Path,
) -> Path:
    """Write a page, its figures and its files.

    Args:
        path: The page; its folder is made if it is not there.
        draws: Functions that draw one figure each, or say why there is none.
        files: Path below `assets` -> text.
        html: The page's text, from the figures and the reasons why others are missing.
        assets: The folder of `figures/` and the files.

    Raises:
        InputError: Something cannot be written.
    """
    check_writable(path)
    figures, reasons = [], []
    with plain_style():
        for draw in draws:
            found = draw()
            if isinstance(found, Skipped):
                reasons.append(found.reason)
            else:
                figures.append((found, base64.b64encode(write_drawing(found, assets / "figures")).decode("ascii")))
    for name, text in files.items():
        write(assets / name, text.encode())
    write(path, html(figures, reasons).encode())
    return path
