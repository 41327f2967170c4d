"""The torch functions that are linear in their parameters, and how a `Tracer` records them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from geomtraj.layers.parameter_use import ParameterUse, TracedTensor
from geomtraj.layers.tracer import Rules, Tracer
from geomtraj.layers.vjp_maps import patches


def _linear(tracer: Tracer, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    x = tracer.plain(input)
    if weight.dim() != 2:
        return NotImplemented
    return tracer.linear(F.linear(x, weight, bias), x, tracer.of(weight), tracer.of(bias))


def _matmul(tracer: Tracer, a: Tensor, b: Tensor) -> Any:
    right, left = tracer.of(b), tracer.of(a)
    if right is not None and b.dim() == 2 and a.dim() >= 2:
        x = tracer.plain(a)
        moved = TracedTensor(right.value, right.name, right.index.T, right.scale)
        return tracer.linear(torch.matmul(x, b), x, moved, None)
    if left is not None and a.dim() == 2 and b.dim() >= 2:
        return tracer.linear(torch.matmul(a, b), b.transpose(-1, -2), left, None, axis=-2)
    return NotImplemented


def _addmm(tracer: Tracer, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    weight, bias = tracer.of(mat2), tracer.of(input)
    if alpha != 1 or beta != 1 or (bias is not None and input.shape != mat2.shape[1:]):
        return NotImplemented
    x = tracer.plain(mat1)
    moved = None if weight is None else TracedTensor(weight.value, weight.name, weight.index.T, weight.scale)
    return tracer.linear(torch.addmm(input, x, mat2), x, moved, bias)


def _embedding(
    tracer: Tracer, input: Tensor, weight: Tensor, padding_idx: int | None = None,
    max_norm: float | None = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Any:  # fmt: skip
    traced = tracer.of(weight)
    if traced is None or max_norm is not None or scale_grad_by_freq:
        return NotImplemented
    index = traced.index[input]
    if padding_idx is not None:
        padding = padding_idx % weight.shape[0]
        index = index.masked_fill((input == padding).reshape(*input.shape, *[1] * (weight.dim() - 1)), -1)
    return tracer.trace(F.embedding(input, weight, padding_idx), traced.name, index, traced.scale)


def _convolution(dims: int, transposed: bool) -> Callable[..., Any]:
    plain = getattr(F, f"conv_transpose{dims}d" if transposed else f"conv{dims}d")

    def tuples(value: Any) -> tuple[int, ...]:
        return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)

    def record(tracer: Tracer, x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, **how: Any) -> Any:
        traced, traced_bias = tracer.of(weight), tracer.of(bias)
        uses: list[ParameterUse] = []
        if traced is not None:
            uses.append(_convolved(traced, x, **how))
        if traced_bias is not None:
            uses.append(ParameterUse(traced_bias.name, traced_bias.index, traced_bias.scale, "scale"))
        return tracer.add(output, uses, 1)

    def forward(
        tracer: Tracer, input: Tensor, weight: Tensor, bias: Tensor | None = None,
        stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Any:  # fmt: skip
        if input.dim() != dims + 2:
            return NotImplemented
        x = tracer.plain(input)
        output = plain(x, weight, bias, stride, padding, dilation, groups)
        stride, dilation = tuples(stride), tuples(dilation)
        spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if padding == "same":
            sides = [(s // 2, s - s // 2) for s in spans]
        else:
            sides = [(p, p) for p in tuples(0 if padding == "valid" else padding)]
        how = {"stride": stride, "dilation": dilation, "sides": sides, "groups": groups, "transposed": False}
        return record(tracer, x, weight, bias, output, **how)

    def backward(
        tracer: Tracer, input: Tensor, weight: Tensor, bias: Tensor | None = None,
        stride: Any = 1, padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
    ) -> Any:  # fmt: skip
        if input.dim() != dims + 2:
            return NotImplemented
        x = tracer.plain(input)
        output = plain(x, weight, bias, stride, padding, output_padding, groups, dilation)
        sides = [(p, p) for p in tuples(padding)]
        stride, dilation = tuples(stride), tuples(dilation)
        how = {"stride": stride, "dilation": dilation, "sides": sides, "groups": groups, "transposed": True}
        return record(tracer, x, weight, bias, output, **how)

    return backward if transposed else forward


def _convolved(weight: TracedTensor, x: Tensor, *, transposed: bool, groups: int, **how: Any) -> ParameterUse:
    """The use of a convolution's weight; in a transposed one the kernel slides over the output."""
    kernel = tuple(weight.index.shape[2:])
    if not transposed:
        return ParameterUse(
            weight.name, weight.index, weight.scale, "linear", lambda: patches(x, kernel, groups, None, **how)
        )
    space = tuple(x.shape[2:])
    return ParameterUse(
        weight.name, weight.index, weight.scale, "linear",
        inputs=lambda: x.movedim(1, -1).unflatten(-1, (groups, -1)),
        spread=lambda v: patches(v, kernel, groups, space, **how),
    )  # fmt: skip


def _affine(
    tracer: Tracer, normalised: Tensor, weight: Tensor | None, bias: Tensor | None, channel_axis: int | None
) -> Tensor:
    """Weight and bias applied to what a norm gives, on one axis or (None) on the trailing axes."""
    output = normalised
    for operation, p in ((torch.mul, weight), (torch.add, bias)):
        if p is not None:
            shaped = p if channel_axis is None else p.reshape(-1, *[1] * (normalised.dim() - 2))
            output = operation(output, shaped)
    uses: list[ParameterUse] = []
    lead = normalised.dim() - 1
    for p, factor in ((weight, normalised), (bias, None)):
        traced = tracer.of(p)
        if traced is not None:
            lead = normalised.dim() - traced.index.dim()
            uses.append(ParameterUse(traced.name, traced.index, traced.scale, "scale", factor=factor))
    return tracer.add(output, uses, -1 if channel_axis is None else channel_axis, lead)


def _layer_norm(
    tracer: Tracer, input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    x = tracer.plain(input)
    return _affine(tracer, F.layer_norm(x, normalized_shape, None, None, eps), weight, bias, None)


def _rms_norm(tracer: Tracer, input: Tensor, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Any:
    x = tracer.plain(input)
    return _affine(tracer, F.rms_norm(x, normalized_shape, None, eps), weight, None, None)


def _group_norm(
    tracer: Tracer, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    x = tracer.plain(input)
    return _affine(tracer, F.group_norm(x, num_groups, None, None, eps), weight, bias, 1)


def _batch_norm(
    tracer: Tracer, input: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    x = tracer.plain(input)
    normalised = F.batch_norm(x, running_mean, running_var, None, None, training, momentum, eps)
    return _affine(tracer, normalised, weight, bias, 1)


def _instance_norm(
    tracer: Tracer, input: Tensor, running_mean: Any = None, running_var: Any = None, weight: Any = None,
    bias: Any = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    x = tracer.plain(input)
    normalised = F.instance_norm(x, running_mean, running_var, None, None, use_input_stats, momentum, eps)
    return _affine(tracer, normalised, weight, bias, 1)


T = Tensor
_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    torch.matmul: _matmul, torch.mm: _matmul, T.matmul: _matmul, T.mm: _matmul, T.__matmul__: _matmul,
    torch.addmm: _addmm, T.addmm: _addmm,
    F.embedding: _embedding,
    F.conv1d: _convolution(1, False), F.conv2d: _convolution(2, False), F.conv3d: _convolution(3, False),
    F.conv_transpose1d: _convolution(1, True), F.conv_transpose2d: _convolution(2, True),
    F.conv_transpose3d: _convolution(3, True),
    F.layer_norm: _layer_norm, F.rms_norm: _rms_norm, F.group_norm: _group_norm,
    F.batch_norm: _batch_norm, F.instance_norm: _instance_norm,
}  # fmt: skip

_UNRECORDED = {
    T.detach, T.size, T.dim, T.numel, T.nelement, T.ndimension, T.stride, T.element_size, T.is_contiguous,
    T.is_floating_point, torch.is_floating_point, torch.is_tensor, T.requires_grad_, T.item, T.tolist, T.__len__,
    T.__repr__, T.__hash__, T.storage_offset, T.data_ptr, T.is_complex, T.get_device, torch.numel,
}  # fmt: skip

_REARRANGEMENTS = {
    T.view, T.reshape, torch.reshape, T.transpose, torch.transpose, T.permute, torch.permute, T.t, torch.t,
    T.swapaxes, torch.swapaxes, T.movedim, torch.movedim, T.split, torch.split, T.chunk, torch.chunk, T.unbind,
    torch.unbind, T.tensor_split, torch.tensor_split, T.narrow, torch.narrow, T.select, torch.select,
    T.index_select, torch.index_select, T.unsqueeze, torch.unsqueeze, T.squeeze, torch.squeeze, T.expand,
    T.expand_as, T.flatten, torch.flatten, T.unflatten, torch.unflatten, T.contiguous, T.clone, torch.clone,
    T.__getitem__, T.repeat, T.view_as, T.reshape_as, torch.broadcast_to, T.broadcast_to, T.flip, torch.flip,
    T.T.__get__, T.mT.__get__,  # type: ignore[attr-defined]
}  # fmt: skip

_ELEMENTWISE = {
    torch.add, T.add, T.__add__, T.__radd__, T.add_, T.__iadd__,
    torch.sub, T.sub, T.__sub__, T.__rsub__, T.sub_, T.__isub__,
    torch.mul, T.mul, T.__mul__, T.__rmul__, T.mul_, T.__imul__,
    torch.div, T.div, T.__truediv__,
}  # fmt: skip

_IN_PLACE = {"add_", "sub_", "mul_", "__iadd__", "__isub__", "__imul__"}

_SCALES: dict[Any, Callable[[float], float]] = {
    **dict.fromkeys((torch.add, T.add, T.__add__, T.__radd__, torch.sub, T.sub, T.__sub__), lambda c: 1.0),
    T.__rsub__: lambda c: -1.0,
    **dict.fromkeys((torch.mul, T.mul, T.__mul__, T.__rmul__), float),
    **dict.fromkeys((T.div, T.__truediv__), lambda c: 1 / c if c else math.nan),
}

RULES = Rules(
    handlers=_HANDLERS,
    unrecorded=_UNRECORDED,
    rearrangements=_REARRANGEMENTS,
    elementwise=_ELEMENTWISE,
    in_place=_IN_PLACE,
    scales=_SCALES,
)
"""What is known of torch's functions."""
