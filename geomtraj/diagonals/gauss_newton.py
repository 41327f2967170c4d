"""The diagonal of the Gauss-Newton part of the Hessian, with standard errors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import MeanVariance, Parts
from geomtraj.diagonals.base import Diagonal, Part
from geomtraj.diagonals.estimator import Estimator
from geomtraj.diagonals.output_vectors import FEW_OUTPUTS, OutputOneHots, OutputSigns, outputs
from geomtraj.diagonals.over_batches import Method, estimated
from geomtraj.diagonals.sampling import Sampling
from geomtraj.errors import InputError
from geomtraj.layers.batches import Batch
from geomtraj.layers.probe_groups import probe_groups
from geomtraj.layers.unexplained import Unexplained
from geomtraj.linalg.chunks import at_least
from geomtraj.problem import Problem

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
    method = GaussNewton(Sampling(at_least("samples", samples, 1), seed, problem.examples))
    found = estimated(problem, theta, method)
    assert found.dof is not None
    return replace(found, gauss_newton=Part(found.values, found.sem, found.dof), residual=None)


@dataclass
class GaussNewton(Method):
    """One-hot vectors at the output where it has few entries, else signs.

    Attributes:
        sampling: How many random vectors.
    """

    sampling: Sampling
    name = "gauss_newton"

    def explained(self, batch: Batch) -> list[Estimator]:
        """One estimator for all groups of taps."""
        graph = batch.graph
        if not graph.taps:
            return []
        if graph.output_hessian is None:
            raise no_split()
        groups = probe_groups(graph)
        if outputs(graph) <= max(self.sampling.samples, FEW_OUTPUTS):
            return [OutputOneHots(graph, groups)]
        return [OutputSigns(graph, groups, self.sampling, batch.ids, "gauss_newton")]

    def unexplained(self, batch: Batch) -> Estimator:
        """Squares of gradients of the whole batch."""
        return BatchSquares(batch.unexplained, self.sampling, batch.ids)


class BatchSquares(Estimator):
    """The mean of squares of J^T F xi, summed over the batch, for parameters that are not accounted for.

    Examples have signs of their own, so that the square of their sum is unbiased too.

    Args:
        unexplained: The parameters.
        sampling: How many vectors.
        ids: Numbers (B,) of the examples in the data.
    """

    remark = SHARED

    def __init__(self, unexplained: Unexplained, sampling: Sampling, ids: Tensor):
        self.vectors = sampling.samples
        self._unexplained, self._ids = unexplained, ids
        self._signs = sampling.signs("gauss_newton, shared")

    def run(self, parts: Parts) -> int:
        """Add the mean; see `Estimator`.

        Raises:
            NoSplit: The loss's curvature has no known factor.
        """
        reached = self._unexplained.split()
        if reached is None:
            return 0
        found, inputs = reached
        if found is None:
            raise no_split()
        means = [torch.zeros_like(p, dtype=torch.float64) for p in inputs]
        squares = [torch.zeros_like(m) for m in means]
        for k in range(self.vectors):
            xi = self._signs.of_examples(self._ids, k, tuple(found.output.shape[1:]), found.output.dtype)
            left, right = (
                torch.autograd.grad(
                    found.output, inputs, v, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for v in found.output_hessian.pair(xi)
            )
            for mean, square, a, b in zip(means, squares, left, right, strict=True):
                shift = a.double() * b - mean
                mean += shift / (k + 1)
                square += shift.square() * (k / (k + 1))
        samples = self.vectors
        for name, mean, square in zip(self._unexplained.names, means, squares, strict=True):
            variance = square.flatten() / (samples * (samples - 1) if samples > 1 else torch.nan)
            uncertainty = 2 * variance.square() / (samples + 1)
            parts.gauss_newton.add(name, None, MeanVariance(mean.flatten(), variance, uncertainty))
        return 2 * samples


def no_split() -> NoSplit:
    """The error of a loss that cannot be taken apart."""
    return NoSplit(
        "there is no Gauss-Newton part of this loss: it must depend on the parameters through one tensor (B, ...) that "
        "model(...) returns, and its second derivative by that must be diagonal or a softmax's; take method 'probing'."
    )
