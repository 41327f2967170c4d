"""Optimizers by name, with their usual hyperparameters."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from geomtraj.errors import InputError, unknown_name
from geomtraj.plugins import announced
from geomtraj.training import muon


@dataclass(frozen=True)
class Entry:
    """An optimizer by name.

    Attributes:
        kind: Name of the class in torch.optim, or of `cls`; where this torch lacks it, the entry is left out.
        lr: Learning rate where no swept value is known.
        hyper: Usual values of the other hyperparameters.
        build: `build(model, lr, **hyper)`; None for the class on all trainable parameters.
        cls: The class, where it is not torch's.
    """

    kind: str
    lr: float
    hyper: dict[str, Any] = field(default_factory=dict)
    build: Callable[..., torch.optim.Optimizer] | None = None
    cls: type[torch.optim.Optimizer] | None = None

    @property
    def function(self) -> Any:
        """The class that takes the hyperparameters."""
        if self.build is muon.build:
            return muon.MuonWithAdamW
        return getattr(torch.optim, self.kind) if self.cls is None else self.cls


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
    known = REGISTRY if name in REGISTRY else everything()
    found = known.get(name) or _of_pytorch_optimizer(str(name))
    if found is None:
        more = "" if _installed() else "; pip install 'geomtraj[optimizers]' brings those of pytorch_optimizer"
        error = unknown_name("optimizer", str(name), known)
        raise InputError(f"{str(error).removesuffix('.')}{more}.")
    return found


def add(thing: Entry | type[torch.optim.Optimizer], name: str | None = None) -> Entry:
    """Make an optimizer known by a name.

    Raises:
        InputError: It cannot be used, or the name is another's.
    """
    made = thing if isinstance(thing, Entry) else of_class(thing)
    name = name or made.kind.lower()
    known = REGISTRY.get(name)
    if known is not None and known.function is not made.function:
        same = (known.function.__module__, known.function.__qualname__)
        if same != (made.function.__module__, made.function.__qualname__):
            raise InputError(f"there is an optimizer {name!r} already ({known.kind}): register yours by another name=.")
    REGISTRY[name] = made
    return made


def of_class(cls: type[torch.optim.Optimizer]) -> Entry:
    """An optimizer's class with the learning rate that it has by itself.

    Raises:
        InputError: It cannot be made from parameters and a learning rate, or its step needs a closure.
    """
    parameters = inspect.signature(cls).parameters
    if "lr" not in parameters:
        raise InputError(f"{cls.__name__} takes no lr: register an Entry with build=, a function of model and lr.")
    step = inspect.signature(cls.step).parameters.get("closure")
    if step is not None and step.default is step.empty:
        raise InputError(
            f"the step() of {cls.__name__} needs a closure, which the training loop does not give: train in a loop of "
            "your own with gt.Recorder."
        )
    default = parameters["lr"].default
    return Entry(cls.__name__, float(default) if isinstance(default, (int, float)) else 1e-3, cls=cls)


def everything() -> dict[str, Entry]:
    """All optimizers but those of pytorch_optimizer: those that other packages announce too."""
    for name, thing in announced("optimizers").items():
        usable = isinstance(thing, Entry) or (isinstance(thing, type) and issubclass(thing, torch.optim.Optimizer))
        if usable and name not in REGISTRY:
            add(thing, name)
    return REGISTRY


def _installed() -> bool:
    return importlib.util.find_spec("pytorch_optimizer") is not None


def _of_pytorch_optimizer(name: str) -> Entry | None:
    """An optimizer of the package pytorch_optimizer; None where it has none of that name or is not installed."""
    if not _installed():
        return None
    import pytorch_optimizer

    if name not in pytorch_optimizer.get_supported_optimizers():
        return None
    return of_class(pytorch_optimizer.load_optimizer(name))


def hyperparameters(name: str, **hyper: Any) -> dict[str, Any]:
    """Every hyperparameter that is set but the learning rate: the usual values, replaced by those given.

    Raises:
        InputError: Unknown optimizer or hyperparameter.
    """
    chosen = entry(name)
    signature = inspect.signature(chosen.function.__init__).parameters.values()
    known = [p.name for p in signature if p.name not in _NO_HYPERPARAMETERS and p.kind is not p.VAR_KEYWORD]
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
        return chosen.function(parameters, lr=lr, **hyper)
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{name} cannot be built with lr={lr}, {hyper} ({error}): correct that value.") from error
