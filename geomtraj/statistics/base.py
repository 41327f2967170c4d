"""What a statistic is: settings, a measurement at one point, and the numbers that can be drawn and compared."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from geomtraj.errors import InputError, unknown_name
from geomtraj.operators import Hessian
from geomtraj.problem import Problem


@dataclass(frozen=True)
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
        status: "ok", or the reason why a number is missing or doubtful.
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

    @classmethod
    def with_settings(cls, settings: dict[str, Any]) -> Statistic:
        """The statistic with these settings, the others at their defaults.

        Raises:
            InputError: There is no such setting, or a value is of another type.
        """
        known = {f.name: f for f in fields(cls)}
        for key, value in settings.items():
            if key not in known:
                raise unknown_name(f"setting of {cls.name}", key, known)
            default = known[key].default
            right_type = isinstance(value, type(default)) and not (
                isinstance(value, bool) and not isinstance(default, bool)
            )
            if not right_type and not (isinstance(default, float) and isinstance(value, int)):
                raise InputError(
                    f"setting {cls.name}.{key} is {value!r}: it must be a {type(default).__name__}, like {default!r}."
                )
        return cls(**settings)
