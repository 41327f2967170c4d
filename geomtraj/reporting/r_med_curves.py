"""Figures: R_med of each layer against step and against loss."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from geomtraj.reporting.data import ALL, ReportData, ReportFigure, Skipped, listed, not_measured, seeds_text
from geomtraj.reporting.lines import draw_lines, key, points
from geomtraj.reporting.style import WIDTH, group_legend, short

COLUMNS, PANELS = 4, 16


def against_step(data: ReportData) -> ReportFigure | Skipped:
    """R_med over the optimizer's steps."""
    return _draw(data, "step")


def against_loss(data: ReportData) -> ReportFigure | Skipped:
    """R_med over the evaluation loss."""
    return _draw(data, "loss")


def _draw(data: ReportData, over: str) -> ReportFigure | Skipped:
    title = f"R_med per layer against {over}"
    groups = data.measured("r_med")
    if not groups:
        return not_measured("r_med", title)
    if over == "loss" and not data.measured("loss"):
        return not_measured("loss", title)
    curves = [data.curve(r, "r_med") for group in groups.values() for r in group]
    labels = [n for n in data.labels("r_med") if any(points(c, n).values.size for c in curves)]
    nowhere = [n for n in data.labels("r_med") if n not in labels and n not in data.explained]
    if not labels:
        return Skipped(f"The figure “{title}” is left out: R_med is infinite or missing at every iterate.")
    shown, omitted = choose(data, labels)
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(WIDTH, 0.55 + 1.85 * rows), layout="constrained")
    axes = figure.subplots(rows, min(COLUMNS, len(shown)), squeeze=False)
    for i, ax in enumerate(axes.flat):
        if i >= len(shown):
            ax.set_visible(False)
            continue
        draw_lines(ax, data, "r_med", shown[i], over)
        ax.set_title("all parameters" if shown[i] == ALL else short(shown[i]))
        if i + COLUMNS < len(shown):
            ax.set_xlabel("")
        if i % COLUMNS == 0:
            ax.set_ylabel("R_med")
    group_legend(figure, {name: data.looks[name] for name in groups})
    caption = (
        f"R_med = max|diag H| / median|diag H| of each layer against {'the evaluation ' * (over == 'loss')}{over}, "
        f"{seeds_text(groups)} ({key(groups)})"
    )
    if nowhere:
        caption += f"; infinite or missing at every iterate: {listed(nowhere)}"
    if omitted:
        caption += f"; left out here, and in measurements.csv all the same: {listed(omitted)}"
    return ReportFigure(f"r_med_{over}", title, caption + ".", figure)


def choose(data: ReportData, labels: list[str]) -> tuple[list[str], list[str]]:
    """Which blocks get a panel, and which do not: matrices first, spread evenly over the depth, "all" last."""
    blocks = [label for label in labels if label != ALL]
    room = PANELS - (ALL in labels)
    if len(blocks) > room:
        ordered = data.matrices_first(blocks)
        matrices = ordered[: sum(data.is_matrix(label) for label in blocks)]
        if len(matrices) >= room:
            chosen = {matrices[i] for i in np.linspace(0, len(matrices) - 1, room).round().astype(int)}
        else:
            chosen = set(ordered[:room])
    else:
        chosen = set(blocks)
    shown = [label for label in blocks if label in chosen] + [ALL] * (ALL in labels)
    return shown, [label for label in blocks if label not in chosen]
