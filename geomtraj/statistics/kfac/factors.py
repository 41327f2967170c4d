"""Second moments of what comes into a weight matrix and of the gradients of what comes out: K-FAC's two factors."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from geomtraj.layers.batches import batches
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.output_hessian import close
from geomtraj.layers.parameter_use import ParameterUse
from geomtraj.layout import Layout
from geomtraj.problem import Problem
from geomtraj.seeding import generator, rademacher


@dataclass
class WeightFactors:
    """One way in which a weight, or a part of it, multiplies what comes in.

    Attributes:
        kind: "map": a matrix of outputs by inputs, groups of them for a grouped convolution. "table": rows looked up,
            which is a map whose inputs are one-hot, so that the inputs' second moments are the rows' frequencies.
        index: Place in the flattened parameter of each entry, (groups, outputs, inputs).
        inputs: Weighted sum over positions of the squared inputs, (groups, inputs).
        positions: MeanVariance of those weights.
        gradients: MeanVariance over positions of the squared gradients of the outputs for each random vector,
            (S, groups, outputs).
        probability: Weighted sum of the predicted probability of each output, (outputs,), where the outputs are the
            model's own and go through a softmax.
    """

    kind: str
    index: Tensor
    inputs: Tensor
    positions: Tensor
    gradients: Tensor
    probability: Tensor | None = None

    def add(self, other: WeightFactors) -> None:
        """Add the sums over other positions."""
        self.inputs = self.inputs + other.inputs
        self.positions = self.positions + other.positions
        self.gradients = self.gradients + other.gradients
        if self.probability is not None and other.probability is not None:
            self.probability = self.probability + other.probability

    @property
    def moments(self) -> Tensor:
        """E[x_j^2], (groups, inputs)."""
        return self.inputs / self.positions.clamp_min(torch.finfo(self.inputs.dtype).tiny)


@dataclass
class KfacFactors:
    """The parts of every weight matrix, and what is not among them.

    Attributes:
        parts: Parameter -> its parts.
        left_out: Parameter -> why its uses are not all of these kinds.
        fallback: Whether the gradients are those of the losses themselves, for want of a known curvature.
    """

    parts: dict[str, list[WeightFactors]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    fallback: bool = False

    def diagonal(self, name: str, size: int) -> Tensor:
        """The factorised diagonal for each random vector, (S, size): E[x_j^2] times the sum of g_i^2."""
        first = self.parts[name][0].gradients
        total = first.new_zeros(len(first), size)
        for part in self.parts[name]:
            outer = part.gradients.unsqueeze(-1) * part.moments.unsqueeze(-2)
            total.index_add_(1, part.index.flatten(), outer.flatten(1))
        return total


def kfac_factors(problem: Problem, theta: Tensor, samples: int, seed: int) -> KfacFactors:
    """Second moments around every weight matrix that multiplies or is looked up, over the problem's batches.

    The gradients are those of <F xi, output> for random signs xi, F a factor of the loss's curvature by the output, so
    that the squares' mean is Gauss-Newton's (labels drawn from the model's predictions give the same). Where the loss
    has no known factor they are the gradients of the losses themselves. Positions that the loss does not reach, such as
    padded tokens, do not count: the gradient there is exactly 0. The others of one example share its weight equally.

    Args:
        problem: The loss.
        theta: Where (P,).
        samples: Number S of random vectors.
        seed: Of them.

    Raises:
        InputError: Examples depend on each other.
    """
    together = KfacFactors()
    for own in problem.on_ranks(lambda: _own_moments(problem, theta, samples, seed)):
        for name, parts in own.parts.items():
            for part in parts:
                _merge(together.parts.setdefault(name, []), part)
        together.left_out |= own.left_out
        together.fallback |= own.fallback
    for name in together.left_out:
        together.parts.pop(name, None)
    return together


def _own_moments(problem: Problem, theta: Tensor, samples: int, seed: int) -> KfacFactors:
    """Those of this process's batches."""
    matrices = {name for name, slot in problem.layout.items() if len(slot.shape) > 1}
    found, rng = KfacFactors(), generator(seed, f"unit moments of process {problem.rank}")
    with batches(problem, theta) as parts:
        for batch in parts:
            _add_batch(batch.graph, problem.layout, samples, rng, found)
            odd = batch.unexplained.why.keys() & matrices
            found.left_out |= {name: "its uses are not all known" for name in batch.unexplained.names if name in odd}
            del batch
    return found


def _add_batch(graph: LossGraph, layout: Layout, samples: int, rng: torch.Generator, found: KfacFactors) -> None:
    numbers = [n for n, tap in enumerate(graph.taps) if any(len(layout[u.name].shape) > 1 for u in tap.uses)]
    if not numbers:
        return
    gradients: list[list[Tensor]] = []
    output = None
    if graph.output_hessian is None:
        found.fallback = True
        gradients.append([graph.gradient(n) for n in numbers])
    else:
        for _ in range(samples):
            like = graph.taps[0].eps
            xi = rademacher((graph.examples, *graph.output_shape), rng, like)
            gradients.append(graph.root_vjps(numbers, xi)[0])
        if graph.output_hessian.softmax_axis is not None:
            output = graph.output_hessian.times(xi).movedim(graph.output_hessian.softmax_axis, -1)
            output = output.reshape(graph.examples, -1, output.shape[-1])
    for place, n in enumerate(numbers):
        g = torch.stack([one[place] for one in gradients]).double()  # (S, B, T, U)
        for use in graph.taps[n].uses:
            shape = layout[use.name].shape
            if len(shape) < 2:
                continue
            part = _part(graph, n, use, shape, g)
            if part is None:
                found.left_out[use.name] = "it enters in another way than as a matrix or a table"
                continue
            if output is not None and part.kind == "map" and _is_output(gradients[-1][place], output):
                part.probability = _probability(graph)
            _merge(found.parts.setdefault(use.name, []), part)


def _part(graph: LossGraph, n: int, use: ParameterUse, shape: tuple[int, ...], g: Tensor) -> WeightFactors | None:
    axis, scale = graph.axes[n], use.scale**2
    if use.kind == "linear" and use.spread is None:
        assert use.inputs is not None
        x = axis.positions(use.inputs().detach(), 2).double()  # (B, T, groups, J)
        shares = _shares(g, graph.weights)
        inputs = torch.einsum("bt,btgj->gj", shares, x.square()) * scale
        sums = g.square().sum((1, 2)).unflatten(-1, (x.shape[2], -1))
        index = use.index.reshape(*sums.shape[1:], x.shape[3])
        return WeightFactors("map", index, inputs, shares.sum(), sums)
    if use.kind == "embedding" and len(shape) == 2:
        rows, width = shape
        places = axis.positions(graph.taps[n].moved(use.index))
        if places[0].numel() % width:
            return None
        places = places.reshape(len(places), -1, width)
        row = places[..., 0].div(width, rounding_mode="floor")
        expected = row.unsqueeze(-1) * width + torch.arange(width, device=row.device)
        known = row >= 0
        if not bool(((places == expected) | (~known.unsqueeze(-1) & (places < 0))).all()):
            return None
        g = g.reshape(len(g), len(places), -1, width) * known.unsqueeze(-1)
        shares = _shares(g, graph.weights)
        inputs = shares.new_zeros(rows).index_add_(0, row.clamp_min(0).flatten(), shares.flatten()) * scale
        index = torch.arange(rows * width, device=row.device).reshape(rows, width).T
        return WeightFactors("table", index[None], inputs[None], shares.sum(), g.square().sum((1, 2)).unsqueeze(1))
    return None


def _shares(g: Tensor, importance: Tensor) -> Tensor:
    """The weight of each position (B, T): its example's, shared by the positions that the loss reaches."""
    reached = (g != 0).any(dim=3).any(dim=0).double()
    return reached * (importance / reached.sum(1).clamp_min(1)).unsqueeze(1)


def _is_output(gradient: Tensor, output: Tensor) -> bool:
    """Whether a tap's values are the model's output: then the gradient is what was put in there."""
    return gradient.shape == output.shape and close(gradient, output)


def _probability(graph: LossGraph) -> Tensor:
    """Weighted sum of the predicted probabilities (U,)."""
    assert graph.output_hessian is not None and graph.output_hessian.softmax_axis is not None
    return (
        graph.output_hessian.root.detach()
        .double()
        .square()
        .movedim(graph.output_hessian.softmax_axis, -1)
        .flatten(0, -2)
        .sum(0)
    )


def _merge(parts: list[WeightFactors], new: WeightFactors) -> None:
    for part in parts:
        if part.kind == new.kind and torch.equal(part.index, new.index):
            part.add(new)
            return
    parts.append(new)
