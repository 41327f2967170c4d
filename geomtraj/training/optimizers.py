"""Optimizers by name, with their usual hyperparameters."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from geomtraj.errors import InputError, unknown_name
from geomtraj.training import muon


@dataclass(frozen=True)
class Entry:
    """An optimizer by name.

    Attributes:
        kind: Name of the class in torch.optim; where this torch lacks it, the entry is left out.
        lr: Learning rate where no swept value is known.
        hyper: Usual values of the other hyperparameters.
        build: `build(model, lr, **hyper)`; None for the class on all trainable parameters.
    """

    kind: str
    lr: float
    hyper: dict[str, Any] = field(default_factory=dict)
    build: Callable[..., torch.optim.Optimizer] | None = None


_ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}

# A new optimizer is one entry here.
_ENTRIES = {
    "sgd": Entry("SGD", 0.3),
    "sgdm": Entry("SGD", 0.1, {"momentum": 0.9}),
    "adam": Entry("Adam", 3e-3, _ADAM),
    "adamw": Entry("AdamW", 3e-3, {**_ADAM, "weight_decay": 0.01}),
    "nadam": Entry("NAdam", 3e-3, _ADAM),
    "radam": Entry("RAdam", 3e-3, _ADAM),
    "rmsprop": Entry("RMSprop", 1e-3, {"alpha": 0.99, "eps": 1e-8}),
    "adagrad": Entry("Adagrad", 0.03, {"eps": 1e-10}),
    "adafactor": Entry("Adafactor", 0.03),
    "muon": Entry("Muon", 3e-3, {"momentum": 0.95, "weight_decay": 0.01}, muon.build),
}
REGISTRY = {name: entry for name, entry in _ENTRIES.items() if hasattr(torch.optim, entry.kind)}


def names() -> list[str]:
    """The names of the optimizers that this torch has."""
    return list(REGISTRY)


def entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        InputError: There is none, or this torch is too old for it.
    """
    if name in _ENTRIES and name not in REGISTRY:
        raise InputError(f"torch {torch.__version__} has no {_ENTRIES[name].kind}: {name} needs a newer torch.")
    if name not in REGISTRY:
        raise unknown_name("optimizer", str(name), REGISTRY)
    return REGISTRY[name]


def hyperparameters(name: str, **hyper: Any) -> dict[str, Any]:
    """Every hyperparameter that is set but the learning rate: the usual values, replaced by those given.

    Raises:
        InputError: Unknown optimizer or hyperparameter.
    """
    chosen = entry(name)
    function = getattr(torch.optim, chosen.kind) if chosen.build is None else muon.MuonWithAdamW
    known = [p for p in inspect.signature(function.__init__).parameters if p not in _NO_HYPERPARAMETERS]
    for key in hyper:
        if key not in known:
            raise unknown_name(f"hyperparameter of {name}", key, known)
    return {**chosen.hyper, **hyper}


_NO_HYPERPARAMETERS = ("self", "params", "lr", "matrices", "rest")


def make(name: str, model: nn.Module, lr: float, **hyper: Any) -> torch.optim.Optimizer:
    """The optimizer of that name on the model's trainable parameters.

    Args:
        name: One of `names()`.
        model: The model to train.
        lr: Learning rate.
        **hyper: Other hyperparameters under torch's own names; the usual values stand where they are left out.

    Raises:
        InputError: Unknown optimizer or hyperparameter, or a value that torch refuses.
    """
    hyper = hyperparameters(name, **hyper)
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not (lr > 0 and math.isfinite(lr)):
        raise InputError(f"the learning rate of {name} must be a positive number, not {lr!r}.")
    chosen = entry(name)
    try:
        if chosen.build is not None:
            return chosen.build(model, lr=lr, **hyper)
        parameters = [p for p in model.parameters() if p.requires_grad]
        return getattr(torch.optim, chosen.kind)(parameters, lr=lr, **hyper)
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name} cannot be built with lr={lr}, {hyper} ({error}): correct that value.") from error
