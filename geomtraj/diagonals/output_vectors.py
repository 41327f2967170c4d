"""The diagonal of the Gauss-Newton part of one batch, for all groups of taps by the same passes."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from geomtraj.diagonals.products import Pair, Products
from geomtraj.diagonals.sampling import Sampling
from geomtraj.layers.graph import LossGraph
from geomtraj.layers.probe_groups import ProbeGroup

FEW_OUTPUTS = 32
"""Entries of the output up to which one-hot vectors take the place of random ones, whatever the samples."""


def outputs(graph: LossGraph) -> float:
    """How many entries the output of one example has; infinite where the loss's curvature has no known factor."""
    return math.inf if graph.output_hessian is None else math.prod(graph.output_shape)


class _OutputVectors(Products):
    """Sums over vectors xi of A(J^T F xi) * A(J^T F S xi)."""

    target = "gauss_newton"

    @abstractmethod
    def vector(self, number: int) -> Tensor:
        """One vector for each example, (B, *output_shape)."""

    def pair(self, number: int) -> Pair:
        """J^T F xi and J^T F S xi."""
        left, right = self.graph.root_vjps(self.taps, self.vector(number))
        u = dict(zip(self.taps, left, strict=True))
        return u, u if right is left else dict(zip(self.taps, right, strict=True))


class OutputOneHots(_OutputVectors):
    """The diagonal of J^T F S F^T J, exactly: the sum over one-hot xi, one for each entry of the output."""

    def __init__(self, graph: LossGraph, groups: list[ProbeGroup]):
        super().__init__(graph, groups, math.prod(graph.output_shape), spread_of=0, exact=True)

    def vector(self, number: int) -> Tensor:
        """The same one-hot vector for each example."""
        like = self.graph.taps[0].eps
        xi = torch.zeros(self.graph.examples, math.prod(self.graph.output_shape), dtype=like.dtype, device=like.device)
        xi[:, number] = 1
        return xi.reshape(-1, *self.graph.output_shape)


class OutputSigns(_OutputVectors):
    """The mean over random signs xi in the place of one-hot ones: a relative error of sqrt(2 / (B samples))."""

    def __init__(self, graph: LossGraph, groups: list[ProbeGroup], sampling: Sampling, ids: Tensor, purpose: str):
        super().__init__(graph, groups, sampling.samples, spread_of=sampling.spread_samples, exact=False)
        self._signs, self._ids = sampling.signs(purpose), ids

    def vector(self, number: int) -> Tensor:
        """Signs of each example's own."""
        dtype = self.graph.taps[0].eps.dtype
        return self._signs.of_examples(self._ids, number, self.graph.output_shape, dtype)
