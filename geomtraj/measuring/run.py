"""Measures the iterates of a trajectory, storing each result as soon as it is there."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, as_completed
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import cloudpickle
import torch
from tqdm import tqdm

from geomtraj._version import __version__
from geomtraj.errors import InputError, TrajectoryError
from geomtraj.isolation import preserved_state
from geomtraj.measuring.results import (
    SUMMARY,
    Measurement,
    Results,
    key,
    read_measurement,
    result_path,
    write_measurement,
)
from geomtraj.problem import Problem
from geomtraj.statistics import Loss, Outcome, Point, Statistic, resolve
from geomtraj.trajectory import Trajectory
from geomtraj.trajectory.files import write_json
from geomtraj.trajectory.store import DamagedFile

DEFAULT_STATISTICS = ("r_med", "spectrum")


def measure(
    trajectory: Trajectory | str | Path,
    problem: Problem,
    statistics: Iterable[str | Statistic] = DEFAULT_STATISTICS,
    executor: Executor | None = None,
    resume: bool = True,
    *,
    progress: bool = True,
) -> Results:
    """Statistics of the local geometry at every iterate, stored in the trajectory's folder one by one.

    What is stored already for the same problem, statistic and settings is not measured again, so a measurement that
    was stopped goes on where it was. The loss is always measured, since pairing at equal loss needs it. An iterate
    that is damaged, or where the loss is not finite, gives results with a reason in place of numbers. Where several
    processes share the problem's batches, each makes this call, and the first of them reads and writes.

    Args:
        trajectory: The recorded trajectory, or its folder.
        problem: The loss to measure; its model is of the recorded kind and is left as it was.
        statistics: Names ("loss", "r_med", "spectrum", "trace") or `Statistic` objects with settings of their own.
        executor: A `concurrent.futures.Executor` that measures iterates side by side; this process if left out.
        resume: False measures again what is stored.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The results of all iterates, those found and those made.

    Raises:
        InputError: An unknown statistic, or arguments of the wrong kind.
        TrajectoryError: The model is not of the recorded kind, or the disk is full; what was stored stays.
    """
    if isinstance(trajectory, (str, Path)):
        trajectory = Trajectory(trajectory)
    if not isinstance(problem, Problem):
        raise InputError(f"measure(trajectory, problem) needs a gt.Problem, not {type(problem).__name__}.")
    chosen = resolve([Loss(), *resolve(statistics)])
    fingerprint = problem.fingerprint()
    keys = {s.name: key(s.name, s.settings(), fingerprint) for s in chosen}

    found, missing = problem.on_ranks(lambda: _looked_up(trajectory, chosen, keys, resume))[0]
    bar = tqdm(
        total=sum(len(s) for _, s in missing),
        desc=f"measure {trajectory.path.name}",
        unit="result",
        disable=not (progress and missing and problem.rank == 0),
    )
    with bar, closing(_measured(trajectory, problem, missing, executor)) as stream:
        for measurement in stream:
            if measurement.made:  # nothing was made of an unreadable iterate
                path = result_path(trajectory.path, measurement.step, keys[measurement.statistic])
                _by_the_first(problem, lambda path=path, m=measurement: write_measurement(path, m))  # type: ignore[misc]
            found.append(measurement)
            bar.set_postfix_str(f"step {measurement.step}, {measurement.statistic}")
            bar.update()

    summary = {"problem": fingerprint, "keys": list(keys.values())}
    _by_the_first(problem, lambda: write_json(trajectory.path / SUMMARY, summary))
    return Results(trajectory.path, trajectory.manifest, found, trajectory.log)


def _by_the_first(problem: Problem, write: Callable[[], None]) -> None:
    """Let one process write; that it could not is an error on all."""
    problem.on_ranks(lambda: write() if problem.rank == 0 else None)


def _looked_up(
    trajectory: Trajectory, chosen: list[Statistic], keys: dict[str, str], resume: bool
) -> tuple[list[Measurement], list[tuple[int, list[Statistic]]]]:
    """What is stored already, and by iterate what is not."""
    found: list[Measurement] = []
    missing: list[tuple[int, list[Statistic]]] = []
    for step in trajectory.steps:
        paths = {s: result_path(trajectory.path, step, keys[s.name]) for s in chosen}
        stored = {s: m for s, path in paths.items() if resume and (m := _stored(path)) is not None}
        found += stored.values()
        if len(stored) < len(chosen):
            missing.append((step, [s for s in chosen if s not in stored]))
    return found, missing


def _stored(path: Path) -> Measurement | None:
    """The measurement in a file, None if there is none or it is damaged: it is then made again."""
    if not path.exists():
        return None
    try:
        return read_measurement(path)
    except TrajectoryError as error:
        if "newer" in str(error):
            raise
        return None


def _measured(
    trajectory: Trajectory,
    problem: Problem,
    missing: list[tuple[int, list[Statistic]]],
    executor: Executor | None,
) -> Generator[Measurement, None, None]:
    if executor is None:
        for step, statistics in missing:
            yield from _at_iterate(trajectory, problem, step, statistics)
        return
    packed = cloudpickle.dumps(problem)
    futures = [
        executor.submit(_in_worker, packed, str(trajectory.path), step, statistics) for step, statistics in missing
    ]
    try:
        for future in as_completed(futures):
            yield from future.result()
    finally:
        for future in futures:
            future.cancel()


@lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Problem:
    return cloudpickle.loads(packed)


def _in_worker(packed: bytes, path: str, step: int, statistics: list[Statistic]) -> list[Measurement]:
    if multiprocessing.parent_process() is not None and multiprocessing.get_start_method() == "fork":
        torch.set_num_threads(1)  # a forked child hangs in the thread pool that it inherits without its threads
    return list(_at_iterate(Trajectory(path), _unpacked(packed), step, statistics))


def _at_iterate(
    trajectory: Trajectory, problem: Problem, step: int, statistics: list[Statistic]
) -> Iterator[Measurement]:
    made = {
        "problem": problem.fingerprint(),
        "dtype": str(problem.dtype).removeprefix("torch."),
        "device": str(problem.device),
        "geomtraj": __version__,
        "torch": torch.__version__,
    }
    with preserved_state(problem.model):
        try:
            wall_time = trajectory.at_step(step).wall_time
            trajectory.load_into(problem.model, step)
        except DamagedFile as error:
            for statistic in statistics:
                yield Measurement(step, math.nan, statistic.name, statistic.settings(), {}, status=str(error))
            return
        point = Point(problem)
        for statistic in statistics:
            started = time.perf_counter()
            outcome = _outcome(statistic, point)
            yield Measurement(
                step=step,
                wall_time=wall_time,
                statistic=statistic.name,
                settings=statistic.settings(),
                quantities=outcome.quantities,
                details=outcome.details,
                status=outcome.status,
                matvecs=outcome.matvecs,
                seconds=time.perf_counter() - started,
                made=made,
            )


def _outcome(statistic: Statistic, point: Point) -> Outcome:
    if not torch.isfinite(point.theta).all():
        return Outcome({}, status="the parameters are not finite here: training diverged")
    if not torch.isfinite(torch.tensor(point.loss)):
        return Outcome({}, status=f"the loss is {point.loss} here")
    return statistic.measure(point)
