"""Leaving the user's model and the process exactly as they were found."""

from __future__ import annotations

import copy
import functools
import operator
import random
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast
from unittest.mock import patch

import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from geomtraj.composed import composed_weight_norm
from geomtraj.errors import InputError
from geomtraj.trees import same

F = TypeVar("F", bound=Callable[..., Any])


_EVALUATING = threading.RLock()
_CONTAINERS = (dict, OrderedDict, list, set, deque)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Threads of this process take turns; a thread that has its turn may enter again.

    An evaluation sets flags of the whole process (kernels, modes) and puts values into the user's model, so that two
    of them at once, even of two Problems, would compute with each other's.
    """
    with _EVALUATING:
        yield


@contextmanager
def preserved_rng(generators: Iterable[torch.Generator] = ()) -> Iterator[None]:
    """Gives torch, NumPy, Python and the named generators their states back at the end."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    own = [(g, g.get_state()) for g in generators]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for g, state in own:
            g.set_state(state)


@contextmanager
def preserved_model(model: nn.Module, training: bool) -> Iterator[None]:
    """Puts a model into training or evaluation mode; gives flags, attributes and buffers back at the end.

    Raises:
        InputError: `train()` of a module writes into the parameters, so that they are others in this mode.
    """
    with preserved_attributes(model):
        writes = any(type(m).train is not nn.Module.train for m in model.modules())
        before = [(n, p, p.detach().clone()) for n, p in model.named_parameters()] if writes else []
        try:
            model.train(training)
            for name, parameter, value in before:
                if not same(parameter, value):
                    raise InputError(
                        f"the model's own train({training}) writes into {name!r}, as a low-rank adapter that is merged "
                        "does: switch that off, so that the mode changes no parameter."
                    )
            yield
        finally:
            for _, parameter, value in before:
                parameter.data.copy_(value)


@contextmanager
def preserved_attributes(model: nn.Module) -> Iterator[None]:
    """Gives modules their attributes, flags and buffers back at the end, and lists and dicts in them their content."""
    modules = list(model.modules())
    attributes = [(m, dict(m.__dict__)) for m in modules]
    inner = [(v, copy.copy(v)) for _, held in attributes for v in held.values() if type(v) in _CONTAINERS]
    kept = [(b, b.detach().clone()) for m in modules for b in m._buffers.values() if b is not None]
    try:
        yield
    finally:
        for module, held in attributes:
            if module.__dict__.keys() != held.keys() or any(module.__dict__[k] is not v for k, v in held.items()):
                module.__dict__.clear()
                module.__dict__.update(held)
        for container, content in inner:
            if len(container) != len(content) or any(map(operator.is_not, _flat(container), _flat(content))):
                container.clear()
                (container.extend if isinstance(container, (list, deque)) else container.update)(content)
        for buffer, value in kept:
            if not same(buffer, value):
                buffer.data.copy_(value)  # past the version counter: a kept graph may hold the buffer


@contextmanager
def plain_torch(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Iterator[None]:
    """Torch as it comes: gradients on, and no autocast, inference mode or default of the caller's around it.

    Args:
        dtype: The default number type.
        device: The default device.
    """
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != torch.device(device):
            stack.enter_context(torch.device(device))
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _flat(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [x for pair in container.items() for x in pair]
    return sorted(container, key=id) if isinstance(container, set) else list(container)


def in_plain_torch(function: F) -> F:
    """A function that runs inside `plain_torch()`, so that what the caller has around it changes no number.

    Threads take turns, since the default number type is one for all of them.
    """

    @functools.wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with one_at_a_time(), plain_torch():
            return function(*args, **kwargs)

    return cast(F, inside)


def on_the_cpu(function: F) -> F:
    """A function whose new tensors are ordinary ones on the CPU, whatever the caller's default device or mode is."""

    @functools.wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False), torch.device("cpu"):
            return function(*args, **kwargs)

    return cast(F, inside)


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """TensorFloat-32 off, so that float32 products are float32 products."""
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Kernels with a right second derivative: attention by its math kernel, recurrent nets without cuDNN."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(composed_weight_norm())
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled parts run as plain ones: nothing can be differentiated twice through a compiled graph."""
    if "torch._dynamo" not in sys.modules:  # nothing can have been compiled, and the import takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Checkpointed blocks run as plain ones, which keep what their backward pass needs.

    A block that is computed once more in the backward pass would be computed without what is watched or changed in the
    forward pass. Blocks checkpointed with `use_reentrant=True` are not reached; they have no second derivative.
    """

    def plain(*_args: Any, **_kwargs: Any) -> Iterator[None]:
        yield

    with patch.object(torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", plain):
        yield


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """Gives the model's parameters and buffers their values back at the end."""
    held = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    try:
        yield
    finally:
        put_back(held)


def put_back(held: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Values into tensors, past the version counter, so that graphs of the caller's own stay valid."""
    for tensor, value in held:
        if tensor.is_inference():
            with torch.inference_mode():
                tensor.copy_(value)
        else:
            tensor.data.copy_(value)
