"""Measures the iterates of a trajectory, storing each result as soon as it is there."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.measuring.content import Seen
from geomtraj.measuring.folder import PACK_FROM, counted, key, pack, write_measurement
from geomtraj.measuring.history import check_needs
from geomtraj.measuring.lookup import Lookup, look_up, loss_holds, other_iterates
from geomtraj.measuring.progress import Bar, Pace, in_words, widths
from geomtraj.measuring.record import Measurement
from geomtraj.measuring.results import Results
from geomtraj.measuring.sending import check_logger, send
from geomtraj.measuring.summary import Summary, read_summary, write_summary
from geomtraj.measuring.unit import Job, Read, Unit, at_iterate
from geomtraj.measuring.workers import executor_of, in_executor, split
from geomtraj.problem import Problem
from geomtraj.statistics import Loss, Statistic, resolve
from geomtraj.trajectory import Trajectory
from geomtraj.updates import FACTORIES

DEFAULT_STATISTICS = ("r_med", "spectrum")

_LOG = logging.getLogger("geomtraj")


def measure(
    trajectory: Trajectory | str | Path,
    problem: Problem,
    statistics: Iterable[str | Statistic] = DEFAULT_STATISTICS,
    executor: Executor | None = None,
    resume: bool = True,
    *,
    progress: bool = True,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    max_seconds: float | None = None,
    out: str | Path | None = None,
    retry: bool = False,
    logger: Any = None,
) -> Results:
    """Statistics of the local geometry at every iterate, stored in the trajectory's folder one by one.

    What is stored already is not measured again, so a measurement that was stopped goes on where it was. A stored
    result is believed if its checksum holds and it is of the same problem, statistic and settings and of the very
    parameters and buffers that are recorded now; one forward pass must give its stored loss. Others are measured anew
    and counted in a sentence, which is logged and stands in `Results.remarks`. The loss is always measured, since
    pairing at equal loss needs it.

    An iterate that is damaged, one where the loss is not finite, and one where a statistic raises an error give results
    with a reason in place of numbers, and the others go on. Such a failure is tried again when `retry` is set, when the
    statistic's code or the version of geomtraj or torch is another, or when memory had run out. What a statistic
    refuses (`InputError`) at the first iterate that is measured is raised.

    Where several processes share the problem's batches, each makes this call, and the first of them reads and writes.

    Args:
        trajectory: The recorded trajectory, or its folder.
        problem: The loss to measure; its model is of the recorded kind and is left as it was.
        statistics: Names ("loss", "r_med", "spectrum", "trace") or `Statistic` objects with settings of their own.
        executor: A `concurrent.futures.Executor`, or a Dask Client, that measures iterates side by side; this process
            if left out. The problem is sent to each of its workers once. Threads take turns.
        resume: False measures again what is stored.
        progress: Whether to show on stderr a progress bar and, after the first iterate, what the whole will cost.
        settings: Statistic -> {setting: value}, such as {"r_med": {"samples": 8}}.
        max_seconds: After so many seconds nothing begins any more; what is done is stored, and what is left is said.
        out: Folder for the results, where the trajectory's own is not to be written; pass it to `Results.load`.
        retry: Whether to measure again where a statistic raised an error.
        logger: An object with `log(numbers, step=step)`, such as a run of wandb or trackio, that is handed all results
            at the end, in the order of steps.

    Returns:
        The results of all iterates, those found and those made.

    Raises:
        InputError: An unknown statistic or setting, or arguments of the wrong kind.
        NotRecorded: A statistic needs what the trajectory does not hold; nothing has been measured then.
        TrajectoryError: The model is not of the recorded kind, or the disk is full; what was stored stays.
        ComputationError: The executor fails; what was stored stays.
    """
    if isinstance(trajectory, (str, Path)):
        trajectory = Trajectory(trajectory)
    if not isinstance(problem, Problem):
        raise InputError(f"measure(trajectory, problem) needs a gt.Problem, not {type(problem).__name__}.")
    check_logger(logger)
    chosen = {s.name: s for s in resolve([Loss(), *resolve(statistics, settings)])}
    check_needs(trajectory, chosen.values())
    folder = trajectory.path if out is None else Path(out)
    run = _Run(trajectory, problem, chosen, folder)
    lookup = run.looked_up(resume, retry)
    pace = Pace(Counter(name for _, name in lookup.missing), max_seconds)
    run.measure(lookup, executor_of(executor), pace, progress)
    run.close(lookup.summary)
    results = Results(folder, trajectory.manifest, run.found, trajectory.log, run.remarks)
    if logger is not None and problem.rank == 0:
        send(results, logger)
    return results


class _Run:
    """One call of `measure`: what it has found and made so far.

    Args:
        trajectory: What is measured.
        problem: The loss.
        statistics: By name.
        folder: Where results are kept.
    """

    def __init__(self, trajectory: Trajectory, problem: Problem, statistics: dict[str, Statistic], folder: Path):
        self.trajectory, self.problem, self.statistics, self.folder = trajectory, problem, statistics, folder
        self.fingerprint = problem.fingerprint()
        self.job = Job(trajectory, problem, statistics, self.fingerprint, folder, dict(FACTORIES))
        self.found: list[Measurement] = []
        self.seen: dict[int, Seen] = {}
        self.remarks: list[str] = []
        self._stale = 0
        self._written = 0

    def by_the_first(self, act: Callable[[], Any]) -> Any:
        """What one process reads or writes; that it could not is an error on all."""
        return self.problem.on_ranks(lambda: act() if self.problem.rank == 0 else None)[0]

    def remark(self, sentence: str) -> None:
        """Tells a sentence now and keeps it for the results."""
        self.remarks.append(sentence)
        if self.problem.rank == 0:
            _LOG.warning(sentence)

    def looked_up(self, resume: bool, retry: bool) -> Lookup:
        """What is stored already and believed, and what is missing."""
        self.by_the_first(self._check_folder)
        lookup: Lookup = self.by_the_first(lambda: look_up(self.folder, self.job, retry))
        if not resume:
            lookup.disbelieve()
            lookup.remarks = []
        stored = [*lookup.found, *lookup.claims.values()]
        if stored and not loss_holds(self.job, stored):
            lookup.remarks.append(
                f"{self.folder}: {counted(range(lookup.disbelieve()), 'stored result')} of another loss than this one, "
                "as one forward pass shows: measured anew."
            )
        if lookup.missing:
            self.by_the_first(self._check_writable)
        for sentence in lookup.remarks:
            self.remark(sentence)
        self.found += lookup.found
        return lookup

    def _check_folder(self) -> None:
        if self.folder == self.trajectory.path:
            self.trajectory.prepare(self.problem.model)
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrajectoryError(
                f"cannot make the folder {self.folder} ({error.strerror}): choose another."
            ) from error
        summary = read_summary(self.folder)
        own = str(self.trajectory.path.resolve())
        if summary is not None and summary.trajectory != own:
            raise InputError(
                f"out={str(self.folder)!r} holds results of {summary.trajectory or 'a run of its own'}, not of {own}: "
                "give each run a folder."
            )

    def _check_writable(self) -> None:
        if not os.access(self.folder, os.W_OK):
            raise TrajectoryError(
                f"cannot write {self.folder}, where results are to be stored: make the folder writable, or pass "
                "out=FOLDER to keep them elsewhere."
            )

    def measure(self, lookup: Lookup, executor: Executor | None, pace: Pace, progress: bool) -> None:
        """Measures what is missing and what turns out to be stale."""
        for m in self.found:
            pace.learn(m)
        units, claims = lookup.units(), lookup.claims
        bar = Bar(
            len(lookup.missing), self.trajectory.path.name, progress and bool(lookup.missing) and self.problem.rank == 0
        )
        pilot = _Pilot(bar, pace, len({u.step for u in units if u.missing}))
        if executor is not None and units:
            stream = in_executor(self.job, split(units, self.problem), executor, pace.over, self.remark)
        else:
            stream = self._here(units, pace, bar)
        with bar, closing(stream):
            for event in stream:
                if isinstance(event, Read):
                    self._read(event, claims, bar, pace)
                else:
                    self._made(event, bar, pace)
                    pilot.take(event)
        self._say_what_is_left(pace, claims)

    def _here(self, units: list[Unit], pace: Pace, bar: Bar) -> Generator[Read | Measurement, None, None]:
        """The units one after the other in this process."""
        for unit in units:
            todo = ["reading", *unit.missing]
            stream = at_iterate(self.job, unit)
            with closing(stream):
                while True:
                    name = todo.pop(0) if todo else ""
                    if self._over(pace, name):
                        return
                    bar.expect(f"step {unit.step}, {name}", pace.expected(name))
                    event = next(stream, None)
                    if event is None:
                        break
                    if isinstance(event, Read):
                        todo += event.stale
                    yield event

    def _over(self, pace: Pace, statistic: str) -> bool:
        if pace.max_seconds is None:
            return False
        return bool(self.by_the_first(lambda: pace.over(statistic)))

    def _read(self, event: Read, claims: dict[tuple[int, str], Measurement], bar: Bar, pace: Pace) -> None:
        if event.seen is not None:
            self.seen[event.step] = event.seen
        for name in [name for step, name in claims if step == event.step]:
            m = claims.pop((event.step, name))
            if name not in event.stale:
                self.found.append(m)
                continue
            self._stale += event.seen is not None
            pace.left[name] = pace.left.get(name, 0) + 1
            bar.more(1)

    def _made(self, m: Measurement, bar: Bar, pace: Pace) -> None:
        if m.iterate:  # nothing is known of an unreadable iterate
            stored = self.by_the_first(lambda: write_measurement(self.folder, m))
            m = m if stored is None else stored
            self._written += 1
            if self._written % PACK_FROM == 0:
                self.by_the_first(lambda: pack(self.folder))
        else:
            m = replace(m, settings=self.statistics[m.statistic].settings())
        self.found.append(m)
        pace.learn(m)
        pace.left[m.statistic] -= 1
        bar.done()

    def _say_what_is_left(self, pace: Pace, claims: Mapping[tuple[int, str], Measurement]) -> None:
        if self._stale:
            self.remark(other_iterates(self.folder, self._stale))
        threads = Counter(m.made["threads"] for m in self.found if "threads" in m.made)
        if len(threads) > 1:
            shares = ", ".join(f"{count} with {number}" for number, count in sorted(threads.items()))
            self.remark(
                f"{self.folder}: results were made with different numbers of threads ({shares}): same to rounding."
            )
        failed = Counter(m.statistic for m in self.found if m.failed)
        for name, count in failed.items():
            self.remark(
                f"{self.folder}: {name} failed at {counted(range(count), 'iterate')}, the results say why; "
                "retry=True measures them again."
            )
        left = sum(pace.left.values()) + len(claims)
        if left:
            about = f" (about {in_words(pace.remaining())})" if pace.remaining() else ""
            self.remark(
                f"{self.folder}: stopped after max_seconds={pace.max_seconds:g} with {counted(range(left), 'result')} "
                f"left{about}: the same call goes on from there."
            )

    def close(self, earlier: Summary | None) -> None:
        """Stores which results belong together."""
        keys = {name: key(name, s.settings(), self.fingerprint) for name, s in self.statistics.items()}
        elsewhere = self.folder != self.trajectory.path
        summary = Summary(
            self.fingerprint,
            keys,
            self.seen,
            str(self.trajectory.path.resolve()) if elsewhere else "",
            self.trajectory.manifest if elsewhere else {},
        )
        hidden = sorted(earlier.keys) if earlier is not None and earlier.problem != self.fingerprint else []
        if hidden:
            self.remark(
                f"{self.folder}: {', '.join(hidden)} were measured before on another problem; Results.load gives the "
                "results of this one from now on."
            )
        self.by_the_first(lambda: self._write(summary))

    def _write(self, summary: Summary) -> None:
        if self._written:
            pack(self.folder)
        try:
            write_summary(self.folder, summary.after(read_summary_if_whole(self.folder)))
        except TrajectoryError:
            if self._written:  # a run that is not to be written and where everything was there already
                raise


def read_summary_if_whole(folder: Path) -> Summary | None:
    """The summary in a folder, None if there is none or it is damaged."""
    try:
        return read_summary(folder)
    except TrajectoryError:
        return None


class _Pilot:
    """Says after the first iterate what the whole will cost."""

    def __init__(self, bar: Bar, pace: Pace, iterates: int):
        self._bar, self._pace, self._iterates = bar, pace, iterates
        self._made: list[Measurement] = []
        self._told = iterates < 2

    def take(self, m: Measurement) -> None:
        """A result is there."""
        if self._told:
            return
        self._made.append(m)
        if all(self._pace.expected(name) is not None for name, count in self._pace.left.items() if count):
            self._told = True
            told = [f"{self._iterates} iterates, about {in_words(self._pace.remaining())}", *widths(self._made)]
            self._bar.say("; ".join(told))
