"""The Hessian as Gauss-Newton part plus residual: H = J^T F F^T J + sum_k g_k d2z_k, where the loss allows it.

z is what the model returns, J = dz/deps, g the gradient by z and F a factor of d2L/dz2. The diagonal of the first part
is a mean of squares, so its relative error is the same small one everywhere; only the second part then needs probing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geomtraj.hashed_signs import key_of, signs
from geomtraj.trees import tensors_of


@dataclass
class OutputHessian:
    """A signed factor of the second derivative of the loss by the outputs: F S F^T, S a diagonal of signs.

    Attributes:
        root: Square root (shape of z) of a diagonal second derivative, or of weight times probability.
        sign: S, shaped to multiply z; None where it is the identity.
        softmax_axis: None for a diagonal; else the axis on which sqrt(p) is projected out.
    """

    root: Tensor
    sign: Tensor | None
    softmax_axis: int | None

    def times(self, xi: Tensor) -> Tensor:
        """F xi."""
        if self.softmax_axis is None:
            return self.root * xi
        norm = self.root.norm(dim=self.softmax_axis, keepdim=True)
        unit = self.root / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return self.root * (xi - unit * (unit * xi).sum(self.softmax_axis, keepdim=True))

    def pair(self, xi: Tensor) -> tuple[Tensor, Tensor]:
        """F xi and F S xi."""
        left = self.times(xi)
        return left, left if self.sign is None else self.times(self.sign * xi)


class OutputRecorder:
    """Collects, inside its `with` block, the floating-point tensors that a model's calls return."""

    def __init__(self, model: torch.nn.Module):
        self.outputs: list[Tensor] = []
        self._model = model

    def __enter__(self) -> OutputRecorder:
        self._handle = self._model.register_forward_hook(lambda _module, _inputs, output: self._collect(output))
        return self

    def __exit__(self, *_error: object) -> None:
        self._handle.remove()

    def _collect(self, output: Any) -> None:
        self.outputs += [t for t in tensors_of(output) if t.is_floating_point() and t.requires_grad]


class OutputSplit(NamedTuple):
    """The one output through which a loss is reached, and how the loss bends there.

    Attributes:
        output: z, (B, ...).
        output_hessian: Factor of the loss's second derivative by z.
        residuals: Gradients of <g, z> by the inputs, in the graph, g the loss's gradient by z held fixed.
        gradient: g.
    """

    output: Tensor
    output_hessian: OutputHessian
    residuals: list[Tensor]
    gradient: Tensor


def split_at_output(
    values: Tensor, outputs: Sequence[Tensor], inputs: Sequence[Tensor], gradients: Sequence[Tensor]
) -> OutputSplit | None:
    """Where the inputs reach the loss through one output alone, whose curvature has a known factor; else None.

    Args:
        values: Losses (B,) of the examples.
        outputs: What the model's calls returned.
        inputs: What is differentiated by.
        gradients: The whole gradients by the inputs.
    """
    options: dict[str, Any] = {"allow_unused": True}
    found = torch.autograd.grad(values.sum(), outputs, create_graph=True, **options) if outputs else ()
    used = [(z, g) for z, g in zip(outputs, found, strict=True) if g is not None]
    if len(used) != 1 or used[0][0].dim() < 2 or used[0][0].shape[0] != len(values):
        return None
    z, g = used[0]
    residuals = torch.autograd.grad(z, list(inputs), g.detach(), create_graph=True, **options)
    through = [
        r for r, whole in zip(residuals, gradients, strict=True) if r is not None and close(r.detach(), whole.detach())
    ]
    if len(through) < len(residuals):
        return None
    factor = output_hessian(z, g)
    return None if factor is None else OutputSplit(z, factor, through, g.detach())


def output_hessian(z: Tensor, gradient: Tensor) -> OutputHessian | None:
    """The factor of d(gradient)/dz where it is diagonal or weight * (diag(p) - p p^T) with p = softmax(z), else None.

    Losses are known by what their second derivative does to random vectors, not by their names.

    Args:
        z: The outputs, (B, ...).
        gradient: Gradient of the loss sum by them, in the graph.
    """
    if not gradient.requires_grad:
        return None

    def curvature(w: Tensor) -> Tensor:
        (u,) = torch.autograd.grad(gradient, z, w, retain_graph=True, allow_unused=True, materialize_grads=True)
        return u

    examples = torch.arange(z.shape[0], device=z.device)
    sizes = 0.5 + torch.arange(z[0].numel(), device=z.device).to(z.dtype).mul_(0.6180339887498949).fmod_(1)
    trials = [
        signs(key_of(0, "loss"), examples, k, tuple(z.shape[1:]), z.dtype) * sizes.reshape(z.shape[1:]) for k in (0, 1)
    ]
    images = [curvature(w) for w in trials]
    diagonal = curvature(torch.ones_like(z))
    if all(close(diagonal * w, u) for w, u in zip(trials, images, strict=True)):
        return OutputHessian(diagonal.abs().sqrt(), _signs_of(diagonal), None)
    for axis in dict.fromkeys((z.dim() - 1, 1)):
        if axis == 0:
            continue
        p = z.detach().softmax(axis)
        plain = [p * (w - (p * w).sum(axis, keepdim=True)) for w in trials]
        norms = plain[0].square().sum(axis, keepdim=True)
        weight = (plain[0] * images[0]).sum(axis, keepdim=True) / norms.clamp_min(torch.finfo(z.dtype).tiny)
        if all(close(weight * m, u) for m, u in zip(plain, images, strict=True)):
            return OutputHessian((weight.abs() * p).sqrt(), _signs_of(weight), axis)
    return None


def _signs_of(values: Tensor) -> Tensor | None:
    return values.sign() if bool((values < 0).any()) else None


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding; entries that are not finite say nothing."""
    finite = torch.isfinite(a) & torch.isfinite(b)
    a, b = torch.where(finite, a, 0), torch.where(finite, b, 0)
    if not a.numel():
        return True
    scale = torch.maximum(a.abs().max(), b.abs().max())
    return bool((a - b).abs().max() <= 1e4 * torch.finfo(a.dtype).eps * scale)
