"""The exact diagonal of a problem by one-hot vectors that enter where its parameters do."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from torch import Tensor

from geomtraj.diagonals.base import Cost, Diagonal, describe
from geomtraj.diagonals.estimator import WIDTH, Estimator, GraphEstimator, Take, to_take
from geomtraj.diagonals.exact import exact, refuse_slow
from geomtraj.diagonals.one_hot import EntryOneHots, UnitOneHots, ValueOneHots
from geomtraj.diagonals.output_vectors import OutputOneHots, outputs
from geomtraj.diagonals.over_batches import Entries, Method, Sums, over_batches, over_ranks
from geomtraj.diagonals.residual import Residual, reaches_through_output
from geomtraj.errors import ExamplesInteract
from geomtraj.layers.batches import Batch
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.probe_groups import ProbeGroup, probe_groups
from geomtraj.operators.hessian import Hessian
from geomtraj.problem import Problem
from geomtraj.status import Code, Remark

WHOLE = "a product with the whole Hessian for each entry"
TRIED_FROM = 4 * WIDTH
"""Vectors from which the first ones of an estimator are timed beforehand."""


def exact_by_layer(problem: Problem, theta: Tensor | None = None, *, max_seconds: float = 3600.0) -> Diagonal:
    """The exact Hessian diagonal of a problem whose examples do not depend on each other; standard errors are zero.

    Where P one-hot vectors would each go through the whole network and back, these enter at the parameter's own tap,
    serve all examples at once, and are as few as the structure allows, tap by tap:

    - one for each entry of the model's output, for all taps together, where the output is piecewise linear in the
      parameters (Gauss-Newton is then all there is);
    - one for each unit, where positions do not couple: feed-forward layers, and what comes after the last attention;
    - one for each position and unit, or one for each entry of the parameter, whichever are fewer.

    What each needs is found out by trying, as in `probing`. Parameters that enter in other ways, and problems whose
    examples depend on each other, take one product with the whole Hessian for each entry.

    Args:
        problem: The loss.
        theta: Where to measure (P,); the problem's current parameters if left out.
        max_seconds: The longest time that it may take, told from the first vectors of each tap.

    Returns:
        The diagonal; `cost.matvecs` counts derivatives along one vector, and the status says where each entry took a
        product with the whole Hessian.

    Raises:
        ComputationError: It would take longer; the message says how long.
    """
    start = time.perf_counter()
    theta = problem.checked(theta)
    sums: Sums | None = None
    why = ""
    try:
        sums = over_batches(problem, theta, _Exact(problem.examples, problem.size, max_seconds))
    except ExamplesInteract as error:
        why = str(error)
    told = problem.on_ranks(lambda: (why, [] if sums is None else list(sums.unexplained)))
    why = next((reason for reason, _ in told if reason), "")
    if sums is None or why:
        found = exact(Hessian(problem, theta), max_seconds=max_seconds)
        remark = Remark(Code.NOTE, f"{WHOLE}, since {why}")
        return replace(found, status=describe(found.values, problem.blocks, [remark]))
    entries = over_ranks(problem, sums)
    names = [name for name in problem.layout if any(name in unexplained for _, unexplained in told)]
    products = sums.products + _take_whole(problem, theta, names, entries, max_seconds)
    remarks = [Remark(Code.NOTE, f"{name}: {WHOLE}", name) for name in names]
    return entries.diagonal(problem, "exact", Cost(products, time.perf_counter() - start), remarks)


def _take_whole(problem: Problem, theta: Tensor, names: list[str], entries: Entries, max_seconds: float) -> int:
    """Put entries of some parameters in by products with the whole matrices; the number of products."""
    if not names:
        return 0
    whole = exact(Hessian(problem, theta).block(names), max_seconds=max_seconds)
    products, parts = whole.cost.matvecs, {"total": whole.values}
    if reaches_through_output(problem, theta, names):
        residual = exact(Residual(problem, theta).block(names), max_seconds=max_seconds)
        products += residual.cost.matvecs
        parts |= {"residual": residual.values, "gauss_newton": whole.values - residual.values}
    for name, slot in whole.blocks.layout.items():
        entries.put(problem.layout[name].slice, {part: values[slot.slice] for part, values in parts.items()})
    return products


@dataclass
class _Exact(Method):
    """One-hot vectors, as few as the structure allows; refuses what would take too long at the first batch."""

    examples: int
    size: int
    max_seconds: float
    timed: bool = False

    def explained(self, batch: Batch) -> list[Estimator]:
        """The estimators of every group of taps."""
        plan = _plan(batch.graph)
        if not self.timed:
            self.timed = True
            whole = self.examples / max(len(batch.ids), 1)
            seconds = sum(one.seconds() for one in plan if one.vectors >= TRIED_FROM)
            refuse_slow(self.size, whole * seconds, self.max_seconds)
        return list(plan)

    def unexplained(self, batch: Batch) -> None:
        """They are taken from the whole Hessian at the end."""


def _plan(graph: LossGraph) -> list[GraphEstimator]:
    by_outputs: list[ProbeGroup] = []
    found: list[GraphEstimator] = []
    for group in probe_groups(graph):
        kind = _cheapest(group)
        fewer = outputs(graph) <= kind(group, Take.WHOLE).vectors
        if fewer:
            by_outputs.append(group)
        take = to_take(group, fewer)
        if take is not None:
            found.append(kind(group, take))
    return [*found, OutputOneHots(graph, by_outputs)] if by_outputs else found


def _cheapest(group: ProbeGroup) -> type[UnitOneHots | EntryOneHots | ValueOneHots]:
    if group.positions_decouple:
        return UnitOneHots
    entries = sum(one.entries.numel() for one in group.shared_entries)
    if entries < group.values and all(maps.has_jvp for maps in group.shared()):
        return EntryOneHots
    return ValueOneHots
