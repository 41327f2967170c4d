"""The page of spectra: tables, figures and findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analyses.common import trajectories
from analyses.common.run import Analysis, finish
from analyses.spectra import figures, findings
from analyses.spectra.data import ALL, COMPARED, MEAN, Task
from geomtraj.inference import kendall, mean_over_seeds, spearman
from geomtraj.reporting import Content, Sheet

WITH = {
    "condition": "λmax / median |λ|, where resolved",
    "estimate": "λmax / median |λ|, with estimates",
    "ninth": COMPARED["ninth"],
}


def write(analysis: Analysis, rates: Mapping[str, Any], tasks: Sequence[Task]) -> Path:
    """The page, its figures and tables."""
    analysis.problems += [*trajectories.edge_remarks(rates), *findings.remarks(tasks)]
    content = Content(
        "Is R_med a fair stand-in for the condition number?",
        _question(analysis.config),
        findings.answers(analysis.config, tasks),
        [lambda: figures.densities(tasks), lambda: figures.scatter(tasks), lambda: figures.ratios(tasks)],
        [
            _agreements(tasks),
            _contrasts(tasks),
            _full(tasks),
            _layers(tasks),
            _matches(tasks),
            trajectories.rates_sheet(analysis.config, rates),
            _points(tasks),
        ],
    )
    return finish(analysis, content, main_figure="scatter")


def _question(config: dict[str, Any]) -> str:
    first, other = config["optimizers"]
    return (
        "R_med = max|H_ii| / median|H_ii| is read off the diagonal of a layer's block of the Hessian because the ratio "
        "of the block's largest to its median |eigenvalue| is dear. Does it rank layers and iterates as that ratio "
        f"does, and tell the same of {first} and {other}? Both are measured on the same loss at iterates of nearly "
        f"equal loss, at most {config['pairs']} pairs for each seed. Spectra are Lanczos quadratures of each weight "
        "matrix's block and of the full Hessian; how well they know the median is said with each."
    )


def _agreements(tasks: Sequence[Task]) -> Sheet:
    rows = []
    for task in tasks:
        for key, words in WITH.items():
            for name, coefficient in (("Spearman", spearman), ("Kendall", kendall)):
                found = task.agreement(key, coefficient)
                for where in ("pooled", "within", "between"):
                    r = getattr(found, where)
                    rows.append([task.title, words, name, where, r.value, r.low, r.high, r.n, r.points])
    return Sheet(
        "rank_correlation", "Rank correlation of R_med with the spectrum",
        ["task", "with", "coefficient", "over", "value", "low", "high", "seeds", "points"], rows,
        "Mean of each seed's own correlation with 95 % t-interval over seeds. Pooled: all layers and iterates of a "
        "seed. Within: iterates of a layer, mean over layers. Between: layers at an iterate, mean over iterates.",
    )  # fmt: skip


def _contrasts(tasks: Sequence[Task]) -> Sheet:
    rows: list[list[Any]] = []
    for task in tasks:
        for key, found in findings.contrasts(task).items():
            rows += [
                [task.title, layer, COMPARED[key], r.ratio, r.low, r.high, r.n, p] for layer, (r, p) in found.items()
            ]
            usable = task.usable()
            if len(usable) > 1:
                r = task.mean_contrast(key, usable)
                rows.append([task.title, MEAN, COMPARED[key], r.ratio, r.low, r.high, r.n, None])
    ratio = tasks[0].ratio if tasks else "ratio"
    return Sheet(
        "contrast", f"{ratio} at equal loss, layer by layer",
        ["task", "layer", "statistic", "ratio", "low", "high", "seeds", "Holm p"], rows,
        "Geometric mean over seeds with 95 % t-interval; Holm's correction over the layers of a task and statistic. "
        "Mean over layers: those known in every pair.",
    )  # fmt: skip


def _full(tasks: Sequence[Task]) -> Sheet:
    rows = []
    for task in tasks:
        for pair in sorted({p.pair for p in task.of(ALL)}):
            for optimizer in task.optimizers:
                points = [p for p in task.of(ALL, optimizer) if p.pair == pair]
                means = [
                    mean_over_seeds([p.value(k) for p in points])
                    for k in ("loss", "lambda_max", "condition", "ninth", "outliers", "negative", "r_med")
                ]
                rows.append(
                    [task.title, pair + 1, optimizer, len(points), *(x for m in means for x in (m.mean, m.std))]
                )
    names = ["loss", "λmax", "λmax / median |λ|", "λmax / 0.9 quantile", "outliers", "negative share", "R_med"]
    return Sheet(
        "full_hessian", "The full Hessian",
        ["task", "pair", "optimizer", "seeds", *(f"{n}{s}" for n in names for s in ("", " std"))], rows,
        "Mean and standard deviation over seeds. Outliers: |λ| of at least a tenth of λmax. Negative: share of "
        "eigenvalues below -0.001 λmax.",
    )  # fmt: skip


def _layers(tasks: Sequence[Task]) -> Sheet:
    keys = ("r_med", "condition", "ninth", "lambda_max", "outliers", "negative")
    rows = []
    for task in tasks:
        for layer in task.layers:
            for optimizer in task.optimizers:
                points = task.of(layer, optimizer)
                kinds = [sum(p.kind == kind for p in points) for kind in ("resolved", "zero", "unresolved")]
                means = [mean_over_seeds([p.value(key) for p in points]).mean for key in keys]
                rows.append([task.title, layer, optimizer, *means, *kinds])
    return Sheet(
        "layers", "Weight matrices",
        ["task", "layer", "optimizer", "R_med", "λmax / median |λ|", "λmax / 0.9 quantile", "λmax", "outliers",
         "negative share", "medians resolved", "below rounding", "not resolved"], rows,
        "Means over seeds and compared iterates, of the resolved ones for λmax / median |λ|.",
    )  # fmt: skip


def _matches(tasks: Sequence[Task]) -> Sheet:
    rows = []
    for task in tasks:
        losses = {(p.optimizer, p.seed, p.step): p.loss for p in task.points}
        for seed, matches in task.matches.items():
            for m in matches:
                both = [
                    losses.get((o, seed, step)) for o, step in zip(task.optimizers, (m.first, m.other), strict=True)
                ]
                rows.append([task.title, seed, m.first, m.other, *both, m.difference])
    first, other = tasks[0].optimizers if tasks else ("first", "other")
    return Sheet(
        "iterates", "Which iterates are compared",
        ["task", "seed", f"{first} step", f"{other} step", f"{first} loss", f"{other} loss", "log ratio of the losses"],
        rows, "Pairs of late iterates that are nearest in evaluation loss, each iterate once.",
    )  # fmt: skip


def _points(tasks: Sequence[Task]) -> Sheet:
    columns = ["optimizer", "seed", "step", "pair", "loss", "layer", "r_med", "largest_entry", "condition", "low",
               "high", "ninth", "lambda_max", "lambda_max_high", "outliers", "negative", "kind"]  # fmt: skip
    rows = [[task.name, *(getattr(p, c) for c in columns)] for task in tasks for p in task.points]
    return Sheet("points", "Every point", ["task", *columns], rows, shown=False)
