"""The figures of uniformity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analyses.uniformity.data import CONTROL, NAMES, SETS, Contrasts, Points
from geomtraj.inference import Explained
from geomtraj.reporting import COLOURS, Estimates, Forest, Mark, Panel, ReportFigure, Skipped, draw_forests, draw_panels

SHOWN = {"factorised": "factorised R_med, from inputs and gradients", "vectors": "left times right singular vector"}


def title_of(config: dict[str, Any], task: str) -> str:
    """How a task is called."""
    return str(config["control"]["title"] if task == CONTROL else config["recipes"][task]["title"])


def predicted(config: dict[str, Any], found: Mapping[str, Points]) -> ReportFigure | Skipped:
    """R_med against the two predictions that need no fit."""
    panels = []
    for task, points in found.items():
        for name, label in SHOWN.items():
            marks, ends = [], []
            for optimizer, colour, style in zip(config["optimizers"], COLOURS, ("dots", "rings"), strict=False):
                here = [
                    p for p in points.where(optimizer=optimizer).points if math.isfinite(p.log("r_med") + p.log(name))
                ]
                x, y = [p.values[name] for p in here], [p.r_med.value for p in here]
                marks.append(Mark(style, x, y, colour, optimizer))  # type: ignore[arg-type]
                ends += [min(x), max(x)] if x else []
            if ends:
                line = [min(ends), max(ends)]
                marks.insert(0, Mark("line", line, line, "#000000", "equal"))
            panels.append(Panel(title_of(config, task), label, "R_med", marks, "xy"))
    caption = (
        "R_med of every weight matrix at every iterate against two predictions with nothing fitted: max over median of "
        "E[x²]E[g²] (left), and the product of max over median of the squared entries of both first singular vectors "
        f"(right); {_seeds(found)} seeds for each optimizer."
    )
    return draw_panels("predicted", "R_med and what it might come from", caption, panels)


def accounted(
    config: dict[str, Any], sets: Mapping[str, Mapping[str, tuple[Explained, Explained]]], found: Mapping[str, Points]
) -> ReportFigure | Skipped:
    """R^2 of every set of predictors, within and between layers."""
    panels = []
    for task, each in sets.items():
        names = list(SETS)
        for which, part in enumerate(("within layers", "between layers")):
            rows = [each[name][which] for name in names]
            if not any(math.isfinite(r.r2) for r in rows):
                continue
            places = list(range(len(names)))
            marks = [
                Mark("bars", places, [r.r2 for r in rows], COLOURS[0], "in the sample, with interval",
                     [r.low for r in rows], [r.high for r in rows]),
                Mark("rings", [x + 0.25 for x in places], [max(r.held_out, -0.25) for r in rows], COLOURS[1],
                     "held out, cut at −0.25"),
            ]  # fmt: skip
            title = f"{title_of(config, task)}, {part}"
            panels.append(Panel(title, "", "R² of log R_med", marks, "", places, None, [0, 1], names))
    caption = (
        "Share of the variance of log R_med that each set of predictors accounts for, with intervals by bootstrap over "
        f"{_seeds(found)} seeds; rings: seeds (within layers) or layers (between them) that took no part in the fit. "
        "Where there is no dot a predictor does not vary; panels of too few layers are left out."
    )
    return draw_panels("explained", "How much of R_med each accounts for", caption, panels, height=3.8)


def compared(config: dict[str, Any], facing: Mapping[str, Contrasts | None]) -> ReportFigure | Skipped:
    """The contrast of R_med beside those of the predictors."""
    panels = []
    for task, one in facing.items():
        if one is None:
            continue
        chosen: Sequence[str] = ("r_med", "factorised", "vectors", "dead")
        series = [
            Estimates({"r_med": "R_med", **NAMES}[name], COLOURS[k],
                   {layer: row.interval for layer, row in one.rows[name].items()})
            for k, name in enumerate(chosen) if name in one.rows
        ]  # fmt: skip
        first, second = config["optimizers"]
        label = f"{second} over {first} at equal loss"
        panels.append(Forest(title_of(config, task), label, list(one.rows["r_med"]), series))
    caption = (
        "R_med and what might account for it, the second optimizer over the first at equal loss: geometric mean over "
        "pairs of seeds and losses with 95 % interval, filled where it leaves out 1."
    )
    return draw_forests("compared", "The contrast of the optimizers", caption, panels)


def _seeds(found: Mapping[str, Points]) -> str:
    counts = sorted({p.seeds for p in found.values() if p.points})
    return " to ".join(str(n) for n in (counts[:1] + counts[-1:] if len(counts) > 1 else counts)) or "no"
