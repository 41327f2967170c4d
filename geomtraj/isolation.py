"""Leaving the user's model and the process exactly as they were found."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_EVALUATING = threading.RLock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Threads of this process take turns; a thread that has its turn may enter again.

    An evaluation sets flags of the whole process (kernels, modes) and puts values into the user's model, so that two
    of them at once, even of two Problems, would compute with each other's.
    """
    with _EVALUATING:
        yield


def unwrap(model: nn.Module) -> nn.Module:
    """The plain module inside a `torch.compile`d one: nothing can be differentiated twice through a compiled graph."""
    return getattr(model, "_orig_mod", model)


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
    """Puts a model into training or evaluation mode; gives flags and buffers back at the end."""
    modules = list(model.modules())
    flags = [m.training for m in modules]
    buffers = [(m, dict(m._buffers)) for m in modules]
    kept = [(b, b.detach().clone()) for _, held in buffers for b in held.values() if b is not None]
    try:
        model.train(training)
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        for module, held in buffers:
            module._buffers.clear()
            module._buffers.update(held)
        for buffer, value in kept:
            if not torch.equal(buffer, value):
                buffer.data.copy_(value)  # past the version counter: a kept graph may hold the buffer


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
    """Kernels that can be differentiated twice: attention by its math kernel, recurrent nets without cuDNN."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
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
        with torch.no_grad():
            for tensor, value in held:
                tensor.copy_(value)
