"""Measuring at one iterate: read once, and every error of a statistic becomes a result with its reason."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from geomtraj._version import __version__
from geomtraj.errors import GeomtrajError, InputError
from geomtraj.failures import is_out_of_memory
from geomtraj.isolation import in_plain_torch, one_at_a_time, preserved_state
from geomtraj.measuring.arrays import Arrays
from geomtraj.measuring.code import code_of, failure_code
from geomtraj.measuring.content import Seen, content_of, settled
from geomtraj.measuring.history import Place
from geomtraj.measuring.record import Measurement, from_text, to_text
from geomtraj.operators import with_remark
from geomtraj.problem import Problem
from geomtraj.statistics import Outcome, Point, Statistic
from geomtraj.status import Code, Remark, Status
from geomtraj.trajectory import Trajectory
from geomtraj.trajectory.store import DamagedFile


@dataclass
class Job:
    """What all units of one call have in common.

    Attributes:
        trajectory: What is measured.
        problem: The loss.
        statistics: By name.
        fingerprint: Of the problem; it takes a pass over the batches to find it.
        folder: Where results are kept; None for nowhere.
        factories: Class name -> how to build an optimizer, as `geomtraj.updates.register_optimizer` was told.
        cache: What points of this call share in one process.
    """

    trajectory: Trajectory
    problem: Problem
    statistics: dict[str, Statistic]
    fingerprint: str
    folder: Path | None = None
    factories: dict[str, Any] = field(default_factory=dict)
    cache: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """What is to be done at one iterate.

    Attributes:
        step: Of the iterate.
        missing: Names of the statistics to measure.
        claimed: Statistic -> content of the iterate that its stored result names: measured too if that is another.
        first: Whether no statistic was measured at another iterate before: an `InputError` is then the caller's.
    """

    step: int
    missing: tuple[str, ...] = ()
    claimed: dict[str, str] = field(default_factory=dict)
    first: bool = False


@dataclass(frozen=True)
class Read:
    """That an iterate was read.

    Attributes:
        step: Of the iterate.
        seen: What it holds; None if it is damaged.
        stale: Statistics whose stored results name another content, or a content that cannot be read.
    """

    step: int
    seen: Seen | None
    stale: tuple[str, ...] = ()


def at_iterate(job: Job, unit: Unit) -> Generator[Read | Measurement, None, None]:
    """What was read, then one measurement for each statistic that is missing or stale.

    Threads take turns: an evaluation puts the iterate into the problem's one model.

    Raises:
        TrajectoryError: The trajectory is of another model.
        InputError: A statistic refuses the caller's input at the first iterate, or the problem's derivatives are wrong.
    """
    trajectory, problem, statistics = job.trajectory, job.problem, job.statistics
    with one_at_a_time():
        stamp = settled(trajectory.stamp(unit.step))
        try:
            iterate = trajectory.at_step(unit.step)
        except DamagedFile as error:
            yield Read(unit.step, None, tuple(unit.claimed))
            status = Status([Remark(Code.DAMAGED, str(error))])
            for name in (*unit.missing, *unit.claimed):
                yield Measurement(unit.step, math.nan, name, statistics[name].settings(), {}, status=status)
            return
        content = content_of(iterate)
        stale = tuple(name for name, claim in unit.claimed.items() if claim != content)
        yield Read(unit.step, Seen(content, stamp), stale)
        if not (unit.missing or stale):
            return
        with preserved_state(problem.model):
            trajectory.put_into(problem.model, iterate)
            point = Point(problem, history=Place(job, iterate, content))
            made = made_by(job)
            blank = Measurement(unit.step, iterate.wall_time, "", {}, {}, made=made, iterate=content)
            del iterate
            for name in (*unit.missing, *stale):
                yield _measured(statistics[name], point, blank, unit.first)


def made_by(job: Job) -> dict[str, Any]:
    """What the numbers depend on besides the iterate, the statistic and its settings."""
    problem = job.problem
    return {
        "problem": job.fingerprint,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "device": str(problem.device),
        "threads": torch.get_num_threads(),
        "geomtraj": __version__,
        "torch": torch.__version__,
        "checked": problem.check,
    }


@in_plain_torch
def _measured(statistic: Statistic, point: Point, blank: Measurement, first: bool) -> Measurement:
    """A statistic at a point: its outcome, or the reason why there is none."""
    code = code_of(statistic)
    blank = replace(
        blank,
        statistic=statistic.name,
        settings=statistic.settings(),
        made=blank.made | ({"code": code} if code else {}),
    )
    started = time.perf_counter()
    try:
        outcome = _outcome(statistic, point)
        if not isinstance(outcome, Outcome):
            raise TypeError(f"measure() returned {type(outcome).__name__}, not an Outcome")
        found = replace(
            blank,
            quantities=outcome.quantities,
            details=outcome.details,
            status=with_remark(point.problem, outcome.status) if outcome.matvecs else outcome.status,
            matvecs=outcome.matvecs,
            seconds=time.perf_counter() - started,
            made=blank.made | _about_blocks(point.problem, outcome) | _about_guard(point.problem),
        )
        return replace(from_text(to_text(found)), arrays=Arrays(outcome.arrays))  # as it will be read
    except Exception as error:
        if point.problem.shared or (first and isinstance(error, InputError)) or _refused(point.problem):
            raise
        return _failed(blank, statistic, error, time.perf_counter() - started)


def _about_blocks(problem: Problem, outcome: Outcome) -> dict[str, Any]:
    """Kind and shape of each block that a quantity belongs to, for who compares weight matrices alone."""
    blocks = {label: problem.blocks[label] for label in outcome.quantities if label in problem.blocks}
    return {"blocks": {label: [block.kind, list(block.shape)] for label, block in blocks.items()}} if blocks else {}


def _about_guard(problem: Problem) -> dict[str, Any]:
    """What the check of the problem's derivatives found and cost; nothing before they were needed."""
    return {} if problem.guard is None else {"guard": asdict(problem.guard)}


def _refused(problem: Problem) -> bool:
    """Whether the problem's derivatives are wrong, at this iterate and at any other."""
    return problem.guard is not None and bool(problem.guard.refusal)


def _failed(blank: Measurement, statistic: Statistic, error: Exception, seconds: float) -> Measurement:
    text = " ".join(str(error).split())
    said = text if isinstance(error, GeomtrajError) else f"{type(error).__name__}: {text}"
    failure = {
        "error": type(error).__name__,
        "code": failure_code(statistic),
        "again": is_out_of_memory(error),
    }
    status = Status([Remark(Code.FAILED, f"failed: {said}"[:2000])])
    return replace(blank, status=status, seconds=seconds, made=blank.made | {"failure": failure})


def _outcome(statistic: Statistic, point: Point) -> Outcome:
    if not torch.isfinite(point.theta).all():
        return Outcome({}, status=_not_finite("the parameters are not finite here: training diverged"))
    if not math.isfinite(point.loss):
        return Outcome({}, status=_not_finite(f"the loss is {point.loss} here"))
    return statistic.measure(point)


def _not_finite(text: str) -> Status:
    return Status([Remark(Code.NOT_FINITE, text)])
