"""The diagonal by name of the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from geomtraj.diagonals.base import Diagonal
from geomtraj.diagonals.exact import exact
from geomtraj.diagonals.exact_layers import exact_by_layer
from geomtraj.diagonals.gauss_newton import gauss_newton
from geomtraj.diagonals.hutchinson import hutchinson
from geomtraj.diagonals.probing import probing
from geomtraj.diagonals.xdiag import xdiag
from geomtraj.errors import ExamplesInteract, InputError, unknown_name
from geomtraj.failures import in_one_sentence
from geomtraj.isolation import in_plain_torch
from geomtraj.linalg.chunks import at_least
from geomtraj.operators import Hessian, check_derivatives, with_remark
from geomtraj.operators.base import SymmetricOperator
from geomtraj.problem import Problem
from geomtraj.status import Code, Remark, Status

EXACT_UP_TO = 4
"""\"auto\" is exact where P is at most this many times `samples`."""

FROM_OPERATOR: dict[str, Callable[[SymmetricOperator, int, int, float], Diagonal]] = {
    "exact": lambda operator, samples, seed, max_seconds: exact(operator, max_seconds=max_seconds),
    "hutchinson": lambda operator, samples, seed, max_seconds: hutchinson(operator, samples, seed),
    "xdiag": lambda operator, samples, seed, max_seconds: xdiag(operator, samples, seed),
}
"""Methods that need only products."""

FROM_PROBLEM: dict[str, Callable[[Problem, Tensor | None, int, int, float], Diagonal]] = {
    "exact": lambda problem, theta, samples, seed, max_seconds: exact_by_layer(problem, theta, max_seconds=max_seconds),
    "probing": lambda problem, theta, samples, seed, max_seconds: probing(problem, samples, seed, theta),
    "gauss_newton": lambda problem, theta, samples, seed, max_seconds: gauss_newton(problem, samples, seed, theta),
}
"""Methods that look into the model and its batches."""


@in_plain_torch
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
        method: "exact" takes P products with an operator, and far fewer with a Problem, see `exact_by_layer`;
            "hutchinson" and "xdiag" take `samples`; "probing" gives each example random signs of its own on
            activations, `samples` times, which is far more accurate but needs a Problem whose examples do not depend on
            each other. "auto" is exact where P is at most 4 `samples`; else probing for a Problem, and XDiag for an
            operator or where probing refuses (the status then says why). "gauss_newton" is the diagonal of another
            matrix: of the part of the Hessian that comes from the loss's curvature in the model's output.
        samples: Products, or probes, of the randomised methods.
        seed: Seed of the randomised methods.
        theta: Where to measure (P,); the problem's current parameters if left out.
        max_seconds: The longest time that "exact" may take.

    Raises:
        InputError: Neither a Problem nor an operator, an unknown method, theta together with an operator, a method that
            needs a Problem with an operator, or too few samples.
        InputError: Also where the problem's derivatives are not what they are taken for (see
            `geomtraj.operators.check_derivatives`).
        ComputationError: The exact diagonal would take longer than `max_seconds`.
    """
    samples = at_least("samples", samples, 1)
    if not isinstance(problem, (Problem, SymmetricOperator)):
        raise InputError(f"the diagonal of a {type(problem).__name__} is unknown: pass a Problem or an operator.")
    if method in ("probing", "gauss_newton") and isinstance(problem, SymmetricOperator):
        raise InputError(
            f"method {method!r} looks into the model and needs a Problem, not an operator: "
            "take 'xdiag', 'hutchinson' or 'exact'."
        )
    if method not in ("auto", *FROM_OPERATOR, *FROM_PROBLEM):
        raise unknown_name("diagonal method", method, ["auto", *dict.fromkeys([*FROM_OPERATOR, *FROM_PROBLEM])])
    if isinstance(problem, SymmetricOperator):
        if theta is not None:
            raise InputError("theta cannot be given together with an operator, which has its own: pass the Problem.")
        if method == "auto":
            method = "exact" if problem.shape[0] <= EXACT_UP_TO * samples else "xdiag"
        return FROM_OPERATOR[method](problem, samples, seed, max_seconds)
    with in_one_sentence():
        check_derivatives(problem, problem.checked(theta))
        if method == "auto":
            found = _chosen(problem, theta, samples, seed, max_seconds)
        elif method in FROM_PROBLEM:
            found = FROM_PROBLEM[method](problem, theta, samples, seed, max_seconds)
        else:
            found = FROM_OPERATOR[method](Hessian(problem, theta), samples, seed, max_seconds)
    return replace(found, status=with_remark(problem, found.status))


def _chosen(problem: Problem, theta: Tensor | None, samples: int, seed: int, max_seconds: float) -> Diagonal:
    """The exact diagonal of a small problem, else probing, else XDiag where examples depend on each other."""
    if problem.size <= EXACT_UP_TO * samples:
        return exact_by_layer(problem, theta, max_seconds=max_seconds)
    try:
        return probing(problem, samples, seed, theta)
    except ExamplesInteract as error:
        found = xdiag(Hessian(problem, theta), samples, seed)
        replaced = Remark(Code.REPLACED, f"xdiag in place of probing: {error}")
        return replace(found, status=Status([replaced, *Status.read(found.status).remarks]))
