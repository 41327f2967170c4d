"""The figures of two_layer_linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from analyses.two_layer_linear.data import LAYERS, NAMES, Runs, adam_limit
from geomtraj.reporting import COLOURS, Mark, Panel, ReportFigure, Skipped, draw_panels
from geomtraj.tasks import two_layer_linear as theory

COLOUR = {"adam": COLOURS[0], "sgdm": COLOURS[1]}
TITLES = {"r_1": "R_1, of W1", "r_2": "R_2, of W2"}


def _bars(group: Runs, over: str, places: Sequence[float], level: float, key: str, name: str) -> Mark:
    means = [group.where(**{over: x}, optimizer=name).mean(level, key) for x in places]
    return Mark("bars", places, [m.mean for m in means], COLOUR[name], f"{NAMES[name]}, mean over seeds",
                [m.low for m in means], [m.high for m in means])  # fmt: skip


def dimensions(config: dict[str, Any], runs: Runs, laws: dict[int, Any]) -> ReportFigure | Skipped:
    """R_1 and R_2 against d beside the prediction."""
    dims, level = config["dims"], config["reference"]
    formula = [theory.predicted_r_med(d) for d in dims]
    band = Mark("band", dims, formula, "#777777", "95 % of single runs, predicted",
                [laws[d].low for d in dims], [laws[d].high for d in dims])  # fmt: skip
    panels = []
    for key in LAYERS:
        points = {name: [(j["d"], row[key]) for j, r in runs.where(optimizer=name).done for row in r["rows"]
                         if row["level"] == level] for name in COLOUR}  # fmt: skip
        panels.append(
            Panel(
                TITLES[key], "d", "R_med",
                [
                    band,
                    Mark("line", dims, formula, "#000000", "the formula"),
                    Mark("line", dims, [laws[d].mean for d in dims], "#000000", "mean at finite d", dashes="--"),
                    *(Mark("rings", [x for x, _ in p], [y for _, y in p], COLOUR[n]) for n, p in points.items()),
                    *(_bars(runs, "d", dims, level, key, name) for name in COLOUR),
                ],
                "xy", dims, rules=[1.0],
            )
        )  # fmt: skip
    caption = (
        f"R_med of both layers where the loss has fallen to {level:g} of the start's, {len(config['seeds'])} seeds "
        "for each d (rings: single runs; dots: mean over seeds with 95 % interval; grey: where 95 % of max u²/median "
        "u² lie for d Gaussian u; black: the formula and, dashed, the mean of that law)."
    )
    return draw_panels("dimensions", "R_med against the dimension", caption, panels, height=4.0)


def along(config: dict[str, Any], runs: Runs) -> ReportFigure | Skipped:
    """R_1, R_2 and the ratio of singular values along training, the window shaded."""
    d = config["curve_dim"]
    panels, seeds = [], 0
    for key, label in ((*LAYERS[:1], "R_1"), (*LAYERS[1:], "R_2"), ("singular", "second / first singular value of W1")):
        for name in ("sgdm", "adam"):
            done = [(j, r) for j, r in runs.where(d=d, optimizer=name, curve=True).done if r["status"] == "ok"]
            seeds = max(seeds, len(done))
            halves = [next((row["step"] for row in r["rows"] if row["level"] <= 0.5), math.nan) for _, r in done]
            marks = [
                Mark("line", [row["step"] / half for row in r["curve"]], [row[key] for row in r["curve"]], COLOUR[name],
                     NAMES[name])
                for (_, r), half in zip(done, halves, strict=True)
            ]  # fmt: skip
            inside = [
                [row["step"] / half for row in r["rows"] if theory.WINDOW[1] <= row["level"] <= theory.WINDOW[0]]
                for (_, r), half in zip(done, halves, strict=True)
            ]
            ends = [(x[0], x[-1]) for x in inside if x]
            shade = (min(x[0] for x in ends), max(x[1] for x in ends), "window") if ends else None
            rules = [] if key == "singular" else [1.0]
            panels.append(
                Panel(f"{label}, {NAMES[name]}", "step / step at half the loss", label, marks, "xy", None, shade, rules)
            )
    high, low = theory.WINDOW
    caption = (
        f"R_1, R_2 and the rank-one structure along training at d = {d}, {seeds} seeds each, against the step over "
        f"the one at which the loss has halved (shaded: the loss is between {high:g} and {low:g} of the start's, the "
        "window in which the theorem speaks)."
    )
    return draw_panels("along", "Along training", caption, panels, height=2.6)


def excess(config: dict[str, Any], runs: Runs, slow: Runs) -> ReportFigure | Skipped:
    """Adam's distance from 1 against d, and each run of SGD with momentum against its own start."""
    panels = []
    for key in LAYERS:
        marks = []
        for label, group, colour, dims in (
            ("Adam, learning rate c/√d", runs.where(optimizer="adam"), COLOUR["adam"], config["dims"]),
            (f"Adam, {config['small_steps']:g} of the start's std", slow, COLOURS[2], config["small_step_dims"]),
        ):
            found = [group.where(d=d).excess(0.5, key) for d in dims]
            marks.append(Mark("bars", dims, [f.ratio for f in found], colour, label, [f.low for f in found],
                              [f.high for f in found]))  # fmt: skip
        if key == "r_1":
            limit = [adam_limit(runs.where(d=d, optimizer="adam").done, 0.5) for d in config["dims"]]
            marks.append(Mark("line", config["dims"], limit, "#000000", "sign steps of size 0", dashes="--"))
        panels.append(Panel(f"{TITLES[key]}: Adam", "d", "R_med - 1", marks, "xy", config["dims"]))
    level = config["reference"]
    pairs = [(r["start"]["sgdm"], row["r_1"], row["r_2"]) for _, r in runs.where(optimizer="sgdm").done
             for row in r["rows"] if row["level"] == level]  # fmt: skip
    x = [p[0] for p in pairs]
    ends = [min(x, default=1), max(x, default=1)]
    single = [
        Mark("line", ends, ends, "#000000"),
        Mark("dots", x, [p[1] for p in pairs], COLOURS[1], "SGD with momentum, R_1"),
        Mark("rings", x, [p[2] for p in pairs], COLOURS[3], "SGD with momentum, R_2"),
    ]
    panels.append(Panel("SGD with momentum, run by run", "max u²/median u² at the start", "R_med", single, "xy"))
    seeds = len(config["seeds"])
    caption = (
        f"Left and middle: how far Adam's R_med is above 1 where the loss has halved, geometric mean over {seeds} "
        f"seeds (smaller steps: {min(seeds, config['sweep_seeds'])}) with 95 % interval; right: R_med of SGD with "
        "momentum in single runs against the value for u = W2ᵀ + W1 Aᵀ/||A|| before the first step, with the line of "
        "equality."
    )
    return draw_panels("excess", "What the closed forms say from the start", caption, panels, 3)


def conditions(config: dict[str, Any], rates: Runs, starts: Runs) -> ReportFigure | Skipped:
    """R_1 and R_2 over learning rates and over the size of the start."""
    level, panels = config["reference"], []
    for group, field, label, grid in (
        (rates, "c", "c, the learning rate times √d", config["rate_grid"]),
        (starts, "alpha", "alpha; the start's standard deviation is d^(-2 alpha)", config["alpha_grid"]),
    ):
        for key in LAYERS:
            marks = [_bars(group, field, grid, level, key, name) for name in COLOUR]
            panels.append(Panel(TITLES[key], label, "R_med", marks, "xy" if field == "c" else "y", grid, rules=[1.0]))
    seeds = min(config["sweep_seeds"], len(config["seeds"]))
    caption = (
        f"R_1 and R_2 at d = {config['sweep_dim']} where the loss is {level:g} of the start's, over learning rates "
        f"and over the size of the start, {seeds} seeds each (mean with 95 % interval)."
    )
    return draw_panels("conditions", "Where the claim ends", caption, panels)
