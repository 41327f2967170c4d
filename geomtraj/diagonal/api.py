"""The diagonal by name of the method."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from geomtraj.diagonal.base import Diagonal
from geomtraj.diagonal.exact import exact
from geomtraj.diagonal.hutchinson import hutchinson
from geomtraj.diagonal.xdiag import xdiag
from geomtraj.errors import InputError, unknown_name
from geomtraj.linalg.chunks import at_least
from geomtraj.operators.base import SymmetricOperator
from geomtraj.operators.hessian import Hessian
from geomtraj.problem import Problem

EXACT_UP_TO = 4
"""\"auto\" is exact where P is at most this many times `samples`."""

FROM_OPERATOR: dict[str, Callable[[SymmetricOperator, int, int, float], Diagonal]] = {
    "exact": lambda operator, samples, seed, max_seconds: exact(operator, max_seconds=max_seconds),
    "hutchinson": lambda operator, samples, seed, max_seconds: hutchinson(operator, samples, seed),
    "xdiag": lambda operator, samples, seed, max_seconds: xdiag(operator, samples, seed),
}
"""Methods that need only products."""

FROM_PROBLEM: dict[str, Callable[[Problem, Tensor | None, int, int], Diagonal]] = {}
"""Methods that look into the model and its batches."""

LATER = ("probing",)
"""Methods of `FROM_PROBLEM` that a later version brings."""


def diagonal(
    problem: Problem | SymmetricOperator,
    method: str = "auto",
    samples: int = 64,
    seed: int = 0,
    theta: Tensor | None = None,
    *,
    max_seconds: float = 3600.0,
) -> Diagonal:
    """The diagonal of the loss Hessian, or of any symmetric operator, with a standard error for each entry.

    Args:
        problem: A `Problem`, whose Hessian is meant, or an operator.
        method: "exact" takes P products; "hutchinson" and "xdiag" take `samples`; "auto" is exact where P is at most
            4 `samples`, else XDiag, whose error was the smaller one wherever the spectrum has outliers.
        samples: Products of the randomised methods.
        seed: Seed of the randomised methods.
        theta: Where to measure (P,); the problem's current parameters if left out.
        max_seconds: The longest time that "exact" may take.

    Raises:
        InputError: Neither a Problem nor an operator, an unknown method, theta together with an operator, a method that
            needs a Problem with an operator, or too few samples.
        ComputationError: The exact diagonal would take longer than `max_seconds`.
    """
    samples = at_least("samples", samples, 1)
    if not isinstance(problem, (Problem, SymmetricOperator)):
        raise InputError(f"the diagonal of a {type(problem).__name__} is unknown: pass a Problem or an operator.")
    if method in (*FROM_PROBLEM, *LATER):
        if isinstance(problem, SymmetricOperator):
            raise InputError(
                f"method {method!r} looks into the model and needs a Problem, not an operator: "
                "take 'xdiag', 'hutchinson' or 'exact'."
            )
        if method in LATER:
            raise InputError(f"method {method!r} is not in this version: take 'xdiag', 'hutchinson' or 'exact'.")
    elif method not in ("auto", *FROM_OPERATOR):
        raise unknown_name("diagonal method", method, ["auto", *FROM_OPERATOR, *FROM_PROBLEM])
    if isinstance(problem, SymmetricOperator):
        if theta is not None:
            raise InputError("theta cannot be given together with an operator, which has its own: pass the Problem.")
        operator = problem
    else:
        if method in FROM_PROBLEM:
            return FROM_PROBLEM[method](problem, theta, samples, seed)
        operator = Hessian(problem, theta)
    if method == "auto":
        method = "exact" if operator.shape[0] <= EXACT_UP_TO * samples else "xdiag"
    return FROM_OPERATOR[method](operator, samples, seed, max_seconds)
