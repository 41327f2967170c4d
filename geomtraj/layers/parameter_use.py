"""Places in a forward pass where parameters enter linearly, and how their tensors are arranged by examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass
class ParameterUse:
    """One parameter, or a part of it, entering linearly at one tap.

    Attributes:
        name: The parameter.
        index: Place in the flattened parameter of each entry that enters; -1 for none.
        scale: Factor with which it enters.
        kind: "linear": a weight (groups * U, J) that multiplies inputs. "scale": a vector (U,) that is added at every
            position, times `factor`. "embedding": the entries at `index`, shaped like the tap's `eps`.
        inputs: Of "linear": gives the inputs (*lead, groups, J).
        spread: Of "linear", for a transposed convolution: values on the output as patches (*lead, groups, K) that
            each input sees.
        factor: Of "scale": shaped like the tap's `eps`, or None for ones.
    """

    name: str
    index: Tensor
    scale: float
    kind: Literal["linear", "scale", "embedding"]
    inputs: Callable[[], Tensor] | None = None
    spread: Callable[[Tensor], Tensor] | None = None
    factor: Tensor | None = None


@dataclass
class TracedTensor:
    """A tensor whose entries are `scale` times entries of one parameter, plus constants.

    Attributes:
        value: The tensor.
        name: The parameter.
        index: Place in the flattened parameter of each entry; -1 where no derivative flows.
        scale: The factor.
    """

    value: Tensor
    name: str
    index: Tensor
    scale: float = 1.0


@dataclass
class Tap:
    """A place in the forward pass where a perturbation is added.

    Attributes:
        eps: The perturbation, zeros that require a gradient.
        uses: The parameters that enter here.
        unit_axis: Axis of the output units in `eps`; it is moved to the end.
        lead: Number of axes before the units, once moved: examples and positions.
    """

    eps: Tensor
    uses: list[ParameterUse]
    unit_axis: int
    lead: int

    def moved(self, tensor: Tensor) -> Tensor:
        """A tensor shaped like `eps` as (*lead, U)."""
        tensor = tensor.movedim(self.unit_axis, -1)
        return tensor.flatten(self.lead) if self.lead < tensor.dim() else tensor.unsqueeze(-1)

    def restored(self, tensor: Tensor) -> Tensor:
        """The inverse of `moved`."""
        return tensor.reshape(self.eps.movedim(self.unit_axis, -1).shape).movedim(-1, self.unit_axis)


@dataclass(frozen=True)
class ExampleAxis:
    """Which of the leading axes counts the examples: it has size before * examples * after."""

    axis: int
    before: int
    examples: int
    after: int

    def first(self, tensor: Tensor) -> Tensor:
        """The examples as axis 0, the other parts of their axis behind."""
        return tensor.unflatten(self.axis, (self.before, self.examples, self.after)).movedim(self.axis + 1, 0)

    def placed(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of `first` with all that is behind the examples in one axis: rows (B, n) in a tensor's shape."""
        sizes = [*shape[: self.axis], self.before, self.after, *shape[self.axis + 1 :]]
        return rows.reshape(self.examples, *sizes).movedim(0, self.axis + 1).flatten(self.axis, self.axis + 2)

    def positions(self, tensor: Tensor, trailing: int = 1) -> Tensor:
        """The tensor as (B, T, ...): all but the last `trailing` axes merged into positions T."""
        tensor = self.first(tensor)
        end = tensor.dim() - trailing
        return tensor.reshape(self.examples, math.prod(tensor.shape[1:end]), *tensor.shape[end:])

    def restored(self, tensor: Tensor, lead: Sequence[int]) -> Tensor:
        """The inverse of `positions` for values (B, T, U) and the leading sizes, as (*lead, U)."""
        sizes = [*lead[: self.axis], self.before, self.after, *lead[self.axis + 1 :]]
        tensor = tensor.reshape(self.examples, *sizes, tensor.shape[-1])
        return tensor.movedim(0, self.axis + 1).flatten(self.axis, self.axis + 2)


def candidate_axes(lead: Sequence[int], examples: int) -> list[ExampleAxis]:
    """Every way in which the leading axes may hold the examples, the usual ones first."""
    found = [ExampleAxis(k, 1, examples, n // examples) for k, n in enumerate(lead) if n and n % examples == 0]
    return found + [ExampleAxis(a.axis, a.after, examples, 1) for a in found if a.after > 1 and examples > 1]
