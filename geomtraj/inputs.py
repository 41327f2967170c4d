"""Checks of what a Problem is made of: batches, parameters, losses."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geomtraj.errors import GeomtrajWarning, InputError
from geomtraj.layout import Layout
from geomtraj.parameter_names import aliases, named_parameters, places, unwrap
from geomtraj.trees import arrays_of, leaves_of


def checked_model(model: Any) -> nn.Module:
    """The module to measure, without the wrappers of torch.compile and DistributedDataParallel.

    Raises:
        InputError: It is none, has parameters that are sharded over processes, or holds a ScriptModule.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, not {type(model).__name__}.")
    model = unwrap(model)  # a DistributedDataParallel's forward pass would wait for the other processes
    scripted = [name or "the model" for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if scripted:
        raise InputError(
            f"{scripted[0]} is a ScriptModule, in which no parameter can be replaced: pass the module that it was "
            "scripted from."
        )
    wrapped = any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules())
    if wrapped or any(hasattr(p, "full_tensor") for p in model.parameters()):
        raise InputError(
            "the model's parameters are sharded over processes (FSDP or DTensor): load the whole model on each, "
            "and share the batches by group=."
        )
    return model


MANY_ZEROS = 0.05
"""Share of losses that are exactly zero from which a warning is due."""


def checked_batches(batches: Any, may_be_empty: bool) -> Iterable[Any]:
    """The batches themselves, if they can be gone through again and again; a list of those of a streaming loader.

    Raises:
        InputError: They are a single batch, a one-shot iterator, or there are none and that is not allowed.
    """
    if isinstance(batches, (Mapping, str, bytes, Tensor, np.ndarray)) or not hasattr(batches, "__iter__"):
        raise InputError(
            f"batches is a single {type(batches).__name__}: pass a list of batches, [batch] if there is only one."
        )
    if isinstance(batches, tuple) and len(batches) > 1 and all(isinstance(b, (Tensor, np.ndarray)) for b in batches):
        raise InputError(
            f"batches is a tuple of {len(batches)} tensors, which would be {len(batches)} batches: pass a list, "
            "batches=[(x, y)] if they are one batch, [x, y] if each is a batch of its own."
        )
    if isinstance(batches, Iterator):
        raise InputError("batches is a one-shot iterator, and every product needs another pass: pass list(batches).")
    if isinstance(getattr(batches, "dataset", None), torch.utils.data.IterableDataset):
        held = list(batches)
        warnings.warn(
            f"the loader streams an IterableDataset: its {len(held)} batches of this pass are kept and measured.",
            GeomtrajWarning,
            stacklevel=2,
        )
        batches = held
    if isinstance(batches, (list, tuple)):
        batches = list(batches)  # what the caller appends later does not belong to it
    if _length(batches) == 0 and not may_be_empty:
        raise InputError("batches is empty: pass at least one batch.")
    return batches


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except TypeError:
        return None


def refuse_flattened(batch: Any, losses: Tensor) -> None:
    """Refuse losses that count tokens where the rows of the batch are the examples.

    Raises:
        InputError: There are several losses for each row of the batch.
    """
    arrays = [a for a in arrays_of(batch) if a.ndim]
    rows = {int(a.shape[0]) for a in arrays}
    count = losses.shape[0]
    if len(rows) != 1 or count in rows or 0 in rows:
        return
    (n,) = rows
    lengths = {int(a.shape[1]) for a in arrays if a.ndim > 1}
    if count % n or count < n or (n == 1 and not any(count in (k - 1, k, k + 1) for k in lengths)):
        return
    raise InputError(
        f"{n} rows went into loss(model, batch) and {count} losses came out: its first axis must count independent "
        f"examples, or every standard error is wrong; return losses.reshape({n}, {count // n}), and weights in the "
        "same shape (check=False, if each of them is an independent example)."
    )


def warn_of_zeros(losses: int, zeros: int, ignored: int) -> None:
    """Warn where many losses are exactly zero and no weights say that they do not count.

    Args:
        losses: Number of losses.
        zeros: How many of them are exactly zero.
        ignored: How many labels are -100.
    """
    if zeros < max(2, MANY_ZEROS * losses):
        return
    label = f", and {ignored} labels are -100" if ignored else ""
    warnings.warn(
        f"{zeros} of {losses} losses are exactly zero{label}, and they count in the mean: if they are padding or "
        "ignored labels, return (losses, weights) with weight 0 there, such as (labels != -100).",
        GeomtrajWarning,
        stacklevel=2,
    )


def selected(model: nn.Module, params: str | Iterable[str] | None) -> Layout:
    """The parameters that match the globs, or all that require a gradient; tied ones once.

    Raises:
        InputError: There are none, a glob matches nothing, or they have other number types than float32 or float64, or
            are spread over several types or devices.
    """
    everything, tied, places_of = named_parameters(model), aliases(model), places(model)
    if not everything:
        raise InputError(f"the model {type(model).__name__} has no parameters.")
    for name, p in everything.items():
        if not _stands_there(model, places_of[name], p):
            raise InputError(
                f"the model names a parameter {name!r} that its modules do not have there: let named_parameters() give "
                "the names of nn.Module, and choose by params=."
            )
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise InputError(f"parameter {name!r} has no shape yet: run the model once on one batch first.")
    if params is None:
        names = [name for name, p in everything.items() if p.requires_grad]
        if not names:
            raise InputError(
                "no parameter requires a gradient: call requires_grad_(True) on those that are to be measured."
            )
    else:
        chosen = Layout({name: p.shape for name, p in everything.items()}, tied).select(params)
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
    if not any(everything[name].numel() for name in names):
        raise InputError(f"the selected parameters ({', '.join(names[:3])}) hold no entries at all: select others.")
    kept = set(names)
    return Layout({n: everything[n].shape for n in names}, {a: n for a, n in tied.items() if n in kept})


def _stands_there(model: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is found under its name from module to module."""
    *path, last = name.split(".")
    module: Any = model
    for step in path:
        module = module._modules.get(step) if isinstance(module, nn.Module) else None
    return isinstance(module, nn.Module) and module._parameters.get(last) is parameter


def refuse_generators(batch: Any) -> None:
    """Refuse a batch that a single pass uses up.

    Raises:
        InputError: It holds an iterator.
    """
    for path, leaf in leaves_of(batch):
        if isinstance(leaf, Iterator):
            raise InputError(
                f"a batch holds an iterator{f' at {path}' if path else ''} ({type(leaf).__name__}), which the first "
                "pass uses up: pass a list of what it gives."
            )


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
    if losses.layout is not torch.strided:
        losses = losses.to_dense()
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
