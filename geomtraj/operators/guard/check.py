"""Second derivatives held against differences of gradients, and gradients against differences of the loss."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.fingerprint import number_type
from geomtraj.isolation import in_plain_torch
from geomtraj.operators.guard import culprits
from geomtraj.operators.guard.evaluations import Evaluations
from geomtraj.operators.hvp.refusals import check_reached
from geomtraj.problem import Problem
from geomtraj.seeding import gaussian, generator, rademacher
from geomtraj.status import Code, Remark, Status

UNCHECKED = "second derivatives were not checked (check=False)"
NOISY = "second derivatives could not be told from differences of gradients, which are too noisy here"
SHIFT = 0.01
"""How far from theta the guard looks, relative to the parameters: where nothing vanishes by construction."""
STEP = {torch.float64: 1e-8, torch.float32: 3e-3}
"""Step of the differences, relative to the parameters; so small in float64 that hardly a kink lies within it."""
LOSS_STEP = {torch.float64: 1e-6, torch.float32: 3e-3}
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-2}
"""Relative error of a product, by the number type that it was made in."""
SHARE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Parameters that contribute less than this to a product are compared on this scale, by how the product was made."""
COARSE = 0.01
"""The same where a first disagreement turns out to be noise."""
NOISE = 64.0
"""Roundings by which sums over a model may differ."""


@dataclass(frozen=True)
class Guard:
    """What was found when a Problem's derivatives were checked, and what that cost.

    Attributes:
        status: "ok", or why it says less than that.
        gradients: Gradients that it took.
        losses: Evaluations of the loss that it took.
        products: Hessian-vector products that it took.
        seconds: Time that it took.
        composed_norms: Whether normalisations are composed of plain operations since then.
        refusal: The sentence with which measuring is refused; empty if it is not.
    """

    status: str
    gradients: int = 0
    losses: int = 0
    products: int = 0
    seconds: float = 0.0
    composed_norms: bool = False
    refusal: str = ""


@in_plain_torch
def check_derivatives(problem: Problem, theta: Tensor) -> None:
    """Refuse a problem whose derivatives are not what they are taken for; done once for each Problem, near theta.

    A Hessian-vector product by double backward, with its graph kept from an earlier one, is compared with central
    differences of gradients (of a float64 copy where the model computes in float64), and with another product for
    symmetry; the gradient with a difference of the loss that is moved in the model's own parameters; and that loss with
    the loss as it is evaluated here. Other strategies are compared with double backward where they are chosen.

    Args:
        problem: The loss.
        theta: Where it is about to be measured (P,).

    Raises:
        InputError: They differ; the message names the likely culprit and the way out.
    """
    if problem.guard is None:
        if not problem.check:
            problem.guard = Guard(UNCHECKED)
        elif torch.isfinite(theta).all():
            problem.guard = Guard("being checked")
            try:
                problem.guard = _checked(problem, theta)
            finally:
                if problem.guard is not None and problem.guard.status == "being checked":
                    problem.guard = None
    if problem.guard is not None and problem.guard.refusal:
        raise InputError(problem.guard.refusal)


@in_plain_torch
def check_gradient(problem: Problem, theta: Tensor) -> None:
    """Refuse a problem whose gradient is not the derivative of its loss; done once, for products by differences.

    Raises:
        InputError: It is not; the message names the likely culprit.
    """
    if problem.check and problem.gradient_refusal is None and torch.isfinite(theta).all():
        check = _Check(problem, theta)
        check.hv = torch.zeros_like(theta)
        check.begin()
        if not check.finite:
            return
        refusal = check.loss()[1]
        rows = culprits.padding_rows(problem, theta) if refusal else []
        if rows:
            check.keep_still(rows)
            refusal = check.loss()[1]
        problem.gradient_refusal = refusal
    if problem.gradient_refusal:
        raise InputError(problem.gradient_refusal)


def with_remark(problem: Problem, status: str) -> Status:
    """The status of a result, with what the guard has to say unless that is "ok"."""
    found, whole = problem.guard, Status.read(status)
    if found is None or found.status in ("ok", "being checked"):
        return whole
    return whole.plus(Remark(Code.UNCHECKED, found.status))


def _checked(problem: Problem, theta: Tensor) -> Guard | None:
    start = time.perf_counter()
    check = _Check(problem, theta)
    found = check.made_whole()
    if found is not None and found.refusal:
        rows = culprits.padding_rows(problem, theta)
        if rows:
            check.keep_still(rows)
            found = check.made_whole()
    return None if found is None else replace(found, seconds=time.perf_counter() - start)


class _Check:
    """The comparisons at one point of one problem.

    Attributes:
        at: What is compared.
        finite: Whether the loss and its gradient are finite at the point.
        loss_is_right: Whether the loss's own comparisons have been passed.
    """

    def __init__(self, problem: Problem, theta: Tensor):
        check_reached(problem)
        self.problem = problem
        self.loss_is_right = False
        rng = generator(0, "guard")
        self.scale = _scale(problem, theta)
        self.theta = theta + SHIFT * self.scale * gaussian((problem.size,), rng, theta)
        self.u = self.scale * rademacher((problem.size,), rng, theta)
        self.v = self.scale * rademacher((problem.size,), rng, theta)
        self.hu = self.hv = self.gradient = self.v
        self.value = 0.0
        self.finite = False
        self.at = Evaluations(problem, self.theta)

    def keep_still(self, places: list[slice]) -> None:
        """Compare no derivatives by these entries of theta."""
        for place in places:
            self.scale[place] = self.u[place] = self.v[place] = 0

    def made_whole(self) -> Guard | None:
        """All comparisons; None where the loss or its gradient is not finite."""
        self.multiply()  # first, since the engine finds out what fits into memory
        self.begin()
        if not self.finite:
            return None
        status, refusal = self.loss()
        if not refusal and status == "ok":
            status, refusal = self.products()
        objective, composed = self.problem.objective, False
        if refusal and self.loss_is_right:
            objective.composed_norms = True
            self.multiply()
            again, still = self.products()
            objective.composed_norms = composed = not still
            if composed:
                status, refusal = again, ""
        at = self.at
        return Guard(status, at.gradients, at.losses, at.products, 0.0, composed, refusal)

    def multiply(self) -> None:
        """Products with u and then, through the graph that is kept, with v."""
        self.hu, self.hv = self.at.by_double_backward(self.u, self.v)

    def begin(self) -> None:
        """The loss and its gradient at the point."""
        self.value, self.gradient = self.at.loss_and_gradient(self.theta, self.problem.dtype)
        self.finite = math.isfinite(self.value) and bool(torch.isfinite(self.gradient).all())

    # First derivatives.

    def loss(self) -> tuple[str, str]:
        """Status and refusal of the loss's own comparisons."""
        if any(p.is_inference() for p in self.problem.model.parameters()):
            self.loss_is_right = True
            return "ok", ""  # they take part in no derivative and cannot be moved outside inference mode
        here, size = self.at.own_loss(self.theta)
        if abs(here - self.value) > 1e3 * self.at.eps * size + 1e-30:
            return "", culprits.of_value(self.problem, self.theta, self.scale)
        step = LOSS_STEP[self._rounded_as]
        ahead, _ = self.at.own_loss(self.theta + step * self.v)
        bend = step / 2 * float((self.v.double() * self.hv.double()).sum())
        slope = self._slope(ahead - here, step, size, bend)
        self.loss_is_right = slope.within
        if slope.within:
            return "ok", ""
        # A wrong gradient stays as wrong with half the step; a kink, a jump or rounding does not.
        errors = []
        for shorter in (step, step / 2):
            change = (
                self.at.own_loss(self.theta + shorter * self.v)[0] - self.at.own_loss(self.theta - shorter * self.v)[0]
            )
            slope = self._slope(change / 2, shorter, size, 0.0)
            errors.append(slope.error)
            if slope.within:
                self.loss_is_right = True
                return "ok", ""
        if abs(errors[1] - errors[0]) > 0.3 * abs(errors[1]):
            return "the gradient could not be told from a difference of the loss, which is not smooth enough", ""
        return "", culprits.of_gradient(self.problem, self.theta, self.gradient, self.v, step)

    def _slope(self, change: float, step: float, size: float, bend: float) -> _Slope:
        terms = self.gradient.double() * self.v.double()
        error = change / step - float(terms.sum()) - bend
        noise = NOISE * self.at.eps * size / step
        relative = 5 * TOLERANCE[self._rounded_as]
        return _Slope(error, abs(error) <= relative * (float(terms.norm()) + abs(bend)) + noise)

    @property
    def _rounded_as(self) -> torch.dtype:
        return torch.float32 if self.at.eps > 1e-10 else torch.float64

    # Second derivatives.

    def products(self) -> tuple[str, str]:
        """Status and refusal of the comparisons of products."""
        if not (torch.isfinite(self.hv).all() and torch.isfinite(self.hu).all()):
            return "products were not finite where they were to be checked", ""
        problem = self.problem
        with problem.session():
            dtype = number_type(problem.objective, next(iter(problem.layout)), problem.batches, problem.over_ranks)
        differences = self.at.differences(self.v, dtype, STEP[dtype])
        made = dtype if self.problem.dtype is torch.float64 else self.problem.dtype
        if self._worst(self.hv, differences, made, dtype) is None:
            if self._symmetric(self.hu, self.hv, TOLERANCE[self.problem.dtype]):
                return "ok", ""
            return self._asymmetry(differences, made, dtype)
        return self._explained(self.hv, differences, dtype)

    def _asymmetry(self, differences: Tensor, made: torch.dtype, dtype: torch.dtype) -> tuple[str, str]:
        """What it means that the product with v is that of differences, and does not fit the one with u."""
        along_u = self.at.differences(self.u, dtype, STEP[dtype])
        matches = self._worst(self.hu, along_u, made, dtype) is None
        if matches and self._symmetric(along_u, differences, TOLERANCE[dtype]):
            return "ok", ""  # rounding
        if dtype is torch.float32:
            return NOISY, ""
        return "", culprits.of_symmetry(culprits.functions(self.problem, self.theta))

    def _explained(self, found: Tensor, differences: Tensor, dtype: torch.dtype) -> tuple[str, str]:
        """What a first disagreement means: a wrong derivative, or rounding and kinks."""
        problem = self.problem
        coarse = self._worst(found, differences, self.problem.dtype, dtype, COARSE)
        if dtype is torch.float64 and problem.dtype is torch.float32:
            found = self.at.in_float64(self.v)
            if self._worst(found, differences, torch.float64, dtype) is None:
                return "ok", ""
        names = culprits.functions(problem, self.theta)
        for factor in (0.1, 10.0, 0.01):
            again = self.at.differences(self.v, dtype, factor * STEP[dtype])
            still = self._worst(found, again, dtype, dtype)
            if still is None:
                return "ok", ""
            place = problem.layout[still.name].slice
            apart = (again.double() - differences.double())[place].norm()
            error = (found.double() - again.double())[place].norm()
            if apart <= 0.05 * error and (dtype is torch.float64 or names):
                return "", culprits.of_products(still.name, still.error, names)
            differences = again
        return ("ok" if coarse is None else NOISY), ""

    def _worst(
        self, found: Tensor, differences: Tensor, made: torch.dtype, compared: torch.dtype, share: float | None = None
    ) -> _Worst | None:
        """The parameter at which two products differ most, if that is more than the tolerance."""
        share = SHARE[made] if share is None else share
        tolerance = max(TOLERANCE[made], TOLERANCE[compared])
        step = STEP[compared]
        weight = self.scale.double()
        error, size = weight * (found.double() - differences.double()), weight * differences.double()
        slope = weight * self.gradient.double()
        noise = NOISE * torch.finfo(compared).eps / step
        total = torch.maximum(size.norm(), (weight * found.double()).norm())
        worst = None
        for name, slot in self.problem.layout.items():
            if slot.size:
                part, of = error[slot.slice].norm(), size[slot.slice].norm() + share * total
                rounding = noise * (slope[slot.slice].norm() + 1e-3 * slope.norm())
                if part > tolerance * of + rounding and (worst is None or part / of > worst.error):
                    worst = _Worst(name, float(part / of))
        return worst

    def _symmetric(self, hu: Tensor, hv: Tensor, tolerance: float) -> bool:
        one, other = self.u.double() * hv.double(), self.v.double() * hu.double()
        return bool((one.sum() - other.sum()).abs() <= 2 * tolerance * (one.norm() + other.norm()) + 1e-30)


@dataclass(frozen=True)
class _Worst:
    name: str
    error: float


@dataclass(frozen=True)
class _Slope:
    error: float
    within: bool


def _scale(problem: Problem, theta: Tensor) -> Tensor:
    """The size of each entry's parameter (P,)."""
    overall = float(theta.norm()) / max(1, theta.numel()) ** 0.5 or 1.0
    found = torch.empty_like(theta)
    for slot in problem.layout.values():
        part = theta[slot.slice]
        found[slot.slice] = max(float(part.norm()) / max(1, part.numel()) ** 0.5, 1e-2 * overall)
    return found
