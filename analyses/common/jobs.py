"""Jobs whose results are kept: pure functions of what JSON can hold, run once, in several processes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from analyses.common.run import Analysis
from geomtraj.errors import ComputationError, GeomtrajError
from geomtraj.trajectory import read_json, write_json

Job = dict[str, Any]
Result = dict[str, Any]


def compute(
    analysis: Analysis, function: Callable[[Job], Result], jobs: Sequence[Job], label: str
) -> list[tuple[Job, Result]]:
    """Each job with its result, in the order of the jobs; those computed before are read, not run again.

    A job that raises one of geomtraj's errors is left out, its sentence goes into `analysis.problems`, and it is tried
    again the next time. Equal jobs are run once.

    Args:
        analysis: From `start`.
        function: Of one job, which depends on nothing else; on module level, so that other processes find it.
        jobs: What JSON can hold.
        label: Of the progress bar.

    Raises:
        ComputationError: No job at all has a result.
    """
    paths = {json.dumps(job): _part(analysis, function, job) for job in jobs}
    missing = {path: json.loads(text) for text, path in paths.items() if not path.exists()}
    bar = tqdm(total=len(set(paths.values())), initial=len(set(paths.values())) - len(missing), desc=label, unit="job")
    failed: dict[Path, str] = {}
    with bar:
        for path, outcome in _outcomes(function, missing, analysis.workers):
            try:
                write_json(path, {"job": missing[path], "result": outcome()})
            except GeomtrajError as error:
                failed[path] = str(error)
            except BrokenProcessPool:
                raise ComputationError(
                    f"{label}: a process was killed, perhaps for want of memory; what is finished is kept, go on with "
                    "fewer --workers."
                ) from None
            bar.update()
    for path, reason in failed.items():
        shown = ", ".join(f"{k}={v}" for k, v in missing[path].items() if not isinstance(v, (list, dict)))
        analysis.problems.append(f"{label}, {shown}: {reason}")
    done = [(job, read_json(path)["result"]) for job in jobs if (path := paths[json.dumps(job)]) not in failed]
    if not done:
        raise ComputationError(f"{label}: not one job has a result; the first: {next(iter(failed.values()), 'none')}")
    return done


def _part(analysis: Analysis, function: Callable[[Job], Result], job: Job) -> Path:
    text = json.dumps([function.__name__, job], sort_keys=True)
    return analysis.folder / "parts" / f"{function.__name__}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _outcomes(
    function: Callable[[Job], Result], missing: dict[Path, Job], workers: int
) -> Iterator[tuple[Path, Callable[[], Result]]]:
    """The jobs as they finish: where each result belongs, and a function that returns it or raises."""
    if workers == 1 or len(missing) < 2:
        for path, job in missing.items():
            yield path, lambda job=job: function(job)
        return
    # Forked processes cannot use a GPU that their parent has touched.
    pool = ProcessPoolExecutor(min(workers, len(missing)), multiprocessing.get_context("spawn"), _quiet)
    try:
        running: dict[Future[Result], Path] = {pool.submit(function, job): path for path, job in missing.items()}
        for future in as_completed(running):
            yield running[future], future.result
    finally:
        pool.shutdown(cancel_futures=True)


def _quiet() -> None:
    """One thread, and Ctrl-C is left to the parent, which lets the running jobs end."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
