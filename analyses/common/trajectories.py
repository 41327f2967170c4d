"""Training runs that several analyses share: tuned learning rates, recorded trajectories, measured once.

A recipe says what is trained: {"title", "task", "options", "steps", "full_batch", "rates": {optimizer: grid}}. Recipes,
seeds and what is measured stand in configs/base/trajectories.json, which an analysis takes over with
`start(..., base="trajectories")`. Runs lie in runs/analyses/trajectories/, where the next one finds them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geomtraj as gt
from analyses.common.jobs import Job, Result, compute
from analyses.common.run import Analysis
from geomtraj import tasks
from geomtraj.errors import ComputationError, InputError, unknown_name
from geomtraj.measuring import Measurement, Results
from geomtraj.reporting import Sheet
from geomtraj.statistics import REGISTRY as STATISTICS
from geomtraj.statistics import Quantity
from geomtraj.training import optimizers, spread, sweep, train

STORE = "trajectories"


@dataclass(frozen=True)
class Tuned:
    """The learning rate of one optimizer on one recipe, chosen by training loss.

    Attributes:
        lr: The one with the lowest mean training loss at the end.
        at_edge: Whether it is the first or the last of the grid.
        rows: {"lr", "losses", "mean"} of every learning rate tried; None stands for diverged.
    """

    lr: float
    at_edge: bool
    rows: list[dict[str, Any]]


def check(config: Mapping[str, Any]) -> None:
    """Refuse what cannot be trained or compared, before anything runs.

    Raises:
        InputError: An unknown recipe, optimizer or seed list, or a grid that lacks an optimizer.
    """
    for name in config["tasks"]:
        if name not in config["recipes"]:
            raise unknown_name("recipe", name, config["recipes"])
        for optimizer in config["optimizers"]:
            optimizers.entry(optimizer)
            if not config["recipes"][name]["rates"].get(optimizer):
                raise InputError(f"recipe {name} has no learning rates for {optimizer}: add rates.{optimizer}.")
    for key in ("seeds", "sweep_seeds", "optimizers", "tasks"):
        if len(set(config[key])) < len(config[key]):
            raise InputError(f"{key} {config[key]} must differ from each other.")
    if set(config["seeds"]) & set(config["sweep_seeds"]):
        raise InputError(
            f"seeds {config['seeds']} and sweep_seeds {config['sweep_seeds']} share a seed: learning rates must be "
            "chosen on other seeds than those that are compared."
        )
    if len(config["optimizers"]) != 2:
        raise InputError(f"two optimizers are compared, not {len(config['optimizers'])}: {config['optimizers']}.")


def tuned(analysis: Analysis) -> dict[str, dict[str, Tuned]]:
    """Recipe -> optimizer -> learning rate; every optimizer gets the same number of runs.

    A recipe for which every learning rate of one optimizer diverged is left out, and told in `analysis.problems`.

    Raises:
        ComputationError: No recipe is left.
    """
    config = analysis.config
    jobs = [
        {**common_job(analysis, name), "optimizer": optimizer, "seeds": config["sweep_seeds"]}
        for name in config["tasks"]
        for optimizer in config["optimizers"]
    ]
    found: dict[str, dict[str, Tuned]] = {}
    for job, result in compute(analysis, tune, jobs, "learning rates"):
        found.setdefault(job["name"], {})[job["optimizer"]] = Tuned(**result)
    whole = {name: rates for name, rates in found.items() if len(rates) == len(config["optimizers"])}
    if not whole:
        raise ComputationError(f"no task has learning rates for both optimizers: {' '.join(analysis.problems)}")
    return whole


def measured(
    analysis: Analysis,
    rates: Mapping[str, Mapping[str, Tuned]],
    statistics: Mapping[str, Mapping[str, Any]],
    iterates: int | None = None,
    seeds: Sequence[int] | None = None,
) -> dict[str, dict[str, list[Results]]]:
    """Recipe -> optimizer -> one `Results` per seed: trained, recorded, and measured at every iterate but the start.

    Runs that diverged are among them and say so.

    Args:
        analysis: With the values of configs/trajectories.json.
        rates: From `tuned`.
        statistics: Name -> settings.
        iterates: How many to measure, log spaced; those of the config if left out.
        seeds: Those of the config if left out.
    """
    config = analysis.config
    jobs = [
        {**common_job(analysis, name), "optimizer": optimizer, "lr": rate.lr, "seed": seed,
         "iterates": iterates or config["iterates"], "statistics": {k: dict(v) for k, v in statistics.items()}}
        for name, pair in rates.items()
        for optimizer, rate in pair.items()
        for seed in seeds or config["seeds"]
    ]  # fmt: skip
    found: dict[str, dict[str, list[Results]]] = {}
    for job, result in compute(analysis, travel, jobs, "runs"):
        runs = found.setdefault(job["name"], {}).setdefault(job["optimizer"], [])
        records = [Measurement.from_json(m) for m in result["measurements"]]
        runs.append(Results(Path(result["path"]), result["manifest"], records, result["log"]))
    return found


def tune(job: Job) -> Result:
    """The learning rate with the lowest training loss at the end."""
    recipe = job["recipe"]
    found = sweep(
        task_of(job),
        [job["optimizer"]],
        recipe["rates"],
        recipe["steps"],
        job["seeds"],
        path=folder_of(job) / "sweep",
        extend=0,
        by="training",
        full_batch=recipe["full_batch"],
        progress=False,
    )[job["optimizer"]]
    rows = [{"lr": row.lr, "losses": list(row.losses), "mean": row.mean} for row in found.rows]
    return {"lr": found.lr, "at_edge": found.at_edge, "rows": rows}


def travel(job: Job) -> Result:
    """One run's measurements, as JSON holds them."""
    trajectory = trained(job)
    task = task_of(job)
    statistics = [STATISTICS[name].with_settings(settings) for name, settings in job["statistics"].items()]
    results = gt.measure(trajectory[1:], task.problem(task.model(0)), statistics, progress=False)
    log = results.log[:: max(len(results.log) // 200, 1)]
    return {
        "path": str(trajectory.path),
        "manifest": {key: trajectory.manifest.get(key) for key in ("status", "meta", "parameters")},
        "measurements": [m.to_json() for m in results.measurements],
        "log": log,
    }


def trained(job: Job) -> gt.Trajectory:
    """The recorded run of a job with "lr", "seed" and "iterates"; one that stands there is not trained again."""
    recipe = job["recipe"]
    name = f"{job['optimizer']}-lr{job['lr']:g}-iterates{job['iterates']}"
    return train(
        task_of(job),
        job["optimizer"],
        job["lr"],
        recipe["steps"],
        job["seed"],
        path=folder_of(job) / name / f"seed-{job['seed']}",
        schedule=spread(recipe["steps"], job["iterates"]),
        full_batch=recipe["full_batch"],
        progress=False,
    )


def task_of(job: Job) -> tasks.Task:
    """The task of a job's recipe on the job's device."""
    return tasks.make(job["recipe"]["task"], **job["recipe"]["options"], device=job["device"])


def folder_of(job: Job) -> Path:
    """Where the runs of a job's recipe lie: other options, other folder."""
    recipe = {key: value for key, value in job["recipe"].items() if key not in ("rates", "title")}
    text = json.dumps([recipe, job["device"]], sort_keys=True)
    return Path(job["store"]) / f"{job['name']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def variant(results: Results, field: str) -> Results:
    """The runs with a variant of R_med in its place: "tenth" (10th largest over median) or "q99", without intervals."""
    changed = [
        Measurement(**{**vars(m), "quantities": {k: Quantity(m.details[k][field]) for k in m.quantities}})
        if m.statistic == "r_med"
        else m
        for m in results.measurements
    ]
    return Results(results.path, results.manifest, changed, results.log)


def rates_sheet(config: Mapping[str, Any], rates: Mapping[str, Mapping[str, Tuned]]) -> Sheet:
    """Every learning rate that was tried, and which was taken."""
    rows = [
        [name, optimizer, row["lr"], row["mean"], "diverged" if row["mean"] is None else "", _mark(found, row["lr"])]
        for name, pair in rates.items()
        for optimizer, found in pair.items()
        for row in found.rows
    ]
    return Sheet(
        "learning_rates",
        "Learning rates",
        ["task", "optimizer", "learning rate", "training loss at the end", "status", "taken"],
        rows,
        "Chosen by the mean loss of the training batches in the last tenth of the steps, with as many runs for each "
        f"optimizer, on seeds {config['sweep_seeds']} that are not compared.",
    )


def edge_remarks(rates: Mapping[str, Mapping[str, Tuned]]) -> list[str]:
    """Learning rates at the end of their grid, beyond which a better one may lie."""
    return [
        f"{name}: the learning rate {found.lr:g} of {optimizer} is at the end of its grid; a better one may lie beyond."
        for name, pair in rates.items()
        for optimizer, found in pair.items()
        if found.at_edge
    ]


def _mark(found: Tuned, lr: float) -> str:
    if lr != found.lr:
        return ""
    return "taken, at the grid's end" if found.at_edge else "taken"


def common_job(analysis: Analysis, name: str) -> Job:
    """What every job on one recipe holds."""
    return {
        "name": name,
        "recipe": analysis.config["recipes"][name],
        "device": analysis.device,
        "store": str(analysis.folder.parent / STORE),
    }
