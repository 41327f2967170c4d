"""The figures of spectra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analyses.spectra.data import ALL, COMPARED, MEAN, Point, Task
from analyses.spectra.findings import contrasts
from geomtraj.inference import KERNEL, per_decade
from geomtraj.reporting import COLOURS, Estimates, Forest, Mark, Panel, ReportFigure, Skipped, draw_forests, draw_panels

DECADES = 4  # below the largest eigenvalue that are drawn
KINDS = dict(zip(COMPARED, ("#000000", COLOURS[2], COLOURS[4]), strict=True))


def densities(tasks: Sequence[Task]) -> ReportFigure | Skipped:
    """The full Hessian's eigenvalues by size, each sign apart, one thin line for each seed."""
    panels = []
    for task in tasks:
        points = [p for p in task.of(ALL) if p.details["nodes"] and p.pair == _latest(task)]
        if not points:
            continue
        top = max(p.lambda_max for p in points)
        grid = np.geomspace(top * 10.0**-DECADES, top * 1.5, 60 * DECADES)
        for sign, words in ((1, "positive"), (-1, "negative")):
            marks = []
            for colour, optimizer in zip(COLOURS, task.optimizers, strict=False):
                lines = [per_decade(*_nodes(p), grid, sign) for p in points if p.optimizer == optimizer]
                floor = 10.0**-6
                marks += [Mark("thin", grid, np.where(y > floor, y, np.nan), colour) for y in lines]
                if lines:
                    mean = np.mean(lines, axis=0)
                    marks.append(Mark("line", grid, np.where(mean > floor, mean, np.nan), colour, optimizer))
            losses = sorted(p.loss for p in points)
            title = f"{task.title}, {words} (losses {losses[0]:.3g} to {losses[-1]:.3g})"
            panels.append(Panel(title, "|λ|", "share of eigenvalues per decade", marks, "xy"))
    caption = (
        f"Eigenvalues of the full Hessian by Lanczos quadrature, smoothed over {KERNEL:g} decades, {_seeds(tasks)}: "
        "thin lines are seeds, each at its own lowest compared loss, thick ones their mean. Far below the largest "
        "eigenvalue the quadrature has few nodes: bumps there are nodes, and their sign means nothing."
    )
    return draw_panels("densities", "Spectral densities at nearly equal loss", caption, panels)


def scatter(tasks: Sequence[Task]) -> ReportFigure | Skipped:
    """R_med against λmax / median |λ| and against its steadier variant, one point for each layer at each iterate."""
    panels = []
    for task in tasks:
        for key in ("condition", "ninth"):
            marks = []
            for colour, optimizer in zip(COLOURS, task.optimizers, strict=False):
                mine = [p for p in task.blocks() if p.optimizer == optimizer]
                known = [p for p in mine if key == "ninth" or p.kind == "resolved"]
                marks.append(Mark("dots", [p.r_med for p in known], [p.value(key) for p in known], colour, optimizer))
                rest = [p for p in mine if p.kind == "unresolved"] if key == "condition" else []
                if rest:
                    x, y = [p.r_med for p in rest], [p.condition for p in rest]
                    marks.append(Mark("rings", x, y, colour, f"{optimizer}, median not resolved"))
            panels.append(Panel(task.title, "R_med", COMPARED[key], marks, "xy"))
    zero = sum(p.kind == "zero" for task in tasks for p in task.blocks())
    caption = (
        f"Every weight matrix at every compared iterate, {_seeds(tasks)}; rings are estimates of medians that the "
        f"quadrature does not resolve. {zero} blocks whose median |λ| is below rounding have no place on the left."
    )
    return draw_panels("scatter", "R_med and the condition number it stands in for", caption, panels)


def ratios(tasks: Sequence[Task]) -> ReportFigure | Skipped:
    """The contrast of the optimizers in both statistics, layer by layer."""
    panels = []
    for task in tasks:
        usable, series = task.usable(), []
        for key, rows in contrasts(task).items():
            ends = {layer: r for layer, (r, _) in rows.items() if r.n}
            if len(usable) > 1:
                mean = task.mean_contrast(key, usable)
                ends[MEAN] = mean
            series.append(Estimates(COMPARED[key], KINDS[key], ends))
        names = [*task.layers, MEAN] if len(usable) > 1 else task.layers
        panels.append(Forest(task.title, f"{task.ratio} at equal loss", names, series, apart=int(len(usable) > 1)))
    caption = (
        f"Ratio of the optimizers, geometric mean over {_seeds(tasks)} with 95 % t-interval (filled where it leaves "
        "out 1, without correction for the number of layers). A layer without a mark has a median |λ| that is below "
        "rounding or not resolved. Below the line: the mean over the layers that are known throughout."
    )
    return draw_forests("ratios", "What both statistics tell of the optimizers", caption, panels)


def _latest(task: Task) -> int:
    """The pair of iterates with the lowest loss that there is."""
    return max(p.pair for p in task.of(ALL))


def _nodes(point: Point) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(point.details["nodes"]), np.concatenate(point.details["weights"])


def _seeds(tasks: Sequence[Task]) -> str:
    counts = sorted({len(task.seeds) for task in tasks})
    text = " or ".join(map(str, counts))
    return f"{text} seed{'' if counts == [1] else 's'}"
