"""Minibatches drawn from the examples of a problem."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.problem import Problem
from geomtraj.seeding import generator
from geomtraj.slicing import count as rows_of
from geomtraj.trees import arrays_of, leaves_of, rebuilt

KINDS = (Tensor, np.ndarray)


def minibatches(problem: Problem, size: int, count: int, seed: int) -> list[Any]:
    """Batches of `size` distinct examples each, drawn independently of each other from all of a problem's examples.

    Args:
        problem: Whose batches are drawn from; they are gone through once.
        size: Examples of a batch.
        count: Number of batches.
        seed: Of the draw.

    Raises:
        InputError: A number is out of range, or examples cannot be taken out of the batches and put together.
    """
    if problem.rank or problem.shared:
        raise InputError("minibatches are drawn from batches that one process holds: make the Problem without group=.")
    for name, value in (("size", size), ("count", count)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {value!r}.")
    if size > problem.examples:
        raise InputError(
            f"minibatches of {size} examples cannot be drawn from {problem.examples}: choose at most those."
        )
    rng = generator(seed, "minibatches")
    return gathered(problem, [torch.randperm(problem.examples, generator=rng)[:size] for _ in range(count)])


def gathered(problem: Problem, draws: list[Tensor]) -> list[Any]:
    """The batch of each list of examples, which count through all batches; in the order of the problem's examples.

    Raises:
        InputError: Examples cannot be taken out of the batches and put together.
    """
    wanted = [draw.sort().values for draw in draws]
    parts: list[list[Any]] = [[] for _ in draws]
    first = 0
    for batch in problem.batches:
        examples = rows_of(batch)
        if not examples:
            if next(arrays_of(batch), None) is not None and examples == 0:
                continue
            raise _not_apart("have no axis of examples in common")
        for draw, found in zip(wanted, parts, strict=True):
            inside = draw[(draw >= first) & (draw < first + examples)] - first
            if inside.numel():
                found.append(_taken(batch, inside))
        first += examples
    if first != problem.examples:
        raise _not_apart(f"have {first} rows for {problem.examples} examples")
    return [_joined(found) for found in parts]


def _taken(batch: Any, rows: Tensor) -> Any:
    def take(array: Tensor | np.ndarray) -> Tensor | np.ndarray:
        return array[rows.to(array.device)] if isinstance(array, Tensor) else array[rows.numpy()]

    return rebuilt(batch, take, KINDS)


def _joined(parts: list[Any]) -> Any:
    """One batch of several of the same form."""
    if len(parts) == 1:
        return parts[0]
    leaves = [list(arrays_of(part)) for part in parts]
    if len({len(found) for found in leaves}) > 1 or len({tuple(_others(part)) for part in parts}) > 1:
        raise _not_apart("differ in more than their tensors")
    try:
        columns = iter([_concatenated(column) for column in zip(*leaves, strict=True)])
    except (RuntimeError, ValueError, TypeError) as error:
        raise _not_apart("have tensors of different shapes") from error
    return rebuilt(parts[0], lambda _: next(columns), KINDS)


def _concatenated(column: tuple[Any, ...]) -> Any:
    if isinstance(column[0], Tensor):
        return torch.cat(column)
    return np.concatenate(column)


def _others(part: Any) -> Iterator[str]:
    """What a batch holds beside its arrays."""
    return (f"{path}={leaf!r:.80}" for path, leaf in leaves_of(part) if not isinstance(leaf, KINDS))


def _not_apart(why: str) -> InputError:
    return InputError(
        f"minibatches cannot be drawn from these batches, which {why}: give batches whose every tensor has the "
        "examples on its first axis, of the same further shape in each."
    )
