"""Figure: training and evaluation loss of each optimizer, against step and against training time."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from geomtraj.measuring.results import Results
from geomtraj.report.material import Drawing, LeftOut, Material, is_number, not_measured, seeds_text
from geomtraj.report.style import WIDTH, group_legend, log_axis, number, step_axis
from geomtraj.report.thinning import LINE, PANEL, thinned

TITLE = "Loss curves"


def draw(material: Material) -> Drawing | LeftOut:
    """Evaluation loss thick, training log thin, one line per seed."""
    groups = material.measured("loss")
    if not groups:
        return not_measured("loss", TITLE)
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    shown: list[float] = []
    all_steps: list[float] = []
    logged = False
    for name, runs in groups.items():
        look = material.looks[name]
        for r in runs:
            measured = [(m.step, m.wall_time, q.value) for m, q in r.series("loss", "loss") if is_number(q.value)]
            trained = _training_log(r)
            logged = logged or bool(trained)
            for rows, style, most in (
                (trained, {"lw": 0.6, "alpha": 0.35}, LINE),
                (measured, {"lw": 1.6, "marker": ".", "ms": 4}, PANEL),
            ):
                points = np.array(rows, dtype=np.float64).reshape(-1, 3)
                steps, times, losses = points[thinned(points[:, 0], points[:, 2], most)].T
                left.plot(steps, losses, color=look.colour, ls=look.dashes, **style)
                right.plot(times, losses, color=look.colour, ls=look.dashes, **style)
                shown += losses.tolist()
            all_steps += [step for step, _, _ in measured]
    if not shown:
        return LeftOut(f"The figure “{TITLE}” is left out: no run has a finite loss.")
    if min(shown) > 0:
        margin = max((max(shown) / min(shown)) ** 0.05, 1.01)
        log_axis(left, "y", min(shown) / margin, max(shown) * margin)
    step_axis(left, np.array(all_steps))
    left.set_ylabel("loss")
    right.set_xlabel("training time (s)")
    right.set_xlim(left=0)
    right.tick_params(labelleft=False)
    group_legend(figure, {name: material.looks[name] for name in groups})
    thin = "; thin: the training log" if logged else ""
    best = ", ".join(f"{name} {number(_lowest(runs))}" for name, runs in groups.items())
    caption = (
        f"Loss against step and against training time, {seeds_text(groups)} (thick with dots: loss on the fixed "
        f"evaluation set{thin}); lowest evaluation loss, geometric mean over seeds: {best}."
    )
    return Drawing("losses", TITLE, caption, figure)


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
