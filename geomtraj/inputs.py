"""Checks of what a Problem is made of: batches, parameters, losses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geomtraj.errors import InputError
from geomtraj.layout import Layout


def checked_batches(batches: Any, may_be_empty: bool) -> Iterable[Any]:
    """The batches themselves, if they can be gone through again and again.

    Raises:
        InputError: They are a single batch, a one-shot iterator, or there are none and that is not allowed.
    """
    if isinstance(batches, (Mapping, str, bytes)) or not hasattr(batches, "__iter__"):
        raise InputError(
            f"batches is a single {type(batches).__name__}: pass a list of batches, [batch] if there is only one."
        )
    if isinstance(batches, Iterator):
        raise InputError("batches is a one-shot iterator, and every product needs another pass: pass list(batches).")
    if hasattr(batches, "__len__") and len(batches) == 0 and not may_be_empty:
        raise InputError("batches is empty: pass at least one batch.")
    return batches


def selected(model: nn.Module, params: str | Iterable[str] | None) -> Layout:
    """The parameters that match the globs, or all that require a gradient; tied ones once.

    Raises:
        InputError: There are none, a glob matches nothing, or they have other number types than float32 or float64, or
            are spread over several types or devices.
    """
    canonical = {id(p): name for name, p in model.named_parameters()}
    everything = dict(model.named_parameters())
    aliases = {
        name: canonical[id(p)] for name, p in model.named_parameters(remove_duplicate=False) if canonical[id(p)] != name
    }
    if not everything:
        raise InputError(f"the model {type(model).__name__} has no parameters.")
    if params is None:
        names = [name for name, p in everything.items() if p.requires_grad]
        if not names:
            raise InputError(
                "no parameter requires a gradient: call requires_grad_(True) on those that are to be measured."
            )
    else:
        chosen = Layout({name: p.shape for name, p in everything.items()}, aliases).select(params)
        names = [name for name in chosen if everything[name].requires_grad]
        if not names:
            raise InputError(
                f"params selects only frozen parameters ({', '.join(chosen[:3])}): call requires_grad_(True) on them."
            )
    dtypes = {everything[name].dtype for name in names}
    devices = {everything[name].device for name in names}
    for name in names:
        dtype = everything[name].dtype
        if dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"parameter {name!r} is {dtype}: curvature is measured in float32 or float64; convert a copy of the "
                "model with .float() or .double(), or leave it out by params=."
            )
    if len(dtypes) > 1 or len(devices) > 1:
        raise InputError(
            f"the selected parameters are spread over {sorted(map(str, dtypes | devices))}: bring them to one, "
            "or select some of them by params=."
        )
    kept = set(names)
    return Layout({n: everything[n].shape for n in names}, {a: n for a, n in aliases.items() if n in kept})


def checked_losses(result: Any) -> tuple[Tensor, Tensor | None]:
    """Losses (B, ...) and weights of the same shape, or None, from what a loss returned.

    Raises:
        InputError: It returned something else.
    """
    losses, weights = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(losses, Tensor):
        raise InputError(
            f"loss(model, batch) returned {type(result).__name__}: return a tensor of losses, or (losses, weights)."
        )
    if losses.dim() == 0:
        raise InputError(
            "the loss is a single number (0-d): return one loss per example, unreduced, for instance with "
            "reduction='none', so that batches of different sizes are averaged exactly."
        )
    if not losses.is_floating_point():
        raise InputError(f"the losses are {losses.dtype}: return real floating-point numbers.")
    if weights is None:
        return losses, None
    if not isinstance(weights, Tensor):
        raise InputError(f"the weights are {type(weights).__name__}: return (losses, weights), both tensors.")
    if weights.requires_grad:
        raise InputError("the weights depend on the parameters: detach them, or make them part of the losses.")
    if weights.shape != losses.shape[: weights.dim()]:
        raise InputError(
            f"the weights have shape {tuple(weights.shape)}, the losses {tuple(losses.shape)}: give the same shape, "
            "or one weight for each entry of its leading axes."
        )
    weights = weights.to(losses.dtype).reshape(*weights.shape, *[1] * (losses.dim() - weights.dim()))
    return losses, weights.expand_as(losses)


def digest_of(batch: Any) -> str:
    """A hash of the tensors and plain values in a batch of any nesting."""
    sha = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, Tensor):
            sha.update(f"{item.dtype}{tuple(item.shape)}".encode())
            sha.update(
                item.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if item.numel() else b""
            )
        elif isinstance(item, Mapping) or hasattr(item, "items"):
            for key, value in item.items():
                sha.update(str(key).encode())
                add(value)
        elif isinstance(item, (list, tuple)):
            for value in item:
                add(value)
        elif isinstance(item, (str, int, float, bool, bytes, type(None))):
            sha.update(repr(item).encode())

    add(batch)
    return sha.hexdigest()
