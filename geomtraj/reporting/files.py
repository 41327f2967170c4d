"""Writes pages and figures; what goes wrong is one sentence."""

from __future__ import annotations

from pathlib import Path

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.reporting.data import ReportFigure
from geomtraj.reporting.style import saved
from geomtraj.trajectory.files import write_bytes


def write(path: Path, content: bytes) -> None:
    """Write one file of a report, whole or not at all; the folder is made if it is not there.

    Raises:
        InputError: It cannot be written.
    """
    try:
        write_bytes(path, content)
    except TrajectoryError as error:
        reason = error.__cause__
        detail = (reason.strerror if isinstance(reason, OSError) else None) or reason or error
        raise InputError(f"the report cannot be written to {path.parent} ({detail}): choose another path.") from error


def check_writable(path: Path) -> None:
    """Try the folder before minutes are spent on figures; errors as for `write`."""
    probe = path.parent / f".{path.name[:60]}.writable"
    write(probe, b"")
    probe.unlink(missing_ok=True)


def write_drawing(drawing: ReportFigure, folder: Path) -> bytes:
    """Write a figure as SVG and PDF into `folder`; returns the SVG."""
    engine = drawing.figure.get_layout_engine()
    if engine is not None:
        engine.execute(drawing.figure)
        drawing.figure.set_layout_engine(None)  # places stay; an engine would draw each file twice
    svg = saved(drawing.figure, "svg")
    write(folder / f"{drawing.name}.svg", svg)
    write(folder / f"{drawing.name}.pdf", saved(drawing.figure, "pdf"))
    return svg
