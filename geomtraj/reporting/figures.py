"""The figures of a report, in the order of the page; a new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Callable

from geomtraj.reporting import densities, eigenvalues, forest, losses, r_med_curves, trace
from geomtraj.reporting.data import ReportData, ReportFigure, Skipped

FIGURES: tuple[Callable[[ReportData], ReportFigure | Skipped], ...] = (
    forest.draw,
    losses.draw,
    r_med_curves.against_loss,
    r_med_curves.against_step,
    densities.draw,
    eigenvalues.draw,
    trace.draw,
)
