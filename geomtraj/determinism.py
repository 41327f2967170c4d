"""Two passes over the batches must agree; what they tell of the model and the data, and who is to blame if not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from geomtraj.errors import GeomtrajError, InputError
from geomtraj.graphs import nodes_of
from geomtraj.inputs import refuse_flattened, refuse_generators
from geomtraj.objective import Objective
from geomtraj.parameter_names import named_parameters
from geomtraj.trees import arrays_of, digest_of


class BatchSummary(NamedTuple):
    """What one pass over a batch gave.

    Attributes:
        losses: In float64 on the CPU (B, ...).
        weight: Sum of the weights.
        digest: Of the batch.
        reached: Names of the parameters that the losses depend on.
        captured: Names of parameters that they reach past the model.
        written: Names of parameters and buffers that the forward pass wrote into.
        weighted: Whether the loss gave weights.
        ignored: How many labels are -100.
    """

    losses: Tensor
    weight: float
    digest: str
    reached: set[str]
    captured: set[str]
    written: set[str]
    weighted: bool
    ignored: int

    def agrees(self, other: BatchSummary, tolerance: float) -> bool:
        """Whether two passes over one batch gave the same losses, up to rounding."""
        if self.losses.shape != other.losses.shape or self.digest != other.digest:
            return False
        scale = float(self.losses.nan_to_num(0, 0, 0).abs().max()) if self.losses.numel() else 0.0
        return torch.allclose(self.losses, other.losses, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def two_passes(
    objective: Objective, parameters: Mapping[str, Tensor], batches: Iterable[Any], *, strict: bool
) -> list[BatchSummary]:
    """What a pass over the batches tells, if a second one agrees. Use it inside the objective's session.

    What the passes find out about the objective is written into it.

    Args:
        objective: Model and loss.
        parameters: The selected parameters' values.
        batches: The batches.
        strict: Whether to refuse losses that look like tokens of their examples.

    Raises:
        InputError: The passes disagree, or parameters are reached past the model in a way that cannot be followed.
    """
    tolerance = 1e3 * torch.finfo(next(iter(parameters.values())).dtype).eps
    with _watched(objective):
        first = _first_pass(objective, parameters, batches, strict)
    captured = set().union(*(s.captured for s in first))
    if captured:
        own = named_parameters(objective.model)
        objective.captured = {name: own[name] for name in parameters if name in captured}
        first = _pass(objective, parameters, batches, strict)
        left = set().union(*(s.captured for s in first))
        if left:
            raise InputError(_held_elsewhere(left))
    objective.rewritten = set().union(*(s.written for s in first))
    second = _without_gradients(objective, parameters, batches)
    if second is not None and [s.digest for s in first] != [s.digest for s in second]:
        raise InputError(_culprit(objective, first, second))
    if second is None or not _agree(first, second, tolerance):
        objective.differentiates = True
        second = _pass(objective, parameters, batches, strict)
        if not _agree(first, second, tolerance):
            raise InputError(_culprit(objective, first, second))
    return first


class Totals(NamedTuple):
    """What a pass over all batches of one process told.

    Attributes:
        batches: Number of batches.
        examples: Number of examples.
        weight: Sum of the weights.
        reached: Names of the parameters that the losses depend on.
        losses: Number of losses where no batch has weights, else 0.
        zeros: How many of them are exactly zero.
        ignored: How many labels are -100.
    """

    batches: int
    examples: int
    weight: float
    reached: set[str]
    losses: int
    zeros: int
    ignored: int


def totals(summaries: list[BatchSummary]) -> Totals:
    """The sums over the batches."""
    plain = [] if any(s.weighted for s in summaries) else summaries
    return Totals(
        batches=len(summaries),
        examples=sum(s.losses.shape[0] for s in summaries),
        weight=sum(s.weight for s in summaries),
        reached=set().union(*(s.reached for s in summaries)),
        losses=sum(s.losses.numel() for s in plain),
        zeros=sum(int((s.losses == 0).sum()) for s in plain),
        ignored=sum(s.ignored for s in summaries),
    )


def _agree(first: list[BatchSummary], second: list[BatchSummary], tolerance: float) -> bool:
    return len(first) == len(second) and all(a.agrees(b, tolerance) for a, b in zip(first, second, strict=True))


def _first_pass(
    objective: Objective, parameters: Mapping[str, Tensor], batches: Iterable[Any], strict: bool
) -> list[BatchSummary]:
    """A pass; where it fails, one with operations on all parameters redirected, by which the loss may differentiate."""
    try:
        return _pass(objective, parameters, batches, strict)
    except RuntimeError as error:
        if isinstance(error, GeomtrajError):
            raise
        own = named_parameters(objective.model)
        objective.captured = {name: own[name] for name in parameters}
        try:
            return _pass(objective, parameters, batches, strict)
        except RuntimeError:
            raise error from None


def _pass(
    objective: Objective, parameters: Mapping[str, Tensor], batches: Iterable[Any], strict: bool
) -> list[BatchSummary]:
    return [_summary(objective, parameters, batch, strict) for batch in batches]


def _summary(objective: Objective, parameters: Mapping[str, Tensor], batch: Any, strict: bool) -> BatchSummary:
    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    refuse_generators(batch)
    losses, weights, written = objective.written_into(leaves, batch)
    if strict:
        refuse_flattened(batch, losses)
    value = losses.sum() if weights is None else (losses * weights).sum()
    reached, captured = set[str](), set[str]()
    if value.requires_grad:
        _refuse_reentrant(value)
        # As edges of the graph, since operations on the parameters themselves may be redirected.
        own: dict[str, Any] = {
            name: get_gradient_edge(p)
            for name, p in named_parameters(objective.model).items()
            if name in leaves and p.requires_grad and not p.is_inference()
        }
        with objective.holding(leaves):
            targets: list[Any] = [*leaves.values(), *own.values()]
            # Kept, since a part of the graph may be the caller's own.
            found = torch.autograd.grad(value, targets, allow_unused=True, retain_graph=True)
        reached = {name for name, g in zip(leaves, found, strict=False) if g is not None}
        captured = {name for name, g in zip(own, found[len(leaves) :], strict=True) if g is not None}
    weight = float(losses.numel() if weights is None else weights.double().sum())
    ignored = sum(_count_ignored(array) for array in arrays_of(batch))
    return BatchSummary(
        losses.detach().double().cpu(),
        weight,
        digest_of(batch),
        reached,
        captured,
        written,
        weights is not None,
        ignored,
    )


@contextmanager
def _watched(objective: Objective) -> Iterator[None]:
    """Notices whether a module runs inside a transform of torch.func."""

    def notice(*_: object) -> None:
        objective.uses_func |= torch._C._functorch.peek_interpreter_stack() is not None

    plain = [m for m in objective.model.modules() if not hasattr(m, "_orig_mod")]
    handles = [module.register_forward_pre_hook(notice) for module in plain]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refuse_reentrant(value: Tensor) -> None:
    if any(node.name() == "CheckpointFunctionBackward" for node in nodes_of(value.grad_fn)):
        raise InputError(
            "the model checkpoints activations with use_reentrant=True, which has no second derivative: pass "
            "use_reentrant=False to torch.utils.checkpoint."
        )


def _without_gradients(
    objective: Objective, parameters: Mapping[str, Tensor], batches: Iterable[Any]
) -> list[BatchSummary] | None:
    """A pass in which no parameter requires a gradient; None where the loss cannot do without."""
    plain = {name: p.detach() for name, p in parameters.items()}
    found = []
    try:
        for batch in batches:
            losses, _ = objective.losses(plain, batch)
            none: set[str] = set()
            values = losses.detach().double().cpu()
            found.append(BatchSummary(values, 0.0, digest_of(batch), none, none, none, False, 0))
    except GeomtrajError:
        raise
    except Exception:  # whatever a loss that differentiates by its parameters raises where they require no gradient
        return None
    return found


def _count_ignored(array: Tensor | np.ndarray) -> int:
    if isinstance(array, Tensor):
        if array.is_floating_point() or array.is_complex() or array.layout is not torch.strided or array.is_nested:
            return 0
        return int((array == -100).sum())
    return int(np.sum(array == -100)) if np.issubdtype(array.dtype, np.integer) else 0


def _held_elsewhere(names: set[str]) -> str:
    some = ", ".join(map(repr, sorted(names)[:3]))
    return (
        f"the loss reaches {some} past the model, by something that was computed from it before (a product or a copy "
        "in its graph): compute it inside loss(model, batch), from the parameters of the model that is passed in."
    )


def _culprit(objective: Objective, first: list[BatchSummary], second: list[BatchSummary]) -> str:
    opening = "two passes over the batches disagree"
    if len(first) != len(second):
        return f"{opening}: {len(first)} batches, then {len(second)}; pass a list of batches."
    if [s.digest for s in first] != [s.digest for s in second]:
        return (
            f"{opening}: the batches themselves change, so the loader is shuffling or draws random augmentations; "
            "pass DataLoader(..., shuffle=False), or list(loader) to fix one pass."
        )
    model = objective.model
    kinds = (nn.modules.dropout._DropoutNd, nn.RNNBase, nn.MultiheadAttention)
    active = {n: getattr(m, "p", None) or getattr(m, "dropout", None) for n, m in model.named_modules()}
    names = [n for n, m in model.named_modules() if isinstance(m, kinds) and active[n]]
    if objective.mode == "train" and names:
        return f"{opening}: dropout is active in {', '.join(map(repr, names[:3]))}; pass mode='eval'."
    statistics = batch_statistics(model, objective.mode)
    if statistics:
        return (
            f"{opening}: {', '.join(map(repr, statistics[:3]))} computes batch statistics, which differ from pass to "
            "pass; pass mode='eval'."
        )
    return (
        f"{opening} on the same batches: the model or the loss draws random numbers or keeps a state "
        "(dropout through torch.nn.functional, say); make loss(model, batch) deterministic."
    )


def batch_statistics(model: nn.Module, mode: str) -> list[str]:
    """Names of modules whose statistics of the batch let examples interact in this mode."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    return [
        name
        for name, m in model.named_modules()
        if isinstance(m, kinds[0]) and (mode == "train" or not m.track_running_stats)
    ]
