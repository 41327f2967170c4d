"""The stored runs of two_layer_linear, and their statistics over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import geomtraj as gt
from analyses.common.jobs import Job, Result
from geomtraj import tasks
from geomtraj.inference import MeanOverSeeds, OverSeeds, Trend, mean_over_seeds, over_seeds, trend
from geomtraj.tasks import two_layer_linear as theory
from geomtraj.training import optimizers

Done = tuple[Job, Result]
NAMES = {"adam": "Adam", "sgdm": "SGD with momentum"}
TOO_LARGE = 1e3  # times the start's loss: from there on a run has diverged
LAYERS = ("r_1", "r_2")


@dataclass(frozen=True)
class Runs:
    """Runs of one part of the analysis.

    Attributes:
        done: Jobs with their results; those that diverged count as not there.
    """

    done: Sequence[Done]

    def where(self, **fixed: Any) -> Runs:
        """The runs whose jobs have these values."""
        return Runs([(j, r) for j, r in self.done if all(j[k] == v for k, v in fixed.items())])

    def values(self, level: float, key: str) -> dict[int, float]:
        """Seed -> what was read where the loss passed a level."""
        return {
            j["seed"]: row[key]
            for j, r in self.done
            if r["status"] != "diverged"
            for row in r["rows"]
            if row["level"] == level
        }

    def mean(self, level: float, key: str) -> MeanOverSeeds:
        """Arithmetic mean over seeds."""
        return mean_over_seeds(list(self.values(level, key).values()))

    def excess(self, level: float, key: str) -> OverSeeds:
        """Geometric mean of R - 1 over seeds."""
        return over_seeds([math.log(v - 1) for v in self.values(level, key).values() if 1 < v < math.inf])

    def ratio(self, level: float, key: str) -> OverSeeds:
        """SGD with momentum over Adam, paired by seed."""
        sgdm, adam = (self.where(optimizer=name).values(level, key) for name in ("sgdm", "adam"))
        pairs = [(sgdm[s], adam[s]) for s in sgdm if s in adam and 0 < sgdm[s] < math.inf and 0 < adam[s] < math.inf]
        return over_seeds([math.log(a / b) for a, b in pairs])


def window(config: dict[str, Any]) -> list[float]:
    """The levels in the window in which the theorem speaks, from the highest on."""
    return sorted((x for x in config["levels"] if theory.WINDOW[1] <= x <= theory.WINDOW[0]), reverse=True)


def adam_limit(done: Sequence[Any], level: float) -> float:
    """Geometric mean over runs of Adam's R_1 - 1 as the learning rate goes to 0."""
    values = [r["start"]["adam"].get(str(level), math.nan) - 1 for _, r in done]
    return over_seeds([math.log(v) for v in values if v > 0]).ratio


def decay(group: Runs, dims: Sequence[int], level: float, key: str) -> Trend:
    """Power of d in R - 1."""
    points = [(d, v) for d in dims for v in group.where(d=d).values(level, key).values() if 1 < v < math.inf]
    return trend([math.log(d) for d, _ in points], [math.log(v - 1) for _, v in points])


def upper(dims: Sequence[int]) -> list[int]:
    """The upper half of the dimensions, two at least where there are two."""
    return sorted(dims)[min(len(dims) // 2, len(dims) - 2) if len(dims) > 1 else 0 :]


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
