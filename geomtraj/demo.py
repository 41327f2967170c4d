"""The whole way in a minute or two: train, record, measure, compare, draw, on data that Python itself ships."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from geomtraj import tasks
from geomtraj.comparing import Table, contrast
from geomtraj.measuring import Results, measure
from geomtraj.reporting import report
from geomtraj.training.loop import spread, train

OPTIMIZERS = ("adam", "sgdm")
SEEDS = (0, 1, 2)
STEPS = 200
ITERATES = 4
OPTIONS = {"layers": 1, "width": 16, "heads": 2, "context": 32, "eval_sequences": 16}
SETTINGS = {"r_med": {"samples": 8, "max_matvecs": 16}}


@dataclass(frozen=True)
class Demo:
    """What the demonstration made.

    Attributes:
        page: The page.
        table: R_med of each layer, SGD with momentum over Adam at equal loss.
        runs: Folders of the trajectories.
    """

    page: Path
    table: Table
    runs: list[Path]


def demo(folder: str | os.PathLike[str], *, progress: bool = True) -> Demo:
    """Train a small GPT on Python's help texts with Adam and with SGD with momentum, and write a page about it.

    Six runs of 200 steps, a network of about 7,000 parameters, R_med of every layer at five iterates of each. What is
    there already is kept, so that the same call goes on where it was stopped.

    Args:
        folder: Where runs and page go.
        progress: Whether to show progress bars on stderr.

    Raises:
        InputError: The folder holds runs of something else.
    """
    out = Path(folder)
    groups: dict[str, list[Results]] = {name: [] for name in OPTIMIZERS}
    runs = []
    for seed in SEEDS:
        for optimizer in OPTIMIZERS:
            run = out / optimizer / f"seed-{seed}"
            task = tasks.make("pydoc-lm", **OPTIONS)
            schedule = spread(STEPS, ITERATES)
            trajectory = train(task, optimizer, steps=STEPS, seed=seed, path=run, schedule=schedule, progress=progress)
            problem = task.problem(task.model(seed))
            results = measure(trajectory, problem, list(SETTINGS), settings=SETTINGS, progress=progress)
            groups[optimizer].append(results)
            runs.append(run)
    page = report(groups, path=out / "report.html")
    return Demo(Path(page), contrast(groups), runs)
