"""Cutting a batch of any nesting into smaller batches."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor


def cut(batch: Any, examples: int) -> list[Any] | None:
    """The batch's examples as batches of one, if every tensor in it has them on its first axis."""
    sizes = {t.shape[0] if t.dim() else 0 for t in tensors_of(batch)}
    if examples == 1:
        return [batch]
    if sizes != {examples}:
        return None
    return [rebuilt(batch, operator.itemgetter(slice(n, n + 1))) for n in range(examples)]


def sliced(batch: Any, examples: int, size: int) -> list[Any]:
    """The batch in parts of at most `size` examples; it must be one that can be cut."""
    return [rebuilt(batch, operator.itemgetter(slice(i, i + size))) for i in range(0, examples, size)]


def tensors_of(item: Any) -> Iterator[Tensor]:
    """The tensors in a batch of any nesting, in order."""
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Mapping):
        for value in item.values():
            yield from tensors_of(value)
    elif isinstance(item, (tuple, list)):
        for value in item:
            yield from tensors_of(value)


def rebuilt(item: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nesting with other tensors, which are asked for in the order of `tensors_of`."""
    if isinstance(item, Tensor):
        return change(item)
    if isinstance(item, MutableMapping):
        mapped = copy.copy(item)
        for key, value in item.items():
            mapped[key] = rebuilt(value, change)
        return mapped
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(rebuilt(value, change) for value in item))
    if isinstance(item, (tuple, list)):
        return type(item)(rebuilt(value, change) for value in item)
    return item
