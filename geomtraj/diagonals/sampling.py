"""How many random vectors, and the signs that they are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from geomtraj.hashed_signs import key_of, signs, signs_at

SPREAD_TERMS = 1024
"""Pairs of an example and a vector from which standard errors are taken at least, where there are so many."""


@dataclass(frozen=True)
class Signs:
    """Random signs for one purpose.

    Attributes:
        key: See `geomtraj.hashed_signs.key_of`.
    """

    key: int

    def of_examples(self, ids: Tensor, vector: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Signs (B, *shape), each example's own."""
        return signs(self.key, ids, vector, shape, dtype)

    def of_pairs(self, ids: Tensor, places: Tensor, vector: int, dtype: torch.dtype) -> Tensor:
        """Signs (K,), one for each pair of an example and a place."""
        return signs_at(self.key, ids, places, vector, dtype)

    def shifted(self, number: int) -> Signs:
        """Other signs, for the same purpose elsewhere."""
        return Signs(self.key + number)


@dataclass(frozen=True)
class Sampling:
    """How to sample, the same for all batches.

    Attributes:
        samples: Random vectors.
        seed: Seed of the signs.
        examples: Number N of examples in the data.
    """

    samples: int
    seed: int
    examples: int

    @property
    def spread_samples(self) -> int:
        """Vectors after which there is enough spread for standard errors."""
        return -(-SPREAD_TERMS // self.examples)

    def signs(self, purpose: str) -> Signs:
        """The signs for some purpose."""
        return Signs(key_of(self.seed, purpose))
