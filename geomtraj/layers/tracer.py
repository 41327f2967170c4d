"""Finding every use that a forward pass makes of its parameters, and adding a perturbation to each.

A `TorchFunctionMode` sees every torch function that is called with a traced tensor: a parameter, or a part or
rearrangement of one. It knows the functions that are linear in their parameters; any other function gets the traced
tensor plus a perturbation of its own, which is right whatever the function does. So modules, functional calls and bare
parameters are all treated alike.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from geomtraj.layers.parameter_use import ParameterUse, Tap, TracedTensor


@dataclass(frozen=True)
class Rules:
    """What is known of torch's functions.

    Attributes:
        handlers: Functions that are linear in their parameters -> what records their taps; that may answer
            NotImplemented.
        unrecorded: Functions that neither change nor differentiate their tensors.
        rearrangements: Functions that move entries about.
        elementwise: Sums, differences, products and quotients of two operands.
        in_place: Names of those of them that write into the first.
        scales: Elementwise functions of a tensor and a number -> the factor by which they change the tensor's scale.
    """

    handlers: Mapping[Any, Callable[..., Any]]
    unrecorded: Set[Any]
    rearrangements: Set[Any]
    elementwise: Set[Any]
    in_place: Set[str]
    scales: Mapping[Any, Callable[[float], float]]


class Tracer(TorchFunctionMode):
    """Records in `taps` the uses of the given parameters while it is active.

    Args:
        parameters: Name -> tensor, the very objects that the forward pass will use.
        rules: What is known of torch's functions; of any other a traced tensor gets a tap of its own.
    """

    def __init__(self, parameters: Mapping[str, Tensor], rules: Rules):
        super().__init__()
        self.rules = rules
        self.taps: list[Tap] = []
        self._traced: dict[int, TracedTensor] = {}
        for name, p in parameters.items():
            self.trace(p, name, torch.arange(p.numel(), device=p.device).reshape(p.shape))

    def trace(self, value: Tensor, name: str, index: Tensor, scale: float = 1.0) -> Tensor:
        """The value itself, from now on known to hold entries of a parameter; arguments as in `TracedTensor`."""
        self._traced[id(value)] = TracedTensor(value, name, index, scale)
        return value

    def of(self, item: Any) -> TracedTensor | None:
        """What is traced under this object, if anything is."""
        return self._traced.get(id(item)) if isinstance(item, Tensor) else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = [t for t in map(self.of, _tensors((args, kwargs))) if t is not None]
        if not found or func in self.rules.unrecorded:
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return _opened(func)(*args, **kwargs)
        if func in self.rules.handlers:
            result = self.rules.handlers[func](self, *args, **kwargs)
            if result is not NotImplemented:
                return result
        if getattr(func, "__name__", "") == "__get__" and func not in self.rules.rearrangements:
            return func(*args, **kwargs)  # shape, dtype, device, ...
        if func in self.rules.rearrangements and len(found) == 1 and self.of(args[0]) is not None:
            return self._rearranged(func, found[0], args, kwargs)
        if func in self.rules.elementwise and not (found[0].value is args[0] and func.__name__ in self.rules.in_place):
            return self._elementwise(func, args, kwargs)
        args, kwargs = _map_tensors((args, kwargs), self.plain)
        return func(*args, **kwargs)

    def plain(self, item: Any) -> Any:
        """The item for a function that is not known: a traced tensor gets a perturbation of its own."""
        traced = self.of(item)
        return item if traced is None else self._perturbed(traced)

    def add(self, output: Tensor, uses: list[ParameterUse], unit_axis: int = -1, lead: int | None = None) -> Tensor:
        """The output plus a new perturbation; `unit_axis` and `lead` as in `Tap`."""
        eps = torch.zeros_like(output, memory_format=torch.contiguous_format, requires_grad=True)
        tap = Tap(eps, uses, unit_axis, output.dim() - 1 if lead is None else lead)
        self.taps.append(tap)
        return output + tap.eps

    def linear(
        self, output: Tensor, x: Tensor, weight: TracedTensor | None, bias: TracedTensor | None, axis: int = -1
    ) -> Tensor:
        """The output of a linear map of x (..., in) with weight index (out, in), perturbed; units on `axis`."""
        uses: list[ParameterUse] = []
        if weight is not None:
            inputs = x.unsqueeze(-2)
            uses.append(ParameterUse(weight.name, weight.index, weight.scale, "linear", lambda: inputs))
        if bias is not None:
            uses.append(ParameterUse(bias.name, bias.index, bias.scale, "scale"))
        return self.add(output, uses, axis)

    def _perturbed(self, traced: TracedTensor) -> Tensor:
        lead = traced.value.dim()
        return self.add(traced.value, [ParameterUse(traced.name, traced.index, traced.scale, "embedding")], lead=lead)

    def _rearranged(self, func: Any, traced: TracedTensor, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        index = func(traced.index, *args[1:], **kwargs)
        if isinstance(result, Tensor):
            return self.trace(result, traced.name, index, traced.scale)
        for part, part_index in zip(result, index, strict=True):
            self.trace(part, traced.name, part_index, traced.scale)
        return result

    def _elementwise(self, func: Any, args: Any, kwargs: Any) -> Any:
        operands = [a for a in args[:2] if isinstance(a, Tensor)]
        if len(operands) < 2:
            return self._with_number(func, args, kwargs)
        shape = torch.broadcast_shapes(*(a.shape for a in operands))
        args = [self._broadcast(a, shape) if i < 2 else a for i, a in enumerate(args)]
        return func(*args, **kwargs)

    def _with_number(self, func: Any, args: Any, kwargs: Any) -> Any:
        traced = self.of(args[0]) or self.of(args[1])
        numbers = [a for a in args if not isinstance(a, Tensor)]
        plain = len(args) == 2 and not kwargs and len(numbers) == 1 and isinstance(numbers[0], (int, float))
        change = self.rules.scales.get(func) if plain else None
        if traced is None or change is None:
            args, kwargs = _map_tensors((args, kwargs), self.plain)
            return func(*args, **kwargs)
        return self.trace(func(*args), traced.name, traced.index, traced.scale * change(numbers[0]))

    def _broadcast(self, item: Any, shape: torch.Size) -> Any:
        traced = self.of(item)
        if traced is None:
            return item
        value, index = traced.value.expand(shape), traced.index
        while index.dim() > 1 and index.shape[0] == 1 and len(shape) >= index.dim():
            index = index[0]
        if shape[len(shape) - index.dim() :] == index.shape and len(shape) > index.dim() > 0:
            uses: list[ParameterUse] = [ParameterUse(traced.name, index, traced.scale, "scale")]
            return self.add(value, uses, lead=len(shape) - index.dim())
        return self._perturbed(TracedTensor(value, traced.name, traced.index.expand(shape), traced.scale))


class Replayer(Tracer):
    """A tracer of another pass over the same batch, with given perturbations in the place of new ones.

    Args:
        parameters: As before.
        rules: As before.
        perturbations: One for each tap of the first pass, in its order.
    """

    def __init__(self, parameters: Mapping[str, Tensor], rules: Rules, perturbations: Iterable[Tensor]):
        super().__init__(parameters, rules)
        self._perturbations = iter(perturbations)

    def add(self, output: Tensor, uses: list[ParameterUse], unit_axis: int = -1, lead: int | None = None) -> Tensor:
        """The output plus the next perturbation."""
        return output + next(self._perturbations)


def _opened(func: Any) -> Any:
    """A Python function of torch as if nothing overrode it, so that the calls in its body come to the mode."""

    def no(*_args: Any) -> bool:
        return False

    closed = {name: no for name in func.__globals__ if name.startswith("has_torch_function")}
    copy = types.FunctionType(
        func.__code__, {**func.__globals__, **closed}, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from _tensors(value)
    elif isinstance(item, (tuple, list)):
        for value in item:
            yield from _tensors(value)


def _map_tensors(item: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(item, Tensor):
        return change(item)
    if isinstance(item, dict):
        return {key: _map_tensors(value, change) for key, value in item.items()}
    if type(item) in (tuple, list):
        return type(item)(_map_tensors(value, change) for value in item)
    return item
