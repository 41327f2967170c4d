"""When training has taken a step: hooks on whatever is called, through wrappers and several optimizers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geomtraj.errors import InputError

VENEERS = ("AcceleratedOptimizer", "LightningOptimizer", "_FabricOptimizer")
"""Classes of Accelerate and Lightning that hand every call on to the optimizer they hold."""

PREFIXES = ("Lightning", "Fabric")
"""What Lightning puts before the class name of the optimizer it wraps."""


def plain_optimizers(given: object) -> list[Optimizer]:
    """The optimizers in what a caller passed, one or several, without wrappers that only hand calls on.

    Raises:
        InputError: It is no optimizer and no list of them.
    """
    if isinstance(given, Mapping):
        given = list(given.values())
    several = isinstance(given, Iterable) and not isinstance(given, (str, Tensor, Optimizer))
    members = list(given) if several else [given]  # type: ignore[call-overload]
    if not members:
        raise InputError("the list of optimizers is empty: pass every optimizer that updates the model.")
    found: dict[int, Optimizer] = {}
    for member in map(unwrapped, members):
        if not isinstance(member, Optimizer):
            raise InputError(
                f"Recorder(path, model, optimizer) needs a torch optimizer or a list of them, not "
                f"{type(member).__name__}: pass the object whose step() updates the model."
            )
        found[id(member)] = member
    return list(found.values())


def unwrapped(optimizer: Any) -> Any:
    """The optimizer without the wrappers of Accelerate and Lightning, or others that share its hooks."""
    while True:
        inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "_optimizer", None)
        if inner is optimizer or not isinstance(inner, Optimizer) or not _hands_on(optimizer, inner):
            return optimizer
        optimizer = inner


def class_name(optimizer: Optimizer) -> str:
    """Name of the optimizer's class, as the manifest has it."""
    return type(optimizer).__name__


def held_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers that this one holds as attributes: the base of SAM or Lookahead, one for each parameter."""
    found: dict[int, Optimizer] = {}
    for name, value in vars(optimizer).items():
        if name in ("state", "param_groups", "defaults"):
            continue
        if isinstance(value, Mapping):
            value = list(value.values())
        for item in value if isinstance(value, (list, tuple)) else [value]:
            inner = unwrapped(item) if isinstance(item, Optimizer) else None
            if isinstance(inner, Optimizer) and inner is not optimizer:
                found[id(inner)] = inner
    return list(found.values())


def everything_in(optimizers: Iterable[Optimizer]) -> Iterator[Optimizer]:
    """The optimizers and all that they hold, each once, outer ones first."""
    seen: set[int] = set()
    waiting = list(optimizers)
    while waiting:
        optimizer = waiting.pop(0)
        if id(optimizer) not in seen:
            seen.add(id(optimizer))
            yield optimizer
            waiting += held_optimizers(optimizer)


def parameters_of(optimizers: Iterable[Optimizer]) -> dict[int, nn.Parameter]:
    """The parameters in the groups of the optimizers and of those they hold, by identity."""
    return {
        id(p): p
        for optimizer in everything_in(optimizers)
        for group in getattr(optimizer, "param_groups", [])
        for p in group["params"]
    }


def optimized(optimizers: Iterable[Optimizer], names: Mapping[int, str]) -> list[dict[str, Any]]:
    """What each optimizer is and which parameters its groups hold, by name: what a copy of it is made from.

    Args:
        optimizers: The optimizers of a run.
        names: Identity of a parameter -> its name; one of another model has the name "".

    Returns:
        For each {"class", "module", "groups": [[names]]}.
    """
    return [
        {
            "class": class_name(o),
            "module": type(o).__module__,
            "groups": [[names.get(id(p), "") for p in group["params"]] for group in o.param_groups],
        }
        for o in optimizers
    ]


def settings_of(optimizers: Iterable[Optimizer]) -> dict[str, float]:
    """Every number among the settings of the parameter groups: "0/lr", "0/betas/1", the groups counted through."""
    found: dict[str, float] = {}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for index, group in enumerate(groups):
        for key, value in group.items():
            if key != "params":
                several = isinstance(value, (tuple, list))
                for place, number in enumerate(value if several else [value]):
                    if isinstance(number, Tensor) and number.numel() == 1 and not number.is_complex():
                        number = number.item()
                    if type(number) in (int, float):
                        found[f"{index}/{key}/{place}" if several else f"{index}/{key}"] = number
    return found


def set_settings(optimizers: Iterable[Optimizer], settings: Mapping[str, float]) -> None:
    """Puts numbers that `settings_of` gave back into the parameter groups; those that are not there are passed over."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for name, number in settings.items():
        index, key, *place = name.split("/")
        if not index.isdigit() or int(index) >= len(groups) or key not in groups[int(index)]:
            continue
        group, value = groups[int(index)], groups[int(index)][key]
        if isinstance(value, Tensor):
            group[key] = torch.full_like(value, number)
        elif not place:
            group[key] = number
        elif place[0].isdigit() and int(place[0]) < len(value):
            items = list(value)
            items[int(place[0])] = number
            group[key] = type(value)(items)


class Round:
    """Tells when the last of several optimizers has stepped.

    The first round in which each steps exactly once shows which one is last; steps of that one end a round from then
    on, so that an optimizer whose step AMP skips holds up no other. Before that a round in which some step more often
    (a discriminator's five steps) ends with the last of the list.

    Args:
        count: How many optimizers there are.
        on_end: Called at the end of each round.
    """

    def __init__(self, count: int, on_end: Callable[[], None]):
        self._counts = [0] * count
        self._last: int | None = 0 if count == 1 else None
        self._on_end = on_end

    def stepped(self, index: int) -> None:
        """One of the optimizers has stepped."""
        self._counts[index] += 1
        if self._last is None:
            if not all(self._counts):
                return
            if max(self._counts) > 1 and index != len(self._counts) - 1:
                return
            if max(self._counts) == 1:
                self._last = index
        elif index != self._last:
            return
        self._counts = [0] * len(self._counts)
        self._on_end()


class StepWatch:
    """Watches one optimizer, and those that it holds, for the steps of training.

    An optimizer's own step() counts when it ends. An optimizer that it holds (SAM's base) counts where it steps
    outside of that; a step() in which the ones it is known to move by did not step is none. A step() that a GradScaler
    made the optimizer skip is none either.

    Args:
        optimizer: The optimizer.
        on_step: Called after each step.
        ancestors: Those that hold this one, which end a circle.
        on_begin: Called before each step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        on_step: Callable[[], None],
        ancestors: tuple[int, ...] = (),
        *,
        on_begin: Callable[[], None] | None = None,
    ):
        self._optimizer = optimizer
        self._on_step = on_step
        self._on_begin = on_begin
        self._inside = False
        self._inner_inside = self._inner_outside = False
        self._handles: list[Any] = []
        self._hooked = hasattr(optimizer, "_optimizer_step_post_hooks")
        if self._hooked:
            self._handles.append(optimizer.register_step_pre_hook(lambda *_: self._begin()))
            self._handles.append(optimizer.register_step_post_hook(lambda *a: self._end(skipped(*a))))
        else:
            self._handles.append(_WrappedStep(optimizer, self._begin, lambda: self._end(False)))
        ancestors = (*ancestors, id(optimizer))
        inner = [o for o in held_optimizers(optimizer) if id(o) not in ancestors]
        turn = Round(len(inner), self._inner_stepped)
        self._parts = [StepWatch(o, functools.partial(turn.stepped, index), ancestors) for index, o in enumerate(inner)]

    def remove(self) -> None:
        """Leave the optimizer as it was found."""
        for handle in [*self._handles, *self._parts]:
            handle.remove()
        self._handles, self._parts = [], []

    def _begin(self) -> None:
        if self._on_begin is not None:
            self._on_begin()
        self._inside, self._inner_inside = True, False

    def _end(self, skipped: bool) -> None:
        self._inside = False
        if self._parts and not self._inner_inside and (self._inner_outside or not self._hooked):
            self._inner_outside = False  # told already, or no step: Accelerate between two updates
        elif not skipped:
            self._inner_outside = False
            self._on_step()

    def _inner_stepped(self) -> None:
        if self._inside:
            self._inner_inside = True
        else:
            self._inner_outside = True
            self._on_step()


def skipped(optimizer: Optimizer, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a GradScaler made the step that just ended do nothing: a gradient was not finite."""
    found = getattr(optimizer, "found_inf", None)
    if isinstance(found, Tensor):
        return bool(found.item())
    states = getattr(kwargs.get("grad_scaler"), "_per_optimizer_states", None)
    if states is None or id(optimizer) not in states:
        return False
    return any(bool(t.item()) for t in states[id(optimizer)].get("found_inf_per_device", {}).values())


class _WrappedStep:
    """Stands before the step() of an optimizer that has no hooks since it did not call Optimizer.__init__."""

    def __init__(self, optimizer: Optimizer, begin: Callable[[], None], end: Callable[[], None]):
        self._optimizer = optimizer
        self._own = vars(optimizer).get("step")
        step = optimizer.step

        @functools.wraps(step)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            begin()
            result = step(*args, **kwargs)
            end()
            return result

        optimizer.step = wrapped  # type: ignore[method-assign]

    def remove(self) -> None:
        if self._own is None:
            del self._optimizer.step
        else:
            self._optimizer.step = self._own  # type: ignore[method-assign]


def _hands_on(optimizer: Any, inner: Optimizer) -> bool:
    names = {kind.__name__ for kind in type(optimizer).__mro__}
    if names & set(VENEERS) or type(optimizer).__name__ in {prefix + type(inner).__name__ for prefix in PREFIXES}:
        return True
    hooks = getattr(inner, "_optimizer_step_post_hooks", None)
    return hooks is not None and getattr(optimizer, "_optimizer_step_post_hooks", None) is hooks
