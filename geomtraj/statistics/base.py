"""What a statistic is: settings, a measurement at one point, and the numbers that can be drawn and compared."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_type_hints

import numpy as np
from torch import Tensor

from geomtraj.diagonals import Diagonal, diagonal
from geomtraj.errors import InputError, unknown_name
from geomtraj.inference import Interval
from geomtraj.linalg import Eigenpairs, eigsh
from geomtraj.operators import Hessian
from geomtraj.problem import Problem
from geomtraj.sampling import minibatches
from geomtraj.status import Code, Remark, Status

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Quantity(Interval):
    """One number with its 95 % interval; NaN where the interval is not known, value = low = high where it is exact."""

    @classmethod
    def exact(cls, value: float) -> Quantity:
        """A number without error."""
        return cls(value, value, value)

    @classmethod
    def with_sem(cls, value: float, sem: float) -> Quantity:
        """The normal interval: 1.96 standard errors to each side."""
        return cls(value, value - 1.96 * sem, value + 1.96 * sem)


@dataclass(frozen=True)
class Outcome:
    """What a statistic found at one point.

    Attributes:
        quantities: Label (block name, or the statistic's own name) -> number with interval.
        details: Whatever else is worth keeping, in JSON's types.
        status: "ok", or the reason why a number is missing or doubtful: a `Status`, whose remarks name the quantities
            that they are about, or a sentence about all of them.
        matvecs: Hessian-vector products spent; none for what another statistic at the point had measured already.
        arrays: Numbers in bulk (eigenvectors, densities) by name, which are stored beside the record.
    """

    quantities: dict[str, Quantity]
    details: dict[str, Any] = field(default_factory=dict)
    status: str = "ok"
    matvecs: int = 0
    arrays: dict[str, np.ndarray] = field(default_factory=dict, compare=False)


def without(reason: str, code: Code = Code.LEFT_OUT, details: dict[str, Any] | None = None) -> Outcome:
    """An outcome without numbers, and the reason why."""
    return Outcome({}, details or {}, Status([Remark(code, reason)]))


class History(Protocol):
    """Where a point stands on a trajectory, as measuring makes it."""

    @property
    def iterate(self) -> Any:
        """The `Iterate` of this point."""

    @property
    def before(self) -> Any:
        """The recorded iterate before it, None at the first one."""

    @property
    def after(self) -> Any:
        """The recorded iterate after it, None at the last one."""

    @property
    def trajectory(self) -> Any:
        """The `Trajectory`."""

    @property
    def cache(self) -> dict[Any, Any]:
        """What all points of one call of `measure` share in one process."""

    @property
    def groups(self) -> list[Any]:
        """The optimizers' parameter groups: `kind`, `names`, `settings` and `state` by parameter."""

    def next_update(self, problem: Problem, batches: list[Any] | None) -> Tensor:
        """The optimizer's own next step, shape (P,)."""

    def found_before(self, statistic: Statistic) -> Any:
        """The stored `Measurement` of the same statistic at the iterate before; None where there is none."""

    def standing_before(self, problem: Problem) -> AbstractContextManager[Point]:
        """The problem's model holds the iterate before inside the block."""


class Point:
    """A problem at one theta, with what several statistics share computed once.

    What is shared depends on its arguments alone, so that a number is the same whatever else is measured.

    Args:
        problem: The loss.
        theta: Where to measure, shape (P,); the current parameters if left out.
        history: Where it stands on a trajectory; None for a point of its own.
    """

    def __init__(self, problem: Problem, theta: Tensor | None = None, history: History | None = None):
        self.problem = problem
        self.theta = problem.checked(theta)
        self._history = history
        self._shared: dict[tuple[Any, ...], Any] = {}

    @property
    def history(self) -> History:
        """Where it stands on a trajectory.

        Raises:
            InputError: It stands on none.
        """
        if self._history is None:
            raise InputError(
                "this point is not one of a trajectory, so it has no iterate, no neighbours and no optimizer: measure "
                "with gt.measure(trajectory, problem, ...)."
            )
        return self._history

    @property
    def iterate(self) -> Any:
        """The iterate: step, optimizer state, logged values, learning rate; errors as for `history`."""
        return self.history.iterate

    @property
    def before(self) -> Any:
        """The recorded iterate before this one, read when it is asked for; None at the first."""
        return self.history.before

    @property
    def after(self) -> Any:
        """The recorded iterate after this one, read when it is asked for; None at the last."""
        return self.history.after

    def vector(self, iterate: Any) -> Tensor:
        """An iterate's values of the problem's parameters, shape (P,), on the problem's device."""
        flat = self.problem.layout.flatten(iterate.parameters)
        return flat.to(self.problem.device, self.problem.dtype)

    def next_update(self, batch: Any = None) -> Tensor:
        """The optimizer's own next step theta_next - theta, shape (P,); see `gt.next_update`.

        Args:
            batch: What the gradient is taken on; the problem's batches if left out.
        """
        if batch is not None:
            return self.history.next_update(self.problem, [batch])
        return self.shared("next_update", lambda: self.history.next_update(self.problem, None))

    def minibatches(self, size: int, count: int, seed: int) -> list[Any]:
        """Batches of `size` distinct examples of the problem, drawn independently of each other.

        Raises:
            InputError: There are not so many examples, or the batches cannot be taken apart.
        """
        return minibatches(self.problem, size, count, seed)

    def has(self, name: str, *arguments: Any) -> bool:
        """Whether something shared is there already: what it cost was told by another statistic then."""
        return (name, *arguments) in self._shared

    def shared(self, name: str, make: Callable[[], T], *arguments: Any) -> T:
        """What `make` gives, kept at this point under a name and the arguments that it depends on."""
        key = (name, *arguments)
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    @cached_property
    def loss(self) -> float:
        """L(theta)."""
        return float(self.problem.loss(self.theta))

    @cached_property
    def gradient(self) -> Tensor:
        """The gradient of L, shape (P,)."""
        return self.problem.gradient(self.theta)

    @cached_property
    def hessian(self) -> Hessian:
        """The Hessian at theta, shared by all statistics.

        Always made in the same way: one chosen by timing would round differently from run to run, and a repeated
        measurement would not give the same bits.
        """
        return Hessian(self.problem, self.theta, STRATEGY)

    def eigenpairs(self, k: int, which: str = "LA", *, tol: float = 1e-4, seed: int = 0) -> Eigenpairs:
        """Extreme eigenpairs of the Hessian, as by `gt.eigsh`."""
        return self.shared("eigenpairs", lambda: eigsh(self.hessian, k, which, tol, seed), k, which, tol, seed)

    def diagonal(self, method: str = "auto", samples: int = 64, seed: int = 0) -> Diagonal:
        """The diagonal of the Hessian, as by `gt.diagonal`."""
        make = functools.partial(diagonal, self.problem, method, samples, seed, self.theta)
        return self.shared("diagonal", make, method, samples, seed)


STRATEGY = "double-backward"
"""Of Hessian products in statistics: always the same, so that a repeated measurement gives the same bits."""


@dataclass(frozen=True)
class Statistic(ABC):
    """A statistic of the local geometry; its dataclass fields are its settings, which name a stored result.

    Where there is a public function of the same name, settings have its names and defaults.

    A new one is a frozen dataclass in a file of its own, and a line in `geomtraj/statistics/__init__.py`.

    Attributes:
        name: What it is asked for by.
        title: What it is, in words.
        needs: What a trajectory must hold for it: "optimizer" (the optimizer's state and all parameters), "before"
            (two iterates at least), "trajectory". A trajectory that does not is refused before anything is measured.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def measure(self, point: Point) -> Outcome:
        """The statistic at one point."""

    def settings(self) -> dict[str, Any]:
        """The settings by name, in JSON's types."""
        return asdict(self)

    def changed(self, settings: Mapping[str, Any]) -> Statistic:
        """The statistic with these settings, the others as they are.

        Raises:
            InputError: There is no such setting, or a value is of another type.
        """
        known = self._kinds()
        for key, value in settings.items():
            if key not in known:
                raise unknown_name(f"setting of {self.name}", key, known)
            if not _fits(value, known[key]):
                names = " or ".join(_kind_name(kind) for kind in get_args(known[key]) or (known[key],))
                raise InputError(
                    f"setting {self.name}.{key} is {value!r}: it must be a {names}, like {getattr(self, key)!r}."
                )
        return replace(self, **settings)

    def _kinds(self) -> dict[str, Any]:
        """Setting -> its type, that of its value where the annotation cannot be resolved."""
        try:
            kinds = get_type_hints(type(self))
        except NameError:
            kinds = {}
        return {f.name: kinds.get(f.name, type(getattr(self, f.name))) for f in fields(self)}

    @classmethod
    def with_settings(cls, settings: Mapping[str, Any]) -> Statistic:
        """The statistic with these settings, the others at their defaults; errors as for `changed`."""
        return cls().changed(settings)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a setting's type; a whole number may stand for a fraction, a bool for nothing else."""
    return any(
        type(value) is one or (one is float and type(value) is int) or (one not in (bool, int) and _is(value, one))
        for one in get_args(kind) or (kind,)
    )


def _is(value: Any, kind: Any) -> bool:
    return not isinstance(kind, type) or isinstance(value, kind)


def _kind_name(kind: Any) -> str:
    return "None" if kind is type(None) else getattr(kind, "__name__", str(kind))
