"""Tensors that were saved elsewhere under the names that a model has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from geomtraj import parameter_names
from geomtraj.errors import TrajectoryError
from geomtraj.trajectory import model_state

EXTRA_STATE = "_extra_state"
"""The end of names under which modules keep what is no tensor."""
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Last parts of names that are buffers by everybody's use."""


def parted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """Parameters, buffers, and further names of tied parameters, as far as they can be told without the model.

    What counts or normalises (running_mean and its like) and what holds no fractions is a buffer, all else a parameter.
    """
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        if name.rpartition(".")[2] in BUFFERS or not (tensor.is_floating_point() or tensor.is_complex()):
            buffers[name] = tensor
        elif id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            parameters[name] = tensor
    return parameters, buffers, aliases


def without_wrappers(tensors: Mapping[str, Tensor], lightning: bool) -> dict[str, Tensor]:
    """Names without what DistributedDataParallel, torch.compile and a LightningModule's attribute put before them."""
    found = {parameter_names.clean_name(name): tensor for name, tensor in tensors.items()}
    heads = {name.partition(".")[0] for name in found}
    nested = all("." in name for name in found)
    while nested and (heads == {"module"} or (lightning and len(heads) == 1)):
        found = {name.partition(".")[2]: tensor for name, tensor in found.items()}
        lightning = False
        heads, nested = {name.partition(".")[0] for name in found}, all("." in name for name in found)
    return found


def fitted(model: nn.Module, tensors: Mapping[str, Tensor], where: object) -> dict[str, dict[str, Tensor]]:
    """Parameters and buffers by the model's own names; what fits nowhere stays, for the error that names it.

    A prefix before all of the model's names ("model.", "module.") is found by trying. Buffers that are not stored with
    a model stay as they are.

    Raises:
        TrajectoryError: Several prefixes fit, or a number type cannot stand for the model's.
    """
    parameters, buffers = model_state.named_parameters(model), parameter_names.named_buffers(model)
    stored_names = {parameter_names.clean_name(name) for name in model.state_dict() if not name.endswith(EXTRA_STATE)}
    also: dict[str, list[str]] = {}
    for alias, name in parameter_names.aliases(model).items():
        also.setdefault(name, []).append(alias)
    needed = [*parameters, *(name for name in buffers if name in stored_names or name in tensors)]
    names = _best(tensors, needed, also, where)
    content: dict[str, dict[str, Tensor]] = {"parameters": {}, "buffers": {}}
    used: set[str] = set()
    for part, mine in (("parameters", parameters), ("buffers", buffers)):
        for name, own in mine.items():
            stored = next((names[n] for n in (name, *also.get(name, ())) if n in names), None)
            used |= {name, *also.get(name, ())}
            if stored is not None:
                _check_type(name, tensors[stored], own, where)
                content[part][name] = tensors[stored]
            elif part == "buffers" and name not in stored_names:
                content[part][name] = own
    content["parameters"] |= {name: tensors[stored] for name, stored in names.items() if name not in used}
    return content


def _best(
    tensors: Mapping[str, Tensor], needed: list[str], also: Mapping[str, list[str]], where: object
) -> dict[str, str]:
    """Name in the model -> name in the checkpoint, by the prefix that leaves the fewest names without a tensor."""
    plain = {name: name for name in tensors}
    if not needed:
        return plain
    tried: dict[str, dict[str, str]] = {"": plain}
    for probe in (needed[0], needed[-1], max(needed, key=len)):
        for name in tensors:
            if name.endswith(f".{probe}"):
                prefix = name[: -len(probe)]
                tried[prefix] = {n.removeprefix(prefix): n for n in tensors if n.startswith(prefix)}
            elif probe.endswith(f".{name}"):
                prefix = probe[: -len(name)]
                tried[f"{prefix}+"] = {prefix + n: n for n in tensors}
    lacking = {
        prefix: sum(not any(n in names for n in (name, *also.get(name, ()))) for name in needed)
        for prefix, names in tried.items()
    }
    best = min(lacking.values())
    if lacking[""] == best:
        return plain
    good = sorted(prefix for prefix, count in lacking.items() if count == best)
    if len(good) > 1 and best == 0:
        raise TrajectoryError(
            f"{where} holds several models of this kind, under {' and '.join(repr(p) for p in good[:4])}: pass load= "
            "that returns one of them."
        )
    return tried[good[0]]


def _check_type(name: str, stored: Tensor, own: Any, where: object) -> None:
    def kind(tensor: Any) -> str:
        return "complex" if tensor.is_complex() else "fractional" if tensor.is_floating_point() else "whole"

    if kind(stored) != kind(own) and (kind(own), kind(stored)) != ("complex", "fractional"):
        raise TrajectoryError(
            f"{where}: {name} is stored as {stored.dtype} and is {own.dtype} in the model: a quantised or other model; "
            "build the one it was saved from, or pass load=."
        )
