"""The exact diagonal by products with one-hot vectors."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from geomtraj.diagonals.base import Cost, Diagonal, describe
from geomtraj.errors import ComputationError, InputError
from geomtraj.linalg.chunks import chunk_width
from geomtraj.operators.base import SymmetricOperator


def entries(operator: SymmetricOperator, indices: Tensor) -> Tensor:
    """Exact H_ii (k,) at the chosen indices (k,), by k products.

    Raises:
        InputError: An index is no integer or out of range.
    """
    indices = torch.as_tensor(indices, device=operator.device).reshape(-1)
    if indices.numel() == 0:
        return torch.empty(0, dtype=operator.dtype, device=operator.device)
    size = operator.shape[0]
    if indices.dtype.is_floating_point or indices.dtype is torch.bool:
        raise InputError(f"indices of diagonal entries must be integers, not {indices.dtype}.")
    if int(indices.min()) < 0 or int(indices.max()) >= size:
        raise InputError(
            f"indices of diagonal entries must lie between 0 and {size - 1}, not between "
            f"{int(indices.min())} and {int(indices.max())}."
        )
    return torch.cat([_one_hot(operator, chunk) for chunk in indices.split(chunk_width(operator))])


def exact(operator: SymmetricOperator, *, max_seconds: float = 3600.0) -> Diagonal:
    """The exact diagonal in P products; its standard errors are zero.

    The first chunk of products is timed (twice, if the first time, with all that is set up in it, is too long).

    Args:
        operator: The operator.
        max_seconds: The longest time that the whole may take.

    Raises:
        ComputationError: The whole would take longer; the message says how long.
    """
    start = time.perf_counter()
    before = operator.matvecs
    size, width = operator.shape[0], chunk_width(operator)
    values = torch.empty(size, dtype=operator.dtype, device=operator.device)
    for done, chunk in _chunks(size, width):
        values[done] = _one_hot(operator, chunk.to(operator.device))
        if done.start == 0 and size > width:
            _refuse_if_slow(operator, width, time.perf_counter() - start, max_seconds)
    cost = Cost(operator.matvecs - before, time.perf_counter() - start)
    status = describe(values, operator.blocks)
    return Diagonal(
        values, torch.zeros_like(values), operator.blocks, "exact", cost, status, torch.full_like(values, torch.inf)
    )


def _chunks(size: int, width: int) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, size, width):
        stop = min(start + width, size)
        yield slice(start, stop), torch.arange(start, stop)


def _one_hot(operator: SymmetricOperator, indices: Tensor) -> Tensor:
    columns = torch.arange(indices.numel(), device=operator.device)
    vectors = torch.zeros(operator.shape[0], indices.numel(), dtype=operator.dtype, device=operator.device)
    vectors[indices, columns] = 1
    return (operator @ vectors)[indices, columns]


def _refuse_if_slow(operator: SymmetricOperator, width: int, first: float, max_seconds: float) -> None:
    chunks = operator.shape[0] / width
    if first * chunks <= max_seconds:
        return
    start = time.perf_counter()
    _one_hot(operator, torch.arange(width, device=operator.device)).sum().item()
    refuse_slow(operator.shape[0], min(first, time.perf_counter() - start) * chunks, max_seconds)


def refuse_slow(size: int, seconds: float, max_seconds: float) -> None:
    """Refuse an exact diagonal of `size` entries that would take too long.

    Raises:
        ComputationError: It would take more than `max_seconds`.
    """
    if seconds > max_seconds:
        raise ComputationError(
            f"the exact diagonal of {size} entries would take about {_readable(seconds)}, more than "
            f"max_seconds={max_seconds:g}: take method 'probing', 'xdiag' or 'hutchinson', a block of the parameters, "
            "or a larger max_seconds."
        )


def _readable(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} seconds"
