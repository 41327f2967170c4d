"""A method's estimates summed over all batches of a problem, and the diagonal that they give."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import Parts
from geomtraj.diagonals.base import Cost, Diagonal, Part, describe
from geomtraj.diagonals.estimator import Estimator
from geomtraj.diagonals.sampling import Sampling
from geomtraj.errors import ExamplesInteract
from geomtraj.layers.batches import Batch, batches
from geomtraj.problem import Problem
from geomtraj.status import Code, Remark


class Method(ABC):
    """Which estimators a batch gets.

    Attributes:
        name: Of the method.
        sampling: How many random vectors it takes.
        remarks: What is to be said of all entries, once the batches are done.
    """

    name: str
    sampling: Sampling
    remarks: Sequence[str] = ()

    @abstractmethod
    def explained(self, batch: Batch) -> list[Estimator]:
        """Those for the parameters whose uses are accounted for."""

    @abstractmethod
    def unexplained(self, batch: Batch) -> Estimator | None:
        """The one for the other parameters; None where they are measured in another way."""


@dataclass
class Sums:
    """What the batches of this process gave.

    Attributes:
        parts: The sums of estimates.
        unexplained: Parameters that enter in ways that are not understood, with what is to be said of each.
        products: Derivatives along one vector.
        batches: How many batches there were, or parts of them.
        seconds: How long it took.
    """

    parts: Parts
    unexplained: dict[str, str] = field(default_factory=dict)
    products: int = 0
    batches: int = 0
    seconds: float = 0.0

    def note(self, batch: Batch, remark: str) -> None:
        """Note the batch's unexplained parameters; what was said of the examples of one batch together stays."""
        for name in batch.unexplained.why:
            self.unexplained[name] = remark or self.unexplained.get(name, "")


def estimated(problem: Problem, theta: Tensor | None, method: Method) -> Diagonal:
    """The diagonal by a method that needs independent examples; its cost is that of one batch.

    Raises:
        ExamplesInteract: Examples depend on each other.
    """
    try:
        sums = over_batches(problem, theta, method)
    except ExamplesInteract as error:
        raise ExamplesInteract(f"{error}, or take method 'xdiag' or 'exact'.") from None
    remarks = [Remark(Code.NOTE, text) for text in dict.fromkeys(method.remarks)]
    remarks += [Remark(Code.NOTE, f"{name}: {how}", name) for name, how in sums.unexplained.items()]
    if method.sampling.samples == 1:
        remarks.append(Remark(Code.FEW_SAMPLES, "one sample gives no standard errors: use at least two"))
    cost = Cost(round(sums.products / max(sums.batches, 1)), sums.seconds)
    return over_ranks(problem, sums).diagonal(problem, method.name, cost, remarks)


def over_batches(problem: Problem, theta: Tensor | None, method: Method) -> Sums:
    """Run a method's estimators on every batch of this process.

    Raises:
        ExamplesInteract: Examples depend on each other.
    """
    start = time.perf_counter()
    sums = Sums(Parts.of(problem.layout, problem.device))
    with batches(problem, theta) as found:
        for batch in found:
            estimators = method.explained(batch)
            sums.products += batch.graph.products
            while estimators:
                sums.products += estimators.pop(0).run(sums.parts)
            other = method.unexplained(batch) if batch.unexplained.why else None
            sums.products += 0 if other is None else other.run(sums.parts)
            sums.note(batch, "" if other is None else other.remark)
            sums.batches += 1
            del batch, other
    sums.seconds = time.perf_counter() - start
    return sums


@dataclass
class Entries:
    """A diagonal's entries and those of its parts, (P,) each; NaN where entries were not taken apart.

    Attributes:
        total: The entries.
        gauss_newton: Their Gauss-Newton part.
        residual: Their residual part.
    """

    total: Part
    gauss_newton: Part
    residual: Part

    def put(self, place: slice, values: Mapping[str, Tensor]) -> None:
        """Put exact entries in; parts that are not given become NaN."""
        for name in ("total", "gauss_newton", "residual"):
            part, known = getattr(self, name), name in values
            part.values[place] = values[name] if known else torch.nan
            part.sem[place] = 0.0 if known else torch.nan
            part.dof[place] = torch.inf if known else torch.nan

    def diagonal(self, problem: Problem, method: str, cost: Cost, remarks: Sequence[Remark]) -> Diagonal:
        """The diagonal, with its parts unless no entry was taken apart."""
        apart = not bool(self.gauss_newton.values.isnan().all() & self.residual.values.isnan().all())
        total, status = self.total, describe(self.total.values, problem.blocks, remarks)
        return Diagonal(
            total.values, total.sem, problem.blocks, method, cost, status, total.dof,
            self.gauss_newton if apart else None, self.residual if apart else None,
        )  # fmt: skip


def over_ranks(problem: Problem, sums: Sums) -> Entries:
    """The sums of all processes as entries with standard errors and their degrees of freedom."""
    added = problem.over_ranks(sums.parts.sums())
    gauss_newton, residual, whole = added
    some_apart = bool((gauss_newton[3] + residual[3]).any()) or not bool(whole[3].any())
    known = (whole[3] == 0) & some_apart

    def part(sums: Tensor) -> Part:
        values, variances, uncertainties = sums[:3]
        dof = torch.where(variances == 0, torch.inf, (2 * variances.square() / uncertainties - 2).clamp_min(1))
        sem = (variances.clamp_min(0) / problem.total_weight**2).sqrt()
        return Part(*(t.to(problem.dtype) for t in (values / problem.total_weight, sem, dof)))

    return Entries(part(added.sum(0)), *(part(sums.where(known, torch.nan)) for sums in (gauss_newton, residual)))
