"""Which stored results are to be believed, and what is left to do at each iterate."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from geomtraj.errors import TrajectoryError
from geomtraj.isolation import one_at_a_time, preserved_state
from geomtraj.measuring.code import code_of, failure_code
from geomtraj.measuring.content import content_of, still
from geomtraj.measuring.folder import Stored, counted, key, read_stored
from geomtraj.measuring.record import Measurement, NewerFormat
from geomtraj.measuring.summary import Summary, keys_of_format_1, read_summary
from geomtraj.measuring.unit import Job, Unit
from geomtraj.trajectory.store import DamagedFile

LOSS_TOLERANCE = 1e-4
"""Relative difference up to which a stored loss and one computed now are the same."""


@dataclass
class Lookup:
    """What is there already and what is left to do.

    Attributes:
        found: Results whose iterate is known to be the one they were measured at.
        claims: (step, statistic) -> result that is believed once its iterate turns out to be the one it names.
        missing: (step, statistic) -> to be measured.
        remarks: Sentences about results that were passed over.
        summary: What was known of the folder before.
    """

    found: list[Measurement] = field(default_factory=list)
    claims: dict[tuple[int, str], Measurement] = field(default_factory=dict)
    missing: list[tuple[int, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    summary: Summary | None = None

    def units(self) -> list[Unit]:
        """What is to be done, by iterate; those where nothing but the iterate is to be checked come first."""
        known = {m.statistic for m in self.found} | {name for _, name in self.claims}
        steps: dict[int, tuple[list[str], dict[str, str]]] = {}
        for step, name in self.missing:
            steps.setdefault(step, ([], {}))[0].append(name)
        for (step, name), m in self.claims.items():
            steps.setdefault(step, ([], {}))[1][name] = m.iterate
        units = []
        for step, (missing, claimed) in sorted(steps.items(), key=lambda item: (bool(item[1][0]), item[0])):
            units.append(Unit(step, tuple(missing), claimed, first=any(name not in known for name in missing)))
            known |= set(missing)
        return units

    def disbelieve(self) -> int:
        """Everything that was found is to be measured again; returns how many results that are."""
        stale = [*self.claims, *((m.step, m.statistic) for m in self.found)]
        self.missing = sorted({*self.missing, *stale})
        self.claims, self.found = {}, []
        return len(stale)


def look_up(folder: Path, job: Job, again: bool) -> Lookup:
    """What a folder holds for the iterates, statistics, settings and problem of a job.

    Args:
        folder: Where results are kept.
        job: What is measured.
        again: Whether results that are failures are measured again.

    Raises:
        TrajectoryError: A file is of a newer format.
    """
    lookup = Lookup()
    try:
        lookup.summary = read_summary(folder)
    except NewerFormat:
        raise
    except TrajectoryError as error:
        lookup.remarks.append(f"{error}")
    keys = {name: key(name, s.settings(), job.fingerprint) for name, s in job.statistics.items()}
    stored = read_stored(folder, keys.values())
    seen = lookup.summary.iterates if lookup.summary else {}
    told: Counter[str] = Counter()
    for step in job.trajectory.steps:
        content = still(seen, job.trajectory, step)
        for name in job.statistics:
            m = stored.results.get((step, keys[name]))
            why = "" if m is None else _doubt(m, job, content, again)
            if m is None or why:
                lookup.missing.append((step, name))
                told[why] += 1
            elif content is None:
                lookup.claims[step, name] = m
            else:
                lookup.found.append(m)
    lookup.remarks += stored.remarks(folder) + _said(folder, stored, told)
    return lookup


_OTHER_ITERATE = "of other iterates than those recorded now"


def _doubt(m: Measurement, job: Job, content: str | None, again: bool) -> str:
    """Why a stored result is not believed; empty if it is."""
    statistic = job.statistics[m.statistic]
    failure = m.made.get("failure")
    if failure is not None and (again or failure["again"] or failure["code"] != failure_code(statistic)):
        return "failures"
    if m.made.get("code", "") != code_of(statistic):
        return "of a statistic whose code has changed"
    if m.matvecs and job.problem.check and not m.made.get("checked", True):
        return "of derivatives that were not checked (check=False)"
    return _OTHER_ITERATE if content is not None and content != m.iterate else ""


def _said(folder: Path, stored: Stored, told: Counter[str]) -> list[str]:
    told = Counter({why: n for why, n in told.items() if why})
    said = [f"{folder}: {counted(range(n), 'stored result')} {why}: measured anew." for why, n in told.items()]
    old = len(stored.first_format)
    with suppress(TrajectoryError):
        old = max(old, len(read_stored(folder, keys_of_format_1(folder)).first_format))
    if old:
        said.append(
            f"{folder}: {counted(range(old), 'result')} of format 1, which does not say at which iterate it was "
            "measured: measured anew where asked for."
        )
    return said


def other_iterates(folder: Path, count: int) -> str:
    """The sentence about stored results of iterates that are others now."""
    return f"{folder}: {counted(range(count), 'stored result')} {_OTHER_ITERATE}: measured anew."


CHECKED = 9
"""Iterates at which a stored loss is compared: a changed loss may show only where some of its terms are at work."""


def loss_holds(job: Job, stored: list[Measurement]) -> bool:
    """Whether one forward pass at a stored iterate gives its stored loss; True where none can be compared."""
    finite = [m for m in stored if m.statistic == "loss" and "loss" in m.quantities]
    last = len(finite) - 1
    places = sorted({round(k * last / (CHECKED - 1)) for k in range(CHECKED)}) if finite else []
    for m in (finite[place] for place in places):
        with one_at_a_time():
            try:
                iterate = job.trajectory.at_step(m.step)
            except DamagedFile:
                continue
            if content_of(iterate) != m.iterate:
                continue
            with preserved_state(job.problem.model):
                job.trajectory.put_into(job.problem.model, iterate)
                if not same_loss(m.quantities["loss"].value, float(job.problem.loss())):
                    return False
    return True


def same_loss(stored: float, now: float) -> bool:
    """Whether two losses are the same to rounding on whatever device and with however many threads."""
    return math.isclose(stored, now, rel_tol=LOSS_TOLERANCE, abs_tol=1e-6) or (math.isnan(stored) and math.isnan(now))
