"""Where a run starts instead of at the task's initial parameters: an iterate of another run."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from geomtraj.errors import InputError
from geomtraj.trajectory import Iterate
from geomtraj.trajectory.codec import encode
from geomtraj.trajectory.model_state import check_same_model, restore, restore_optimizer
from geomtraj.trajectory.payload import array_of, type_name

WHERE = "of the iterate to start from"
OWN = ("lr", "initial_lr", "params")
"""What a parameter group has of its own; all else must agree where state is carried over."""


def begin(model: nn.Module, optimizer: torch.optim.Optimizer, start: Iterate, carry: bool) -> None:
    """Put the iterate's parameters and buffers into the model, and with `carry` its state into the optimizer.

    Learning rates stay those of the optimizer.

    Raises:
        InputError: The state is that of another optimizer, or of other hyperparameters.
        TrajectoryError: The iterate is of another model.
    """
    content = {"parameters": start.parameters, "buffers": start.buffers}
    check_same_model(model, content, WHERE)
    if carry:
        mine = optimizer.state_dict()
        theirs = start.optimizer_state
        _check_same_optimizer(type(optimizer).__name__, mine["param_groups"], theirs["param_groups"])
        # The optimizer keeps the tensors that it is given and changes them in place.
        restore_optimizer(optimizer, {**mine, "state": copy.deepcopy(theirs["state"])}, WHERE)
    restore(model, content)


def described(start: Iterate | None, carry: bool) -> dict[str, Any] | None:
    """What a run's meta says of its start: the step, whether state is carried, and a hash of what is taken over."""
    if start is None:
        return None
    tensors: dict[str, Tensor] = {}

    def put(tensor: Tensor, name: str) -> dict[str, Any]:
        while name in tensors:  # the keys 0 and "0" of one dict have the same path
            name += "~"
        tensors[name] = tensor
        return {"tensor": name, "dtype": type_name(tensor.dtype), "shape": list(tensor.shape)}

    content: dict[str, Any] = {"parameters": start.parameters, "buffers": start.buffers}
    if carry:
        content["state"] = start.optimizer_state["state"]
    digest = hashlib.sha256(json.dumps(encode(content, put, "start")).encode())
    for name in sorted(tensors):
        digest.update(array_of(tensors[name]).data)
    return {"step": start.step, "carry": carry, "sha256": digest.hexdigest()[:16]}


def _check_same_optimizer(kind: str, mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    if len(mine) != len(theirs):
        raise InputError(f"the optimizer state {WHERE} has {len(theirs)} parameter groups, not {len(mine)}: {_ADVICE}")
    for here, there in zip(mine, theirs, strict=True):
        for key in dict.fromkeys([*here, *there]):
            if key not in OWN and (key not in here or key not in there or here[key] != there[key]):
                raise InputError(
                    f"the optimizer state {WHERE} is of one with {key} {there.get(key, 'unset')}, not of {kind} with "
                    f"{key} {here.get(key, 'unset')}: {_ADVICE}"
                )


_ADVICE = "carry state over to the same optimizer, or start with carry=False."
