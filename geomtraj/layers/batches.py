"""The batches of a problem as graphs that are sound, in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomtraj.errors import ExamplesInteract, GeomtrajError
from geomtraj.failures import is_out_of_memory
from geomtraj.isolation import without_checkpoints
from geomtraj.layers.examples import Examples, LossFunction, check_alone
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.unexplained import COUPLED, Unexplained
from geomtraj.memory import available_bytes, with_saved_bytes
from geomtraj.problem import Problem, leaves

GRAPH_COPIES = 12
"""Memory of a batch while it is probed, over what autograd saves for the gradient of its loss (11 on a GPT)."""


class Batch(NamedTuple):
    """A batch, or a part of one that fits into memory.

    Attributes:
        graph: Its loss as a function of perturbations at the taps of every parameter whose uses are accounted for.
        ids: Numbers (B,) of its examples in the data.
        unexplained: The other parameters, and the loss as a function of them.
    """

    graph: LossGraph
    ids: Tensor
    unexplained: Unexplained


@contextmanager
def batches(problem: Problem, theta: Tensor | None) -> Iterator[Iterator[Batch]]:
    """The batches at theta (P,), or at the current parameters, inside a `with` block; each can be used once.

    Parameters that one batch leaves unexplained are so in all that follow. Hold no batch when asking for the next.

    Raises:
        ExamplesInteract: Examples depend on each other, as far as that shows here.
    """
    if problem.batch_statistics:
        raise ExamplesInteract(
            f"{', '.join(map(repr, problem.batch_statistics[:3]))} computes batch statistics, so the examples of a "
            "batch depend on each other: pass mode='eval' to the Problem"
        )
    function = LossFunction(problem.model, problem.losses, problem.layout.unflatten(problem.checked(theta)))
    with problem.session(), without_checkpoints():
        yield _batches(function, problem.batches, torch.tensor(problem.first_example, device=problem.device))


def _batches(function: LossFunction, data: Any, first: Tensor) -> Iterator[Batch]:
    unexplained: dict[str, str] = {}
    for examples in _parts(function, data, first.device):
        batch = _batch(examples, unexplained, first)
        first, unexplained = first + len(batch.ids), dict(batch.unexplained.why)
        yield batch
        del batch


def _parts(function: LossFunction, data: Any, device: torch.device) -> Iterator[Examples]:
    """The batches, cut into smaller ones where their graphs would not fit into half of the free memory."""
    for one in data:
        examples = Examples(function, one)
        losses, saved = with_saved_bytes(partial(examples.losses, leaves(function.parameters)))
        losses, needed, room = losses.detach(), GRAPH_COPIES * saved, available_bytes(device) / 2
        parts = None
        if needed > room:
            parts = examples.sliced(len(losses), max(1, int(len(losses) * room / needed)))
        if parts is None:
            yield examples
            continue
        check_alone(torch.cat([part.values() for part in parts]), losses)
        yield from parts


def _batch(examples: Examples, unexplained: dict[str, str], first: Tensor) -> Batch:
    """The batch with its graph over all parameters whose uses are accounted for, beside those known not to be."""
    unexplained = dict(unexplained)
    while True:
        names = [n for n in examples.parameters if n not in unexplained]
        try:
            graph = LossGraph(examples, names)
        except RuntimeError as error:
            if not names or isinstance(error, GeomtrajError) or is_out_of_memory(error):
                raise
            unexplained |= dict.fromkeys(names, "")  # a loss that cannot be followed, as one that uses torch.func
            continue
        failed, why = set(graph.failed), ""
        if not failed:
            failed, why = {use.name for n in graph.coupled() for use in graph.taps[n].uses}, COUPLED
        if not failed:
            ids = first + torch.arange(graph.examples, device=first.device)
            return Batch(graph, ids, Unexplained(examples, unexplained))
        unexplained |= {name: why for name in examples.parameters if name in failed}
