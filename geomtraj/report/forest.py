"""Figure: ratio of R_med between optimizers for each layer, at equal loss and at the same step."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geomtraj.contrast import Row, Table
from geomtraj.report.material import ALL, Drawing, LeftOut, Material, listed
from geomtraj.report.style import WIDTH, legend, log_axis, short

TITLE = "R_med between optimizers, layer by layer"
MOST = 40
STRETCH = 30.0  # intervals that reach further than this factor from the points' range are cut


def draw(material: Material) -> Drawing | LeftOut:
    """Each block's ratio with its interval over seeds, and the line at 1."""
    tables = {at: material.tables["r_med", at] for at in ("loss", "step") if ("r_med", at) in material.tables}
    if not tables:
        return LeftOut(f"The figure “{TITLE}” is left out: {material.missing['r_med', 'loss']}")
    rows = [row for table in tables.values() for row in table.overall()]
    labels = list(dict.fromkeys(row.label for row in rows if row.n))
    nowhere = list(dict.fromkeys(row.label for row in rows if row.label not in labels))
    if not labels:
        return LeftOut(f"The figure “{TITLE}” is left out: no ratio of R_med is finite.")
    blocks = [label for label in labels if label != ALL]
    kept = set(material.matrices_first(blocks)[:MOST])
    shown = [label for label in blocks if label in kept] + [ALL] * (ALL in labels)
    comparisons = list(dict.fromkeys((row.numerator, row.denominator) for row in rows))
    height = max(0.23, 0.1 + 0.1 * len(comparisons)) * len(shown)
    figure = Figure(figsize=(WIDTH, 1.1 + height), layout="constrained")
    axes = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for ax, (at, table) in zip(axes, tables.items(), strict=True):
        _panel(ax, table, shown, comparisons, material)
        ax.set_title({"loss": "at equal loss", "step": "at the same step"}[at])
        ax.set_xlabel("ratio of R_med (log scale)")
    axes[0].set_yticks(np.arange(len(shown)), ["all parameters" if s == ALL else short(s, 40) for s in shown])
    axes[0].set_ylim(len(shown) - 0.4, -0.6)
    legend(
        figure,
        [
            (f"{short(a, 28)} / {short(b, 28)}", {"color": material.looks[a].colour, "marker": "o", "ms": 5, "lw": 1.2})
            for a, b in comparisons
        ],
        loc="outside upper left",
        ncols=min(4, len(comparisons)),
    )
    omitted = [label for label in blocks if label not in kept]
    caption = _caption(rows, comparisons)
    if nowhere:
        caption += f"; without a finite ratio: {listed(nowhere)}"
    if omitted:
        caption += f"; left out here, and in tables/contrast_r_med_loss.csv all the same: {listed(omitted)}"
    return Drawing("contrast", TITLE, caption + ".", figure)


def _panel(ax: Axes, table: Table, shown: list[str], comparisons: list[tuple[str, str]], material: Material) -> None:
    places = {label: i for i, label in enumerate(shown)}
    rows = [r for r in table.overall() if r.label in places and np.isfinite(r.ratio)]
    ratios = np.array([r.ratio for r in rows] or [1.0])
    ends = np.array([x for r in rows for x in (r.low, r.high) if np.isfinite(x) and x > 0] or [1.0])
    low = max(min(ratios.min(), ends.min(), 1.0), min(ratios.min(), 1.0) / STRETCH) / 1.15
    high = min(max(ratios.max(), ends.max(), 1.0), max(ratios.max(), 1.0) * STRETCH) * 1.15
    for row in rows:
        which = comparisons.index((row.numerator, row.denominator))
        y = places[row.label] + 0.7 * ((which + 0.5) / len(comparisons) - 0.5)
        colour = material.looks[row.numerator].colour
        if np.isfinite(row.low) and np.isfinite(row.high):
            ax.hlines(y, max(row.low, low), min(row.high, high), color=colour, lw=1.3)
        leaves_out_one = row.low > 1 or row.high < 1
        ax.plot(row.ratio, y, "o", ms=4.5, color=colour, mfc=colour if leaves_out_one else "white", mew=1.1)
    ax.axvline(1.0, color="#333333", lw=0.9, zorder=0)
    for label, i in places.items():
        if label == ALL:
            ax.axhline(i - 0.5, color="#999999", lw=0.6)
    ax.grid(axis="y", visible=False)
    log_axis(ax, "x", float(low), float(high))
    ax.tick_params(axis="y", length=0)


def _caption(rows: list[Row], comparisons: list[tuple[str, str]]) -> str:
    most = max(row.n for row in rows)
    pairs = f"{most} pair{'s' * (most != 1)} of seeds"
    names = listed(f"{a} over {b}" for a, b in comparisons)
    if most < 2:
        return f"Ratio of R_med, {names}, for each layer, {pairs}; no interval can be given with one seed"
    return (
        f"Ratio of R_med, {names}, for each layer: geometric mean over the levels and over at most {pairs} with its "
        "95 % t-interval (filled where it leaves out 1, the vertical line)"
    )
