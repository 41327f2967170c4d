"""A model's parameters and buffers by name: taken out, compared, and put back in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geomtraj import parameter_names
from geomtraj.errors import InputError, TrajectoryError
from geomtraj.isolation import put_back
from geomtraj.parameter_names import named_buffers, unwrap
from geomtraj.trajectory.steps import everything_in


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by its first name, in the model's order; tied ones once.

    Raises:
        InputError: A lazy module has not yet seen its input.
    """
    parameters = parameter_names.named_parameters(model)
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InputError(f"parameter {name} has no shape yet: run the model once on one batch first.")
    return parameters


def kinds(model: nn.Module) -> dict[str, str]:
    """What holds each parameter: "embedding" for tables that are looked up, else the class of its module."""
    found: dict[int, str] = {}
    for module in unwrap(model).modules():
        looked_up = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        for parameter in module.parameters(recurse=False):
            if looked_up or id(parameter) not in found:
                found[id(parameter)] = "embedding" if looked_up else type(module).__name__
    return {name: found[id(p)] for name, p in named_parameters(model).items() if id(p) in found}


def snapshot(model: nn.Module) -> dict[str, Any]:
    """The model's part of an iterate: parameters, buffers (as references) and the names that require grad."""
    parameters = named_parameters(model)
    return {
        "parameters": {name: parameter.detach() for name, parameter in parameters.items()},
        "buffers": {name: buffer.detach() for name, buffer in named_buffers(model).items()},
        "trainable": [name for name, parameter in parameters.items() if parameter.requires_grad],
    }


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is finite; looked at without a copy where the type allows it."""
    for tensor in tensors:
        if tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        try:
            low, high = torch.aminmax(real)
        except (RuntimeError, NotImplementedError):  # eight-bit types know neither
            low = high = real.float()
        if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
            return False
    return True


def fingerprint(model: nn.Module) -> list[int]:
    """A sum of each trainable parameter's bits, which almost any change of a number changes; no large copy is made."""
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for parameter in named_parameters(model).values():
        real = torch.view_as_real(parameter.detach()) if parameter.is_complex() else parameter.detach()
        if parameter.requires_grad and real.numel() and real.layout == torch.strided:
            bits = real.view(widths[real.element_size()]).reshape(-1)
            sums.append(sum(int(part.sum(dtype=torch.int64)) for part in bits.split(2**18)))  # the sum copies its part
    return sums


def check_same_model(model: nn.Module, content: Mapping[str, Any], where: object, *, partial: bool = False) -> None:
    """Compare the model with a stored iterate, name by name and shape by shape.

    Args:
        model: The model.
        content: The iterate.
        where: The trajectory, as an error names it.
        partial: Whether the model may have parameters that were not stored.

    Raises:
        TrajectoryError: They differ; the message names both sides.
    """
    for kind, mine in (("parameter", named_parameters(model)), ("buffer", named_buffers(model))):
        stored: Mapping[str, Tensor] = content[f"{kind}s"]
        missing = [f"{name} {tuple(stored[name].shape)}" for name in stored if name not in mine]
        extra = [f"{name} {tuple(mine[name].shape)}" for name in mine if name not in stored]
        differ = [
            f"{name} is {tuple(stored[name].shape)} there and {tuple(mine[name].shape)} in the model"
            for name in stored
            if name in mine and stored[name].shape != mine[name].shape
        ]
        parts = []
        if missing:
            parts.append(f"the model lacks its {kind}s {_some(missing)}")
        if extra and not partial:
            parts.append(f"the model has the {kind}s {_some(extra)} that it lacks")
        if differ:
            parts.append(_some(differ))
        if parts:
            raise TrajectoryError(
                f"the trajectory {where} is of another model: {'; '.join(parts)}; build the model it was recorded from."
            )


def restore(model: nn.Module, content: Mapping[str, Any]) -> None:
    """Copy a stored iterate's parameters and buffers into the model in place, checked before."""
    for mine, stored in (
        (named_parameters(model), content["parameters"]),
        (named_buffers(model), content["buffers"]),
    ):
        put_back((mine[name], tensor) for name, tensor in stored.items())


def optimizer_content(optimizers: Sequence[Optimizer], chosen: set[int] | None = None) -> dict[str, Any]:
    """The optimizers' part of an iterate, of the chosen parameters alone where these are given by identity.

    "optimizer" is the state of the optimizer, or a list of theirs where there are several; "held" are the states of the
    optimizers that they hold, as SAM holds a base, where such there are.
    """
    states = [_state(o, chosen) for o in optimizers]
    held = [_state(o, chosen) for o in _held(optimizers)]
    return {"optimizer": states[0] if len(states) == 1 else states, **({"held": held} if held else {})}


def optimizer_states(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The states in a stored iterate, one for each optimizer of the run."""
    stored = content["optimizer"]
    if stored is None:
        return []
    return stored if isinstance(stored, list) else [stored]


def restore_optimizers(optimizers: Sequence[Optimizer], content: Mapping[str, Any], where: object) -> None:
    """Load a stored iterate's states into the optimizers, in the number types in which they were stored.

    Raises:
        TrajectoryError: The states are of another kind or number of optimizers or of other parameter groups.
    """
    states = optimizer_states(content)
    if not states:
        raise TrajectoryError(
            f"the run in {where} was recorded without optimizer state: load the model alone, without the optimizer."
        )
    if len(states) != len(optimizers):
        raise TrajectoryError(
            f"the run in {where} was recorded with {len(states)} optimizers, not {len(optimizers)}: "
            "pass the same ones in the same order."
        )
    for optimizer, state in zip(optimizers, states, strict=True):
        restore_optimizer(optimizer, state, where)
    held = _held(optimizers)
    if len(held) == len(content.get("held", ())):
        for optimizer, state in zip(held, content.get("held", ()), strict=True):
            restore_optimizer(optimizer, state, where)


def _state(optimizer: Optimizer, chosen: set[int] | None) -> dict[str, Any]:
    state = optimizer.state_dict()
    if chosen is None or not isinstance(state.get("state"), dict):
        return state
    order = [id(p) for group in optimizer.param_groups for p in group["params"]]
    others = {index for index, identity in enumerate(order) if identity not in chosen}
    return {**state, "state": {key: value for key, value in state["state"].items() if key not in others}}


def _held(optimizers: Sequence[Optimizer]) -> list[Optimizer]:
    """Those that the optimizers hold and that have a state of their own."""
    known = {id(o.state) for o in optimizers}
    return [o for o in list(everything_in(optimizers))[len(optimizers) :] if id(o.state) not in known]


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any], where: object) -> None:
    """Load a stored state into the optimizer, in the number types in which it was stored.

    Raises:
        TrajectoryError: The state is of another kind of optimizer or of other parameter groups.
    """
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, TypeError) as error:
        raise TrajectoryError(
            f"the optimizer state in {where} does not fit this {type(optimizer).__name__} ({error}): "
            "build the optimizer with the parameter groups of the recorded one."
        ) from error
    _undo_casts(optimizer, state)


def _undo_casts(optimizer: Optimizer, state: dict[str, Any]) -> None:
    # load_state_dict casts floating-point state to the parameter's dtype, which may lose bits.
    if "state" not in state or "param_groups" not in state:
        return
    for stored, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        for index, parameter in zip(stored["params"], group["params"], strict=True):
            live = optimizer.state.get(parameter, {})
            for key, value in state["state"].get(index, {}).items():
                now = live.get(key)
                if isinstance(value, Tensor) and isinstance(now, Tensor) and now.dtype != value.dtype:
                    live[key] = value.to(now.device)


def _some(items: Iterable[str], limit: int = 5) -> str:
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
