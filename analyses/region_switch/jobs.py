"""The jobs of region_switch: runs up to the switch, learning rates after it, and the arms."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trajectories
from machinery import Job, Result

import geomtraj as gt
from geomtraj.comparing.speed import covered, nearest_to
from geomtraj.errors import ComputationError
from geomtraj.statistics import REGISTRY as STATISTICS
from geomtraj.training import train
from geomtraj.training.sweeps import training_loss
from geomtraj.trajectory import at, every

CHUNKS = 3  # a run that is only to pass a level is trained a third of the recipe's steps at a time
RECORD_EVERY = 20  # steps between iterates from which the one at the level is reached again


def whole(job: Job) -> Result:
    """The evaluation losses of a whole run."""
    run = _base(job, job["recipe"]["steps"])
    return {"losses": _losses(run)[1], "status": run.status}


def reach(job: Job) -> Result:
    """Train until the evaluation loss passes the level, and record the iterate nearest to it around that passage."""
    steps, folder = job["recipe"]["steps"], _base_folder(job)
    done = gt.Trajectory(folder).meta["steps"] if any(folder.glob("manifest.json")) else 0
    chunk = -(-steps // CHUNKS)
    for target in sorted({max(min(k * chunk, steps), min(done, steps)) for k in range(1, CHUNKS + 1)}):
        run = _base(job, max(target, done))
        places, losses = _losses(run)
        k = nearest_to(losses, job["level"])
        if k is not None or run.status == "diverged":
            break
    if k is None:
        return {"step": None, "covers": covered(losses), "status": run.status}
    step = places[k]
    here = run
    if step not in run.steps:
        before = max(s for s in run.steps if s < step)
        here = train(
            trajectories.task_of(job), job["region"], job["lr"], step - before, job["seed"],
            path=folder.parent / f"seed-{job['seed']}-at-{step}", start=run.at_step(before), carry=True,
            schedule=at([0]), full_batch=job["recipe"]["full_batch"], progress=False,
        )  # fmt: skip
    own = step if here is run else here.steps[-1]
    iterate = here.at_step(own)
    task = trajectories.task_of(job)
    model = task.model(0)
    here.load_into(model, own)
    loss = float(task.problem(model).loss())
    return {"step": step, "covers": covered(losses), "status": run.status, "path": str(here.path), "own_step": own,
            "loss": loss, "norm": float(iterate.theta.double().norm()), "seed": job["seed"]}  # fmt: skip


def retune(job: Job) -> Result:
    """The learning rate with the lowest training loss at the end of the window."""
    task, rows = trajectories.task_of(job), []
    for lr in job["grid"]:
        losses = [
            training_loss(task, _continued(job, start, lr, start["seed"], every(job["window"]), None))
            for start in job["starts"]
        ]
        known = [x for x in losses if x is not None]
        rows.append(
            {"lr": lr, "losses": losses, "mean": sum(known) / len(known) if len(known) == len(losses) else None}
        )
    good = [row for row in rows if row["mean"] is not None]
    state = "carried" if job["carry"] else "fresh"
    if not good:
        raise ComputationError(
            f"every learning rate of {job['optimizer']} with {state} state from {job['region']}'s region diverged "
            f"({', '.join(f'{lr:g}' for lr in job['grid'])}): give smaller factors."
        )
    best = min(good, key=lambda row: (row["mean"], row["lr"]))
    return {"lr": best["lr"], "at_edge": best is rows[0] or best is rows[-1], "rows": rows}


def look(job: Job) -> Result:
    """R_med at one start."""
    here = gt.Trajectory(job["start"]["path"])
    place = here.steps.index(job["start"]["own_step"])
    return {"measurements": _measured(job, here[place : place + 1])}


def go(job: Job) -> Result:
    """One arm: evaluation loss along the window, and R_med at some steps of it."""
    start = job["start"]
    run = _continued(job, start, job["lr"], job["seed"], at([0, *job["r_med_at"]]), job["evaluate_every"])
    steps, losses = _losses(run)
    diverged = run.status == "diverged"
    measured = [] if diverged or not job["r_med_at"] else _measured(job, _at(run, job["r_med_at"]))
    return {"status": run.status, "path": str(run.path), "steps": steps, "losses": losses, "measurements": measured}


def _base_folder(job: Job) -> Path:
    return trajectories.folder_of(job) / f"{job['region']}-lr{job['lr']:g}-switch" / f"seed-{job['seed']}"


def _base(job: Job, steps: int) -> gt.Trajectory:
    """The run of a region's own optimizer, its evaluation loss known at every step."""
    return train(
        trajectories.task_of(job), job["region"], job["lr"], steps, job["seed"], path=_base_folder(job),
        schedule=every(RECORD_EVERY), evaluate=every(1), full_batch=job["recipe"]["full_batch"], progress=False,
    )  # fmt: skip


def _continued(
    job: Job, start: dict[str, Any], lr: float, seed: int, schedule: Any, evaluate: int | None
) -> gt.Trajectory:
    """Training on from a start, on batches that no run has seen before and that are the same for all arms."""
    here = gt.Trajectory(start["path"])
    state = "carried" if job["carry"] else "fresh"
    what = json.dumps([repr(schedule), evaluate, job["window"], start["path"], start["own_step"]])
    digest = hashlib.sha256(what.encode()).hexdigest()[:8]
    folder = trajectories.folder_of(job) / f"{job['region']}-to-{job['optimizer']}-{state}"
    return train(
        trajectories.task_of(job), job["optimizer"], lr, job["window"], seed,
        path=folder / f"lr{lr:g}-seed-{seed}-{digest}", start=here.at_step(start["own_step"]), carry=job["carry"],
        first_batch=job["recipe"]["steps"], schedule=schedule, evaluate=every(evaluate) if evaluate else None,
        full_batch=job["recipe"]["full_batch"], progress=False,
    )  # fmt: skip


def _losses(run: gt.Trajectory) -> tuple[list[int], list[float]]:
    """Steps and evaluation losses, up to where they are finite."""
    rows = [(row["step"], row["evaluation_loss"]) for row in run.log if "evaluation_loss" in row]
    rows = [(step, loss) for step, loss in rows if math.isfinite(loss)]
    return [step for step, _ in rows], [loss for _, loss in rows]


def _at(run: gt.Trajectory, steps: Sequence[int]) -> gt.Trajectory:
    part = run[:]
    part.steps = [s for s in run.steps if s in steps]
    return part


def _measured(job: Job, trajectory: gt.Trajectory) -> list[dict[str, Any]]:
    task = trajectories.task_of(job)
    statistic = STATISTICS["r_med"].with_settings(job["r_med"])
    results = gt.measure(trajectory, task.problem(task.model(0)), [statistic], progress=False)
    return [m.to_json() for m in results.measurements]
