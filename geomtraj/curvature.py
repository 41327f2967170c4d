"""Eigenpairs, spectral density and trace of a Problem's Hessian, or of any symmetric operator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from geomtraj import linalg
from geomtraj.errors import InputError
from geomtraj.isolation import in_plain_torch
from geomtraj.operators import Hessian
from geomtraj.operators.base import SymmetricOperator
from geomtraj.operators.guard import with_remark
from geomtraj.problem import Problem

P = ParamSpec("P")
R = TypeVar("R")

_NOTE = """

    In the place of H a `Problem` may be passed, whose Hessian at `theta` (P,) is meant; at its current parameters if
    theta is left out.
"""


def of_problem_or_operator(function: Callable[P, R]) -> Callable[P, R]:
    """An algorithm on operators that takes a Problem, too, and changes nothing by what is set around the call."""

    @functools.wraps(function)
    @in_plain_torch
    def call(H: Any, *args: Any, theta: Tensor | None = None, **kwargs: Any) -> Any:
        if isinstance(H, Problem):
            found: Any = function(Hessian(H, theta), *args, **kwargs)  # type: ignore[arg-type]
            return replace(found, status=with_remark(H, found.status))
        if not isinstance(H, SymmetricOperator):
            raise InputError(
                f"{function.__name__} needs a Problem or an operator such as gt.Hessian(problem), not "
                f"{type(H).__name__}; gt.MatrixOperator(A) wraps a matrix."
            )
        if theta is not None:
            raise InputError("theta cannot be given together with an operator, which has its own: pass the Problem.")
        found = function(H, *args, **kwargs)  # type: ignore[arg-type]
        problem = getattr(H, "problem", None)
        return found if problem is None else replace(found, status=with_remark(problem, found.status))

    call.__module__ = __name__  # where it is found again when it is unpickled
    signature = inspect.signature(function)
    extra = inspect.Parameter("theta", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="Tensor | None")
    call.__signature__ = signature.replace(parameters=[*signature.parameters.values(), extra])  # type: ignore[attr-defined]
    head, _, rest = (function.__doc__ or "").partition("\n")
    call.__doc__ = head + _NOTE.rstrip() + "\n" + rest
    return call  # type: ignore[return-value]


eigsh = of_problem_or_operator(linalg.eigsh)
spectral_density = of_problem_or_operator(linalg.spectral_density)
spectrum = of_problem_or_operator(linalg.spectrum)
trace = of_problem_or_operator(linalg.trace)
