"""What a statistic is: settings, a measurement at one point, and the numbers that can be drawn and compared."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, get_args, get_type_hints

from torch import Tensor

from geomtraj.errors import InputError, unknown_name
from geomtraj.operators import Hessian
from geomtraj.problem import Problem


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number with its 95 % interval; NaN where the interval is not known, value = low = high where it is exact."""

    value: float
    low: float = math.nan
    high: float = math.nan

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
        matvecs: Hessian-vector products spent.
    """

    quantities: dict[str, Quantity]
    details: dict[str, Any] = field(default_factory=dict)
    status: str = "ok"
    matvecs: int = 0


class Point:
    """A problem at one theta, with what several statistics share computed once.

    Args:
        problem: The loss.
        theta: Where to measure, shape (P,); the current parameters if left out.
    """

    def __init__(self, problem: Problem, theta: Tensor | None = None):
        self.problem = problem
        self.theta = problem.checked(theta)

    @cached_property
    def loss(self) -> float:
        """L(theta)."""
        return float(self.problem.loss(self.theta))

    @cached_property
    def hessian(self) -> Hessian:
        """The Hessian at theta, shared by all statistics.

        Always made in the same way: one chosen by timing would round differently from run to run, and a repeated
        measurement would not give the same bits.
        """
        return Hessian(self.problem, self.theta, WAY)


WAY = "kept"
"""The way of Hessian products in statistics."""


@dataclass(frozen=True)
class Statistic(ABC):
    """A statistic of the local geometry; its dataclass fields are its settings, which name a stored result.

    Where there is a public function of the same name, settings have its names and defaults.

    A new one is a frozen dataclass in a file of its own, and a line in `geomtraj/statistics/__init__.py`.
    """

    name: ClassVar[str]
    title: ClassVar[str]

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
