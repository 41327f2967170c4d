"""The generalised Gauss-Newton matrix of a Problem's loss."""

from __future__ import annotations

import itertools

from torch import Tensor

from geomtraj.failures import in_one_sentence
from geomtraj.operators.hvp.batch_loss import BatchLoss
from geomtraj.operators.hvp.gauss_newton import GAUSS_NEWTON
from geomtraj.operators.hvp.refusals import check_split
from geomtraj.operators.problem_operator import ProblemOperator
from geomtraj.problem import Problem


class GGN(ProblemOperator):
    """The generalised Gauss-Newton matrix (P, P), G = sum_batches J^T (d2L/dz2) J, at theta.

    z is what `model(...)` returns inside the loss, every floating-point tensor of it, and J = dz/dtheta. G is positive
    semidefinite where the loss is convex in z, and equals the Hessian where z is linear in theta. J v is made by the
    strategy's own means (see `geomtraj.Hessian`): double backward, dual numbers or central differences of the outputs.

    Args:
        problem: The loss.
        theta: Where to measure, shape (P,); a copy of the current parameters if left out.
        strategy: "auto", or a strategy as for `geomtraj.Hessian`.

    Raises:
        InputError: theta does not fit, or the loss does not depend on theta through the outputs of `model(...)`
            alone (it calls parts of the model, or adds a term in the parameters), so that G is not defined.

    Source: Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent".
    """

    def __init__(self, problem: Problem, theta: Tensor | None = None, strategy: str = "auto"):
        super().__init__(GAUSS_NEWTON, problem, theta, strategy=strategy)
        self.check()
        known = self._engine.known
        if known.split:
            return
        parameters = problem.layout.unflatten(self.theta)
        with in_one_sentence(), problem.session():
            for batch in itertools.islice(problem.batches, 1):
                check_split(BatchLoss(problem, parameters, problem.layout, batch), parameters)
        known.split = True
