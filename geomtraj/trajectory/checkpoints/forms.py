"""Where model, optimizer and step stand in what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from geomtraj.errors import TrajectoryError
from geomtraj.trajectory.fitting import EXTRA_STATE

MODEL = ("model_state_dict", "state_dict", "model", "model_state", "module", "net", "network", "weights", "params")
OPTIMIZER = (
    "optimizer_state_dict", "optimizer", "optimizer_states", "optimizer_state", "optimizers", "optim_state_dict",
    "optim", "opt",
)  # fmt: skip
STEP = ("global_step", "step", "iter_num", "iteration", "iter", "num_steps", "train_step", "current_step")
LIGHTNING = "pytorch-lightning_version"


@dataclass
class Content:
    """What a checkpoint holds.

    Attributes:
        model: Tensors by name.
        optimizer: A state_dict, or a list of several; None where there is none.
        step: Optimizer steps before it; None where it does not say.
        log: Rows of a training log: step and scalars.
        lightning: Whether names begin with the attribute of the LightningModule that holds the model.
    """

    model: dict[str, Tensor]
    optimizer: Any = None
    step: int | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    lightning: bool = False


def content_of(held: Any, where: object) -> Content:
    """Model, optimizer and step in what `torch.load` gave.

    Raises:
        TrajectoryError: There is no model in it, or something in its place; the message names it.
    """
    if not isinstance(held, Mapping):
        raise TrajectoryError(
            f"{where} holds a {type(held).__name__}, not a state_dict or a dict that has one: save "
            "{'model': model.state_dict(), 'step': step}, or pass load=."
        )
    model = _model(held, where)
    if model is held:
        return Content(tensors_in(held, where))
    return Content(tensors_in(model, where), optimizer_of(held), step_of(held, where), lightning=LIGHTNING in held)


def step_of(held: Mapping[str, Any], where: object) -> int | None:
    """The count of optimizer steps that a checkpoint names; None where it names none.

    Raises:
        TrajectoryError: What it names is no count.
    """
    for name in STEP:
        value = held.get(name)
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
            value = value.item()
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        return as_step(value, f"{where} says {name} = {value}")
    return None


def as_step(value: Any, said: str) -> int:
    """A count of optimizer steps as a whole number.

    Raises:
        TrajectoryError: It is none; `said` begins the message.
    """
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not 0 <= value < 2**63:
        raise TrajectoryError(f"{said}, which is no count of steps: pass steps=[...], one for each checkpoint.")
    return int(value)


def optimizer_of(held: Mapping[str, Any]) -> Any:
    """The optimizer's state_dict, or a list of several; None where there is none."""
    for name in OPTIMIZER:
        value = held.get(name)
        if is_optimizer(value):
            return value
        several = list(value.values()) if isinstance(value, Mapping) else value
        if isinstance(several, (list, tuple)) and several and all(map(is_optimizer, several)):
            return several[0] if len(several) == 1 else list(several)
    return None


def is_optimizer(value: Any) -> bool:
    """Whether something is an optimizer's state_dict."""
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("state"), Mapping)
        and isinstance(value.get("param_groups"), list)
        and all(isinstance(group, Mapping) for group in value["param_groups"])
    )


def _model(held: Mapping[str, Any], where: object) -> Mapping[str, Any]:
    for name in MODEL:
        if isinstance(held.get(name), Mapping) and held[name]:
            return held[name]
    inner = {name: value for name, value in held.items() if isinstance(value, Mapping) and _is_model(value)}
    if _is_model(held):
        return held
    if len(inner) == 1:
        return next(iter(inner.values()))
    if not inner and any(isinstance(value, Tensor) and value.dim() for value in held.values()):
        return held
    which = f"several that may be one ({', '.join(map(repr, inner))})" if inner else "no state_dict of a model"
    keys = ", ".join(repr(key) for key in list(held)[:8])
    raise TrajectoryError(
        f"{where} has {which} among its entries {keys}: pass load=lambda path: {{'model': ..., 'step': ...}}."
    )


def _is_model(value: Mapping[Any, Any]) -> bool:
    entries = [v for k, v in value.items() if not str(k).endswith(EXTRA_STATE)]
    return bool(entries) and all(isinstance(v, Tensor) for v in entries) and any(v.dim() for v in entries)


def tensors_in(model: Mapping[Any, Any], where: object) -> dict[str, Tensor]:
    """The tensors of a state_dict, by name.

    Raises:
        TrajectoryError: It holds something else, or nothing.
    """
    found = {}
    for name, value in model.items():
        if isinstance(value, Tensor) and isinstance(name, str):
            found[name] = value
        elif not str(name).endswith(EXTRA_STATE):
            kind = f"a {type(value).__name__}, not a tensor" if isinstance(name, str) else "no name"
            raise TrajectoryError(f"{where}: the entry {name!r:.80} of its model is {kind}: save model.state_dict().")
    if not found:
        raise TrajectoryError(f"{where}: its model holds no tensors: save model.state_dict().")
    return found
