"""A model and a loss as one function of the model's parameters, evaluated so that nothing is left behind."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module
from torch.overrides import TorchFunctionMode

from geomtraj.composed import ComposedNorms
from geomtraj.errors import InputError
from geomtraj.inputs import checked_losses
from geomtraj.isolation import (
    exact_arithmetic,
    one_at_a_time,
    plain_torch,
    preserved_attributes,
    preserved_model,
    preserved_rng,
    twice_differentiable,
    uncompiled,
)
from geomtraj.parameter_names import named_buffers, named_parameters, places
from geomtraj.trees import is_dense, rebuilt, same, tensors_of

Loss = Callable[[nn.Module, Any], "Tensor | tuple[Tensor, Tensor]"]


class Objective:
    """Unreduced losses of a batch as a function of parameter values that stand in for the model's own.

    Args:
        model: The network.
        loss: `loss(model, batch)`.
        mode: "eval" or "train".

    Attributes:
        rewritten: Names of parameters and buffers that a forward pass writes into: those are copied for each
            evaluation. None while that is not known: all are.
        captured: Parameters by name that the loss also reaches past the model (a list, a closure, a loss object that
            holds them): operations on those are redirected to what stands in for them.
        uses_func: Whether the loss calls the model inside a transform of torch.func, which cannot be recorded.
        differentiates: Whether the loss differentiates by the parameters itself, so that they must require gradients.
        composed_norms: Whether normalisations are composed of plain operations, since the loss takes derivatives.
    """

    def __init__(self, model: nn.Module, loss: Loss, mode: str):
        self.model, self.loss, self.mode = model, loss, mode
        self.rewritten: set[str] | None = None
        self.captured: dict[str, Tensor] = {}
        self.uses_func = False
        self.differentiates = False
        self.composed_norms = False
        self._names = list(named_parameters(model))
        self._places = places(model)
        self._defaults = (torch.get_default_dtype(), torch.get_default_device())

    @contextmanager
    def session(self, generators: Iterable[torch.Generator] = (), *, as_trained: bool = False) -> Iterator[None]:
        """Everything that an evaluation needs set, and everything put back at the end, also after an error.

        Args:
            generators: Whose states are put back too.
            as_trained: Whether fused kernels and TensorFloat-32 stay as training uses them; what they compute cannot be
                differentiated twice.
        """
        with ExitStack() as stack:
            stack.enter_context(one_at_a_time())
            stack.enter_context(preserved_rng(generators))
            stack.enter_context(plain_torch(*self._defaults))
            if isinstance(self.loss, nn.Module):
                stack.enter_context(preserved_attributes(self.loss))
            stack.enter_context(preserved_model(self.model, self.mode == "train"))
            stack.enter_context(uncompiled())
            if not as_trained:
                stack.enter_context(exact_arithmetic())
                stack.enter_context(twice_differentiable(self.model))
            yield

    @contextmanager
    def holding(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """The model holds these values: in backward passes too, where checkpointed blocks are computed once more."""
        # In the order of a stack, or a module that the model holds twice would keep what stood in for its parameters.
        placed = {self._places.get(name, name): tensor for name, tensor in parameters.items()}
        held = _reparametrize_module(self.model, placed, tie_weights=True, stack_weights=True)
        with held, self._redirected(parameters):
            yield

    def losses(
        self, parameters: Mapping[str, Tensor], batch: Any, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Unreduced losses (B, ...) of one batch and their weights in the same shape, or None for ones.

        The loss gets a copy of the batch, so that it may write into it. Call it inside `session()`.

        Args:
            parameters: Values of the selected parameters by name; the others keep their own.
            batch: One batch.
            dtype: Number type to convert all other parameters, buffers and the batch to; None leaves them.

        Raises:
            InputError: The loss returned something else.
        """
        stand_ins = self.stand_ins(parameters, dtype)
        return self.evaluated(stand_ins, batch, dtype)

    def stand_ins(self, parameters: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """What stands in for the model's parameters and buffers, by name."""
        found = {name: self._constant(tensor, dtype) for name, tensor in self._own()} | dict(parameters)
        if self.differentiates:
            for name, tensor in parameters.items():
                if tensor.is_floating_point() and not tensor.requires_grad:
                    found[name] = tensor.detach().requires_grad_()
        copied = found.keys() if self.rewritten is None else self.rewritten
        found = {name: tensor.clone() if name in copied else tensor for name, tensor in found.items()}
        for name in self._names:  # a loss may ask which tensors of the model are parameters
            if name in found:
                found[name]._is_param = True
        return found

    def _constant(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        """A parameter that is not selected, or a buffer; it requires a gradient where the loss may ask for that."""
        found = _converted(tensor.detach(), dtype)
        asked = tensor.requires_grad and (self.rewritten is None or self.differentiates)
        return found.clone().requires_grad_() if asked and tensor.is_leaf else found

    def evaluated(
        self, stand_ins: dict[str, Tensor], batch: Any, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The losses with these stand-ins; see `losses`."""
        own_copy = copied(batch, dtype)
        with self.holding(stand_ins), ComposedNorms() if self.composed_norms else nullcontext():
            return checked_losses(self.loss(self.model, own_copy))

    @contextmanager
    def moved(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """The model's own parameters hold these values, bit for bit the old ones again at the end."""
        # By way of .data, so that graphs of the caller's own through these parameters stay valid.
        names = {*values, *(self.rewritten or ())}
        own = {name: p for name, p in named_parameters(self.model).items() if name in names}
        before = {name: p.detach().clone() for name, p in own.items()}
        gradients = [(p, p.grad) for p in self.model.parameters()]
        try:
            for name, value in values.items():
                own[name].data.copy_(value)
            yield
        finally:
            for name, value in before.items():
                own[name].data.copy_(value)
            for p, gradient in gradients:
                p.grad = gradient

    def own_losses(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """The losses that the model gives with its own parameters, without a graph."""
        norms = ComposedNorms() if self.composed_norms else nullcontext()
        with preserved_model(self.model, self.mode == "train"), norms:
            losses, weights = checked_losses(self.loss(self.model, copied(batch)))
        return losses.detach(), weights

    def written_into(self, parameters: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Tensor | None, set[str]]:
        """Losses and weights as by `losses`, and the names of the parameters and buffers that the pass wrote into."""
        stand_ins = self.stand_ins(parameters)
        versions = {name: tensor._version for name, tensor in stand_ins.items()}
        losses, weights = self.evaluated(stand_ins, batch)
        before = dict(self._own()) | dict(parameters)
        written = {n for n, t in stand_ins.items() if t._version != versions[n] or not same(t, before[n])}
        return losses, weights, written

    def _own(self) -> Iterator[tuple[str, Tensor]]:
        return itertools.chain(named_parameters(self.model).items(), named_buffers(self.model).items())

    def _redirected(self, stand_ins: Mapping[str, Tensor]) -> Any:
        if not self.captured:
            return nullcontext()
        return _Redirected({id(own): stand_ins[name] for name, own in self.captured.items() if name in stand_ins})


class _Redirected(TorchFunctionMode):
    """Inside its `with` block operations on some tensors, and on views of them, take others in their place.

    Args:
        places: id of a tensor -> what stands in for it.
    """

    def __init__(self, places: Mapping[int, Tensor]):
        super().__init__()
        self._places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*map(self._in_place_of, args), **{k: self._in_place_of(v) for k, v in (kwargs or {}).items()})

    def _in_place_of(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            if id(item) in self._places:
                return self._places[id(item)]
            base = item._base
            if base is not None and id(base) in self._places and base.is_contiguous():
                # By their numbers, since strides mean something else to torch.func's mapped tensors.
                numbers = torch.arange(base.numel(), device=base.device)
                offset = item.storage_offset() - base.storage_offset()
                return self._places[id(base)].reshape(-1)[numbers.as_strided(item.shape, item.stride(), offset)]
            return item
        if isinstance(item, (list, tuple)) and not hasattr(item, "_fields"):
            changed = [self._in_place_of(value) for value in item]
            return type(item)(changed) if any(a is not b for a, b in zip(changed, item, strict=True)) else item
        return item


def _converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in this number type; a copy of one made in inference mode, which takes part in no derivative."""
    if dtype is not None and tensor.is_floating_point():
        return tensor.to(dtype)
    return tensor.clone() if tensor.is_inference() else tensor


WHOLE = 4
"""How much larger a storage may be than the views of it in a batch, to be copied as one."""


def copied(batch: Any, dtype: torch.dtype | None = None) -> Any:
    """The batch with tensors and arrays of its own, in another number type if one is given."""
    shared = _shared_storages(batch) if dtype is None else {}

    def change(array: Tensor | np.ndarray) -> Tensor | np.ndarray:
        whole = None
        if shared and isinstance(array, Tensor) and _has_storage(array):
            whole = shared.get(array.untyped_storage().data_ptr())
        if whole is None or not isinstance(array, Tensor):
            return _copied(array, dtype)
        typed = torch.empty(0, dtype=array.dtype, device=array.device).set_(whole)
        return typed.as_strided(array.shape, array.stride(), array.storage_offset())

    try:
        return rebuilt(batch, change, (Tensor, np.ndarray))
    except RecursionError as error:
        raise InputError("a batch is nested too deeply to be copied: keep tensors in flat lists or dicts.") from error


def _has_storage(array: Any) -> bool:
    return isinstance(array, Tensor) and type(array) is Tensor and is_dense(array) and not array.requires_grad


def _shared_storages(batch: Any) -> dict[int, Any]:
    """Copies of the storages that several tensors of a batch look at, by where they lie; not of those of whole data."""
    places: dict[int, dict[int, Tensor]] = {}
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return {}
    for tensor in tensors_of(batch):
        if _has_storage(tensor) and tensor.numel():
            places.setdefault(tensor.untyped_storage().data_ptr(), {})[id(tensor)] = tensor
    found = {}
    for place, views in places.items():
        storage = next(iter(views.values())).untyped_storage()
        if len(views) > 1 and storage.nbytes() <= WHOLE * sum(view.nbytes for view in views.values()):
            found[place] = storage.clone()
    return found


def _copied(array: Tensor | np.ndarray, dtype: torch.dtype | None) -> Tensor | np.ndarray:
    if isinstance(array, np.ndarray):
        double = dtype is torch.float64 and np.issubdtype(array.dtype, np.floating)
        if array.dtype.hasobject:
            return copy.deepcopy(array)
        return array.astype(np.float64) if double else array.copy()
    plain = array.detach()
    found = _converted(plain, dtype)
    found = plain.clone() if found is plain else found
    if array.__dict__:  # a user's own attributes of a tensor
        found.__dict__.update(array.__dict__)
    return found.requires_grad_() if array.requires_grad else found
