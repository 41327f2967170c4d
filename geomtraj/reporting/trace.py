"""Figure: trace of the Hessian, against step and against loss."""

from __future__ import annotations

from matplotlib.figure import Figure

from geomtraj.reporting.data import ReportData, ReportFigure, Skipped, not_measured, seeds_text
from geomtraj.reporting.lines import draw_lines, key
from geomtraj.reporting.style import WIDTH, group_legend

TITLE = "Trace of the Hessian"


def draw(data: ReportData) -> ReportFigure | Skipped:
    """The trace on a log axis."""
    groups = data.measured("trace")
    if not groups:
        return not_measured("trace", TITLE)
    overs = ("step", "loss") if data.measured("loss") else ("step",)
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots(1, len(overs), squeeze=False)[0]
    for ax, over in zip(axes, overs, strict=True):
        draw_lines(ax, data, "trace", "trace", over)
    axes[0].set_ylabel("tr H")
    group_legend(figure, {name: data.looks[name] for name in groups})
    series = [q for runs in groups.values() for r in runs for _, q in r.series("trace", "trace")]
    hidden = sum(q.value <= 0 for q in series)
    caption = f"Trace of the Hessian along the trajectories, {seeds_text(groups)} ({key(groups)})" + (
        f"; {hidden} of {len(series)} values are not positive and are not drawn." if hidden else "."
    )
    return ReportFigure("trace", TITLE, caption, figure)
