"""How many vectors to multiply at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.operators.base import SymmetricOperator

CHUNK_BYTES = 64 * 2**20
CHUNK_COLUMNS = 16


def chunk_width(operator: SymmetricOperator) -> int:
    """Number of columns that fit in one block of vectors (P, width) of at most 64 MiB, between 1 and 16."""
    column_bytes = max(operator.shape[0], 1) * operator.dtype.itemsize
    return max(1, min(CHUNK_COLUMNS, CHUNK_BYTES // column_bytes))


def chunk_widths(operator: SymmetricOperator, total: int) -> Iterator[int]:
    """Numbers of columns, each at most `chunk_width(operator)`, that sum to `total`."""
    width = chunk_width(operator)
    for start in range(0, total, width):
        yield min(width, total - start)


def products(operator: SymmetricOperator, vectors: Tensor) -> Tensor:
    """Products with the columns of `vectors` (P, k), a chunk of them at a time."""
    return torch.cat([operator @ chunk for chunk in vectors.split(chunk_width(operator), dim=1)], dim=1)


def at_least(name: str, count: int, least: int) -> int:
    """The count as it is.

    Raises:
        InputError: It is no integer, or less than `least`.
    """
    if isinstance(count, bool) or int(count) != count or count < least:
        raise InputError(f"{name} must be an integer of at least {least}, not {count!r}.")
    return int(count)
