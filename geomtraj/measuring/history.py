"""What a point knows of the trajectory that it stands on, and what statistics need of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from geomtraj.errors import InputError, NotRecorded, TrajectoryError
from geomtraj.isolation import preserved_state
from geomtraj.measuring.content import content_of
from geomtraj.measuring.folder import key, read_one
from geomtraj.measuring.record import Measurement
from geomtraj.problem import Problem
from geomtraj.statistics import Point, Statistic
from geomtraj.trajectory import Iterate, Trajectory
from geomtraj.updates import FACTORIES, GroupState, group_states, next_update, planned


class Job(Protocol):
    """What a place takes of a call of `measure`."""

    trajectory: Trajectory
    fingerprint: str
    folder: Path | None
    factories: dict[str, Any]
    cache: dict[Any, Any]


class Place:
    """An iterate on its trajectory: a point's `History`.

    Args:
        job: What is measured.
        iterate: The iterate.
        content: Checksum of what it holds.

    Attributes:
        iterate: The iterate.
    """

    def __init__(self, job: Job, iterate: Iterate, content: str):
        self._job, self.iterate, self.content = job, iterate, content

    @property
    def cache(self) -> dict[Any, Any]:
        """What all points of one call of `measure` share in one process."""
        return self._job.cache

    @property
    def trajectory(self) -> Trajectory:
        """All iterates that were recorded, whichever of them are measured."""
        if "whole" not in self.cache:
            self.cache["whole"] = _whole(self._job.trajectory)
        return self.cache["whole"]

    @cached_property
    def before(self) -> Iterate | None:
        """The recorded iterate before it, None at the first one."""
        return self._neighbour(-1)

    @cached_property
    def after(self) -> Iterate | None:
        """The recorded iterate after it, None at the last one."""
        return self._neighbour(1)

    def _neighbour(self, offset: int) -> Iterate | None:
        place = self.trajectory.steps.index(self.iterate.step) + offset
        return self.trajectory[place] if 0 <= place < len(self.trajectory) else None

    @cached_property
    def groups(self) -> list[GroupState]:
        """The optimizers' parameter groups with their settings and states."""
        return group_states(self.iterate)

    def next_update(self, problem: Problem, batches: list[Any] | None) -> Tensor:
        """The optimizer's own next step, shape (P,)."""
        for name, factory in self._job.factories.items():  # those of the process that called measure
            FACTORIES.setdefault(name, factory)
        return next_update(problem, self.iterate, None, batches)

    def found_before(self, statistic: Statistic) -> Measurement | None:
        """The stored result of the same statistic at the very iterate before; None where there is none."""
        if self.before is None or self._job.folder is None:
            return None
        found = read_one(
            self._job.folder, self.before.step, key(statistic.name, statistic.settings(), self._job.fingerprint)
        )
        return found if found is not None and found.iterate == content_of(self.before) else None

    @contextmanager
    def standing_before(self, problem: Problem) -> Iterator[Point]:
        """The problem's model holds the iterate before inside the block."""
        if self.before is None:
            raise InputError(f"there is no iterate before that of step {self.iterate.step}.")
        with preserved_state(problem.model):
            self._job.trajectory.put_into(problem.model, self.before)
            yield Point(problem, history=Place(self._job, self.before, content_of(self.before)))


def _whole(trajectory: Trajectory) -> Trajectory:
    """All iterates that were recorded, so that no number depends on which of them are measured."""
    return getattr(trajectory, "whole", trajectory)


NEEDS = ("optimizer", "before", "trajectory")


def check_needs(trajectory: Trajectory, statistics: Iterable[Statistic]) -> None:
    """Refuses a trajectory that does not hold what a statistic needs.

    Raises:
        NotRecorded: It does not; the message names the statistic and what is missing.
        InputError: A statistic names a need that there is not.
    """
    for statistic in statistics:
        needs = (statistic.needs,) if isinstance(statistic.needs, str) else statistic.needs
        for need in needs:
            if need not in NEEDS:
                raise InputError(f"{statistic.name} needs {need!r}: there are {', '.join(NEEDS)}.")
        if "before" in needs and len(_whole(trajectory)) < 2:
            raise NotRecorded(
                f"{statistic.name} needs two iterates, and {trajectory.path} holds one: record more of the run."
            )
        if "optimizer" in needs:
            _check_optimizer(trajectory, statistic.name)


def _check_optimizer(trajectory: Trajectory, name: str) -> None:
    for step in trajectory.steps:
        with suppress(TrajectoryError):
            iterate = trajectory.at_step(step)
            break
    else:
        return  # each is named where it is read
    try:
        planned(iterate)
    except NotRecorded as error:
        raise NotRecorded(f"{name} cannot be measured along {trajectory.path}: {error}") from error
