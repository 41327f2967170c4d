"""Chooses learning rates: a log grid with the same number of runs for every optimizer."""

from __future__ import annotations

import datetime
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from geomtraj import tasks
from geomtraj._version import __version__
from geomtraj.errors import ComputationError, InputError, unknown_name
from geomtraj.tasks import Task
from geomtraj.training import learning_rates, optimizers
from geomtraj.training.loop import train
from geomtraj.trajectory import Trajectory, at

HALF_DECADES = (-2, -1, 0, 1, 2)


@dataclass(frozen=True)
class SweepRow:
    """One learning rate of a sweep.

    Attributes:
        lr: The learning rate.
        losses: Loss at the end, one for each seed; None where the run diverged.
        mean: Mean of the losses; None if one run diverged.
    """

    lr: float
    losses: tuple[float | None, ...]
    mean: float | None


@dataclass(frozen=True)
class Sweep:
    """The learning rate chosen for one optimizer on one task.

    Attributes:
        task: Name of the task.
        optimizer: Name of the optimizer.
        lr: The learning rate with the lowest mean loss.
        at_edge: Whether it is the smallest or the largest one tried, so that a better one may lie beyond.
        rows: All learning rates tried, in order.
    """

    task: str
    optimizer: str
    lr: float
    at_edge: bool
    rows: tuple[SweepRow, ...]


def sweep(
    task: Task | str,
    names: Sequence[str],
    grid: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    steps: int | None = None,
    seeds: Sequence[int] = (100,),
    *,
    path: str | Path,
    extend: int = 2,
    by: str = "evaluation",
    full_batch: bool = False,
    save: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Sweep]:
    """Train with every optimizer at every learning rate and choose by the mean loss over seeds at the end.

    Every optimizer gets the same number of learning rates. Where the best stands at the end of the grid, the grid
    grows by its own ratio, up to `extend` times. Finished runs in `path` are not run again.

    Args:
        task: A task, or a task's name for its default options.
        names: Names of optimizers.
        grid: Learning rates for all optimizers or for each by name; None for five half decades around each
            optimizer's fallback.
        steps: Optimizer steps of a run; None for the task's default.
        seeds: Seeds of the runs at each learning rate; other ones than those of the runs to come.
        path: Folder of the runs.
        extend: How many further learning rates an optimizer may get.
        by: "evaluation", the loss of the evaluation set after the last step, or "training", the mean loss of the
            training batches of the last tenth of the steps.
        full_batch: As for `train`.
        save: JSON file for the result (`learning_rates.PATH` for the package's own); written optimizer by
            optimizer.
        progress: Whether to show progress bars on stderr.

    Raises:
        InputError: An unknown name or an empty grid.
        ComputationError: Every run of an optimizer diverged.
    """
    if by not in FINAL_LOSSES:
        raise unknown_name("loss to choose by", str(by), FINAL_LOSSES)
    task = tasks.make(task) if isinstance(task, str) else task
    steps = task.default_steps if steps is None else steps
    grids = {name: _grid(name, grid) for name in names}
    if not seeds:
        raise InputError("a sweep needs at least one seed.")
    found: dict[str, Sweep] = {}

    def final_loss(name: str, lr: float, seed: int) -> float | None:
        folder = Path(path) / task.name / f"{name}-lr{lr:g}-seed{seed}"
        ends = at([0, steps])
        run = train(task, name, lr, steps, seed, path=folder, schedule=ends, full_batch=full_batch, progress=progress)
        return FINAL_LOSSES[by](task, run)

    for name in names:

        def row(lr: float, name: str = name) -> SweepRow:
            losses = tuple(final_loss(name, lr, seed) for seed in seeds)
            finite = [loss for loss in losses if loss is not None]
            return SweepRow(lr, losses, sum(finite) / len(finite) if len(finite) == len(losses) else None)

        found[name] = _choose(task.name, name, [row(lr) for lr in grids[name]], row, extend)
        if save is not None:
            entry = {"lr": found[name].lr, "sweep": _provenance(task, found[name], steps, seeds, by)}
            learning_rates.save(task.name, {name: entry}, Path(save))
    return found


def evaluation_loss(task: Task, trajectory: Trajectory) -> float | None:
    """Evaluation loss of the last iterate; None if the run diverged or the loss is not finite."""
    if trajectory.status == "diverged":
        return None
    model = task.model(0)
    trajectory.load_into(model, trajectory.steps[-1])
    loss = float(task.problem(model).loss())
    return loss if math.isfinite(loss) else None


def training_loss(task: Task, trajectory: Trajectory) -> float | None:
    """Mean loss of the training batches in the last tenth of the logged steps; None if the run diverged."""
    del task
    losses = [row["loss"] for row in trajectory.log if "loss" in row]
    last = losses[-math.ceil(len(losses) / 10) :]
    mean = sum(last) / len(last) if last else math.nan
    return mean if trajectory.status != "diverged" and math.isfinite(mean) else None


FINAL_LOSSES: dict[str, Callable[[Task, Trajectory], float | None]] = {
    "evaluation": evaluation_loss,
    "training": training_loss,
}


def _choose(task: str, name: str, rows: list[SweepRow], run: Any, extend: int) -> Sweep:
    ratio = rows[1].lr / rows[0].lr if len(rows) > 1 else math.sqrt(10)
    while True:
        good = [row for row in rows if row.mean is not None]
        if not good:
            tried = ", ".join(f"{row.lr:g}" for row in rows)
            raise ComputationError(
                f"every run of {name} on {task} diverged (learning rates {tried}): give a grid of smaller ones."
            )
        best = min(good, key=lambda row: (row.mean, row.lr))
        # Beside a learning rate that diverged, the best one is no edge: what lies beyond has been seen.
        at_edge = best is rows[0] or best is rows[-1]
        if not at_edge or extend <= 0:
            return Sweep(task, name, best.lr, at_edge, tuple(rows))
        extend -= 1
        if best is rows[0]:
            rows = [run(_rounded(best.lr / ratio)), *rows]
        else:
            rows = [*rows, run(_rounded(best.lr * ratio))]


def _grid(name: str, grid: Any) -> list[float]:
    fallback = optimizers.entry(name).lr
    if grid is None:
        return [_rounded(fallback * 10 ** (k / 2)) for k in HALF_DECADES]
    chosen = grid.get(name, ()) if isinstance(grid, Mapping) else grid
    try:
        chosen = sorted({float(lr) for lr in chosen})
    except (TypeError, ValueError):
        raise InputError(f"the grid of {name} must be a list of learning rates, not {chosen!r}.") from None
    if not chosen or chosen[0] <= 0:
        raise InputError(f"the grid of {name} must hold positive learning rates: give at least one.")
    return chosen


def _rounded(lr: float) -> float:
    return float(f"{lr:.2g}")


def _provenance(task: Task, result: Sweep, steps: int, seeds: Sequence[int], by: str) -> dict[str, Any]:
    grid = [row.lr for row in result.rows]
    return {
        "rows": [asdict(row) for row in result.rows],
        "at_edge": result.at_edge,
        "chosen by": f"{by} loss",
        "steps": steps,
        "seeds": list(seeds),
        "task_options": task.options,
        "hyper": optimizers.hyperparameters(result.optimizer),
        "command": f"sweep({task.name!r}, [{result.optimizer!r}], {grid}, steps={steps}, seeds={list(seeds)})",
        "date": datetime.date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "geomtraj": __version__,
        },
    }
