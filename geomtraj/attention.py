"""How query, key and value lie in a fused matrix, found out by what attention does not notice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geomtraj.objective import Objective
from geomtraj.parameter_names import named_parameters
from geomtraj.recognised import Fused, embeddings, graph_of, look_fused
from geomtraj.seeding import gaussian, generator
from geomtraj.slicing import count, sliced
from geomtraj.splitting import Recognised, Split

Losses = Callable[[Mapping[str, Tensor]], Tensor]

UNNOTICED = 1e-2
"""What doubled queries and halved keys may change, of what other factors on the values change: where queries and keys
are normalised, the eps in that notices a little."""
UNSUITED = (RuntimeError, ValueError, ArithmeticError, AssertionError, MemoryError)
"""What a model raises that does not take some parameters or some examples alone, or has no room for them."""
FEW = 2
NUMBERS = 65537
"""How many random numbers the noise is made of, again and again; a prime, so that no row repeats."""
NOISE = 1e-6
"""What is no change of the losses, of their size, in float32 and better."""
NAMES = {(0, 1): ("q", "k", "v"), (0, 2): ("q", "v", "k"), (1, 2): ("v", "q", "k")}
"""The parts' names in order of their places, by the places of queries and keys."""


def recognise(
    objective: Objective, parameters: Mapping[str, Tensor], sample: tuple[Any, Tensor] | None
) -> Recognised | None:
    """What a model tells of its parameters: its modules, and a pass over a few examples.

    How query, key and value lie in what looks like a fused matrix by name and shape is found out by `arrangement` where
    the loss tells it. Where it does not, because there is no attention or it is without effect, a name under which
    queries come first, then keys, then values is believed. What is attention, with a softmax or heads, and of no order
    that is known stays whole.

    Args:
        objective: Model and loss; use it inside its session.
        parameters: The selected parameters.
        sample: A batch and its losses, in float64 on the CPU; None for nothing.
    """
    if sample is None:
        return None

    def losses_of(values: Mapping[str, Tensor], examples: Any) -> Tensor:
        losses, weights = objective.losses(_leaves(values), examples)
        return (losses if weights is None else losses * weights).detach().double()

    model, batch = objective.model, _few(objective, parameters, *sample)
    leaves = _leaves(parameters)
    graph = graph_of(objective.losses(leaves, batch)[0].sum(), leaves)
    splits: dict[str, Split] = {}
    unsure: list[str] = []
    values: dict[str, Tensor] = {}
    for fused in look_fused(model):
        found = Split(0, NAMES[0, 1], None, 1) if fused.ordered else None
        if not fused.known:
            try:
                values = values or perturbed(model)
                told = arrangement(fused, values, lambda changed: losses_of(changed, batch))
            except UNSUITED:
                told = "unseen"
            other = told is None and (graph.softmax or fused.heads is not None)
            found = told if isinstance(told, Split) else None if other else found
        for name, axis in fused.axes.items():
            if found is None:
                unsure.append(name)
            else:
                splits[name] = replace(found, dim=axis)
    return Recognised(splits, tuple(unsure), frozenset(embeddings(model) | graph.tables))


def _few(objective: Objective, parameters: Mapping[str, Tensor], batch: Any, losses: Tensor) -> Any:
    """The first two examples of a batch, if they have the same losses without the others."""
    if len(losses) <= FEW or count(batch) != len(losses):
        return batch
    part = sliced(batch, len(losses), FEW)[0]
    try:
        alone = objective.losses(_leaves(parameters), part)[0].detach().double().cpu()
    except Exception:  # whatever a loss raises on a part of a batch that it was not written for
        return batch
    same = alone.shape == losses[:FEW].shape and torch.allclose(alone, losses[:FEW], rtol=1e-3, atol=1e-6)
    return part if same else batch


def _leaves(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values as leaves of a graph, as a loss that takes derivatives itself needs them."""
    return {n: p.detach().clone().requires_grad_(p.is_floating_point()) for n, p in parameters.items()}


def perturbed(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """The parameters with noise of the size of an initialisation on them, so that no part is without effect."""
    rng = generator(seed, "attention")
    found = {}
    for name, p in named_parameters(model).items():
        found[name] = p.detach()
        if p.is_floating_point() and p.numel():
            fan = p[0].numel() if p.dim() > 1 else 100
            numbers = gaussian((min(p.numel(), NUMBERS),), rng, found[name])
            numbers = numbers.repeat(-(-p.numel() // NUMBERS))[: p.numel()].reshape(p.shape)
            found[name] = numbers.mul_(0.5 / math.sqrt(fan)).add_(found[name])
    return found


def arrangement(fused: Fused, values: Mapping[str, Tensor], losses: Losses) -> Split | Literal["unseen"] | None:
    """How the parts lie in fused matrices: None if in no way that is known, "unseen" if the losses do not tell.

    Attention sees queries and keys in their products alone. With queries doubled and keys halved everything else
    stays as it is, and the losses with it; with any other rows doubled and halved it does not. Powers of two make no
    rounding errors.

    Args:
        fused: The matrices and biases, of all layers that are alike.
        values: All parameters of the model by name, with noise on them (see `perturbed`).
        losses: Losses of a few examples with given parameters.
    """
    before = losses(values)
    noise = NOISE * float(before.norm())

    def change(factors: Tensor, apart: Mapping[str, float] | None = None) -> float:
        return float((losses(_scaled(fused, values, factors, apart or {})) - before).norm())

    mixed = torch.tensor([2.0, 0.5]).repeat(fused.outputs)[: fused.outputs]
    whole = change(mixed)
    if not whole > noise or math.isinf(whole):  # NaN too
        return "unseen"
    for split, place in _candidates(fused):
        rows = {name: place == number for number, name in enumerate(split.names)}
        doubled = torch.where(rows["q"], 2.0, torch.where(rows["k"], 0.5, 1.0))
        unnoticed = change(doubled, {"q": 2.0, "k": 0.5})
        if unnoticed > UNNOTICED * whole:
            continue
        # Rows without any effect are not noticed either: the values have one, and queries and keys of other orders.
        must = "v" if split.names == NAMES[0, 1] else "qkv"
        noticed = min(change(torch.where(rows[name], mixed, 1.0)) for name in must)
        if noticed > noise and unnoticed <= UNNOTICED * noticed:
            return split
    return None


def _candidates(fused: Fused) -> Iterator[tuple[Split, Tensor]]:
    """Ways in which the parts may lie, and for each the number of the part at each place of the axis.

    One part after the other; then the same in each head or group of heads; then in other orders.
    """
    runs = [n for n in range(1, fused.shared + 1) if fused.shared % n == 0 and fused.queries % n == 0]
    runs.sort(key=lambda n: (n != 1, n != fused.heads, n))
    for names in NAMES.values():
        for groups in runs:
            sizes = tuple((fused.queries if name == "q" else fused.shared) // groups for name in names)
            place = torch.arange(3).repeat_interleave(torch.tensor(sizes)).repeat(groups)
            yield Split(0, names, sizes, groups), place


def _scaled(
    fused: Fused, values: Mapping[str, Tensor], factors: Tensor, apart: Mapping[str, float]
) -> dict[str, Tensor]:
    changed = dict(values) | {name: values[name] * apart.get(part, 1.0) for name, part in fused.apart.items()}
    for name, axis in fused.axes.items():
        tensor = values[name]
        shape = [1] * tensor.dim()
        shape[axis] = -1
        changed[name] = tensor * factors.to(tensor.device, tensor.dtype).reshape(shape)
    return changed
