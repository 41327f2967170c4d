"""What a Problem is made of: arguments normalised, passes over the batches checked, and all processes agreed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geomtraj import determinism
from geomtraj.attention import recognise
from geomtraj.determinism import Totals
from geomtraj.distributed import Ranks, digest
from geomtraj.errors import InputError
from geomtraj.failures import in_one_sentence
from geomtraj.inputs import checked_batches, checked_model, selected, warn_of_zeros
from geomtraj.isolation import in_plain_torch
from geomtraj.layout import Layout
from geomtraj.losses import from_criterion
from geomtraj.objective import Loss, Objective
from geomtraj.parameter_names import named_buffers, named_parameters
from geomtraj.splitting import Recognised


@dataclass(frozen=True)
class Normalised:
    """One process's arguments in the form in which they are used.

    Attributes:
        objective: Model, loss and mode as one function.
        layout: The selected parameters.
        batches: What can be gone through again and again.
        ranks: The processes that share all batches; None where there is one.
    """

    objective: Objective
    layout: Layout
    batches: Iterable[Any]
    ranks: Ranks | None

    def parameters(self) -> dict[str, Tensor]:
        """The selected parameters as they stand in the model, in layout order."""
        own = named_parameters(self.objective.model)
        return {name: own[name] for name in self.layout}

    @contextmanager
    def session(self) -> Iterator[None]:
        """Everything that an evaluation needs set, and everything put back at the end, also after an error."""
        own_generator = getattr(self.batches, "generator", None)
        with ExitStack() as stack:
            generators = [own_generator] if isinstance(own_generator, torch.Generator) else []
            stack.enter_context(self.objective.session(generators))
            if self.ranks is not None:
                stack.enter_context(self.ranks.errors_noted())
            yield


class Part(NamedTuple):
    """What one process tells the others of its batches and its model."""

    totals: Totals
    recognised: Recognised | None
    setting: dict[str, str]
    tensors: dict[str, int]
    differentiates: bool


class Agreed(NamedTuple):
    """What the parts of all processes tell together; see `geomtraj.problem.Problem`."""

    examples: int
    first_example: int
    total_weight: float
    unused: tuple[str, ...]
    recognised: Recognised | None
    differentiates: bool


@in_plain_torch
def normalise(
    model: nn.Module, loss: Loss, batches: Iterable[Any], params: Any, mode: str, ranks: Ranks | None
) -> Normalised:
    """The arguments of a Problem in the form in which they are used.

    Raises:
        InputError: One of them is something else than it must be.
    """
    if isinstance(loss, nn.modules.loss._Loss):
        loss = from_criterion(loss)
    if not callable(loss):
        raise InputError(f"the loss must be a function loss(model, batch), not {type(loss).__name__}.")
    if mode not in ("eval", "train"):
        raise InputError(f"mode is {mode!r}: choose 'eval' or 'train'.")
    model = checked_model(model)
    batches = checked_batches(batches, may_be_empty=ranks is not None)
    layout = selected(model, params)
    return Normalised(Objective(model, loss, mode), layout, batches, ranks)


@in_plain_torch
def check(normal: Normalised, blocks: Any, strict: bool) -> Part:
    """Two passes over the batches of this process: they must agree; what they tell is handed on.

    Raises:
        InputError: They do not agree; the message names the likely culprit.
    """
    objective, parameters = normal.objective, normal.parameters()
    with in_one_sentence(), normal.session():
        summaries = determinism.two_passes(objective, parameters, normal.batches, strict=strict)
        samples = ((b, s.losses) for b, s in zip(normal.batches, summaries, strict=False) if s.losses.numel())
        recognised = recognise(objective, parameters, next(samples, None))
    mark = hashlib.sha256(repr(normal.layout).encode()).hexdigest()[:6]
    tensors = named_parameters(objective.model) | named_buffers(objective.model)
    return Part(
        totals=determinism.totals(summaries),
        setting={
            "mode": objective.mode,
            "params": f"{len(normal.layout)} tensors with {normal.layout.size} entries (layout {mark})",
            "dtype": str(next(iter(parameters.values())).dtype),
            "blocks": repr(blocks),
        },
        recognised=recognised,
        tensors={} if normal.ranks is None else {name: digest(tensor) for name, tensor in tensors.items()},
        differentiates=objective.differentiates,
    )


def agree(parts: Sequence[Part], rank: int, layout: Layout, warn: bool) -> Agreed:
    """What the parts of all processes tell together.

    Args:
        parts: In the order of the processes.
        rank: Number of this one.
        layout: The selected parameters.
        warn: Whether to warn of many losses that are exactly zero.

    Raises:
        InputError: The processes differ in what they measure, there is no batch, or all weights are zero.
    """
    _refuse_differences(parts)
    own = [part.totals for part in parts]
    if not any(t.batches for t in own):
        raise InputError("batches is empty: pass at least one batch.")
    weight = sum(t.weight for t in own)
    if warn:
        warn_of_zeros(sum(t.losses for t in own), sum(t.zeros for t in own), sum(t.ignored for t in own))
    if not weight > 0:
        raise InputError(
            f"the weights of all batches sum to {weight:g}: L(theta) divides by that sum, so give positive weights."
        )
    reached = set().union(*(t.reached for t in own))
    return Agreed(
        examples=sum(t.examples for t in own),
        first_example=sum(t.examples for t in own[:rank]),
        total_weight=weight,
        unused=tuple(name for name in layout if name not in reached),
        recognised=next((part.recognised for part in parts if part.recognised is not None), None),
        differentiates=any(part.differentiates for part in parts),
    )


def _refuse_differences(parts: Sequence[Part]) -> None:
    for rank, part in enumerate(parts):
        for name, value in part.setting.items():
            if value != parts[0].setting[name]:
                raise InputError(
                    f"{name} differs between the processes: {parts[0].setting[name]} on process 0, {value} on "
                    f"process {rank}; make the same Problem on each."
                )
        odd = [n for n, value in parts[0].tensors.items() if part.tensors.get(n) != value]
        if odd or len(part.tensors) != len(parts[0].tensors):
            name = odd[0] if odd else next(n for n in part.tensors if n not in parts[0].tensors)
            raise InputError(
                f"{name!r} of the model differs between process 0 and process {rank}: load the same checkpoint on "
                "each, or call torch.distributed.broadcast(tensor, 0) for every tensor of model.state_dict()."
            )
