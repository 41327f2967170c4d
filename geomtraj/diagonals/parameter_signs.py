"""Random signs on parameters, each example with its own: for parameters that enter in ways that are not understood."""

from __future__ import annotations

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import MeanVariance, Parts
from geomtraj.diagonals.estimator import Estimator
from geomtraj.diagonals.sampling import Sampling
from geomtraj.layers.unexplained import RowGraph, Unexplained

BY_EXAMPLE = "probed in parameter space, each example with its own signs"
BY_BATCH = "probed in parameter space, the examples of a batch sharing their signs, which gives larger errors"


class ParameterSigns(Estimator):
    """The mean over random signs on the parameters themselves, in the copy that each example has.

    Args:
        unexplained: The parameters.
        sampling: How many vectors.
        ids: Numbers (B,) of the examples in the data.
    """

    def __init__(self, unexplained: Unexplained, sampling: Sampling, ids: Tensor):
        self.vectors = sampling.samples
        self._unexplained, self._sampling, self._ids = unexplained, sampling, ids

    def run(self, parts: Parts) -> int:
        """Add the mean over the vectors, one row of the parameters after the other; see `Estimator`.

        Raises:
            ExamplesInteract: Examples depend on each other.
        """
        rows = self._unexplained.rows()
        self.remark = BY_EXAMPLE if rows.apart else BY_BATCH
        products = 0.0
        for graph, examples in rows.graphs:
            for name in self._unexplained.names:
                parts.whole.add(name, None, self._estimate(graph, name, self._ids[examples][: graph.rows]))
                products += self.vectors * graph.share
        return round(products)

    def _estimate(self, graph: RowGraph, name: str, ids: Tensor) -> MeanVariance:
        leaf, signs = graph.own[name], self._sampling.signs(f"probing, parameter {name}")
        mean, squares = torch.zeros_like(leaf), torch.zeros_like(leaf)
        for k in range(self.vectors):
            z = signs.of_examples(ids, k, tuple(leaf.shape[1:]), leaf.dtype)
            shift = z * graph.product(name, z) - mean
            mean += shift / (k + 1)
            squares += shift.square() * (k / (k + 1))
        samples = self.vectors
        variances = squares.reshape(len(squares), -1) / (samples * (samples - 1) if samples > 1 else torch.nan)
        uncertainty = 2 * variances.double().square().sum(0) / (samples + 1)
        return MeanVariance(mean.sum(0).flatten(), variances.sum(0), uncertainty)
