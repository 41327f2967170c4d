"""Parameters that enter in ways that are not understood: the loss as a function of one copy of them per example."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from geomtraj.errors import ExamplesInteract
from geomtraj.hashed_signs import key_of, signs
from geomtraj.layers.examples import Examples, check_alone, same_losses
from geomtraj.layers.output_hessian import OutputSplit, close, split_at_output
from geomtraj.problem import leaves

COUPLED = "its second derivative couples examples"


class RowGraph:
    """Gradients of loss sums by leaves with one row for each independent part: name -> (R, *shape).

    Args:
        value: The sum of the parts' losses.
        own: The leaves.
        share: Which share of the batch this is.
    """

    def __init__(self, value: Tensor, own: dict[str, Tensor], share: float = 1.0):
        self.own = own
        self.share = share
        self.rows = next(iter(own.values())).shape[0]
        found: tuple[Tensor | None, ...] = (None,) * len(own)
        if value.requires_grad:
            found = torch.autograd.grad(value, list(own.values()), create_graph=True, allow_unused=True)
        self.gradients = dict(zip(own, found, strict=True))

    def product(self, name: str, z: Tensor) -> Tensor:
        """Each row's second derivative by one parameter, times z (R, *shape)."""
        gradient = self.gradients[name]
        if gradient is None or not gradient.requires_grad:
            return torch.zeros_like(z)
        (u,) = torch.autograd.grad(
            gradient, self.own[name], z, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return u


class Rows(NamedTuple):
    """The independent parts of a batch.

    Attributes:
        apart: Whether each is one example; else the batch as a whole is the one row.
        graphs: Graphs with the ranges of examples that their rows are, to be used one after the other.
    """

    apart: bool
    graphs: Iterator[tuple[RowGraph, slice]]


class Unexplained:
    """The losses of a batch as a function of the parameters whose uses are not all accounted for.

    Args:
        examples: The batch.
        why: Name of each such parameter -> why, or "".
    """

    def __init__(self, examples: Examples, why: Mapping[str, str]):
        self.why = dict(why)
        self._examples = examples

    @property
    def names(self) -> list[str]:
        """The parameters in the order of the layout."""
        return [name for name in self._examples.parameters if name in self.why]

    def rows(self) -> Rows:
        """The examples with a copy of the parameters each, where the batch can be cut; else the batch with one.

        Raises:
            ExamplesInteract: An example alone has another loss than in its batch, or their second derivatives are
                coupled.
        """
        whole = self._examples.values()
        parts = self._examples.apart(len(whole))
        if parts is not None and COUPLED in self.why.values():
            check_alone(torch.cat([part.values() for part in parts]), whole)
            raise ExamplesInteract(
                "the second derivative of the loss couples the examples of a batch, though their losses alone are "
                "those within it: check that they do not depend on each other"
            )
        return Rows(parts is not None or len(whole) <= 1, self._graphs(parts, whole))

    def split(self) -> tuple[OutputSplit | None, list[Tensor]] | None:
        """How the loss bends at the model's output, None where that is not known, and leaves for the parameters.

        None in the place of all of it where the loss does not depend on them.
        """
        own = leaves({name: self._examples.parameters[name] for name in self.names})
        inputs = list(own.values())
        values, _, outputs = self._examples.recorded(own)
        if not values.requires_grad:
            return None
        gradients = torch.autograd.grad(
            values.sum(), inputs, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        reached = [i for i, g in enumerate(gradients) if g.any()]
        if not reached:
            return None
        return split_at_output(values, outputs, [inputs[i] for i in reached], [gradients[i] for i in reached]), inputs

    def _graphs(self, parts: list[Examples] | None, whole: Tensor) -> Iterator[tuple[RowGraph, slice]]:
        if parts is None:
            yield self._graph(self._examples)[0], slice(None)
            return
        together = self._mapped(whole) if len(parts) > 1 else None
        if together is not None:
            yield together, slice(None)
            return
        for n, part in enumerate(parts):
            graph, values = self._graph(part)
            check_alone(values, whole[n : n + 1])
            graph.share = 1 / len(parts)
            yield graph, slice(n, n + 1)

    def _graph(self, examples: Examples) -> tuple[RowGraph, Tensor]:
        """The graph of a whole batch with one row of leaves, and its examples' losses."""
        own = leaves({name: examples.parameters[name][None] for name in self.names})
        values = examples.losses({name: p[0] for name, p in own.items()})
        return RowGraph(values.sum(), own), values.detach()

    def _mapped(self, whole: Tensor) -> RowGraph | None:
        """The graph with a row of leaves for each example, by torch.func.vmap; None if it cannot or goes wrong."""
        parameters = self._examples.parameters
        own = leaves({name: parameters[name].expand(len(whole), *parameters[name].shape) for name in self.names})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of batching rules that vmap lacks: slow, not wrong
                values = self._examples.mapped(own)
                graph = RowGraph(values.sum(), own)
                usual, _ = self._graph(self._examples)
                right = same_losses(values.detach(), whole) and all(_agree(graph, usual, name) for name in self.names)
        except Exception:  # whatever vmap does not know: the examples are then taken one by one
            return None
        return graph if right else None


def _agree(graph: RowGraph, usual: RowGraph, name: str) -> bool:
    """Whether the rows' second derivatives along one vector sum to the batch's."""
    shape = graph.own[name].shape
    one = torch.zeros(1, dtype=torch.int64, device=graph.own[name].device)
    z = signs(key_of(0, "agreement"), one, 0, tuple(shape[1:]), graph.own[name].dtype)
    return close(graph.product(name, z.expand(shape)).sum(0), usual.product(name, z)[0])
