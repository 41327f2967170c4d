"""Figure: top and bottom eigenvalues of the Hessian, against step and against loss."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from geomtraj.measuring.results import Measurement, Results
from geomtraj.reporting.data import ReportData, ReportFigure, Skipped, not_measured, seeds_text
from geomtraj.reporting.lines import draw_lines, key
from geomtraj.reporting.style import WIDTH, group_legend
from geomtraj.status import Code

TITLE = "Top and bottom eigenvalues"
ENDS = (("lambda_max", 1, "λ_max"), ("lambda_min", -1, "−λ_min"))


def draw(data: ReportData) -> ReportFigure | Skipped:
    """The largest eigenvalue and minus the smallest one on log axes."""
    groups = data.measured("spectrum")
    if not groups:
        return not_measured("spectrum", TITLE)
    overs = ("step", "loss") if data.measured("loss") else ("step",)
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    axes = figure.subplots(2, len(overs), squeeze=False)
    for row, (label, sign, axis_label) in zip(axes, ENDS, strict=True):
        for ax, over in zip(row, overs, strict=True):
            draw_lines(ax, data, "spectrum", label, over, sign)
        row[0].set_ylabel(axis_label)
    group_legend(figure, {name: data.looks[name] for name in groups})
    caption = (
        f"Largest eigenvalue of the Hessian (top) and minus the smallest (bottom) along the trajectories, "
        f"{seeds_text(groups)} ({key(groups, 'the residual norm as interval')}){_doubts(groups)}."
    )
    return ReportFigure("eigenvalues", TITLE, caption, figure)


def _doubts(groups: dict[str, list[Results]]) -> str:
    """What the reader must know of single points: not converged, or of the other sign."""
    measured = [m for group in groups.values() for r in group for m in r.of("spectrum")]
    parts = []
    for label, sign, _ in ENDS:
        series = [(m, m.quantities[label]) for m in measured if label in m.quantities]
        loose = sum(_is_loose(m, label) for m, _ in series)
        if loose:
            parts.append(f"{loose} of {len(series)} values of {label} have not converged")
        hidden = sum(sign * q.value <= 0 for _, q in series)
        if hidden:
            parts.append(f"{hidden} of {len(series)} values of {label} have the other sign and are not drawn")
    return "".join(f"; {part}" for part in parts)


def _is_loose(m: Measurement, label: str) -> bool:
    """Whether an eigenvalue has not converged: by its code, or by its residual in results that have no codes yet."""
    q = m.quantities[label]
    return m.status_of(label).has(Code.NOT_CONVERGED) or q.high - q.value > m.settings.get("tol", math.inf) * abs(
        q.value
    )
