"""Cutting a batch of any nesting into smaller batches."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from torch import Tensor

from geomtraj.trees import arrays_of, is_dense, rebuilt, tensors_of

__all__ = ["count", "cut", "rebuilt", "sliced", "tensors_of"]

KINDS = (Tensor, np.ndarray)


def count(batch: Any) -> int | None:
    """Number of examples where every array of the batch has as many on its first axis; None where they differ."""
    sizes = set()
    for array in arrays_of(batch):
        if isinstance(array, Tensor) and not is_dense(array):
            return None
        sizes.add(array.shape[0] if array.ndim else 0)
    return sizes.pop() if len(sizes) == 1 else None


def cut(batch: Any, examples: int) -> list[Any] | None:
    """The batch's examples as batches of one, if every array in it has them on its first axis."""
    if examples == 1:
        return [batch]
    if examples == 0 or count(batch) != examples:
        return None
    return sliced(batch, examples, 1)


def sliced(batch: Any, examples: int, size: int) -> list[Any]:
    """The batch in parts of at most `size` examples; it must be one that can be cut."""
    return [rebuilt(batch, operator.itemgetter(slice(i, i + size)), KINDS) for i in range(0, examples, size)]
