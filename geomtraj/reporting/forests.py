"""A figure of forest plots that are described by data: ratios with intervals, one named row each, several panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geomtraj.inference import Interval
from geomtraj.reporting.data import ReportFigure, Skipped
from geomtraj.reporting.forest import STRETCH
from geomtraj.reporting.style import WIDTH, legend, log_axis, short

ROW = 0.2  # inches


@dataclass(frozen=True)
class Estimates:
    """Ratios of one kind, in one colour, each with its interval.

    Attributes:
        label: In the legend; the same label in several panels stands there once.
        colour: Of matplotlib.
        rows: Name of the row -> ratio; without an interval its ends are NaN.
    """

    label: str
    colour: str
    rows: Mapping[str, Interval]


@dataclass(frozen=True)
class Forest:
    """One panel.

    Attributes:
        title: Above it.
        x_label: What the ratio is.
        names: The rows, from the top.
        series: What is drawn in each row, side by side; ratios that are not positive and finite are left out.
        apart: How many rows at the bottom stand below a line, such as a mean over the others.
    """

    title: str
    x_label: str
    names: Sequence[str]
    series: Sequence[Estimates]
    apart: int = 0


def draw_forests(
    name: str, title: str, caption: str, panels: Sequence[Forest], columns: int = 2
) -> ReportFigure | Skipped:
    """The figure, with one range of ratios for all panels; its reason to be missing where there is no ratio.

    Args:
        name: Of the file.
        title: Heading.
        caption: What it shows, for how many seeds.
        panels: In reading order; those without a row are left out.
        columns: Panels in a row.
    """
    panels = [panel for panel in panels if panel.names]
    known = [row for panel in panels for s in panel.series for k, row in s.rows.items() if k in panel.names]
    known = [row for row in known if 0 < row.value < math.inf]
    if not known:
        return Skipped(f"The figure “{title}” is left out: no ratio is known.")
    ratios = np.array([row.value for row in known])
    ends = np.array([x for row in known for x in (row.low, row.high) if 0 < x < math.inf] or [1.0])
    low = max(min(ratios.min(), ends.min(), 1.0), min(ratios.min(), 1.0) / STRETCH) / 1.1
    high = min(max(ratios.max(), ends.max(), 1.0), max(ratios.max(), 1.0) * STRETCH) * 1.1
    columns = min(columns, len(panels))
    lines = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    most = [max(len(panel.names) for panel in line) for line in lines]
    figure = Figure(figsize=(WIDTH, 0.4 + sum(0.75 + ROW * n for n in most)), layout="constrained")
    axes = figure.subplots(len(lines), columns, squeeze=False, gridspec_kw={"height_ratios": [n + 2 for n in most]})
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for line, rows, n in zip(axes, lines, most, strict=True):
        for ax, panel in zip(line, rows, strict=False):
            _draw(ax, panel, (low, high), n)
    entries = {s.label: {"color": s.colour, "marker": "o", "ms": 4, "lw": 1.2} for p in panels for s in p.series}
    legend(figure, list(entries.items()), loc="outside upper left", ncols=min(4, len(entries)))
    return ReportFigure(name, title, caption, figure)


def _draw(ax: Axes, panel: Forest, ends: tuple[float, float], rows: int) -> None:
    """One panel with room for `rows` rows, so that those beside each other have rows of one height."""
    low, high = (float(x) for x in ends)
    for which, series in enumerate(panel.series):
        for y, name in enumerate(panel.names):
            found = series.rows.get(name)
            if found is None or not 0 < found.value < math.inf:
                continue
            place = y + 0.7 * ((which + 0.5) / len(panel.series) - 0.5)
            if math.isfinite(found.low):
                ax.hlines(place, max(found.low, low), min(found.high, high), color=series.colour, lw=1.2)
            face = series.colour if found.low > 1 or found.high < 1 else "white"
            ax.plot(found.value, place, "o", ms=3.8, color=series.colour, mfc=face, mew=1.0)
    ax.axvline(1.0, color="#333333", lw=0.9, zorder=0)
    if panel.apart:
        ax.axhline(len(panel.names) - panel.apart - 0.5, color="#999999", lw=0.6)
    ax.set(title=panel.title, xlabel=panel.x_label)
    ax.set_yticks(np.arange(len(panel.names)), [short(name, 34) for name in panel.names])
    ax.set_ylim(rows - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    log_axis(ax, "x", low, high)
