"""The exact diagonal of a problem by one-hot vectors that enter where its parameters do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import Accumulator
from geomtraj.diagonals.base import Cost, Diagonal, describe
from geomtraj.diagonals.exact import exact, refuse_slow
from geomtraj.diagonals.one_hot import by_entries, by_units, by_values
from geomtraj.diagonals.output_vectors import WIDTH, gauss_newton_exact, outputs
from geomtraj.errors import ExamplesInteract
from geomtraj.isolation import without_checkpoints
from geomtraj.layers.batches import refuse_batch_statistics, sound_graphs
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.probe_groups import ProbeGroup, probe_groups
from geomtraj.operators.hessian import Hessian
from geomtraj.problem import Problem

TRIED_FROM = 4 * WIDTH
"""Vectors from which the first ones of a piece of work are timed beforehand."""


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
        The diagonal; `cost.matvecs` counts derivatives along one vector.

    Raises:
        ComputationError: It would take longer; the message says how long.
    """
    start = time.perf_counter()
    theta = problem.checked(theta)
    parameters = problem.layout.unflatten(theta)
    accumulator, elsewhere = Accumulator(parameters), dict[str, str]()
    products = examples = 0
    try:
        refuse_batch_statistics(problem)
        with problem.session(), without_checkpoints():
            for _, graph, numbers in sound_graphs(problem, parameters, elsewhere):
                work = _plan(graph, accumulator)
                if not examples:
                    whole = problem.examples / max(len(numbers), 1)
                    refuse_slow(problem.size, whole * sum(w.seconds() for w in work), max_seconds)
                for one in work:
                    for _ in one.steps():
                        pass
                products += graph.products
                examples += len(numbers)
                del graph, work
        dependent = False
    except ExamplesInteract:
        dependent = True
    flags = torch.tensor([dependent, *(name in elsewhere for name in problem.layout)], device=problem.device)
    dependent, *strange = problem.over_ranks(flags.long()).bool().tolist()
    if dependent:
        return exact(Hessian(problem, theta), max_seconds=max_seconds)
    values, _, _ = accumulator.flat(problem)
    if any(strange):
        block = Hessian(problem, theta).block([n for n, s in zip(problem.layout, strange, strict=True) if s])
        part = exact(block, max_seconds=max_seconds)
        for name, slot in block.layout.items():
            values[problem.layout[name].slice] = part.values[slot.slice]
        products += part.cost.matvecs
    cost = Cost(products, time.perf_counter() - start)
    status, dof = describe(values, problem.blocks), torch.full_like(values, torch.inf)
    return Diagonal(values, torch.zeros_like(values), problem.blocks, "exact", cost, status, dof)


@dataclass(frozen=True)
class _Work:
    """One-hot vectors for a group of taps or several: how many, and how to take them."""

    count: int
    steps: Callable[[], Iterator[int]]

    def seconds(self) -> float:
        """What they will take, told from the first block; nothing where they are few."""
        if self.count < TRIED_FROM:
            return 0.0
        start = time.perf_counter()
        done = next(self.steps())
        return (time.perf_counter() - start) * self.count / done


def _plan(graph: LossGraph, accumulator: Accumulator) -> list[_Work]:
    by_outputs: list[ProbeGroup] = []
    found = []
    for group in probe_groups(graph):
        work = _cheapest(group, accumulator)
        if group.piecewise_linear and outputs(graph) <= work.count:
            by_outputs.append(group)
        else:
            found.append(work)
    if by_outputs:
        count = int(outputs(graph))
        found.append(_Work(count, lambda: gauss_newton_exact(graph, by_outputs, accumulator)))
    return found


def _cheapest(group: ProbeGroup, accumulator: Accumulator) -> _Work:
    if group.positions_decouple:
        return _Work(group.graph.shape(group.taps[0])[1], lambda: by_units(group, accumulator))
    entries = sum(part.entries.numel() for part in group.shared_entries)
    if entries < group.values and all(c.has_jvp for c in group.shared()):
        return _Work(entries, lambda: by_entries(group, accumulator))
    return _Work(group.values, lambda: by_values(group, accumulator))
