"""The plain training loop: one task, one optimizer, one seed, one recorded trajectory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from geomtraj import tasks
from geomtraj.errors import InputError
from geomtraj.tasks import Task
from geomtraj.training import optimizers
from geomtraj.training.learning_rates import learning_rate
from geomtraj.training.start import begin, described
from geomtraj.trajectory import Iterate, Recorder, Schedule, Trajectory, at, either
from geomtraj.trajectory.store import stored_steps


def train(
    task: Task | str,
    optimizer: str,
    lr: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    *,
    path: str | Path,
    schedule: Schedule | None = None,
    full_batch: bool = False,
    start: Iterate | None = None,
    carry: bool = False,
    first_batch: int | None = None,
    evaluate: Schedule | None = None,
    resume: bool = True,
    progress: bool = True,
    **hyper: Any,
) -> Trajectory:
    """Train the task's model and record the trajectory; the loss of every training batch is logged as "loss".

    The loss logged at step k is that of the model after k steps, on the batch of step k. With `start` the run begins
    at an iterate of another run, which is then its step 0; with `carry` and the same optimizer, learning rate and seed
    it is bit-equal to that run's continuation on a CPU. A run that was stopped goes on from its last whole iterate,
    bit-equal on a CPU; a finished run is returned as it stands. A run whose loss becomes NaN or infinite stops there
    and is marked "diverged" in its manifest.

    Args:
        task: A task, or a task's name for its default options.
        optimizer: A name from `optimizers.names()`.
        lr: Learning rate; None for the swept one, or the optimizer's fallback where no sweep was run.
        steps: Optimizer steps; None for the task's default.
        seed: Of the initial parameters and of the training batches.
        path: Folder of the trajectory.
        schedule: Which steps to record, beside step 0 and the last; None for `spread(steps)`.
        full_batch: Whether every step takes the gradient of the loss that is measured, the task's whole evaluation set,
            so that there is no gradient noise.
        start: The iterate to begin at; None for the task's initial parameters.
        carry: Whether the optimizer goes on with the state of `start` rather than with none.
        first_batch: Which batch of the seed's stream step 0 takes; None for the first, or for the one that the run of
            `start` took next.
        evaluate: Steps at which the evaluation loss, the one that is measured, is logged too, as "evaluation_loss".
        resume: Whether to go on with, or return, what stands in the folder; False refuses a folder in use.
        progress: Whether to show a progress bar on stderr.
        **hyper: The optimizer's other hyperparameters.

    Raises:
        InputError: Something unknown or out of range, a state to carry that is another optimizer's, or the folder holds
            a run with other settings.
        TrajectoryError: The folder's files are damaged beyond use, `start` is of another model, or the disk is full.
    """
    task = tasks.make(task) if isinstance(task, str) else task
    steps = task.default_steps if steps is None else steps
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps must be a whole number of at least 1, not {steps!r}.")
    first_batch = (start.step if start else 0) if first_batch is None else first_batch
    if isinstance(first_batch, bool) or not isinstance(first_batch, int) or first_batch < 0:
        raise InputError(f"first_batch must be a whole number of at least 0, not {first_batch!r}.")
    if carry and start is None:
        raise InputError("carry=True needs the iterate whose optimizer state is to be carried over: give start.")
    lr = learning_rate(task.name, optimizer) if lr is None else lr
    model = task.model(seed)
    optim = optimizers.make(optimizer, model, lr, **hyper)
    if start is not None:
        begin(model, optim, start, carry)
    schedule = either(spread(steps) if schedule is None else schedule, at([0, steps]))
    meta = {
        "task": task.name,
        "task_options": task.options,
        "optimizer": optimizer,
        "lr": lr,
        "hyper": optimizers.hyperparameters(optimizer, **hyper),
        "seed": seed,
        "steps": steps,
        "full_batch": full_batch,
        "first_batch": first_batch,
        "start": described(start, carry),
    }
    finished = _finished(Path(path), meta) if resume else None
    if finished is not None:
        return finished
    everything = task.evaluation() if full_batch else []

    def batches(step: int) -> list[Any]:
        return everything or [task.batch(first_batch + step, seed)]

    problem = task.problem(model) if evaluate is not None else None

    def log_evaluation(step: int) -> None:
        if problem is not None and evaluate is not None and evaluate(step):
            rec.log(evaluation_loss=problem.loss())

    with Recorder(path, model, optim, schedule, meta, resume=resume) as rec:
        label = f"{task.name} {optimizer} seed {seed}"
        bar = tqdm(total=steps, initial=rec.step, desc=label, unit="step", disable=not progress, file=sys.stderr)
        with bar:
            for step in range(rec.step, steps):
                log_evaluation(step)
                loss = mean_loss(task, model, batches(step))
                rec.log(loss=loss)
                if rec.diverged:
                    break
                optim.zero_grad()
                loss.backward()
                optim.step()
                bar.update()
                if step % 10 == 0:
                    bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            else:
                log_evaluation(steps)
                with torch.no_grad():
                    rec.log(loss=mean_loss(task, model, batches(steps)))
    return Trajectory(path)


def spread(steps: int, iterates: int = 7) -> Schedule:
    """Steps to record: log spaced from a thirtieth of the way, where the loss has begun to fall, to the end."""
    return at(sorted({max(1, round(steps * 30 ** (k / max(iterates - 1, 1) - 1))) for k in range(iterates)}))


def mean_loss(task: Task, model: nn.Module, batches: Iterable[Any]) -> Tensor:
    """The loss over all batches, 0-d: sum(w * losses) / sum(w), with equal weights where the task gives none."""
    total = count = torch.zeros(())
    for batch in batches:
        losses = task.loss(model, batch)
        values, weights = losses if isinstance(losses, tuple) else (losses, torch.ones_like(losses))
        total = total + (values * weights).sum()
        count = count + weights.expand_as(values).sum()
    return total / count


def _finished(path: Path, meta: dict[str, Any]) -> Trajectory | None:
    """The run that stands in the folder, if it needs no further step; None if there is something to do."""
    if not stored_steps(path):
        return None
    trajectory = Trajectory(path)
    there, here = dict(trajectory.meta), json.loads(json.dumps(meta))
    # Runs recorded before there was a choice lack these.
    there = {"full_batch": False, "first_batch": 0, "start": None, **there}
    for key in here:
        longer = key == "steps" and here[key] >= there.get(key, 0)
        if there.get(key) != here[key] and not longer:
            raise InputError(
                f"{path} holds a run with {key} {there.get(key)!r}, not {here[key]!r}: "
                "choose another path, or delete that folder."
            )
    reached = trajectory.manifest.get("last_step", 0) >= here["steps"]
    if trajectory.status == "diverged" or (trajectory.status == "complete" and reached):
        return trajectory
    return None
