"""A short name for the function that is measured, made of its values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomtraj.objective import Objective
from geomtraj.parameter_names import named_parameters
from geomtraj.seeding import gaussian, generator
from geomtraj.slicing import count, sliced

SCALES = (1.0, 0.3)
"""Sizes of the parameters' fixed values, at each of which the losses are taken."""
NUMBERS = 65537
"""How many random numbers the fixed values are filled with, again and again; a prime, so that no row repeats."""
SHIFT = 1e-10
"""Relative change of the parameters by which it is found out whether the model computes in float64."""
FEW = 4
"""Examples that are looked at first for that."""
DIGITS = {torch.float64: 8, torch.float32: 3}
"""Digits of the losses' moments that count, by the number type in which they could be computed."""


Sum = Callable[[Tensor], Tensor]


class Fingerprint(NamedTuple):
    """A name for a function, and what its losses' weights sum to.

    Attributes:
        name: 16 hexadecimal digits.
        weight: sum(w) over all batches.
    """

    name: str
    weight: float


def fingerprint(
    objective: Objective, names: list[str], batches: Iterable[Any], structure: str, total: Sum
) -> Fingerprint:
    """A hash of the losses and their gradient at fixed parameter values. Use it inside the objective's session.

    Losses enter by moments over the examples, in float64 where the model can compute in it, so that rounding, the order
    of the examples and their cut into batches do not count.

    Args:
        objective: Model and loss.
        names: The selected parameters.
        batches: The batches.
        structure: What else the name depends on.
        total: The sum of a tensor over all processes.
    """
    parts, weight = [structure], math.nan
    dtype = number_type(objective, names[0], batches, total)
    for scale in SCALES:
        moments = None
        for centre in (0.0, 1.0):  # around one where losses are not defined around zero
            at = _Fixed(scale, centre, dtype)
            moments = _moments(objective, names if scale == SCALES[0] else [], batches, at, total)
            if moments is not None and bool(torch.isfinite(moments).all()):
                break
        if moments is not None:
            weight = float(moments[1])
            parts += [_rounded(float(value), DIGITS[dtype]) for value in moments]
    return Fingerprint(hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16], weight)


class _Fixed(NamedTuple):
    """Which fixed values: their scale, what they lie around, and the number type of the evaluation."""

    scale: float
    centre: float
    dtype: torch.dtype


def number_type(objective: Objective, name: str, batches: Iterable[Any], total: Sum) -> torch.dtype:
    """float64 if the model computes in it throughout, else float32."""
    parameter = named_parameters(objective.model)[name]
    single = torch.zeros((), dtype=torch.float64, device=parameter.device)
    single += not any(_is_smooth(objective, batches, few) for few in (FEW, None))
    return torch.float32 if bool(total(single) > 0) else torch.float64


def _is_smooth(objective: Objective, batches: Iterable[Any], few: int | None) -> bool:
    """Whether a tiny change of the parameters, and twice that, change the losses by as much, and by twice as much.

    Where something is rounded to float32 on the way they do not.

    Args:
        objective: Model and loss.
        batches: The batches, of which the first with losses is looked at.
        few: How many of its examples; None for all, where a few do not stand for themselves or do not change.
    """
    try:
        fixed = _fixed(objective, _Fixed(1.0, 0.0, torch.float64))
        none, once, twice = (_one_batch(objective, batches, fixed, s, few) for s in (0.0, SHIFT, 2 * SHIFT))
    except Exception:  # whatever a model raises on number types or sizes that it was not written for
        return False
    change = once - none
    return bool((twice - none - 2 * change).norm() < 0.02 * change.norm())


def _one_batch(
    objective: Objective, batches: Iterable[Any], fixed: dict[str, Tensor], shift: float, few: int | None
) -> Tensor:
    """Losses of some examples with all parameters larger by a share; where there are none, what changes likewise."""
    at = _Fixed(1.0, 0.0, torch.float64)
    values = {n: v * (1 + shift) if shift and v.is_floating_point() else v for n, v in fixed.items()}
    for batch in batches:
        n = None if few is None else count(batch)
        part = batch if few is None or n is None or n <= few else sliced(batch, n, few)[0]
        losses, _ = objective.evaluated(_stand_ins(objective, values, at), part, at.dtype)
        if losses.numel():
            losses = losses.detach().flatten()
            return losses if losses.dtype is torch.float64 else losses.double() * math.nan
    return torch.tensor([1 + shift], dtype=torch.float64)


def _moments(objective: Objective, names: list[str], batches: Iterable[Any], at: _Fixed, total: Sum) -> Tensor | None:
    """Number of examples, sum and square sum of weights, sums of losses and their squares, gradient's norm (6,).

    None where the loss fails at these values, on one of the processes.
    """
    fixed = _fixed(objective, at)
    leaves = [fixed[name].requires_grad_() for name in names]
    sums = torch.zeros(5, dtype=torch.float64, device=next(iter(fixed.values())).device)
    gradients = [torch.zeros_like(leaf, requires_grad=False) for leaf in leaves]
    failed = torch.zeros_like(sums[0])
    try:
        for batch in batches:
            stand_ins = _stand_ins(objective, fixed, at)
            losses, weights = objective.evaluated(stand_ins, batch, _cast(at))
            if leaves and losses.requires_grad:
                value = losses.sum() if weights is None else (losses * weights).sum()
                with objective.holding(stand_ins):
                    found = torch.autograd.grad(value, leaves, allow_unused=True)
                for g, more in zip(gradients, found, strict=True):
                    if more is not None:
                        g += more
            sums += _sums(losses.detach(), weights)
    except Exception:  # whatever a loss raises on parameters that it was not written for
        failed += 1
    if bool(total(failed) > 0):
        return None
    summed = total(torch.cat([sums, *(g.double().flatten() for g in gradients)]))
    return torch.cat([summed[:5], summed[5:].norm()[None]])


def _sums(losses: Tensor, weights: Tensor | None) -> Tensor:
    rows = losses.double().reshape(len(losses), math.prod(losses.shape[1:]))
    ones = torch.ones_like(rows) if weights is None else weights.double().reshape(rows.shape)
    each = torch.where(ones == 0, 0, rows * ones).sum(1)
    count = torch.tensor(float(len(rows)), dtype=torch.float64, device=rows.device)
    return torch.stack([count, ones.sum(), ones.square().sum(), each.sum(), each.square().sum()])


def _fixed(objective: Objective, at: _Fixed) -> dict[str, Tensor]:
    """All parameters at their fixed values."""
    cast = _cast(at)
    values = {
        name: fixed_values(name, p, at).to(cast if cast is not None and p.is_floating_point() else p.dtype)
        for name, p in named_parameters(objective.model).items()
    }
    if objective.differentiates:
        values = {name: v.requires_grad_(v.is_floating_point()) for name, v in values.items()}
    return values


def _stand_ins(objective: Objective, fixed: dict[str, Tensor], at: _Fixed) -> dict[str, Tensor]:
    """What stands in for parameters and buffers in one evaluation."""
    found = objective.stand_ins(fixed, _cast(at))
    return {**found, **_statistics(found)}


def _cast(at: _Fixed) -> torch.dtype | None:
    """What everything is converted to; None to leave it."""
    return torch.float64 if at.dtype is torch.float64 else None


def _statistics(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Running statistics as they are in a new model: they change along a trajectory."""
    found = {}
    for name, tensor in tensors.items():
        kind = name.rpartition(".")[2]
        if kind in ("running_mean", "num_batches_tracked"):
            found[name] = torch.zeros_like(tensor)
        elif kind == "running_var":
            found[name] = torch.ones_like(tensor)
    return found


def fixed_values(name: str, parameter: Tensor, at: _Fixed) -> Tensor:
    """Values in float64 that depend on nothing but name, shape and `at`: random matrices, vectors around 1/2."""
    rng = generator(0, f"fingerprint {name}")
    like = torch.empty((), dtype=torch.float64, device=parameter.device)
    count = parameter.numel()
    numbers = gaussian((min(count, NUMBERS),), rng, like)
    values = numbers.repeat(-(-count // max(1, len(numbers))))[:count].reshape(parameter.shape)
    if at.centre:
        return at.centre + 0.02 * at.scale * values
    if parameter.dim() < 2:
        return at.scale * (0.5 + 0.2 * values)
    return at.scale * values * (parameter.shape[0] / max(1, count)) ** 0.5


def _rounded(value: float, digits: int) -> str:
    return f"{value + 0.0:.{digits}e}" if math.isfinite(value) else "not finite"
