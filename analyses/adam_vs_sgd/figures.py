"""The figures of adam_vs_sgd."""

from __future__ import annotations

from collections.abc import Sequence

from analyses.adam_vs_sgd.data import MEAN, VARIANTS, Task, shown
from analyses.common.blocks import mean_over_blocks
from geomtraj.inference import Interval
from geomtraj.reporting import (
    COLOURS,
    Estimates,
    Forest,
    Mark,
    Panel,
    ReportFigure,
    Skipped,
    draw_forests,
    draw_panels,
    short,
)

KINDS = dict(zip(VARIANTS, ("#000000", COLOURS[2], COLOURS[4]), strict=True))
NOISY, FULL = "#000000", COLOURS[3]


def layers(tasks: Sequence[Task], seeds: int) -> ReportFigure | Skipped:
    """Every weight matrix's ratio at equal loss, and the mean over them."""
    panels = [
        Forest(
            task.title,
            f"{task.ratio} at equal loss",
            [*map(_plain, task.layers), MEAN],
            [
                Estimates(what, KINDS[variant], _rows(task, variant))
                for variant, what in VARIANTS.items()
                if (variant, "loss") in task.tables
            ],
            apart=1,
        )
        for task in tasks
        if ("r_med", "loss") in task.tables
    ]
    caption = (
        f"R_med and its steadier variants, {_names(tasks)}, for each weight matrix: "
        f"geometric mean over the levels of the loss and over at most {_seeds(seeds)} with its 95 % t-interval (filled "
        "where it leaves out 1). Below the line: the geometric mean over the weight matrices without embeddings, whose "
        "interval is over seeds, too."
    )
    return draw_forests("layers", "R_med at equal loss, layer by layer", caption, panels)


def along(tasks: Sequence[Task]) -> ReportFigure | Skipped:
    """R_med against the evaluation loss, one line for each run."""
    panels = []
    for task in tasks:
        picked = [MEAN, *_some(task.averaged)]
        for label in picked:
            marks = []
            for optimizer, colour in ((task.adaptive, COLOURS[0]), (task.sgd, COLOURS[1])):
                for run in task.runs[optimizer]:
                    if run.diverged or not task.averaged:
                        continue
                    one = mean_over_blocks(run, "r_med", task.averaged, MEAN) if label == MEAN else run
                    losses = one.losses()
                    points = [(losses[m.step], q.value) for m, q in one.series("r_med", label) if m.step in losses]
                    x, y = [p[0] for p in points], [p[1] for p in points]
                    marks += [Mark("thin", x, y, colour, shown(optimizer)), Mark("dots", x[-1:], y[-1:], colour)]
            what = "mean over matrices" if label == MEAN else short(_plain(label), 30)
            panels.append(Panel(f"{task.title}\n{what}", "evaluation loss", "R_med", marks, "xy"))
    caption = (
        "R_med along training against the evaluation loss, one line for each seed, a dot at its end; training goes "
        "from right to left. The mean over the weight matrices, and the first, middle and last of them."
    )
    return draw_panels("along", "R_med along training", caption, panels, columns=4, height=2.1)


def full_batch(pairs: Sequence[tuple[Task, Task]], seeds: int) -> ReportFigure | Skipped:
    """Estimates of full-batch runs beside those of mini-batch runs."""
    panels = [
        Forest(
            noisy.title,
            f"{noisy.ratio} at equal loss",
            [*map(_plain, noisy.layers), MEAN],
            [
                Estimates("mini-batches", NOISY, _rows(noisy, "r_med")),
                Estimates("full batch, no gradient noise", FULL, _rows(full, "r_med")),
            ],
            apart=1,
        )
        for noisy, full in pairs
    ]
    caption = (
        f"R_med at equal loss for each weight matrix with mini-batches and without gradient noise: geometric mean over "
        f"at most {_seeds(seeds)} with its 95 % t-interval (filled where it leaves out 1)."
    )
    return draw_forests("full_batch", "Is gradient noise the cause?", caption, panels, columns=1)


def summary(tasks: Sequence[Task], seeds: int) -> ReportFigure | Skipped:
    """The mean over weight matrices of every task, by variant and pairing."""
    names = [task.title for task in tasks]
    colours = {"loss": COLOURS[1], "step": COLOURS[5]}
    panels = [
        Forest(
            what,
            "mean over weight matrices",
            names,
            [
                Estimates(
                    {"loss": "at equal loss", "step": "at the same step"}[at],
                    colours[at],
                    {t.title: t.means[variant, at].interval for t in tasks if (variant, at) in t.means},
                )
                for at in colours
            ],
        )
        for variant, what in VARIANTS.items()
    ]
    caption = (
        f"The geometric mean over weight matrices of the ratio {_names(tasks)}, with its 95 % "
        f"t-interval over at most {_seeds(seeds)} (filled where it leaves out 1), by variant of R_med and by how runs "
        "are paired."
    )
    return draw_forests("summary", "Does the answer depend on the variant or the pairing?", caption, panels, columns=3)


def _rows(task: Task, variant: str) -> dict[str, Interval]:
    table = task.tables.get((variant, "loss"))
    rows = {_plain(r.label): r.interval for r in table.overall() if r.n} if table else {}
    mean = task.means.get((variant, "loss"))
    return {**rows, MEAN: mean.interval} if mean is not None else rows


def _plain(label: str) -> str:
    """A matrix's name without what all have in common."""
    return label.removesuffix(".weight")


def _names(tasks: Sequence[Task]) -> str:
    return tasks[0].ratio if tasks else "the second optimizer's over the first one's"


def _some(labels: Sequence[str]) -> list[str]:
    """The first, the middle and the last."""
    return list(dict.fromkeys(labels[i] for i in (0, len(labels) // 2, len(labels) - 1))) if labels else []


def _seeds(seeds: int) -> str:
    return f"{seeds} pair{'s' * (seeds != 1)} of seeds"
