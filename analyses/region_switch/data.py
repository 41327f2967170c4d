"""The stored arms of region_switch, and their statistics over seeds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geomtraj as gt
from analyses.common import trajectories
from analyses.common.blocks import mean_over_blocks, usable_everywhere
from analyses.common.jobs import Job, Result
from analyses.common.levels import covered
from geomtraj.errors import ComputationError
from geomtraj.inference import (
    MeanOverSeeds,
    OverSeeds,
    TwoWay,
    fall,
    mean_over_seeds,
    nearest_to,
    over_seeds,
    steps_to_loss,
    two_way,
)
from geomtraj.measuring import Measurement, Results
from geomtraj.statistics import REGISTRY as STATISTICS
from geomtraj.training import train, training_loss
from geomtraj.trajectory import at, every

Done = tuple[Job, Result]
CHUNKS = 3  # a run that is only to pass a level is trained a third of the recipe's steps at a time
RECORD_EVERY = 20  # steps between iterates from which the one at the level is reached again
NAMES = {"adam": "Adam", "sgdm": "SGDM", "sgd": "plain SGD"}
MEASURES = {
    "fall": "fall of the loss over the window",
    "late": "fall after the first tenth of the window",
    "steps": "steps to the common lower loss, inverted",
}


def name_of(optimizer: str) -> str:
    """How texts name an optimizer."""
    return NAMES.get(optimizer, optimizer)


@dataclass(frozen=True)
class Arm:
    """What continues from a region: optimizer, and whether its state is carried over."""

    region: str
    optimizer: str
    carry: bool = False


@dataclass(frozen=True)
class Compared:
    """A ratio of speeds over seeds.

    Attributes:
        over: Over the seeds for which it exists.
        missing: Seeds for which it does not: an arm diverged, or its loss did not fall.
    """

    over: OverSeeds
    missing: tuple[int, ...]


@dataclass(frozen=True)
class Runs:
    """Arms, R_med at the switch, and the starts themselves."""

    arms: Sequence[Done]
    looks: Sequence[Done]
    starts: Sequence[Done]

    def of(self, name: str) -> Runs:
        """Those of one recipe."""
        return Runs(*([(j, r) for j, r in part if j["name"] == name] for part in (self.arms, self.looks, self.starts)))

    @property
    def tasks(self) -> list[str]:
        """Names of the recipes."""
        return list(dict.fromkeys(j["name"] for j, _ in self.arms))

    @property
    def seeds(self) -> list[int]:
        """Seeds that are compared."""
        return sorted({j["seed"] for j, _ in self.arms})

    def seeds_of(self, arm: Arm) -> dict[int, Result]:
        """Seed -> the run of an arm."""
        return {
            j["seed"]: r
            for j, r in self.arms
            if (j["region"], j["optimizer"], j["carry"]) == (arm.region, arm.optimizer, arm.carry)
        }

    def start(self, region: str, seed: int) -> Result:
        """Where the arms of a region and seed begin."""
        return next(r for j, r in self.starts if (j["region"], j["seed"]) == (region, seed))

    def level(self) -> float:
        """The loss at which is switched."""
        return self.starts[0][0]["level"]

    def speeds(self, arms: Sequence[Arm], measure: str, first: float | None = None) -> dict[int, list[float]]:
        """Seed -> speed of each arm: fall in nats over the window, or 1 / steps to the lowest loss that all reach.

        NaN where an arm diverged or the speed is not positive.
        """
        found = [self.seeds_of(arm) for arm in arms]
        return {
            seed: _speeds([f[seed] for f in found], measure, first)
            for seed in self.seeds
            if all(seed in f for f in found)
        }

    def ratio(self, above: Arm, below: Arm, measure: str, first: float | None = None) -> Compared:
        """Speed of one arm over that of another, paired by seed."""
        found = self.speeds([above, below], measure, first)
        logs = {s: math.log(a / b) for s, (a, b) in found.items() if math.isfinite(a) and math.isfinite(b)}
        return Compared(over_seeds(list(logs.values())), tuple(s for s in self.seeds if s not in logs))

    def difference(self, above: Arm, below: Arm) -> MeanOverSeeds:
        """Fall of one arm less that of another, in nats, paired by seed; exists where a loss rose too."""
        a, b = self.seeds_of(above), self.seeds_of(below)
        both = [s for s in a if s in b and "diverged" not in (a[s]["status"], b[s]["status"])]
        return mean_over_seeds([fall(a[s]["losses"]) - fall(b[s]["losses"]) for s in both])

    def jump(self, arm: Arm) -> OverSeeds:
        """Highest loss in the first tenth of the window over that at the switch: what a new start costs at first."""
        runs = [r for r in self.seeds_of(arm).values() if r["status"] != "diverged"]
        return over_seeds([math.log(max(r["losses"][: _tenth(r)]) / r["losses"][0]) for r in runs])

    def decomposed(
        self, regions: Sequence[str], optimizers: Sequence[str], measure: str, carry: bool = False
    ) -> TwoWay:
        """Log speed over region and optimizer; with `carry`, state is carried where the two agree."""
        arms = [Arm(r, o, carry and r == o) for r in regions for o in optimizers]
        found = self.speeds(arms, measure)
        return two_way([[math.log(v) for v in x] for x in found.values() if all(map(math.isfinite, x))])

    def r_med(self) -> Callable[[Arm | str, int], dict[int, float]]:
        """A function (arm, or region for the switch itself; step) -> {seed: R_med in the geometric mean over blocks}.

        Blocks are those whose value is usable at every measured iterate of this recipe.
        """
        results = {
            (Arm(j["region"], j["optimizer"]) if "optimizer" in j else j["region"], j["seed"]): _results(r)
            for j, r in [*self.arms, *self.looks]
            if r["measurements"]
        }
        labels = self.blocks()
        means = {key: mean_over_blocks(r, "r_med", labels, "blocks") for key, r in results.items()}

        def value(what: Arm | str, step: int) -> dict[int, float]:
            found = {}
            for (key, seed), r in means.items():
                for m in r.of("r_med"):
                    x = m.quantities["blocks"].value
                    if key == what and (isinstance(what, str) or m.step == step) and math.isfinite(x):
                        found[seed] = x
            return found

        return value

    def blocks(self, usable: bool = True) -> list[str]:
        """Parameter tensors, by default those whose R_med is positive and finite at every measured iterate."""
        every = [_results(r) for _, r in [*self.arms, *self.looks] if r["measurements"]]
        labels = [x for x in dict.fromkeys(x for r in every for x in r.labels("r_med")) if x != "all"]
        return usable_everywhere(every, "r_med", labels) if usable else labels


def paired(above: dict[int, float], below: dict[int, float]) -> OverSeeds:
    """The ratio of two quantities by seed."""
    return over_seeds([math.log(above[s] / below[s]) for s in above if s in below])


def _speeds(runs: Sequence[Result], measure: str, first: float | None) -> list[float]:
    """The arms' speeds of one seed."""
    if measure == "steps":
        good = [min(r["losses"]) for r in runs if r["status"] != "diverged" and r["losses"]]
        level = max(good, default=math.nan)
        values = [1 / steps_to_loss(r["steps"], r["losses"], level) if r["losses"] else math.nan for r in runs]
    elif measure == "late":
        values = [fall(r["losses"][_tenth(r) - 1 :]) for r in runs]
    else:
        values = [fall(r["losses"], first) for r in runs]
    return [
        v if r["status"] != "diverged" and math.isfinite(v) and v > 0 else math.nan
        for v, r in zip(values, runs, strict=True)
    ]


def _tenth(result: Result) -> int:
    """How many of the losses lie in the first tenth of the window, its end included."""
    return 1 + -(-(len(result["losses"]) - 1) // 10)


def _results(result: Result) -> Results:
    return Results(Path(), {}, [Measurement.from_json(m) for m in result["measurements"]])


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
