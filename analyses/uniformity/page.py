"""The page of uniformity: tables, figures and findings from the measured points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analyses.common.run import Analysis, finish
from analyses.uniformity import figures, findings
from analyses.uniformity.data import CONFIDENCE, NAMES, SETS, Contrasts, Points, contrasts
from geomtraj.errors import InputError
from geomtraj.inference import Explained
from geomtraj.reporting import Content, Sheet, number

LEVELS = ("factorised", "input", "output", "combined", "rest", "left", "right", "frequency", "dead")
SHARES = ("first_share", "dead_inputs", "dead_outputs")


def write(analysis: Analysis, found: Mapping[str, Points], rates: Sheet) -> Path:
    """The page, its figures and tables."""
    config = analysis.config
    facing: dict[str, Contrasts | None] = {}
    for task, points in found.items():
        analysis.problems += points.remarks
        try:
            facing[task] = contrasts(points, config["optimizers"], config["levels"])
        except InputError as error:
            facing[task] = None
            analysis.problems.append(f"{figures.title_of(config, task)}: {error}")
        else:
            notes = facing[task].notes  # type: ignore[union-attr]
            analysis.problems += [f"{figures.title_of(config, task)}: {note}" for note in notes]
        if task in config["tasks"] and (noise := points.noise()) > 0.1:
            analysis.problems.append(
                f"{figures.title_of(config, task)}: the intervals of R_med itself make up {number(100 * noise, 2)} % "
                "of its variance within layers, which nothing can explain."
            )
    if len(config["seeds"]) < 3:
        analysis.problems.append(
            f"{len(config['seeds'])} seed{'s' * (len(config['seeds']) > 1)}: what is explained has no interval, and "
            "nothing can be decided; give at least three."
        )
    sets = {
        task: {name: (points.explained(name, "within"), points.explained(name, "between")) for name in SETS}
        for task, points in found.items()
        if task in config["tasks"]
    }
    content = Content(
        "Where R_med comes from",
        _question(),
        findings.answers(config, found, facing),
        [
            lambda: figures.predicted(config, found),
            lambda: figures.accounted(config, sets, found),
            lambda: figures.compared(config, facing),
        ],
        [
            _explained(config, found, sets),
            _layers(config, found),
            _contrast(config, found, facing),
            rates,
            _points(found),
        ],
    )
    return finish(analysis, content, main_figure="explained")


def _question() -> str:
    return (
        "In the two-layer linear network of the theorem, R_med of a layer is max over median of the squared entries of "
        "a leading singular vector. Does that explanation carry over to trained networks, or is it near-dead units or "
        "rare tokens that make R_med? For a layer y = W x the Gauss-Newton diagonal is about E[x_j²] E[g_i²], g the "
        "gradient by y: a prediction with nothing fitted, and its two factors say which side of the layer R_med comes "
        "from. Every predictor is judged by the share of log R_med that it accounts for: of its variation within a "
        "layer (over iterates, optimizers and seeds), of the differences between layers, and of the contrast of the "
        "two optimizers at equal loss. A unit is near-dead if its second moment (of what it hands on as an input, of "
        "the gradient before its activation as an output) is below a hundredth of the layer's median."
    )


def _explained(
    config: dict[str, Any],
    found: Mapping[str, Points],
    sets: Mapping[str, Mapping[str, tuple[Explained, Explained]]],
) -> Sheet:
    rows = []
    for task, each in sets.items():
        for name, (within, between) in each.items():
            more = found[task].explained(name, "within", with_loss=True) if name != "loss" else within
            rows.append(
                [figures.title_of(config, task), name, within.r2, within.low, within.high, within.held_out,
                 more.held_out, within.n, between.r2, between.low, between.high, between.held_out, between.layers,
                 within.seeds]
            )  # fmt: skip
    ends = ["", " low", " high", " held out"]
    return Sheet(
        "explained",
        "How much of log R_med each set of predictors accounts for",
        ["task", "predictors", *(f"within{e}" for e in ends), "within, with the loss, held out", "points",
         *(f"between{e}" for e in ends), "layers", "seeds"],
        rows,
        f"R² of log R_med on the logs of the predictors (for near-dead units of the share of the matrix between live "
        f"ones). Intervals of {100 * CONFIDENCE:g} % by bootstrap over seeds. Held out: seeds left out one at a time "
        "(within), layers left out (between).",
    )  # fmt: skip


def _layers(config: dict[str, Any], found: Mapping[str, Points]) -> Sheet:
    rows = []
    for task, points in found.items():
        for optimizer in config["optimizers"]:
            for layer in points.layers:
                here = points.where(optimizer=optimizer, layer=layer)
                shares = [here.mean(name, of=lambda p, n=name: p.values[n]) for name in SHARES]
                values = [here.mean(name) for name in ("r_med", *LEVELS)]
                rows.append([figures.title_of(config, task), optimizer, layer, *values, *shares])
    return Sheet(
        "layers",
        "Every layer",
        ["task", "optimizer", "layer", "R_med", *LEVELS, "share of the first singular value", "near-dead inputs",
         "near-dead outputs"],
        rows,
        "Geometric means over iterates and seeds (arithmetic for shares and fractions). factorised = input × output × "
        "combined, R_med = factorised × rest; dead: factorised over the same of the live units alone; left, right: max "
        "over median of the squared entries of the first singular vectors. Infinite values are left out.",
    )  # fmt: skip


def _contrast(config: dict[str, Any], found: Mapping[str, Points], facing: Mapping[str, Contrasts | None]) -> Sheet:
    rows = []
    for task, one in facing.items():
        for layer, row in one.rows["r_med"].items() if one else ():
            assert one is not None
            others = [one.rows.get(name, {}).get(layer) for name in NAMES]
            ratios = [x for r in others for x in ((r.ratio, r.low, r.high) if r else (None,) * 3)]
            rows.append(
                [figures.title_of(config, task), layer, row.n, row.ratio, row.low, row.high, row.holm_p, *ratios]
            )
    first, second = config["optimizers"]
    return Sheet(
        "contrast",
        f"{second} over {first} at equal loss",
        ["task", "layer", "seeds", "R_med", "R_med low", "R_med high", "Holm p",
         *(f"{name}{end}" for name in NAMES.values() for end in ("", " low", " high"))],
        rows,
        "Geometric mean over pairs of seeds and losses, with 95 % t-interval. The frequency of an embedding's tokens "
        "is the data's, so its ratio is 1.",
    )  # fmt: skip


def _points(found: Mapping[str, Points]) -> Sheet:
    names = ("left", "right", "first_share", "input", "output", "combined", "factorised", "rest", "dead",
             "dead_inputs", "dead_outputs", "frequency")  # fmt: skip
    return Sheet(
        "points",
        "Every point",
        [
            "task",
            "optimizer",
            "seed",
            "step",
            "loss",
            "layer",
            *(f"R_med {k}" for k in ("value", "low", "high")),
            *names,
        ],
        [
            [
                task,
                p.optimizer,
                p.seed,
                p.step,
                p.loss,
                p.layer,
                p.r_med.value,
                p.r_med.low,
                p.r_med.high,
                *(p.values[n] for n in names),
            ]
            for task, points in found.items()
            for p in points.points
        ],
        shown=False,
    )
