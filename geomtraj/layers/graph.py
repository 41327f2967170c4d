"""One batch's loss as a function of perturbations at every tap, with the checks that make probing it sound."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from geomtraj.hashed_signs import key_of, signs
from geomtraj.layers.examples import Examples
from geomtraj.layers.output_hessian import OutputHessian, close, split_at_output
from geomtraj.layers.parameter_use import ExampleAxis, Tap, candidate_axes
from geomtraj.layers.rules import RULES
from geomtraj.layers.tracer import Replayer, Tracer
from geomtraj.layers.vjp_maps import VjpMap, data_of, vjp_map

SCALES = 128
"""Powers of two of both signs that are told from each other in one product."""


class LossGraph:
    """The gradient of one batch's loss sum by the perturbations at its taps, ready to be differentiated again.

    Args:
        examples: The batch.
        names: The parameters to be traced.

    Attributes:
        examples: Number B of examples.
        weights: Weights (B,) of the examples in the loss, float64.
        taps: Taps that the loss reaches.
        axes: Where each tap holds its examples.
        failed: TracedTensor parameters some of whose uses are not accounted for; then nothing else may be used.
        products: Derivatives taken so far beyond the gradient, each along one vector.
        every_tap: These and all others, in the order of the forward pass.
        output_hessian: Factor of the loss's curvature by the model's output, if there is one output and a known factor.
        output: That output (B, ...), where there is.
        output_gradient: The gradient of the loss sum by it.
    """

    output: Tensor
    output_gradient: Tensor

    def __init__(self, examples: Examples, names: Collection[str]):
        traced = {name: examples.parameters[name].detach().requires_grad_() for name in names}
        tracer = Tracer(traced, RULES)
        with tracer:
            values, self.weights, outputs = examples.recorded(traced)
        self._recorded, self._traced, self.every_tap = examples, traced, tracer.taps
        self.examples = values.shape[0]
        self.products = 0
        self.failed: set[str] = set()
        self.taps: list[Tap] = []
        self.axes: list[ExampleAxis] = []
        self.output_hessian: OutputHessian | None = None
        self._gradients: list[Tensor] = []
        self._residuals: list[Tensor] = []
        self._sizes = {name: p.numel() for name, p in traced.items()}
        if values.requires_grad and self.examples and traced:
            self._differentiate(values, tracer.taps, traced)
            if not self.failed and self.taps:
                self._split(values, outputs)

    def _differentiate(self, values: Tensor, taps: list[Tap], traced: dict[str, Tensor]) -> None:
        epses = [tap.eps for tap in taps]
        options: dict[str, Any] = {"allow_unused": True}
        weights = mixture(values)
        mixed = torch.autograd.grad(values, [*epses, *traced.values()], weights, retain_graph=True, **options)
        sums = {name: p.new_zeros(p.numel() + 1) for name, p in traced.items()}
        plain = torch.autograd.grad(values.sum(), epses, create_graph=True, **options) if epses else ()
        for tap, one, other in zip(taps, plain, mixed, strict=False):
            if one is None or other is None:
                continue
            axis = example_axis(tap.moved(one.detach()), tap.moved(other), tap.lead, weights)
            if axis is None:
                self.failed |= {use.name for use in tap.uses}
                continue
            v = axis.positions(tap.moved(other))
            for use in tap.uses:
                sums[use.name] += self._map(use, tap, axis).summed(v)
            self.taps.append(tap)
            self.axes.append(axis)
            self._gradients.append(one)
        for (name, total), true in zip(sums.items(), mixed[len(taps) :], strict=True):
            expected = torch.zeros_like(total[:-1]) if true is None else true.flatten()
            if not close(total[:-1], expected):
                self.failed.add(name)

    def _split(self, values: Tensor, outputs: list[Tensor]) -> None:
        """Find the one output through which every tap reaches the loss, and how the loss bends there."""
        found = split_at_output(values, outputs, [tap.eps for tap in self.taps], self._gradients)
        if found is not None:
            self.output, self.output_hessian, self._residuals, self.output_gradient = found
            self._output_number = next(n for n, z in enumerate(outputs) if z is self.output)

    def output_again(self, perturbations: Sequence[Tensor]) -> Tensor:
        """The model's output from another pass, with these perturbations at `every_tap` in the place of zeros."""
        with Replayer(self._traced, RULES, perturbations):
            return self._recorded.recorded(self._traced).outputs[self._output_number]

    def of_first_example(self) -> LossGraph | None:
        """The graph of the first example alone; None where it cannot be taken out, or has other taps alone."""
        parts = self._recorded.apart(self.examples)
        alone = LossGraph(parts[0], self._traced) if parts else None
        same = alone is not None and not alone.failed and len(alone.taps) == len(self.taps)
        return alone if same else None

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one example's output, where there is a factor."""
        return tuple(self.output.shape[1:])

    def root_vjps(self, numbers: list[int], xi: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """J^T F xi and J^T F S xi (B, T, U) at these taps, for xi shaped like the output."""
        assert self.output_hessian is not None
        left = self.pulled_back([self.output], [self.output_hessian.times(xi)], numbers)
        if self.output_hessian.sign is None:
            return left, left
        return left, self.pulled_back(
            [self.output], [self.output_hessian.times(self.output_hessian.sign * xi)], numbers
        )

    def is_piecewise_linear(self, numbers: list[int]) -> bool:
        """Whether the output has no second derivative within these taps, exactly: piecewise linear networks."""
        if not any(self._residuals[n].requires_grad for n in numbers):
            return True
        us = self.curvature(numbers, [self.unequal(n).unsqueeze(1) for n in numbers], residual=True)
        return not any(bool(u.any()) for u in us)

    def _map(self, use: Any, tap: Tap, axis: ExampleAxis) -> VjpMap:
        return vjp_map(use, self._sizes[use.name], tap, axis)

    def maps(self, number: int) -> list[VjpMap]:
        """The maps of the uses at one tap, in their order."""
        tap, axis = self.taps[number], self.axes[number]
        return [self._map(use, tap, axis) for use in tap.uses]

    def shape(self, number: int) -> tuple[int, int]:
        """Positions and units (T, U) of one example at a tap."""
        _, positions, units = self.arranged(number, self.taps[number].eps).shape
        return positions, units

    def curvature(self, numbers: list[int], values: list[Tensor], residual: bool = False) -> list[Tensor]:
        """Second derivative by the perturbations at these taps, times k vectors of values (B, k, T, U) at each.

        With `residual`, of the linearised loss <g, z> in the place of the loss.
        """
        each = [
            self._curvature(numbers, list(vector), residual)
            for vector in zip(*(v.unbind(1) for v in values), strict=True)
        ]
        return [torch.stack(us, 1) for us in zip(*each, strict=True)]

    def _curvature(self, numbers: list[int], values: list[Tensor], residual: bool) -> list[Tensor]:
        gradients = self._residuals if residual else self._gradients
        curved = [i for i, n in enumerate(numbers) if gradients[n].requires_grad]
        if not curved:
            return [torch.zeros_like(v) for v in values]
        self.products += 1
        results = torch.autograd.grad(
            [gradients[numbers[i]] for i in curved],
            [self.taps[n].eps for n in numbers],
            [self.restored(numbers[i], values[i]) for i in curved],
            retain_graph=True,
            allow_unused=True,
        )
        return [
            torch.zeros_like(v) if u is None else self.arranged(n, u)
            for n, u, v in zip(numbers, results, values, strict=True)
        ]

    def gradient(self, number: int) -> Tensor:
        """The gradient (B, T, U) at a tap."""
        return self.arranged(number, self._gradients[number].detach())

    def dependent_data(self, places: list[tuple[int, int]]) -> dict[tuple[int, int], Tensor]:
        """What uses at several places multiply, where that depends on perturbations, arranged as their maps have it."""
        found = {}
        for number, use in places if len(places) > 1 else ():
            data = data_of(self.taps[number].uses[use], self.taps[number], self.axes[number])
            if data is not None and data.requires_grad:
                found[number, use] = data
        return found

    def pulled_back(self, data: list[Tensor], along: list[Tensor], numbers: list[int]) -> list[Tensor]:
        """Derivative by the perturbations at these taps of <along, data>, (B, T, U) each."""
        self.products += 1
        epses = [self.taps[n].eps for n in numbers]
        results = torch.autograd.grad(data, epses, along, retain_graph=True, allow_unused=True, materialize_grads=True)
        return [self.arranged(n, w) for n, w in zip(numbers, results, strict=True)]

    def is_flat(self, number: int) -> bool:
        """Whether the gradient at this tap is constant."""
        return not self._gradients[number].requires_grad

    def coupled(self) -> list[int]:
        """Taps where the second derivative couples examples, exactly; all of them if it does so between taps."""
        curved = [n for n in range(len(self.taps)) if not self.is_flat(n)]
        if self.examples == 1 or not curved:
            return []
        examples = torch.arange(self.examples, device=self.taps[0].eps.device)[:, None, None]
        if self._decouples(curved, examples, self.examples):
            return []
        return [n for n in curved if not self._decouples([n], examples, self.examples)] or curved

    def positions_decouple(self, number: int) -> bool:
        """Whether the second derivative at this tap couples no two positions, exactly.

        No batch can speak for another: where padding hides the later positions, say, they couple to nothing.
        """
        count, _ = self.shape(number)
        positions = torch.arange(count, device=self.taps[number].eps.device)[None, :, None]
        return self._decouples([number], positions, count)

    def _decouples(self, numbers: list[int], labels: Tensor, count: int) -> bool:
        """Whether the second derivative at these taps couples nothing with different labels out of `count`.

        Two labels differ in a digit. Where all values with one digit are scaled by the same power of two, which rounds
        nothing, the product must be scaled likewise, bit for bit: few products for many labels. Where it is not, for
        rounding that changes from call to call, say, the labels' bits tell: what is not perturbed must be zero.
        """
        bits = (count - 1).bit_length()
        vectors = [self.unequal(n) for n in numbers] if bits else []
        if bits > 2 and self._scales(numbers, vectors, labels, count):
            return True
        return all(self._vanishes(numbers, vectors, (labels >> bit) & 1 == 1) for bit in range(bits))

    def _scales(self, numbers: list[int], vectors: list[Tensor], labels: Tensor, count: int) -> bool:
        plain, place = self._curvature(numbers, vectors, residual=False), 1
        while place < count:
            digits = (labels // place) % SCALES
            scale = torch.exp2((digits // 2).to(vectors[0].dtype)) * (1 - 2 * (digits % 2))
            scaled = self._curvature(numbers, [v * scale for v in vectors], residual=False)
            if not all(bool(((u * scale == s) | ~u.isfinite()).all()) for u, s in zip(plain, scaled, strict=True)):
                return False
            place *= SCALES
        return True

    def _vanishes(self, numbers: list[int], vectors: list[Tensor], chosen: Tensor) -> bool:
        us = self._curvature(numbers, [v * chosen for v in vectors], residual=False)
        return not any(bool((u.nan_to_num(0, 0, 0) * ~chosen).any()) for u in us)

    def unequal(self, number: int) -> Tensor:
        """Signs times unequal sizes (B, T, U), under which nothing cancels by accident."""
        like = self.taps[number].eps
        examples = torch.arange(self.examples, device=like.device)
        shape = self.shape(number)
        sizes = 1 + torch.linspace(0, 1, shape[0] * shape[1], dtype=like.dtype, device=like.device).reshape(shape)
        return signs(key_of(0, "unequal"), examples, number, shape, like.dtype) * sizes

    def restored(self, number: int, values: Tensor) -> Tensor:
        """Values (B, T, U) at a tap in the shape of its perturbation."""
        tap = self.taps[number]
        lead = tap.eps.movedim(tap.unit_axis, -1).shape[: tap.lead]
        return tap.restored(self.axes[number].restored(values, lead))

    def arranged(self, number: int, tensor: Tensor) -> Tensor:
        """A tensor in the shape of a tap's perturbation as (B, T, U)."""
        return self.axes[number].positions(self.taps[number].moved(tensor))


def mixture(values: Tensor) -> Tensor:
    """Unequal weights (B,) of both signs, under which neither a mean gradient nor a sum of equal terms vanishes."""
    examples = torch.arange(values.numel(), device=values.device)
    sign = signs(key_of(0, "mixture"), examples, 0, (1,), values.dtype)[:, 0]
    return sign * (0.5 + (examples.to(values.dtype) * 0.6180339887498949) % 1)


def example_axis(plain: Tensor, mixed: Tensor, lead: int, weights: Tensor) -> ExampleAxis | None:
    """The axis along which weighting the examples weights the gradient, if there is one.

    Args:
        plain: Gradient of the sum of the losses.
        mixed: That of the sum with weights.
        lead: Number of leading axes, of which one holds the examples; there is one more behind them at most.
        weights: Weights (B,) as `mixture` gives them.
    """
    if plain.dim() == lead:
        plain, mixed = plain.unsqueeze(-1), mixed.unsqueeze(-1)
    for axis in candidate_axes(plain.shape[:lead], weights.numel()):
        if close(axis.positions(plain) * weights[:, None, None], axis.positions(mixed)):
            return axis
    return None
