"""Figure: ratio of R_med between optimizers, the answer and each kind of layer, at equal loss and at the same step."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from geomtraj.comparing import Row, Table
from geomtraj.reporting.data import ALL, ReportData, ReportFigure, Skipped, listed
from geomtraj.reporting.style import WIDTH, Look, legend, log_axis, looks, short

TITLE = "R_med between optimizers, layer by layer"
MOST = 40
STRETCH = 30.0  # intervals that reach further than this factor from the points' range are cut
ANSWER = "the answer"


def draw(data: ReportData) -> ReportFigure | Skipped:
    """Each kind's ratio with its interval over seeds, its blocks as dots, and the line at 1."""
    tables = {at: data.tables["r_med", at] for at in ("loss", "step") if ("r_med", at) in data.tables}
    if not tables:
        return Skipped(f"The figure “{TITLE}” is left out: {data.missing['r_med', 'loss']}")
    rows = [row for table in tables.values() for row in table.overall()]
    kinds = {kind.name: kind.labels for table in tables.values() for kind in table.kinds}
    known = {row.label for row in rows if row.n}
    named = {name: labels for name, labels in kinds.items() if known & set(labels)}
    if not known:
        return Skipped(f"The figure “{TITLE}” is left out: no ratio of R_med is finite.")
    weights = sorted(named, key=lambda name: not data.is_matrix(named[name][0]))
    kept = [name for name in named if name in weights[:MOST]]
    several = max(map(len, kinds.values()), default=1) > 1
    answered = any(c.primary is not None and c.primary.n for table in tables.values() for c in table.comparisons)
    shown = [ANSWER] * answered + kept + [ALL] * (ALL in known)
    comparisons = list(dict.fromkeys((row.numerator, row.denominator) for row in rows))
    height = max(0.24, 0.1 + 0.1 * len(comparisons)) * len(shown)
    figure = Figure(figsize=(WIDTH, 1.1 + height), layout=ConstrainedLayoutEngine(rect=(0.02, 0, 0.98, 1)))
    # Room at the left, since a browser's font may be wider than the one that the names were measured in.
    axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for ax, (at, table) in zip(axes, tables.items(), strict=True):
        _panel(ax, table, shown, comparisons, data.looks)
        ax.set_title({"loss": "at equal loss", "step": "at the same step"}[at])
        ax.set_xlabel("ratio of R_med (log scale)")
    axes[0].set_yticks(np.arange(len(shown)), [_name(name, kinds, several) for name in shown])
    axes[0].set_ylim(len(shown) - 0.4, -0.6)
    entries = _entries(comparisons, data.looks)
    absent = _absent([row for row in rows if row.label not in data.explained], kept, named)
    legend(figure, entries, loc="outside upper left", ncols=min(4, len(comparisons)))
    return ReportFigure("contrast", TITLE, _caption(rows, comparisons, several, absent), figure)


def draw_table(ax: Axes, table: Table) -> None:
    """One contrast on axes of its own."""
    rows = table.overall()
    known = {row.label for row in rows if row.n}
    kinds = {kind.name: kind.labels for kind in table.kinds if known & set(kind.labels)}
    comparisons = list(dict.fromkeys((row.numerator, row.denominator) for row in rows))
    answered = any(c.primary is not None and c.primary.n for c in table.comparisons)
    shown = [ANSWER] * answered + list(kinds)[:MOST] + [ALL] * (ALL in known)
    groups = list(dict.fromkeys(name for a, b in comparisons for name in (b, a)))
    _panel(ax, table, shown, comparisons, looks(groups))
    several = any(len(labels) > 1 for labels in kinds.values())
    ax.set_yticks(np.arange(len(shown)), [_name(name, kinds, several) for name in shown])
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_xlabel(f"ratio of {table.statistic} (log scale)")
    if len(comparisons) > 1:
        legend(ax, _entries(comparisons, looks(groups)))


def _entries(comparisons: list[tuple[str, str]], look: dict[str, Look]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{short(a, 28)} / {short(b, 28)}", {"color": look[a].colour, "marker": "o", "ms": 5, "lw": 1.2})
        for a, b in comparisons
    ]


def _name(name: str, kinds: dict[str, tuple[str, ...]], several: bool) -> str:
    if name == ALL:
        return "all parameters"
    if name == ANSWER:
        return "mean: the answer"
    count = f" ({len(kinds[name])})" if several and len(kinds[name]) > 1 else ""
    return short(name, 44 - len(count)) + count


def _panel(ax: Axes, table: Table, shown: list[str], comparisons: list[tuple[str, str]], look: dict[str, Look]) -> None:
    places = {name: i for i, name in enumerate(shown)}
    drawn = [(ANSWER, c.primary) for c in table.comparisons if c.primary is not None]
    drawn += [(k.name, k.row) for k in table.kinds]
    drawn += [(ALL, row) for row in table.overall() if row.label == ALL]
    drawn = [(name, row) for name, row in drawn if name in places and np.isfinite(row.ratio)]
    kind_of = {label: k.name for k in table.kinds if len(k.labels) > 1 for label in k.labels}
    single = [(kind_of[r.label], r) for r in table.overall() if kind_of.get(r.label) in places and np.isfinite(r.ratio)]
    ratios = np.array([r.ratio for _, r in [*drawn, *single]] or [1.0])
    ends = np.array([x for _, r in drawn for x in (r.low, r.high) if np.isfinite(x) and x > 0] or [1.0])
    low = max(min(ratios.min(), ends.min(), 1.0), min(ratios.min(), 1.0) / STRETCH) / 1.15
    high = min(max(ratios.max(), ends.max(), 1.0), max(ratios.max(), 1.0) * STRETCH) * 1.15
    for rows, marker in ((single, "."), (drawn, "o")):
        for name, row in rows:
            which = comparisons.index((row.numerator, row.denominator))
            y = places[name] + 0.7 * ((which + 0.5) / len(comparisons) - 0.5)
            colour = look[row.numerator].colour
            if marker == ".":
                ax.plot(row.ratio, y, ".", ms=5, color=colour, mew=0, alpha=0.4, zorder=2)
                continue
            if np.isfinite(row.low) and np.isfinite(row.high):
                ends_at = (max(row.low, low), min(row.high, high))
                ax.hlines(y, *ends_at, color=colour, lw=2.4 if name == ANSWER else 1.3, zorder=2.5)
            face = colour if row.low > 1 or row.high < 1 else "white"
            shape, size = ("D", 6.0) if name == ANSWER else ("o", 4.5)
            ax.plot(row.ratio, y, shape, ms=size, color=colour, mfc=face, mew=1.1, zorder=3)
    ax.axvline(1.0, color="#333333", lw=0.9, zorder=0)
    for name, offset in ((ANSWER, 0.5), (ALL, -0.5)):
        if name in places:
            ax.axhline(places[name] + offset, color="#999999", lw=0.6)
    ax.grid(axis="y", visible=False)
    log_axis(ax, "x", float(low), float(high))
    ax.tick_params(axis="y", length=0)


def _absent(rows: list[Row], kept: list[str], named: dict[str, tuple[str, ...]]) -> str:
    """Which blocks and kinds are not in the figure, as the end of a caption."""
    nowhere = list(dict.fromkeys(row.label for row in rows if not row.n))
    nowhere = [label for label in nowhere if not any(row.n for row in rows if row.label == label)]
    omitted = [name for name in named if name not in kept]
    text = f"; without a finite ratio: {listed(nowhere)}" if nowhere else ""
    if omitted:
        text += f"; left out here, and in contrast_r_med_loss.csv all the same: {listed(omitted)}"
    return text


def _caption(rows: list[Row], comparisons: list[tuple[str, str]], several: bool, absent: str) -> str:
    most = max(row.n for row in rows)
    pairs = f"{most} pair{'s' * (most != 1)} of seeds"
    names = listed(f"{a} over {b}" for a, b in comparisons)
    what = "for each kind of layer (its blocks as dots)" if several else "for each layer"
    if most < 2:
        return f"Ratio of R_med, {names}, {what}, {pairs}; no interval can be given with one seed{absent}."
    return (
        f"Ratio of R_med, {names}, over the weight matrices together (top) and {what}: geometric mean over the levels "
        f"and over at most {pairs} with its 95 % t-interval (filled where it leaves out 1, the vertical line){absent}."
    )
