"""Figure: training and evaluation loss of each optimizer, against step and against training time."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geomtraj.measuring.results import Results
from geomtraj.reporting.data import ReportData, ReportFigure, Skipped, is_number, not_measured, seeds_text
from geomtraj.reporting.style import WIDTH, group_legend, log_axis, number, step_axis
from geomtraj.reporting.thinning import LINE, PANEL, thinned

TITLE = "Loss curves"


def draw(data: ReportData) -> ReportFigure | Skipped:
    """Evaluation loss thick, training log thin, one line per seed."""
    groups = data.measured("loss")
    if not groups:
        return not_measured("loss", TITLE)
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    if not (draw_losses(right, data, "time") and draw_losses(left, data, "step")):
        return Skipped(f"The figure “{TITLE}” is left out: no run has a finite loss.")
    right.set_ylabel("")
    right.tick_params(labelleft=False)
    logged = any(_training_log(r) for runs in groups.values() for r in runs)
    group_legend(figure, {name: data.looks[name] for name in groups})
    thin = "; thin: the training log" if logged else ""
    best = ", ".join(f"{name} {number(_lowest(runs))}" for name, runs in groups.items())
    caption = (
        f"Loss against step and against training time, {seeds_text(groups)} (thick with dots: loss on the fixed "
        f"evaluation set{thin}); lowest evaluation loss, geometric mean over seeds: {best}."
    )
    return ReportFigure("losses", TITLE, caption, figure)


def draw_losses(ax: Axes, data: ReportData, against: str) -> bool:
    """Draws all runs' losses against "step" or "time"; False where there is no finite loss."""
    shown: list[float] = []
    all_steps: list[float] = []
    column = {"step": 0, "time": 1}[against]
    for name, runs in data.measured("loss").items():
        look = data.looks[name]
        for r in runs:
            measured = [(m.step, m.wall_time, q.value) for m, q in r.series("loss", "loss") if is_number(q.value)]
            for rows, style, most in (
                (_training_log(r), {"lw": 0.6, "alpha": 0.35}, LINE),
                (measured, {"lw": 1.6, "marker": ".", "ms": 4}, PANEL),
            ):
                points = np.array(rows, dtype=np.float64).reshape(-1, 3)
                points = points[thinned(points[:, 0], points[:, 2], most)]
                ax.plot(points[:, column], points[:, 2], color=look.colour, ls=look.dashes, **style)
                shown += points[:, 2].tolist()
            all_steps += [step for step, _, _ in measured]
    if not shown:
        return False
    if min(shown) > 0:
        margin = max((max(shown) / min(shown)) ** 0.05, 1.01)
        log_axis(ax, "y", min(shown) / margin, max(shown) * margin)
    ax.set_ylabel("loss")
    if against == "step":
        step_axis(ax, np.array(all_steps))
    else:
        ax.set_xlabel("training time (s)")
        ax.set_xlim(left=0)
    return True


def _training_log(r: Results) -> list[tuple[float, float, float]]:
    """Rows (step, seconds, loss) of the training log; the scalar "loss", else the first named "..._loss"."""
    names = list(dict.fromkeys(key for row in r.log for key in row if key.endswith("loss")))
    name = "loss" if "loss" in names else next(iter(names), "loss")
    rows = [row for row in r.log if is_number(row.get(name)) and is_number(row.get("step"))]
    return [(row["step"], row.get("wall_time", math.nan), row[name]) for row in rows]


def _lowest(runs: list[Results]) -> float:
    """Geometric mean over the runs of each one's lowest positive loss."""
    lowest = [min(positive) for r in runs if (positive := [x for x in r.losses().values() if x > 0])]
    return math.exp(sum(map(math.log, lowest)) / len(lowest)) if lowest else math.nan
