"""One batch's losses as a function of the selected parameters, for the whole batch or example by example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomtraj.errors import ExamplesInteract
from geomtraj.layers.output_hessian import OutputRecorder, close
from geomtraj.slicing import cut, rebuilt, sliced, tensors_of

Losses = Callable[[Mapping[str, Tensor], Any], "tuple[Tensor, Tensor | None]"]
"""From parameters and a batch to unreduced losses (B, ...) and their weights, or None for ones."""


class LossFunction(NamedTuple):
    """The loss as a function of the selected parameters and a batch; its session must be active.

    Attributes:
        model: The module whose outputs may be recorded.
        losses: Unreduced losses.
        parameters: Where: values of every selected parameter.
    """

    model: nn.Module
    losses: Losses
    parameters: Mapping[str, Tensor]


class Recorded(NamedTuple):
    """What one evaluation of a batch gave.

    Attributes:
        values: Weighted losses (B,) of the examples.
        weights: Sums (B,) of their weights, float64.
        outputs: Tensors that the model's calls returned.
    """

    values: Tensor
    weights: Tensor
    outputs: list[Tensor]


class Examples:
    """One batch's losses.

    Args:
        function: The loss.
        batch: The batch.
    """

    def __init__(self, function: LossFunction, batch: Any):
        self.function, self.batch = function, batch
        self.parameters = function.parameters

    def losses(self, own: Mapping[str, Tensor]) -> Tensor:
        """Weighted losses (B,) of the examples with some parameters replaced, in the graph of these."""
        return _summed(*self.function.losses({**self.parameters, **own}, self.batch))

    def recorded(self, own: Mapping[str, Tensor]) -> Recorded:
        """As `losses`, with what else there is to know."""
        with OutputRecorder(self.function.model) as recorder:
            losses, weights = self.function.losses({**self.parameters, **own}, self.batch)
        importance = torch.ones_like(losses) if weights is None else weights
        importance = importance.detach().double().reshape(len(losses), -1).sum(1) if len(losses) else importance
        return Recorded(_summed(losses, weights), importance, recorder.outputs)

    def values(self) -> Tensor:
        """Weighted losses (B,) without a graph."""
        return self.losses({}).detach()

    def apart(self, examples: int) -> list[Examples] | None:
        """The examples as batches of one; None where the batch cannot be cut, or the loss does not take the parts."""
        return self._taken(cut(self.batch, examples))

    def sliced(self, examples: int, size: int) -> list[Examples] | None:
        """The batch in parts of at most `size` examples; None as for `apart`."""
        return None if self.apart(examples) is None else self._parts(sliced(self.batch, examples, size))

    def mapped(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Losses (B,), each example's with its own row of some parameters (B, *shape), by torch.func.vmap."""

        def alone(own: dict[str, Tensor], tensors: list[Tensor]) -> Tensor:
            rest = iter(tensors)
            part = rebuilt(self.batch, lambda _tensor: next(rest)[None])
            return Examples(self.function, part).losses(own)[0]

        return torch.func.vmap(alone)(dict(rows), list(tensors_of(self.batch)))

    def _parts(self, batches: list[Any]) -> list[Examples]:
        return [Examples(self.function, batch) for batch in batches]

    def _taken(self, batches: list[Any] | None) -> list[Examples] | None:
        """The parts if the loss takes the first: a tensor that only looks like a column may be cut in it."""
        if batches is None:
            return None
        parts = self._parts(batches)
        try:
            parts[0].values()
        except Exception:  # whatever the user's code raises on what it was not written for
            return None
        return parts


def check_alone(alone: Tensor, within: Tensor) -> None:
    """Losses of examples in smaller batches must be those in their own batch.

    Raises:
        ExamplesInteract: They are not.
    """
    if not same_losses(alone, within):
        raise ExamplesInteract(
            "an example's loss depends on the other examples of its batch: "
            "return losses whose first axis counts independent examples (sequences, not tokens)"
        )


def same_losses(one: Tensor, other: Tensor) -> bool:
    """Whether losses (B,) are the same up to rounding, and finite for the same examples."""
    return one.shape == other.shape and torch.equal(one.isfinite(), other.isfinite()) and close(one, other)


def _summed(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted losses of each example, (B,)."""
    values = losses if weights is None else losses * weights
    return values.flatten(1).sum(1) if values.dim() > 1 else values
