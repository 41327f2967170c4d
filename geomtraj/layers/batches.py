"""The batches of a problem as graphs that are sound, in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomtraj.errors import ExamplesInteract, GeomtrajError
from geomtraj.failures import is_out_of_memory
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.output_hessian import close
from geomtraj.memory import available_bytes, with_saved_bytes
from geomtraj.problem import Problem, leaves
from geomtraj.slicing import cut, sliced

GRAPH_COPIES = 12
"""Memory of a batch while it is probed, over what autograd saves for the gradient of its loss (11 on a GPT)."""


COUPLED = "its second derivative couples examples"


class Batch(NamedTuple):
    """A batch or a part of one, its graph, and the numbers (B,) of its examples in the data."""

    batch: Any
    graph: LossGraph
    numbers: Tensor


def sound_graphs(problem: Problem, parameters: dict[str, Tensor], elsewhere: dict[str, str]) -> Iterator[Batch]:
    """Graphs over all parameters whose uses are accounted for; the names of the others are added to `elsewhere`.

    Hold no graph when asking for the next. `problem.session()` must be active.

    Raises:
        ExamplesInteract: Examples depend on each other, as far as that shows here.
    """
    first = problem.first_example
    for batch in _parts(problem, parameters):
        graph = _sound_graph(problem, parameters, elsewhere, batch)
        numbers = torch.arange(first, first + graph.examples, device=problem.device)
        first += graph.examples
        part = Batch(batch, graph, numbers)
        del graph
        yield part
        del part


def _parts(problem: Problem, parameters: dict[str, Tensor]) -> Iterator[Any]:
    """The batches, cut into smaller ones where their graphs would not fit into half of the free memory."""
    for batch in problem.batches:
        (losses, weights), saved = with_saved_bytes(partial(problem.losses, leaves(parameters), batch))
        losses, weights = losses.detach(), None if weights is None else weights.detach()
        needed, room = GRAPH_COPIES * saved, available_bytes(problem.device) / 2
        examples = cut(batch, len(losses)) if needed > room else None
        if examples is None or not stands_alone(problem, parameters, examples[0]):
            yield batch
            continue
        parts = sliced(batch, len(losses), max(1, int(len(losses) * room / needed)))
        apart = torch.cat([loss_sums(*problem.values(parameters, part)) for part in parts])
        check_alone(apart, loss_sums(losses, weights))
        yield from parts


def _sound_graph(problem: Problem, parameters: dict[str, Tensor], elsewhere: dict[str, str], batch: Any) -> LossGraph:
    """The batch's graph over all parameters whose uses are accounted for; the others are added to `elsewhere`."""
    while True:
        names = [n for n in parameters if n not in elsewhere]
        try:
            graph = LossGraph(problem, parameters, names, batch)
        except RuntimeError as error:
            if not names or isinstance(error, GeomtrajError) or is_out_of_memory(error):
                raise
            elsewhere |= dict.fromkeys(names, "")  # a loss that cannot be followed, as one that uses torch.func
            continue
        failed, why = set(graph.failed), ""
        if not failed:
            failed, why = {use.name for n in graph.coupled() for use in graph.taps[n].uses}, COUPLED
        if not failed:
            return graph
        elsewhere |= {name: why for name in parameters if name in failed}


def refuse_batch_statistics(problem: Problem) -> None:
    """Refuse a problem whose modules compute statistics over the batch.

    Raises:
        ExamplesInteract: There is such a module.
    """
    if problem.batch_statistics:
        raise ExamplesInteract(
            f"{', '.join(map(repr, problem.batch_statistics[:3]))} computes batch statistics, so the examples of a "
            "batch depend on each other, which method 'probing' cannot handle: pass mode='eval' to the Problem, or "
            "take method 'xdiag'."
        )


def stands_alone(problem: Problem, parameters: Mapping[str, Tensor], part: Any) -> bool:
    """Whether the loss takes this part of a batch at all: a tensor that only looks like a column may be cut in it."""
    try:
        problem.values(parameters, part)
    except Exception:  # whatever the user's code raises on what it was not written for
        return False
    return True


def check_alone(alone: Tensor, within: Tensor) -> None:
    """Losses of examples in smaller batches must be those in their own batch.

    Raises:
        ExamplesInteract: They are not.
    """
    if not same_losses(alone, within):
        raise ExamplesInteract(
            "an example's loss depends on the other examples of its batch, which method 'probing' cannot handle: "
            "return losses whose first axis counts independent examples (sequences, not tokens), or take "
            "method 'xdiag'."
        )


def same_losses(one: Tensor, other: Tensor) -> bool:
    """Whether losses (B,) are the same up to rounding, and finite for the same examples."""
    return one.shape == other.shape and torch.equal(one.isfinite(), other.isfinite()) and close(one, other)


def loss_sums(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted losses of each example, (B,)."""
    values = losses if weights is None else losses * weights
    return values.flatten(1).sum(1) if values.dim() > 1 else values
