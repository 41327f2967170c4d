"""The measured runs of one task in adam_vs_sgd, and their contrasts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from analyses.common import trajectories
from analyses.common.blocks import only, usable_everywhere
from geomtraj.comparing import (
    Comparison,
    PairRatio,
    Row,
    Table,
    contrast,
    is_matrix,
    mean_ratios,
    pair_ratios,
    shapes_of,
)
from geomtraj.errors import InputError
from geomtraj.inference import holm
from geomtraj.measuring import Results
from geomtraj.statistics import Quantity

NAMES = {"adam": "Adam", "sgdm": "SGDM", "adamw": "AdamW", "rmsprop": "RMSprop", "sgd": "SGD"}
VARIANTS = {"r_med": "R_med", "tenth": "10th largest / median", "q99": "0.99 quantile / median"}
FIRM = "firm"
MEANS = {**VARIANTS, FIRM: "R_med of well-measured matrices"}
MOST_OPEN = 0.1  # share of a well-measured matrix's R_med values that may lack an upper end
MEAN = "mean over weight matrices"
LEVEL = 0.05  # of tests


@dataclass(frozen=True)
class Task:
    """One task's runs and their contrasts, SGD's optimizer over the adaptive one.

    Attributes:
        name: Of the recipe.
        title: Of the recipe.
        adaptive: Name of the optimizer below the line.
        sgd: Name of the one above it.
        runs: Optimizer -> its runs, diverged ones among them.
        layers: The weight matrices (blocks of two or more dimensions), in the model's order.
        lookups: Those of them that are looked up, not multiplied: embeddings, whose rows are zero where a token is not
            in the measuring batches.
        averaged: Those that are multiplied and whose R_med, in every variant, is positive and finite at every iterate
            of every run.
        firm: Those of `averaged` whose intervals have an upper end nearly everywhere.
        others: The other labels: biases, norms, and all parameters together.
        answers: (variant, "loss" or "step") -> the contrast's primary answer over `averaged`, or for `FIRM` over
            `firm`; missing where runs cannot be compared.
        tables: (variant, at) -> contrast of the layers, Holm's correction over them.
        rest: at -> contrast of the other labels' R_med.
        loss: Contrast of the evaluation loss at equal steps, or None.
        reasons: Why something could not be compared, one sentence each.
    """

    name: str
    title: str
    adaptive: str
    sgd: str
    runs: dict[str, list[Results]]
    layers: list[str]
    lookups: list[str]
    averaged: list[str]
    firm: list[str]
    others: list[str]
    answers: dict[tuple[str, str], Comparison]
    tables: dict[tuple[str, str], Table]
    rest: dict[str, Table]
    loss: Table | None
    reasons: list[str] = field(default_factory=list)

    @property
    def means(self) -> dict[tuple[str, str], Row]:
        """(variant, at) -> the primary answer's row."""
        return {key: c.primary for key, c in self.answers.items() if c.primary is not None}

    @property
    def ratio(self) -> str:
        """What a ratio is of."""
        return f"{shown(self.sgd)} / {shown(self.adaptive)}"

    def row(self, variant: str, at: str, label: str) -> Row | None:
        """One layer's ratio over all levels or steps."""
        table = self.tables.get((variant, at))
        return next((r for r in table.overall() if r.label == label), None) if table else None

    def levels(self) -> list[float]:
        """The losses at which runs are compared; empty where pairs have levels of their own."""
        table = self.tables.get(("r_med", "loss"))
        return sorted({float(r.at) for r in table if r.at != "all"}) if table else []

    def pairs(self, label: str, at: str = "step") -> list[PairRatio]:
        """The single pairs' ratios of one layer or of `MEAN`."""
        try:
            found = pair_ratios(self.runs[self.sgd], self.runs[self.adaptive], at=at)
        except InputError:
            return []
        if label != MEAN:
            return [p for p in found if p.label == label]
        return mean_ratios([p for p in found if p.label in self.averaged], MEAN)

    def by_seed(self) -> dict[int | None, float]:
        """Seed -> mean log ratio at equal loss of the mean over layers."""
        answer = self.answers.get(("r_med", "loss"))
        return {p.seed: p.log_ratio for p in answer.pairs if math.isfinite(p.log_ratio)} if answer else {}

    def measured(self, optimizer: str, labels: Sequence[str]) -> list[Quantity]:
        """All single R_med measurements of some blocks along one optimizer's runs."""
        return _measured(self.runs[optimizer], labels)


def compare(
    name: str, title: str, runs: Mapping[str, Sequence[Results]], levels: int, lookups: Collection[str] = ()
) -> Task:
    """The contrasts of one task's runs, given as {adaptive: ..., sgd: ...}; `lookups` are the embeddings."""
    groups = {key: list(results) for key, results in runs.items()}
    adaptive, sgd = groups
    everything = [r for results in groups.values() for r in results]
    shapes = shapes_of(everything)
    labels = list(dict.fromkeys(k for r in everything if "r_med" in r.statistics for k in r.labels("r_med")))
    layers = [k for k in labels if is_matrix(k, shapes)]
    others = [k for k in labels if k not in layers]
    averaged, reasons = [k for k in layers if k not in lookups], []
    changed = {}
    for variant in VARIANTS:
        changed[variant] = {
            key: [r if variant == "r_med" or r.diverged else trajectories.variant(r, variant) for r in results]
            for key, results in groups.items()
        }
        sound = [r for results in changed[variant].values() for r in results]
        averaged = usable_everywhere(sound, "r_med", averaged) if averaged else []
    for at in ("loss", "step"):
        try:
            contrast(groups, at=at, levels=levels)
        except InputError as error:
            reasons.append(f"{title}: {error}")
    answers: dict[tuple[str, str], Comparison] = {}
    tables = {}

    def answer(variant: str, at: str, blocks: Sequence[str], versions: dict[str, list[Results]]) -> None:
        chosen = {k: [only(r, "r_med", blocks) for r in v] for k, v in versions.items()}
        table = _contrast(chosen, at, levels, over=blocks)
        if table is not None and table.primary is not None:
            answers[variant, at] = table.comparisons[0]

    for variant, versions in changed.items():
        for at in ("loss", "step"):
            table = _contrast({k: [only(r, "r_med", layers) for r in v] for k, v in versions.items()}, at, levels)
            if table is not None:
                tables[variant, at] = table
            if averaged:
                answer(variant, at, averaged, versions)
    firm = [k for k in averaged if _open_share(_measured(everything, [k])) <= MOST_OPEN]
    for at in ("loss", "step"):
        if firm:
            answer(FIRM, at, firm, groups)
    rest = {
        at: table
        for at in ("loss", "step")
        if (table := _contrast({k: [only(r, "r_med", others) for r in v] for k, v in groups.items()}, at, levels))
    }
    loss = _contrast({k: [only(r, "loss", ["loss"]) for r in v] for k, v in groups.items()}, "step", levels, "loss")
    looked_up = [k for k in layers if k in lookups]
    return Task(
        name,
        title,
        adaptive,
        sgd,
        groups,
        layers,
        looked_up,
        averaged,
        firm,
        others,
        answers,
        tables,
        rest,
        loss,
        reasons,
    )


def lookups(model: nn.Module) -> set[str]:
    """Names of the embeddings' weights; one that is tied to an output layer is multiplied, too, and not among them."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tables -= {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    return {name for name, p in model.named_parameters() if id(p) in tables}


def notes(task: Task) -> list[str]:
    """What was left out of a task's contrasts, and why."""
    texts = list(task.reasons)
    table = task.tables.get(("r_med", "loss"))
    if table is not None:
        texts += [f"{task.title}: {note}" for note in table.notes]
    left = [k for k in task.layers if k not in task.averaged and k not in task.lookups]
    if left:
        texts.append(
            f"{task.title}: {', '.join(left)} {'is' if len(left) == 1 else 'are'} not in the mean over weight "
            "matrices: R_med is not positive and finite at every iterate of every run, as where the median of the "
            "diagonal is zero."
        )
    for optimizer, runs in task.runs.items():
        losses = [list(r.losses().values()) for r in runs if not r.diverged and "loss" in r.statistics]
        rising = sum(any(b > a for a, b in pairwise(x)) for x in losses)
        if rising:
            texts.append(
                f"{task.title}: in {rising} of {len(losses)} runs of {shown(optimizer)} the evaluation loss rises "
                "between two measured iterates; a run is read where it first passes a loss."
            )
    return texts


def shown(optimizer: str) -> str:
    """An optimizer's name on the page."""
    return NAMES.get(optimizer, optimizer)


def adjusted(tasks: Sequence[Task], variant: str = "r_med", at: str = "loss") -> dict[str, float]:
    """Task -> p of the mean over weight matrices after Holm's correction over the tasks; NaN where there is none."""
    rows = [t.means.get((variant, at)) for t in tasks]
    return dict(
        zip([t.name for t in tasks], holm([r.t_test_p if r is not None else math.nan for r in rows]), strict=True)
    )


def _measured(runs: Sequence[Results], labels: Sequence[str]) -> list[Quantity]:
    found = [m.quantities for r in runs if not r.diverged and "r_med" in r.statistics for m in r.of("r_med")]
    return [quantities[k] for quantities in found for k in labels if k in quantities]


def _open_share(quantities: Sequence[Quantity]) -> float:
    return sum(not q.high < math.inf for q in quantities) / max(len(quantities), 1)


def _contrast(
    groups: dict[str, list[Results]], at: str, levels: int, statistic: str = "r_med", over: Sequence[str] | None = None
) -> Table | None:
    try:
        return contrast(groups, statistic, at, levels, over=over)
    except InputError:
        return None
