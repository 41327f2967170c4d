"""The diagonal of the Gauss-Newton part of the Hessian, with standard errors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import Accumulator, MeanVariance
from geomtraj.diagonals.base import Cost, Diagonal, Part, describe
from geomtraj.diagonals.output_vectors import gauss_newton_exact, gauss_newton_sampled, outputs
from geomtraj.errors import InputError
from geomtraj.hashed_signs import key_of, signs
from geomtraj.isolation import without_checkpoints
from geomtraj.layers.batches import loss_sums, refuse_batch_statistics, sound_graphs
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.output_hessian import OutputRecorder, split_at_output
from geomtraj.layers.probe_groups import probe_groups
from geomtraj.linalg.chunks import at_least
from geomtraj.problem import Problem, leaves

FEW_OUTPUTS = 32
"""Entries of the output up to which one-hot vectors take the place of random ones, whatever the samples."""
SPREAD_TERMS = 1024
"""Pairs of an example and a vector from which standard errors are taken at least, where there are so many."""
SHARED = "squares of gradients of whole batches, which gives larger errors"


class NoSplit(InputError):
    """The loss does not let its curvature be taken apart at the model's output."""


def gauss_newton(problem: Problem, samples: int = 64, seed: int = 0, theta: Tensor | None = None) -> Diagonal:
    """The diagonal of G = J^T (d2L/dz2) J, J = dz/dtheta and z the model's output: the sum of squares of J^T F xi.

    F is a factor of d2L/dz2, which is found out by trying: it is diagonal (squared errors, a sum of separate terms) or
    that of a softmax. With random signs xi for each example the sum of squares has a relative error of about
    sqrt(2 / (N samples)), the same for large and small entries; one backward pass serves all layers. Where the output
    has at most `samples` entries (or 32), one-hot vectors make it exact.

    Args:
        problem: The loss. Its examples must not depend on each other.
        samples: Random vectors; one gives no standard errors, which the status says.
        seed: Seed of the signs.
        theta: Where to measure (P,); the problem's current parameters if left out.

    Returns:
        G's diagonal, which is also its part `gauss_newton`; its `residual` is None. `cost.matvecs` counts backward
        passes over the whole data.

    Raises:
        InputError: samples < 1, theta does not fit, examples depend on each other, or the loss depends on theta
            otherwise than through one output of the model with a known factor.

    Source:
        Schraudolph 2002, "Fast curvature matrix-vector products"; Dangel, Kunstner, Hennig 2020, "BackPACK".
    """
    samples = at_least("samples", samples, 1)
    refuse_batch_statistics(problem)
    start = time.perf_counter()
    parameters = problem.layout.unflatten(problem.checked(theta))
    accumulator, elsewhere = Accumulator(parameters), dict[str, str]()
    products = batches = 0
    with problem.session(), without_checkpoints():
        for batch, graph, numbers in sound_graphs(problem, parameters, elsewhere):
            _add(graph, accumulator, numbers, samples, seed, problem.examples)
            products += graph.products
            del graph
            if elsewhere:
                products += _add_shared(
                    problem, parameters, list(elsewhere), batch, numbers, samples, seed, accumulator
                )
            batches += 1
    values, variances, dof = accumulator.flat(problem)
    remarks = [f"{name}: {SHARED}" for name in elsewhere]
    if samples == 1:
        remarks.append("one sample gives no standard errors: use at least two")
    cost = Cost(round(products / max(batches, 1)), time.perf_counter() - start)
    part = Part(values, variances.sqrt().to(values.dtype), dof)
    status = describe(values, problem.blocks, "; ".join(remarks))
    return Diagonal(values, part.sem, problem.blocks, "gauss_newton", cost, status, dof, part)


def _add(graph: LossGraph, accumulator: Accumulator, numbers: Tensor, samples: int, seed: int, examples: int) -> None:
    """Add what enters at the taps of one batch."""
    if not graph.taps:
        return
    if graph.output_hessian is None:
        raise no_split()
    groups = probe_groups(graph)
    if outputs(graph) <= max(samples, FEW_OUTPUTS):
        for _ in gauss_newton_exact(graph, groups, accumulator):
            pass
        return
    key, dtype = key_of(seed, "gauss_newton"), graph.taps[0].eps.dtype

    def xi(k: int) -> Tensor:
        return signs(key, numbers, k, graph.output_shape, dtype)

    gauss_newton_sampled(graph, groups, accumulator, samples, xi, -(-SPREAD_TERMS // examples))


def _add_shared(
    problem: Problem,
    parameters: Mapping[str, Tensor],
    names: list[str],
    batch: Any,
    numbers: Tensor,
    samples: int,
    seed: int,
    accumulator: Accumulator,
) -> int:
    """Add a batch's squares for parameters that enter in ways that are not understood; the backward passes taken.

    Examples have signs of their own, so that the square of their sum is unbiased too.
    """
    own = leaves({name: parameters[name] for name in names})
    inputs = list(own.values())
    with OutputRecorder(problem.model) as recorder:
        values = loss_sums(*problem.losses({**parameters, **own}, batch))
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    if not values.requires_grad:
        return 0
    gradients = torch.autograd.grad(values.sum(), inputs, retain_graph=True, **options)
    reached = [i for i, g in enumerate(gradients) if g.any()]
    if not reached:
        return 0
    found = split_at_output(values, recorder.outputs, [inputs[i] for i in reached], [gradients[i] for i in reached])
    if found is None:
        raise no_split()
    key = key_of(seed, "gauss_newton, shared")
    means = [torch.zeros_like(p, dtype=torch.float64) for p in inputs]
    squares = [torch.zeros_like(m) for m in means]
    for k in range(samples):
        xi = signs(key, numbers, k, tuple(found.output.shape[1:]), found.output.dtype)
        left, right = (
            torch.autograd.grad(found.output, inputs, v, retain_graph=True, **options)
            for v in found.output_hessian.pair(xi)
        )
        for mean, square, a, b in zip(means, squares, left, right, strict=True):
            shift = a.double() * b - mean
            mean += shift / (k + 1)
            square += shift.square() * (k / (k + 1))
    for name, mean, square in zip(own, means, squares, strict=True):
        variance = square.flatten() / (samples * (samples - 1) if samples > 1 else torch.nan)
        accumulator.add(name, None, MeanVariance(mean.flatten(), variance, 2 * variance.square() / (samples + 1)))
    return 2 * samples


def no_split() -> NoSplit:
    """The error of a loss that cannot be taken apart."""
    return NoSplit(
        "there is no Gauss-Newton part of this loss: it must depend on the parameters through one tensor (B, ...) that "
        "model(...) returns, and its second derivative by that must be diagonal or a softmax's; take method 'probing'."
    )
