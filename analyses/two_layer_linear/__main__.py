"""The theorem on the two-layer linear network: closed forms, SGD with momentum of order log d, Adam near 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import machinery
import two_layer_linear_page as page
from machinery import Analysis, Job, Result

import geomtraj as gt
from geomtraj import tasks
from geomtraj.errors import InputError
from geomtraj.tasks import two_layer_linear as theory
from geomtraj.training import optimizers

NAME = "two_layer_linear"
TOO_LARGE = 1e3  # times the start's loss: from there on a run has diverged
SMALLEST = 8  # dimension; below it the law of the maximum of d squares says next to nothing


@click.command(NAME, cls=machinery.Command, context_settings={"show_default": True})
@machinery.options
def main(**options: Any) -> None:
    """Does R_med stay of order log d under SGD with momentum, and go to 1 under Adam, as the theorem says?

    Trains the two-layer linear network L = 1/2 ||W2 W1 - A||^2 from a small Gaussian start with both optimizers, at
    several dimensions and seeds, reads R_1 and R_2 where the loss has fallen to given fractions of the start's, and
    compares them with the closed forms. The learning rates are those of the config over sqrt(d), and are swept; Adam is
    also run with steps below the start's standard deviation. Writes runs/analyses/two_layer_linear/index.html; what is
    computed is kept, and the same command goes on from there.
    """
    run(machinery.start(NAME, **options))


def run(analysis: Analysis) -> Path:
    """Compute what is missing and write the page."""
    config = analysis.config
    check(config)
    common = {"alpha": config["alpha"], "device": analysis.device, "target_seed": config["target_seed"]}
    common |= {"levels": sorted(config["levels"], reverse=True), "max_steps": config["max_steps"]}
    names = list(config["rates"])

    def jobs(dims: Sequence[int], seeds: Sequence[int], curve: Sequence[int] = (), **changed: Any) -> list[Job]:
        return [
            {**common, "optimizer": name, "hyper": config["hyper"][name], "c": config["rates"][name], "d": d,
             "seed": seed, "curve": d == config["curve_dim"] and seed in curve, **changed}
            for d in dims for name in names for seed in seeds
        ]  # fmt: skip

    seeds, some = config["seeds"], config["seeds"][: config["sweep_seeds"]]
    engine = machinery.compute(analysis, check_engine, jobs(config["engine_dims"], seeds[:1]), "engine")
    by_dimension = machinery.compute(
        analysis, train_one, jobs(config["dims"], seeds, curve=seeds[: config["curve_seeds"]]), "dimensions"
    )
    at = [config["sweep_dim"]]
    rates = [job for c in config["rate_grid"] for job in jobs(at, some, c=c)]
    starts = [job for alpha in config["alpha_grid"] for job in jobs(at, some, alpha=alpha)]
    slow = [job | {"share": config["small_steps"]} for job in jobs(config["small_step_dims"], some)]
    slowly = machinery.compute(
        analysis, train_one, [job | {"curve": False} for job in slow if job["optimizer"] == "adam"], "small steps"
    )
    swept = machinery.compute(analysis, train_one, rates, "learning rates")
    started = machinery.compute(analysis, train_one, starts, "starts")
    return page.write(analysis, engine, by_dimension, slowly, swept, started)


def check(config: dict[str, Any]) -> None:
    """Refuse what cannot be run or read.

    Raises:
        InputError: A dimension, level, seed or optimizer that does not do.
    """
    dims = [*config["dims"], config["sweep_dim"], *config["engine_dims"], *config["small_step_dims"]]
    if min(dims) < SMALLEST:
        raise InputError(
            f"d = {min(dims)} is too small: the prediction is one for large d, give dimensions of at least {SMALLEST} "
            "(results of other dimensions are kept)."
        )
    if not all(0 < level < 1 for level in config["levels"]):
        raise InputError(f"the levels {config['levels']} must be fractions of the start's loss, between 0 and 1.")
    if config["reference"] not in config["levels"]:
        raise InputError(f"the reference {config['reference']} must be one of the levels {config['levels']}.")
    if len(set(config["seeds"])) < len(config["seeds"]):
        raise InputError(f"the seeds {config['seeds']} must differ from each other.")
    if config["sweep_seeds"] < 1 or config["max_steps"] < 1:
        raise InputError("sweep_seeds and max_steps must be at least 1.")


def train_one(job: Job) -> Result:
    """R_1, R_2 and the second over the first singular value of W1, where the loss passes each level."""
    task, model = _made(job)
    A, (W1, W2) = task.target, _weights(model)
    predicted = {str(level): theory.adam_r_med(W2, A, level) for level in job["levels"]}
    start = {**_read(model), "sgdm": theory.sgdm_r_med(W1, W2, A), "adam": predicted}
    rows: list[dict[str, float]] = []
    curve: list[dict[str, float]] = []
    shown = gt.log_spaced(60, job["max_steps"])

    def visit(step: int, fraction: float, passed: list[float]) -> None:
        if passed or (job["curve"] and shown(step)):
            read = {"step": step, "fraction": fraction, **_read(model)}
            rows.extend({"level": level, **read} for level in passed)
            curve.append(read)

    status = follow(job, task, model, visit)
    return {"status": status, "start": start, "rows": rows, "curve": curve if job["curve"] else []}


def check_engine(job: Job) -> Result:
    """Largest difference of the engine's exact diagonal from the closed form, over the entry, along one training."""
    task, model = _made(job)
    rows: list[dict[str, float]] = []

    def visit(step: int, fraction: float, passed: list[float]) -> None:
        if step and not passed:
            return
        diagonal = gt.diagonal(task.problem(model), "exact")
        found = gt.r_med(diagonal)
        names = ("W1.weight", "W2.weight")
        closed = dict(zip(names, theory.closed_form_diagonal(*_weights(model)), strict=True))
        ours = dict(zip(names, theory.closed_form_r_med(*_weights(model)), strict=True))
        entries = max(
            float(((diagonal.blocks[n].take(diagonal.values) - closed[n].flatten()).abs() / closed[n].flatten()).max())
            for n in names
        )
        rows.append(
            {
                "step": step,
                "fraction": fraction,
                "entries": entries,
                "r_med": max(abs(found[n].value / ours[n] - 1) for n in names),
            }
        )

    return {"status": follow(job, task, model, visit), "rows": rows}


def follow(job: Job, task: Any, model: Any, visit: Callable[[int, float, list[float]], None]) -> str:
    """Train until the last level is passed; `visit` sees step, loss over the start's, and the levels just passed.

    Full-batch training on the task's own loss, computed as 1/2 ||W2 W1 - A||^2.

    Returns:
        "ok", "diverged", or which level was not reached.
    """
    W1, W2 = model.W1.weight, model.W2.weight
    optimizer = optimizers.make(job["optimizer"], model, rate(job), **job["hyper"])
    todo, first = list(job["levels"]), math.nan
    for step in range(job["max_steps"] + 1):
        loss = theory.direct_loss(W1, W2, task.target)
        value = loss.item()
        first = value if step == 0 else first
        fraction = value / first
        if not fraction < TOO_LARGE:
            return "diverged"
        passed = [level for level in todo if fraction <= level]
        todo = todo[len(passed) :]
        visit(step, fraction, passed)
        if not todo:
            return "ok"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return f"level {todo[0]:g} not reached within {job['max_steps']} steps"


def rate(job: Job) -> float:
    """The learning rate: c over sqrt(d), or a share of the start's standard deviation."""
    if "share" in job:
        return job["share"] * theory.start_std(job["d"], job["alpha"])
    return job["c"] * theory.learning_rate_unit(job["d"])


def _made(job: Job) -> tuple[Any, Any]:
    options = {name: job[name] for name in ("d", "alpha", "target_seed", "device")}
    task = tasks.make("two-layer-linear", **options)
    return task, task.model(job["seed"])


def _weights(model: Any) -> tuple[Any, Any]:
    return model.W1.weight.detach(), model.W2.weight.detach()


def _read(model: Any) -> dict[str, float]:
    W1, W2 = _weights(model)
    r_1, r_2 = theory.closed_form_r_med(W1, W2)
    return {"r_1": r_1, "r_2": r_2, "singular": theory.singular_value_ratio(W1)}


if __name__ == "__main__":
    main()
