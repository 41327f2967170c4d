"""Which steps to record: a schedule is any function step -> bool; these four can be pickled and printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from geomtraj.errors import InputError

Schedule = Callable[[int], bool]


@dataclass(frozen=True)
class Every:
    """True at the multiples of n, 0 among them."""

    n: int

    def __call__(self, step: int) -> bool:
        """Whether to record this step."""
        return step % self.n == 0

    def __repr__(self) -> str:
        return f"every({self.n})"


@dataclass(frozen=True)
class At:
    """True at the listed steps."""

    steps: tuple[int, ...]

    def __call__(self, step: int) -> bool:
        """Whether to record this step."""
        return step in self.steps

    def __repr__(self) -> str:
        return f"at({list(self.steps)})"


@dataclass(frozen=True)
class LogSpaced:
    """True at 0 and at n steps whose logarithms are evenly spaced from step 1 to step `total`."""

    n: int
    total: int

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """The steps in order, 0 first; rounding to whole steps keeps n of them where `total` allows it."""
        if self.n == 1:
            return (0, self.total)
        chosen: set[int] = set()
        points = self.n
        while len(chosen) < min(self.n, self.total):
            chosen = {round(self.total ** (i / (points - 1))) for i in range(points)}
            points += 1
        return (0, *sorted(chosen))

    def __call__(self, step: int) -> bool:
        """Whether to record this step."""
        return step in self.steps

    def __repr__(self) -> str:
        return f"log_spaced({self.n}, {self.total})"


@dataclass(frozen=True)
class Either:
    """True where any of the schedules is."""

    schedules: tuple[Schedule, ...]

    def __call__(self, step: int) -> bool:
        """Whether to record this step."""
        return any(schedule(step) for schedule in self.schedules)

    def __repr__(self) -> str:
        return f"either({', '.join(map(repr, self.schedules))})"


def every(n: int) -> Every:
    """The schedule of every n-th step, from step 0.

    Raises:
        InputError: n is no whole number of at least 1.
    """
    return Every(_whole("every(n)", "n", n, least=1))


def at(steps: Iterable[int]) -> At:
    """The schedule of these steps.

    Raises:
        InputError: There are none, or one is no whole number of at least 0.
    """
    if isinstance(steps, (str, bytes)) or not isinstance(steps, Iterable):
        raise InputError(f"at(steps) takes a list of steps, not {steps!r}: write at([0, 10, 100]).")
    chosen = tuple(sorted({_whole("at(steps)", "each step", step, least=0) for step in steps}))
    if not chosen:
        raise InputError("at([]) would record nothing: list at least one step.")
    return At(chosen)


def log_spaced(n: int, total: int) -> LogSpaced:
    """The schedule of step 0 and about n steps log spaced from 1 to `total`.

    Raises:
        InputError: n or total is no whole number of at least 1.
    """
    return LogSpaced(
        _whole("log_spaced(n, total)", "n", n, least=1),
        _whole("log_spaced(n, total)", "total", total, least=1),
    )


def either(*schedules: Schedule) -> Either:
    """The schedule that records wherever one of these does.

    Raises:
        InputError: There are none, or one of them cannot be called.
    """
    if not schedules:
        raise InputError("either() would record nothing: pass at least one schedule.")
    return Either(tuple(check_schedule(schedule) for schedule in schedules))


def check_schedule(schedule: object) -> Schedule:
    """The schedule itself, if it can be called.

    Raises:
        InputError: It cannot.
    """
    if not callable(schedule):
        raise InputError(
            f"a schedule is a function step -> bool, not {schedule!r}: write every(100) or at([0, 10, 100])."
        )
    return schedule


def _whole(function: str, argument: str, value: object, least: int) -> int:
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, bool) or number != value or number < least:
        raise InputError(f"{function}: {argument} must be a whole number of at least {least}, not {value!r}.")
    return number
