"""A figure of panels that are described by data: lines, dots, bands and marked ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from geomtraj.reporting.data import ReportFigure, Skipped
from geomtraj.reporting.style import WIDTH, legend, log_axis, number, short

Kind = Literal["line", "thin", "dots", "rings", "bars", "band"]


@dataclass(frozen=True)
class Mark:
    """One thing drawn in a panel.

    Attributes:
        kind: "line"; "thin", a line for a single run; "dots" or "rings", small and for single runs; "bars", means with
            intervals; "band".
        x: Places, shape (n,).
        y: Values, shape (n,); for a band they are not used.
        colour: Of matplotlib.
        label: In the legend; the same label in several panels stands there once.
        low: Lower ends of bars and bands, shape (n,).
        high: Upper ends.
        dashes: Of a line.
    """

    kind: Kind
    x: ArrayLike
    y: ArrayLike
    colour: str
    label: str = ""
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    dashes: str = "-"


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        title: Above it.
        x_label: What x is, with its unit.
        y_label: What y is.
        marks: What is drawn; values that are not finite, or not positive on a log axis, are left out.
        log: Which axes are logarithmic: "", "x", "y" or "xy".
        x_ticks: Where to put ticks on the x axis; None for the usual places.
        shade: A range of x that is marked, with its text.
        rules: Values of y at which a thin line is drawn.
        x_names: Texts at `x_ticks` in the place of numbers.
    """

    title: str
    x_label: str
    y_label: str
    marks: Sequence[Mark]
    log: Literal["", "x", "y", "xy"] = ""
    x_ticks: Sequence[float] | None = None
    shade: tuple[float, float, str] | None = None
    rules: Sequence[float] = ()
    x_names: Sequence[str] | None = None


def draw_panels(
    name: str, title: str, caption: str, panels: Sequence[Panel], columns: int = 2, height: float = 3.2
) -> ReportFigure | Skipped:
    """The figure; its reason to be missing where no panel has anything to show.

    Args:
        name: Of the file.
        title: Heading.
        caption: What it shows, for how many seeds.
        panels: In reading order.
        columns: Panels in a row.
        height: Of a row, in inches; the page is 10 wide.
    """
    if not any(_finite(mark, panel.log)[0].size for panel in panels for mark in panel.marks):
        return Skipped(f"The figure “{title}” is left out: there is no finite value to draw.")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax, panel in zip(axes, panels, strict=False):
        _draw(ax, panel)
    entries = {mark.label: _key(mark) for panel in panels for mark in panel.marks if mark.label}
    if entries:
        legend(figure, list(entries.items()), loc="outside upper left", ncols=min(4, len(entries)))
    return ReportFigure(name, title, caption, figure)


def _draw(ax: Axes, panel: Panel) -> None:
    seen_x, seen_y = [np.array([])], [np.array(panel.rules, dtype=np.float64)]
    for mark in panel.marks:
        x, y, low, high = _finite(mark, panel.log)
        if not x.size:
            continue
        if mark.kind == "band":
            ax.fill_between(x, low, high, color=mark.colour, alpha=0.18, lw=0)
        elif mark.kind == "line":
            ax.plot(x, y, color=mark.colour, ls=mark.dashes, lw=1.5)
        elif mark.kind == "thin":
            ax.plot(x, y, color=mark.colour, ls=mark.dashes, lw=0.6, alpha=0.6)
        elif mark.kind == "bars":
            ax.vlines(x, low, high, color=mark.colour, lw=1.3, zorder=3)
            ax.plot(x, y, "o", color=mark.colour, ms=4.5, zorder=3)
        else:
            face = "white" if mark.kind == "rings" else mark.colour
            ax.plot(x, y, "o", color=mark.colour, mfc=face, ms=2.8, mew=0.7, alpha=0.55, ls="", zorder=2)
        seen_x.append(x)
        seen_y += [y, low, high]
    ax.set(xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title)
    for value in panel.rules:
        ax.axhline(value, color="#555555", lw=0.8, ls=":", zorder=1)
    for which, values in (("x", np.concatenate(seen_x)), ("y", np.concatenate(seen_y))):
        if which in panel.log and values.size:
            margin = max((values.max() / values.min()) ** 0.06, 1.03)
            bottom, top = float(values.min() / margin), float(values.max() * margin)
            log_axis(ax, which, bottom, top)  # type: ignore[arg-type]
            if 60 <= top / bottom < 1000:
                axis = ax.xaxis if which == "x" else ax.yaxis
                axis.set_major_locator(ticker.LogLocator(subs=(1, 3), numticks=8))
    if panel.x_ticks is not None:
        ax.xaxis.set_major_locator(ticker.FixedLocator(list(panel.x_ticks)))
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: number(x)))
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        if panel.x_names is not None:
            ax.set_xticks(list(panel.x_ticks), [short(name) for name in panel.x_names], rotation=30, ha="right")
    if panel.shade is not None:
        left, right, text = panel.shade
        ax.axvspan(left, right, color="#F3E9C9", zorder=0, lw=0)
        centre = (left * right) ** 0.5 if "x" in panel.log else (left + right) / 2
        ax.annotate(text, (centre, 0.97), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=7.5)


def _finite(mark: Mark, log: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y, low and high where all can be drawn; without an interval, low and high are y."""
    x = np.asarray(mark.x, dtype=np.float64)
    low = np.asarray(mark.y if mark.low is None else mark.low, dtype=np.float64)
    high = np.asarray(mark.y if mark.high is None else mark.high, dtype=np.float64)
    y = low if mark.kind == "band" else np.asarray(mark.y, dtype=np.float64)
    if mark.kind == "bars":  # a mean without an interval is still a mean
        low, high = np.where(np.isfinite(low), low, y), np.where(np.isfinite(high), high, y)
        if "y" in log:
            low = np.where(low > 0, low, y)
    good = np.isfinite(x) & np.isfinite(y) & np.isfinite(low) & np.isfinite(high)
    if "x" in log:
        good &= x > 0
    if "y" in log:
        good &= (y > 0) & (low > 0) & (high > 0)
    return x[good], y[good], low[good], high[good]


def _key(mark: Mark) -> dict:
    """How a mark looks in the legend."""
    if mark.kind == "band":
        return {"color": mark.colour, "lw": 7, "alpha": 0.25}
    if mark.kind in ("line", "thin"):
        return {"color": mark.colour, "ls": mark.dashes, "lw": 1.5}
    face = "white" if mark.kind == "rings" else mark.colour
    return {"color": mark.colour, "marker": "o", "mfc": face, "ls": "-" if mark.kind == "bars" else "", "ms": 4}
