"""The page of adam_vs_sgd: tables, figures and findings from the measured runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analyses.adam_vs_sgd import figures, findings
from analyses.adam_vs_sgd.data import FIRM, MEAN, MEANS, VARIANTS, Task, adjusted, notes, shown
from analyses.common import trajectories
from analyses.common.run import Analysis, finish
from geomtraj.comparing import Row
from geomtraj.inference import mean_over_seeds
from geomtraj.reporting import Content, Sheet, number


def write(
    analysis: Analysis,
    rates: Mapping[str, Mapping[str, trajectories.Tuned]],
    claimed: Sequence[Task],
    controls: Sequence[Task],
    pairs: Sequence[tuple[Task, Task]],
) -> Path:
    """The page, its figures and tables."""
    config = analysis.config
    everything = [*claimed, *controls, *(full for _, full in pairs)]
    analysis.problems += [*trajectories.edge_remarks(rates), *(text for t in everything for text in notes(t))]
    seeds = max((r.n for t in everything for r in t.means.values()), default=0)
    if len(config["seeds"]) < 2:
        analysis.problems.append("There is one seed only: ratios have no interval and nothing can be decided.")
    content = Content(
        "Adam against SGD with momentum",
        _question(config),
        findings.answers(claimed, controls, pairs, config["margin"]),
        [
            lambda: figures.layers([*claimed, *controls], seeds),
            lambda: figures.summary(everything, seeds),
            lambda: figures.along(everything),
            lambda: figures.full_batch(pairs, seeds),
        ],
        [
            _summary(claimed, controls, [full for _, full in pairs]),
            *(_as_the_paper(task) for task in everything),
            _at_loss(everything),
            *([_full_batch(pairs)] if pairs else []),
            _speed(everything),
            trajectories.rates_sheet(config, rates),
            _at_steps(everything),
            _levels(everything),
            _iterates(everything),
        ],
    )
    return finish(analysis, content, main_figure="layers")


def _question(config: dict[str, Any]) -> str:
    adaptive, sgd = (shown(name) for name in config["optimizers"])
    return (
        f"On language, does {sgd} run through larger R_med = max|diag H| / median|diag H| of its layers than "
        f"{adaptive}, and is the gap absent on images? Both optimizers are tuned with equal budgets by training loss, "
        "and compared where their evaluation losses are equal; the paper's own form, at equal steps, stands beside it. "
        "The summary over layers is the geometric mean over weight matrices (parameter tensors of two or more "
        "dimensions that are multiplied: no biases, norms or embeddings), with its interval over seeds."
    )


def _summary(claimed: Sequence[Task], controls: Sequence[Task], full: Sequence[Task]) -> Sheet:
    rows = []
    for variant, what in MEANS.items():
        for at in ("loss", "step"):
            after_holm = adjusted(claimed, variant, at)
            for task in [*claimed, *controls, *full]:
                row = task.means.get((variant, at))
                if row is not None:
                    numbers = [row.ratio, row.low, row.high, row.n, row.above, row.t_test_p]
                    p = after_holm.get(task.name)
                    count = len(task.firm if variant == FIRM else task.averaged)
                    rows.append([task.title, what, at, count, *numbers, p, row.loss_ratio])
    columns = ["task", "variant", "at equal", "matrices", "ratio", "low", "high", "seeds", "above 1", "p", "Holm p"]
    return Sheet(
        "summary",
        "Over weight matrices",
        [*columns, "loss ratio"],
        rows,
        "Geometric mean over weight matrices, levels and seeds, with 95 % t-interval over seeds. Holm's correction is "
        "over the language tasks, within each variant and pairing.",
    )


def _as_the_paper(task: Task) -> Sheet:
    """Mean (std) of the seeds' ratios at each step, and beside it the geometric mean at equal loss."""
    steps = sorted({p.at for label in task.layers[:1] for p in task.pairs(label)})
    rows = []
    for optimizer, losses in ((task.sgd, "numerator_loss"), (task.adaptive, "denominator_loss")):
        pairs = task.pairs(task.layers[0]) if task.layers else []
        cells = [_mean_std([getattr(p, losses) for p in pairs if p.at == step]) for step in steps]
        rows.append([f"loss of {shown(optimizer)}", *cells, "", ""])
    for label in [*task.layers, *([MEAN] if task.averaged else [])]:
        pairs = task.pairs(label)
        cells = [_mean_std([p.ratio for p in pairs if p.at == step]) for step in steps]
        row = task.means.get(("r_med", "loss")) if label == MEAN else task.row("r_med", "loss", label)
        rows.append([label, *cells, _interval(row), row.holm_p if row is not None and label != MEAN else None])
    return Sheet(
        f"steps_{task.name}",
        f"{task.title}: R_med, {task.ratio}",
        ["layer", *(f"step {step:g}" for step in steps), "at equal loss", "Holm p"],
        rows,
        "At steps: arithmetic mean (standard deviation) of the seeds' ratios, and of the losses there, as in the "
        "paper. At equal loss: geometric mean [95 % t-interval], p with Holm's correction over layers.",
    )


def _at_loss(tasks: Sequence[Task]) -> Sheet:
    rows = []
    for task in tasks:
        for label in task.layers:
            found = {variant: task.row(variant, "loss", label) for variant in VARIANTS}
            main = found["r_med"]
            if main is None:
                continue
            cells = [x for row in found.values() for x in _ends(row)]
            rows.append([task.title, label, label in task.averaged, main.n, main.above, *cells, main.holm_p])
    ends = [f"{what}{end}" for what in VARIANTS.values() for end in ("", " low", " high")]
    return Sheet(
        "equal_loss",
        "At equal loss, with the steadier variants",
        ["task", "weight matrix", "in the mean", "seeds", "above 1", *ends, "Holm p of R_med"],
        rows,
        "Geometric mean over levels of the loss and seeds, with 95 % t-interval; Holm's correction over the matrices.",
    )


def _full_batch(pairs: Sequence[tuple[Task, Task]]) -> Sheet:
    rows = []
    for noisy, full in pairs:
        for label in [*noisy.layers, MEAN]:
            found = [t.means.get(("r_med", "loss")) if label == MEAN else t.row("r_med", "loss", label)
                     for t in (noisy, full)]  # fmt: skip
            rows.append([noisy.title, label, *(x for row in found for x in _ends(row))])
    ends = [f"{what}{end}" for what in ("mini-batches", "full batch") for end in ("", " low", " high")]
    note = "Ratios of R_med at equal loss: geometric mean over levels and seeds, with 95 % t-interval."
    return Sheet("full_batch", "Full batch beside mini-batches", ["task", "layer", *ends], rows, note)


def _speed(tasks: Sequence[Task]) -> Sheet:
    rows = []
    for task in tasks:
        for row in task.loss or ():
            values = {}
            for optimizer in (task.adaptive, task.sgd):
                runs = [r.losses() for r in task.runs[optimizer] if not r.diverged]
                values[optimizer] = (
                    mean_over_seeds([x[row.at] for x in runs if row.at in x]) if row.at != "all" else None
                )
            cells = [x for m in values.values() for x in ((m.mean, m.std) if m else (None, None))]
            rows.append([task.title, row.at, *cells, row.ratio, row.low, row.high, row.n, row.t_test_p])
    names = [shown(n) for n in (tasks[0].adaptive, tasks[0].sgd)] if tasks else ["", ""]
    columns = ["task", "step", *(f"{what} {n}" for n in names for what in ("loss of", "std,"))]
    return Sheet(
        "speed",
        "Evaluation loss at equal steps",
        [*columns, "ratio", "low", "high", "seeds", "p"],
        rows,
        "Mean and standard deviation over seeds; ratio: geometric mean over pairs with 95 % t-interval; all: mean log "
        "ratio over the steps.",
    )


def _at_steps(tasks: Sequence[Task]) -> Sheet:
    rows = []
    for task in tasks:
        for label in [*task.layers, MEAN, *task.others]:
            found = task.pairs(label)
            for step in sorted({p.at for p in found}):
                here = [p for p in found if p.at == step]
                ratio = mean_over_seeds([p.ratio for p in here])
                losses = [mean_over_seeds([getattr(p, f"{which}_loss") for p in here]).mean
                          for which in ("numerator", "denominator")]  # fmt: skip
                rows.append([task.name, label, int(step), ratio.n, ratio.mean, ratio.std, *losses])
    columns = ["task", "label", "step", "seeds", "mean ratio", "std", "loss above the line", "loss below the line"]
    return Sheet("equal_step", "At equal steps", columns, rows, shown=False)


def _levels(tasks: Sequence[Task]) -> Sheet:
    """Every row of every contrast."""
    kinds = ["ratio", "low", "high", "n", "above", "sign_test_p", "t_test_p", "holm_p", "loss_ratio", "status"]
    rows = []
    for task in tasks:
        tables = [(v, at, "weight matrices", t) for (v, at), t in task.tables.items()]
        tables += [("r_med", at, "others", t) for at, t in task.rest.items()]
        for variant, at, group, table in tables:
            rows += [[task.name, variant, at, group, r.label, r.at, *(getattr(r, k) for k in kinds)] for r in table]
    return Sheet("contrasts", "Contrasts", ["task", "variant", "at equal", "group", "label", "at", *kinds], rows,
                 shown=False)  # fmt: skip


def _iterates(tasks: Sequence[Task]) -> Sheet:
    rows = []
    for task in tasks:
        for optimizer, runs in task.runs.items():
            for run in runs:
                losses = run.losses() if "loss" in run.statistics else {}
                for m in run.of("r_med") if "r_med" in run.statistics else []:
                    for label, q in m.quantities.items():
                        more = [m.details[label][key] for key in ("tenth", "q99", "size", "method", "status")]
                        place = [task.name, optimizer, run.meta.get("seed"), run.meta.get("lr"), m.step]
                        rows.append([*place, losses.get(m.step), label, q.value, q.low, q.high, *more])
    columns = ["task", "optimizer", "seed", "lr", "step", "loss", "label", "R_med", "low", "high", "tenth", "q99"]
    return Sheet("iterates", "Every R_med", [*columns, "size", "method", "status"], rows, shown=False)


def _ends(row: Row | None) -> tuple[float | None, ...]:
    return (row.ratio, row.low, row.high) if row is not None else (None, None, None)


def _mean_std(values: Sequence[float]) -> str:
    found = mean_over_seeds(values)
    if not found.n:
        return ""
    return number(found.mean) if math.isnan(found.std) else f"{number(found.mean)} ({number(found.std, 2)})"


def _interval(row: Row | None) -> str:
    if row is None or not row.n:
        return ""
    return number(row.ratio) if math.isnan(row.low) else f"{number(row.ratio)} [{number(row.low)}, {number(row.high)}]"
