"""The next step of an optimizer, taken by its own `step()` on copies of what an iterate holds."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geomtraj.errors import GeomtrajError, InputError, NotRecorded
from geomtraj.inputs import checked_batches
from geomtraj.isolation import in_plain_torch
from geomtraj.parameter_names import named_buffers
from geomtraj.problem import Problem
from geomtraj.trajectory import Iterate, model_state
from geomtraj.trajectory.steps import set_settings
from geomtraj.trajectory.storage import stored_lossy
from geomtraj.trees import rebuilt

Factory = Callable[[Any], Any]
"""The parameters of an optimizer, a list or its groups as torch takes them -> the optimizer."""

FACTORIES: dict[str, Factory] = {}
"""Class name -> how to build it, of optimizers that are neither torch's nor geomtraj's."""


def register_optimizer(name: str, factory: Factory) -> None:
    """Teaches `next_update` and the statistics that need it how to build an optimizer.

    Args:
        name: Name of its class, as the recorded run has it.
        factory: The parameters -> the optimizer, with the settings of training that its `state_dict` does not hold.
    """
    if not isinstance(name, str) or not callable(factory):
        raise InputError("register_optimizer(name, factory) takes a class name and a function of the parameters.")
    FACTORIES[name] = factory


def next_update(
    problem: Problem,
    iterate: Iterate,
    optimizer: Factory | Sequence[Factory] | None = None,
    batches: Iterable[Any] | None = None,
) -> Tensor:
    """The optimizer's own next step theta_next - theta, shape (P,), from an iterate's stored state.

    The optimizer is built anew on copies of the iterate's parameters, given the stored state (momenta, second moments,
    step counts, parameter groups, learning rates), handed the gradient of the problem's loss, and its `step()` is
    called once. Where training took the gradient of this loss on these batches, the result is bit-equal to the step
    that it took, with the learning rate that a scheduler had set for it; what a loop does between `backward()` and
    `step()` (clipping, noise) is not repeated. Frozen parameters, those that the loss does not reach and those that no
    optimizer holds stay where they are.

    An optimizer that asks for a closure (`LBFGS`, SAM) gets one that evaluates the same batches. Several optimizers
    step one after the other on one gradient. The model, its gradients and buffers and all generators are left as
    they were.

    Args:
        problem: The loss; its model is of the recorded kind. Its selected parameters are those of the result.
        iterate: Where to step from.
        optimizer: `params -> optimizer`, for classes that are neither torch's nor registered; a list of them where
            several optimizers were recorded. `params` is a list of parameters, or of dicts of several groups.
        batches: What the gradient is taken on, the mean over all of them; the problem's own if left out.

    Raises:
        NotRecorded: The run was recorded without the optimizer's state, or with a part of it, or the class is not known
            and no factory is given.
        InputError: The factory gives something else, or the optimizer's step fails.
        TrajectoryError: The problem's model is another than the recorded one, or the state does not fit the optimizer.

    Cost: one gradient, and one step of the optimizer.
    """
    if not isinstance(problem, Problem):
        raise InputError(f"next_update(problem, iterate) needs a gt.Problem, not {type(problem).__name__}.")
    if not isinstance(iterate, Iterate):
        raise InputError(f"next_update(problem, iterate) needs an Iterate, not {type(iterate).__name__}.")
    chosen = None if batches is None else checked_batches(batches, may_be_empty=False)
    return _next_update(problem, iterate, optimizer, chosen)


@in_plain_torch
def _next_update(problem: Problem, iterate: Iterate, factories: Any, batches: Iterable[Any] | None) -> Tensor:
    plans = planned(iterate, factories)
    with problem.objective.session(as_trained=True):
        step = _Step(problem, iterate, batches)
        step.take(plans)
        return step.moved()


class Plan:
    """One optimizer of a run, to be built again.

    Args:
        groups: Names of the parameters, group by group.
        build: The parameters -> the optimizer.
    """

    def __init__(self, groups: list[list[str]], build: Factory):
        self.groups, self.build = groups, build

    def built(self, values: Mapping[str, Tensor]) -> Optimizer:
        """The optimizer on these parameters, without its state."""
        groups = [[values[name] for name in group] for group in self.groups]
        return self.build(groups[0] if len(groups) == 1 else [{"params": group} for group in groups])


def planned(
    iterate: Iterate,
    factories: Factory | Sequence[Factory] | None = None,
    registered: Mapping[str, Factory] = FACTORIES,
) -> list[Plan]:
    """How to build the optimizers of an iterate's run.

    Args:
        iterate: The iterate.
        factories: As for `next_update`.
        registered: Class name -> factory.

    Raises:
        NotRecorded: As for `next_update`.
    """
    where = f"the iterate of step {iterate.step}"
    lossy = stored_lossy({"storage": iterate.about.get("storage", {})})
    if lossy:
        raise NotRecorded(
            f"the optimizer's next step needs everything that it steps with, and {where} was recorded with {lossy}: "
            "record the run with all parameters and optimizer_state=True."
        )
    states = iterate.optimizer_state
    if not states:
        raise NotRecorded(
            f"the optimizer's next step needs its state, which {where} does not hold: record the run with "
            "optimizer_state=True."
        )
    states = states if isinstance(states, list) else [states]
    described = _described(iterate, states)
    given: list[Factory | None]
    given = [factories] * len(states) if factories is None or callable(factories) else list(factories)
    if len(given) != len(states):
        raise InputError(f"{len(given)} factories for {len(states)} recorded optimizers: give one for each.")
    return [
        Plan(about["groups"], _builder(about) if factory is None else factory)
        for about, factory in zip(described, given, strict=True)
    ]


def _described(iterate: Iterate, states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each optimizer is and which parameters its groups hold, by name."""
    stored = iterate.about.get("optimized")
    if isinstance(stored, list) and len(stored) == len(states):
        return stored
    groups = [group.get("params", ()) for group in states[0].get("param_groups", ())]
    for names in (list(iterate.trainable), list(iterate.parameters)):
        if len(states) == len(groups) == 1 and len(names) == len(groups[0]):
            return [{"class": iterate.about.get("optimizer", ""), "module": "", "groups": [names]}]
    raise NotRecorded(
        f"the iterate of step {iterate.step} does not say which parameters each of the optimizer's groups holds, as "
        "runs recorded by this version do: record the run again."
    )


def _builder(about: Mapping[str, Any]) -> Factory:
    """How to build a class by its name: torch's, geomtraj's or pytorch_optimizer's own, or a registered one."""
    name, module = str(about["class"]), str(about["module"])
    if name in FACTORIES:
        return FACTORIES[name]
    kind = getattr(torch.optim, name, None)
    if module.split(".")[0] in ("torch", "") and isinstance(kind, type) and issubclass(kind, Optimizer):
        return lambda params: kind(params, lr=1e-3)  # type: ignore[call-arg]  # the stored groups hold every setting
    if module.split(".")[0] == "geomtraj":
        with suppress(ImportError):
            of_groups = getattr(getattr(import_module(module), name, None), "of_groups", None)
            if of_groups is not None:
                return lambda params: of_groups([g["params"] if isinstance(g, dict) else g for g in params])
    if module.split(".")[0] == "pytorch_optimizer":
        with suppress(ImportError):
            own = getattr(import_module(module), name, None)
            if isinstance(own, type) and issubclass(own, Optimizer):
                return lambda params: own(params, lr=1e-3)  # type: ignore[call-arg]
    raise NotRecorded(
        f"the run was trained with {name or 'an optimizer of unknown name'}{f' of {module}' if module else ''}, which "
        f"geomtraj cannot build by itself: pass optimizer=lambda params: {name or 'Name'}(params, ...) with the "
        "settings of training, or register it with geomtraj.updates.register_optimizer for gt.measure."
    )


class GroupState(NamedTuple):
    """One parameter group of an optimizer, as an iterate holds it.

    Attributes:
        kind: Class of the optimizer.
        names: Of its parameters.
        settings: Learning rate, momentum and the like in the step from this iterate.
        state: Parameter -> what the optimizer keeps for it.
    """

    kind: str
    names: list[str]
    settings: dict[str, Any]
    state: dict[str, dict[str, Any]]


def group_states(iterate: Iterate) -> list[GroupState]:
    """The parameter groups of all optimizers of an iterate's run.

    Raises:
        NotRecorded: As for `next_update`.
    """
    states = iterate.optimizer_state
    if not states:
        planned(iterate)
    states = states if isinstance(states, list) else [states]
    found: list[GroupState] = []
    for about, stored in zip(_described(iterate, states), states, strict=True):
        for names, group in zip(about["groups"], stored["param_groups"], strict=True):
            settings = {key: value for key, value in group.items() if key != "params"}
            kept = {n: stored["state"][i] for n, i in zip(names, group["params"], strict=True) if i in stored["state"]}
            found.append(GroupState(str(about["class"]), list(names), settings, kept))
    for name, number in iterate.changed.items():
        index, key, *place = name.split("/")
        settings = found[int(index)].settings
        if place:
            settings[key] = tuple(number if str(i) == place[0] else v for i, v in enumerate(settings[key]))
        else:
            settings[key] = number
    return found


class _Step:
    """One step on copies of an iterate's parameters, with the gradient of the problem's loss.

    Args:
        problem: The loss.
        iterate: Where to step from.
        batches: What the gradient is taken on; None for the problem's own.
    """

    def __init__(self, problem: Problem, iterate: Iterate, batches: Iterable[Any] | None):
        self.problem, self.iterate = problem, iterate
        self.own = batches is None
        self.batches = list(problem.batches if batches is None else batches)
        content = {"parameters": iterate.parameters, "buffers": iterate.buffers}
        model_state.check_same_model(problem.model, content, f"of step {iterate.step}")
        self.values: dict[str, nn.Parameter] = {}
        self.stand_ins: dict[str, Tensor] = {}
        for name, parameter in model_state.named_parameters(problem.model).items():
            value = iterate.parameters[name].to(parameter.device, parameter.dtype, copy=True)
            self.values[name] = nn.Parameter(value, requires_grad=name in iterate.trainable)
            self.stand_ins[name] = self.values[name]
        for name, buffer in named_buffers(problem.model).items():
            self.stand_ins[name] = iterate.buffers[name].to(buffer.device, buffer.dtype, copy=True)
        self.start = {name: value.detach().clone() for name, value in self.values.items()}

    def take(self, plans: list[Plan]) -> None:
        """Every optimizer's step, one after the other."""
        self._restart()
        optimizers = self._optimizers(plans)
        try:
            if not any(map(_needs_closure, optimizers)):
                self._set_gradients()
                for optimizer in optimizers:
                    optimizer.step()
                return
        except Exception as error:
            if isinstance(error, GeomtrajError) or "closure" not in str(error).lower():
                raise self._failed(error) from error
        self._restart()
        self._set_gradients()
        try:
            for optimizer in self._optimizers(plans):
                optimizer.step(self._closure)  # type: ignore[arg-type]  # torch's own closures give tensors
        except GeomtrajError:
            raise
        except Exception as error:
            raise self._failed(error) from error

    def moved(self) -> Tensor:
        """How far each of the problem's parameters has come, shape (P,)."""
        parts = [(self.values[name].detach() - self.start[name]).reshape(-1) for name in self.problem.layout]
        return torch.cat(parts)

    def _restart(self) -> None:
        for name, value in self.values.items():
            value.data.copy_(self.start[name])
            value.grad = None

    def _optimizers(self, plans: list[Plan]) -> list[Optimizer]:
        found: list[Optimizer] = []
        for plan in plans:
            missing = [name for group in plan.groups for name in group if name not in self.values]
            if missing:
                raise NotRecorded(
                    f"the optimizer of step {self.iterate.step} holds parameters that are not the model's "
                    f"({len(missing)} of them): its next step cannot be taken without them."
                )
            optimizer = plan.built(self.values)
            if not isinstance(optimizer, Optimizer):
                raise InputError(
                    f"the factory gave a {type(optimizer).__name__}: optimizer=lambda params: ... must return a torch "
                    "optimizer of these parameters."
                )
            found.append(optimizer)
        content = copy.deepcopy(self.iterate.read(("optimizer", "held")))  # or loading would share its tensors
        model_state.restore_optimizers(found, content, f"the iterate of step {self.iterate.step}")
        set_settings(found, self.iterate.changed)
        self._convert(found)
        return found

    def _convert(self, optimizers: list[Optimizer]) -> None:
        """State in the recorded parameters' number type goes into that of the problem's model, if it is another."""
        before = {id(v): self.iterate.parameters[name].dtype for name, v in self.values.items()}
        for state, parameter in ((s, p) for o in optimizers for p, s in o.state.items() if id(p) in before):
            recorded = before[id(parameter)]
            if recorded is not parameter.dtype:
                for key, value in state.items():
                    state[key] = _converted(value, recorded, parameter.dtype)

    def _set_gradients(self) -> Tensor:
        """The gradient of the mean loss over all batches, into the copies; None where the loss does not reach."""
        weight = self.problem.total_weight if self.own else self._weight()
        shared = self.own and self.problem.shared
        alone = len(self.batches) == 1 and not shared
        for value in self.values.values():
            value.grad = None
        total = torch.zeros((), dtype=self.problem.dtype, device=self.problem.device)
        targets = [value for value in self.values.values() if value.requires_grad]
        for batch in self.batches:
            losses, weights = self.problem.losses(self.stand_ins, batch)
            if alone:  # as a loop writes it, so that not a bit differs
                mean = losses.mean() if weights is None else (losses * weights).sum() / weights.sum()
            else:
                mean = (losses.sum() if weights is None else (losses * weights).sum()) / weight
            total = total + mean.detach()
            if mean.requires_grad:
                for target, gradient in zip(
                    targets, torch.autograd.grad(mean, targets, allow_unused=True), strict=True
                ):
                    if gradient is not None:
                        target.grad = gradient if target.grad is None else target.grad + gradient
        if shared:
            for target in targets:
                whole = torch.zeros_like(target) if target.grad is None else target.grad.clone()
                target.grad = self.problem.over_ranks(whole.detach())
        return total

    def _weight(self) -> float:
        """sum(w) over the batches given."""
        with torch.no_grad():
            pairs = [self.problem.values(self.stand_ins, batch) for batch in self.batches]
        return float(sum(losses.numel() if w is None else float(w.sum()) for losses, w in pairs))

    def _closure(self) -> Tensor:
        with torch.enable_grad():
            return self._set_gradients()

    def _failed(self, error: Exception) -> GeomtrajError:
        if isinstance(error, GeomtrajError):
            return error
        return InputError(
            f"the optimizer's step from step {self.iterate.step} failed ({type(error).__name__}: {error}): give a "
            "factory that builds it as training did."
        )


def _converted(value: Any, before: torch.dtype, after: torch.dtype) -> Any:
    """The tensors of one number type in a value of any nesting in another one."""
    return rebuilt(value, lambda tensor: tensor.to(after) if tensor.dtype is before else tensor)


def _needs_closure(optimizer: Optimizer) -> bool:
    """Whether step() cannot be called without a closure, as that of LBFGS."""
    step = inspect.unwrap(type(optimizer).step)
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty
