"""Figures of every other statistic that was measured: each label against step, with its threshold or null beside it."""

from __future__ import annotations

import math
import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geomtraj.measuring.results import Results
from geomtraj.reporting.data import ReportData, ReportFigure, Skipped, seeds_text
from geomtraj.reporting.lines import draw_lines, key
from geomtraj.reporting.style import WIDTH, group_legend, log_axis, short
from geomtraj.statistics import REGISTRY

DRAWN = ("loss", "r_med", "spectrum", "trace")
"""Statistics that have figures of their own."""
PANELS = 12
"""Labels drawn of one statistic at most."""
COLUMNS = 3


def others(data: ReportData) -> list[str]:
    """The measured statistics without a figure of their own."""
    found = {s for runs in data.groups.values() for r in runs for s in r.statistics}
    return sorted(found - set(DRAWN))


def draw(data: ReportData, statistic: str) -> ReportFigure | Skipped:
    """A panel for each label on a log axis; dotted: its threshold, or what it is for random directions or walks."""
    groups = data.measured(statistic)
    title = _title(statistic)
    labels = [label for label in data.labels(statistic) if not _beside(label, data.labels(statistic))]
    labels = sorted(labels, key=lambda label: label in data.shapes or ": " in label)
    if not labels:
        return Skipped(f"The figure “{title}” is left out: there is no value to draw.")
    shown = labels[:PANELS]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(WIDTH, 0.6 + 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    hidden = dotted = 0
    for ax, label in zip(axes, shown, strict=False):
        drawn = draw_lines(ax, data, statistic, label, "step")
        hidden += sum(not q.value > 0 for runs in groups.values() for r in runs for _, q in r.series(statistic, label))
        if drawn:
            dotted += _draw_beside(ax, data, groups, statistic, label)
        ax.set_title(short(label), fontsize=8)
    for ax in list(axes)[len(shown) :]:
        ax.set_visible(False)
    group_legend(figure, {name: data.looks[name] for name in groups})
    parts = [f"{title[:1].upper()}{title[1:]} along the trajectories, {seeds_text(groups)} ({key(groups)})"]
    if dotted:
        parts.append("dotted: the threshold, or the value for random directions or walks")
    if hidden:
        parts.append(f"{hidden} values are not positive and are not drawn")
    if len(labels) > len(shown):
        parts.append(f"{len(labels) - len(shown)} more labels stand in measurements.csv")
    return ReportFigure(
        f"statistic_{re.sub(r'[^0-9A-Za-z_.-]+', '_', statistic)}", title, "; ".join(parts) + ".", figure
    )


def _title(statistic: str) -> str:
    return REGISTRY[statistic].title if statistic in REGISTRY else statistic


def _beside(label: str, labels: list[str]) -> str:
    """The label that this one is a threshold or null of; empty where it is one of its own."""
    if label == "threshold" and "sharpness" in labels:
        return "sharpness"
    whole = label.removesuffix("_null")
    return whole if whole != label and whole in labels else ""


def _draw_beside(ax: Axes, data: ReportData, groups: dict[str, list[Results]], statistic: str, label: str) -> int:
    """Dotted lines beside one label; the axis is widened where they lie not too far from it."""
    lines = []
    every = data.labels(statistic)
    for name, runs in groups.items():
        for r in runs:
            for other in (x for x in every if _beside(x, every) == label):
                lines.append((name, [(m.step, q.value) for m, q in r.series(statistic, other)]))
            told = [(m.step, m.details.get("thresholds", {})) for m in r.of(statistic)]
            for place in dict.fromkeys(place for _, places in told for place in places):
                lines.append((name, [(step, places[place]) for step, places in told if place in places]))
    low, high = ax.get_ylim()
    count = 0
    for name, points in lines:
        good = np.array([(s, v) for s, v in points if math.isfinite(v) and v > 0])
        if good.size:
            ax.plot(good[:, 0], good[:, 1], color=data.looks[name].colour, ls=":", lw=1.1, zorder=2)
            near = good[:, 1][(good[:, 1] > low / 30) & (good[:, 1] < high * 30)]
            if near.size:
                low, high = min(low, float(near.min()) / 1.1), max(high, float(near.max()) * 1.1)
            count += 1
    log_axis(ax, "y", low, high)
    return count
