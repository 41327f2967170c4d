"""Measuring in an executor: the problem travels once to each worker, and a worker that dies costs one retry."""

from __future__ import annotations

import copy
import hashlib
import math
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import cloudpickle
import torch

from geomtraj.errors import ComputationError, GeomtrajError, InputError
from geomtraj.measuring.record import Measurement
from geomtraj.measuring.unit import Job, Read, Unit, at_iterate
from geomtraj.problem import Problem
from geomtraj.status import Code, Remark, Status

Event = Read | Measurement

POLL_SECONDS = 1.0
"""How often the deadline is looked at while workers measure."""
AT_FIRST = 2
"""Units sent at first for each worker."""

_HELD: dict[str, Job] = {}
_HOLDING = threading.RLock()
_FOLDERS: set[str] = set()
"""Where jobs came from that this worker process has been at."""
_HELD_AT_MOST = 2


def executor_of(executor: Any) -> Executor | None:
    """The executor that is meant; that of a Dask Client, if one is given.

    Raises:
        InputError: It is no executor.
    """
    if executor is None or isinstance(executor, Executor):
        return executor
    if callable(getattr(executor, "get_executor", None)):
        return executor.get_executor()
    raise InputError(
        f"executor is a {type(executor).__name__}: pass a concurrent.futures.Executor, such as "
        "ProcessPoolExecutor(4), or Dask's client.get_executor()."
    )


@contextmanager
def pool(workers: int, threads: int) -> Iterator[Executor | None]:
    """Processes with so many threads each, which end with this one; none for one worker."""
    if workers == 1:
        yield None
        return
    executor = ProcessPoolExecutor(workers, initializer=_begin, initargs=(threads,))
    try:
        yield executor
    except BaseException:  # an error or Ctrl-C: the results of running units are not waited for
        for process in list((executor._processes or {}).values()):
            process.kill()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    torch.set_num_threads(threads)
    _end_with_parent()


def _end_with_parent() -> None:
    """Ends this worker process when its parent ends, however that happens."""
    parent = multiprocessing.parent_process()
    if parent is None or any(t.name == _WATCH for t in threading.enumerate()):
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        for folder in _FOLDERS:  # which the parent can remove no more
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, name=_WATCH, daemon=True).start()


_WATCH = "geomtraj: ends with its parent"


@dataclass(frozen=True)
class _Parcel:
    """Where a worker finds its job: held already, in a file, or in the parcel itself where it cannot see the file."""

    token: str
    folder: str
    job: bytes | None = None

    def open(self) -> Job | None:
        """The job; None if this worker has to be sent it."""
        with _HOLDING:
            if self.token not in _HELD:
                packed = self.job or self._read()
                if packed is None:
                    return None
                while len(_HELD) >= _HELD_AT_MOST:
                    _HELD.pop(next(iter(_HELD)))
                _HELD[self.token] = cloudpickle.loads(packed)
            return _HELD[self.token]

    def _read(self) -> bytes | None:
        with suppress(OSError):
            packed = (Path(self.folder) / "job").read_bytes()
            if hashlib.sha256(packed).hexdigest() == self.token:  # nothing else is ever unpickled
                return packed
        return None

    def mark(self, number: int) -> Path:
        """The file that stands while a worker is at a unit."""
        return Path(self.folder) / f"at-{number}"


def _in_worker(parcel: _Parcel, number: int, unit: Unit) -> list[Event] | None:
    """What was found at an iterate; None if the job has to be sent along."""
    if multiprocessing.parent_process() is not None:
        _FOLDERS.add(parcel.folder)
        _end_with_parent()
    forked = multiprocessing.parent_process() is not None and multiprocessing.get_start_method() == "fork"
    if forked and torch.get_num_threads() > 1:
        torch.set_num_threads(1)  # a forked child hangs in the thread pool that it inherits without its threads
    mark = parcel.mark(number)
    with suppress(OSError):
        mark.touch()
    try:
        job = parcel.open()
        return None if job is None else list(at_iterate(job, unit))
    finally:
        with suppress(OSError):
            mark.unlink()


def in_executor(
    job: Job, units: list[Unit], executor: Executor, over: Callable[[], bool], tell: Callable[[str], None]
) -> Generator[Event, None, None]:
    """What is found at the iterates, in the order in which it comes.

    Args:
        job: What they have in common.
        units: What is to be done.
        executor: Who does it.
        over: Whether time is up: what runs is then waited for, and nothing else begins.
        tell: Takes a sentence about a worker that ended.

    Raises:
        ComputationError: The executor fails otherwise than by one worker's end.
    """
    trajectory = copy.copy(job.trajectory)
    trajectory.path = trajectory.path.resolve()  # workers may stand in another folder
    job = replace(job, trajectory=trajectory, folder=None if job.folder is None else job.folder.resolve())
    packed = cloudpickle.dumps(job)
    token = hashlib.sha256(packed).hexdigest()
    with tempfile.TemporaryDirectory(prefix="geomtraj-", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "job").write_bytes(packed)
        parcel = _Parcel(token, folder)
        with _HOLDING:
            _HELD[token] = job  # for threads and for children that are forked from now on
        try:
            yield from _retried(parcel, packed, dict(enumerate(units)), executor, over, tell)
        finally:
            with _HOLDING:
                _HELD.pop(token, None)


def _retried(
    parcel: _Parcel,
    packed: bytes,
    left: dict[int, Unit],
    executor: Executor,
    over: Callable[[], bool],
    tell: Callable[[str], None],
) -> Generator[Event, None, None]:
    """Units that a worker was at when it ended are tried once more, each in a process of its own."""
    current, own = executor, None
    try:
        while left and not over():
            try:
                yield from _through(current, parcel, packed, left, over)
                return
            except BrokenExecutor as error:
                suspects = [number for number in left if parcel.mark(number).exists()]
                if not (suspects and isinstance(executor, ProcessPoolExecutor)):
                    raise ComputationError(
                        f"the executor's workers ended ({type(error).__name__}: {error}): what is finished is stored; "
                        "call measure again with a new executor, which goes on from there."
                    ) from error
            tell("a worker process ended in the middle of a measurement (killed, or out of memory): tried once more.")
            for number in suspects:
                yield from _alone(executor, parcel, packed, {number: left.pop(number)}, over)
            if own is not None:
                own.shutdown()
            current = own = _like(executor, getattr(executor, "_max_workers", 1))
    finally:
        if own is not None:
            own.shutdown(cancel_futures=True)


def _alone(
    executor: ProcessPoolExecutor, parcel: _Parcel, packed: bytes, left: dict[int, Unit], over: Callable[[], bool]
) -> Generator[Event, None, None]:
    """One unit in a process of its own; its statistics get a reason in place of numbers if that ends too."""
    ((number, unit),) = left.items()
    parcel.mark(number).unlink(missing_ok=True)
    with _like(executor, 1) as fresh:
        try:
            yield from _through(fresh, parcel, packed, left, over)
        except BrokenExecutor:
            reason = "failed: the worker process that measured it ended twice (killed, or out of memory)"
            status = Status([Remark(Code.FAILED, reason)])
            yield Read(unit.step, None, tuple(unit.claimed))
            for name in (*unit.missing, *unit.claimed):
                yield Measurement(unit.step, math.nan, name, {}, {}, status=status)


def _like(executor: ProcessPoolExecutor, workers: int) -> ProcessPoolExecutor:
    """A new pool of processes like one whose processes ended."""
    taken = {"mp_context": "_mp_context", "initializer": "_initializer", "initargs": "_initargs"}
    return ProcessPoolExecutor(workers, **{k: getattr(executor, v) for k, v in taken.items() if hasattr(executor, v)})


def _through(
    executor: Executor, parcel: _Parcel, packed: bytes, left: dict[int, Unit], over: Callable[[], bool]
) -> Generator[Event, None, None]:
    """Takes each unit out of what is left when its results are there.

    So many units are sent at first as keep the workers busy, and one more for each that comes back: a worker that
    cannot see the job's file answers at once, and must not do so for all units before it has been sent the job.
    """
    waiting: dict[Future, int] = {}
    to_send = list(left)
    room = AT_FIRST * getattr(executor, "_max_workers", AT_FIRST)
    try:
        while to_send or waiting:
            while to_send and len(waiting) < room and not over():
                number = to_send.pop(0)
                waiting[_sent(executor, parcel, number, left[number])] = number
            done, _ = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
            if over():
                to_send = []
                for future in [f for f in waiting if f.cancel()]:
                    del waiting[future]
            for future in done & waiting.keys():
                number = waiting.pop(future)
                events = _result(future, left[number])
                if events is None:
                    whole = _Parcel(parcel.token, parcel.folder, packed)
                    waiting[_sent(executor, whole, number, left[number])] = number
                    continue
                room += 1
                del left[number]
                yield from events
    finally:
        for future in waiting:
            future.cancel()


def _sent(executor: Executor, parcel: _Parcel, number: int, unit: Unit) -> Future:
    with _in_one_sentence(unit):
        return executor.submit(_in_worker, parcel, number, unit)


def _result(future: Future, unit: Unit) -> list[Event] | None:
    with _in_one_sentence(unit):
        return future.result()


@contextmanager
def _in_one_sentence(unit: Unit) -> Iterator[None]:
    """What the executor itself raises, as one of our errors; our own and the end of a worker pass."""
    try:
        yield
    except (GeomtrajError, BrokenExecutor):
        raise
    except Exception as error:
        raise ComputationError(
            f"the executor failed at step {unit.step} ({type(error).__name__}: {error}): what is finished is stored, "
            "and the same call goes on from there."
        ) from error


SMALL = 16 * 2**20
"""Bytes of a model that are read so fast that each statistic at an iterate may be a unit of its own."""


def split(units: list[Unit], problem: Problem) -> list[Unit]:
    """Units of one statistic each, the loss together with another, where reading an iterate is cheap."""
    if sum(t.numel() * t.element_size() for t in (*problem.model.parameters(), *problem.model.buffers())) > SMALL:
        return units
    parts: list[Unit] = []
    for unit in units:
        others = [name for name in unit.missing if name != "loss"]
        loss = tuple(name for name in unit.missing if name == "loss")
        parts.append(Unit(unit.step, (*loss, *others[:1]), unit.claimed, unit.first))
        parts += [Unit(unit.step, (name,), {}, unit.first) for name in others[1:]]
    return parts
