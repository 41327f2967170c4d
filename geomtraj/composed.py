"""Operations whose further derivatives torch gets wrong, composed of operations whose derivatives are right.

Measured against differences of gradients with torch 2.13, in float64: the second derivative of `torch._weight_norm` is
off by its own size, and so is the third one of layer, batch and instance normalisation (their double backward takes
the saved statistics for constants), which a Hessian needs where the loss takes derivatives by its inputs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.utils.weight_norm
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Direction times length, g v / ||v||, the norm taken over all axes but `dim` (-1: over all)."""
    if dim == -1:
        return v * (g / v.norm())
    return v * (g / v.norm(dim=[axis for axis in range(v.dim()) if axis != dim % v.dim()], keepdim=True))


@contextlib.contextmanager
def composed_weight_norm() -> Iterator[None]:
    """Weight normalisation by plain operations, in each of its forms."""
    with contextlib.ExitStack() as stack:
        # torch.nn.utils has a function of its module's name.
        for home in (torch, sys.modules["torch.nn.utils.weight_norm"]):
            if hasattr(home, "_weight_norm"):
                stack.enter_context(patch.object(home, "_weight_norm", weight_norm))
        yield


class ComposedNorms(TorchFunctionMode):
    """Layer, batch and instance normalisation by plain operations, in whatever runs inside its `with` block."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _COMPOSED.get(func, func)(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    return _affine(_normalised(input, axes, eps), weight, bias)


def _batch_norm(
    input: Tensor,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Tensor:
    shape = (1, -1, *[1] * (input.dim() - 2))
    if not training:
        found = (input - running_mean.reshape(shape)) / (running_var.reshape(shape) + eps).sqrt()
        return _affine(found, weight, bias, shape)
    axes = (0, *range(2, input.dim()))
    if running_mean is not None:
        with torch.no_grad():
            running_mean.lerp_(input.detach().mean(axes), momentum)
            running_var.lerp_(input.detach().var(axes), momentum)
    return _affine(_normalised(input, axes, eps), weight, bias, shape)


def _instance_norm(
    input: Tensor,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm(input, weight, bias, running_mean, running_var, False, momentum, eps)
    shape, axes = (1, -1, *[1] * (input.dim() - 2)), tuple(range(2, input.dim()))
    if running_mean is not None:
        with torch.no_grad():
            running_mean.lerp_(input.detach().mean(axes).mean(0), momentum)
            running_var.lerp_(input.detach().var(axes).mean(0), momentum)
    return _affine(_normalised(input, axes, eps), weight, bias, shape)


def _normalised(input: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = input - input.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + eps).sqrt()


def _affine(x: Tensor, weight: Any, bias: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    x = x if weight is None else x * (weight if shape is None else weight.reshape(shape))
    return x if bias is None else x + (bias if shape is None else bias.reshape(shape))


def _functional_batch_norm(
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    return _batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)


def _functional_instance_norm(
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    return _instance_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps)


_COMPOSED: dict[Any, Any] = {
    functional.layer_norm: _layer_norm,
    functional.batch_norm: _functional_batch_norm,
    functional.instance_norm: _functional_instance_norm,
    torch.layer_norm: _layer_norm,
    torch.batch_norm: _batch_norm,
    torch.instance_norm: _instance_norm,
}
