"""Batches cut into micro-batches of as many examples as memory has room for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geomtraj.errors import ComputationError
from geomtraj.failures import is_out_of_memory
from geomtraj.memory import available_bytes
from geomtraj.slicing import count, sliced

WORK = 2.0  # bytes that a product needs over those that its graph holds
SAME = 1e4  # roundings by which a batch's loss may differ from the sum over its parts


_UNCUT = (
    "batch {i} with {n} examples does not fit into memory and cannot be cut {what} (not all its tensors have the "
    "examples first, or they depend on each other): pass smaller batches."
)


@dataclass
class MemoryNeed:
    """What is known of the memory that examples need.

    Attributes:
        largest: Most examples that fit at once; None for no limit.
        bytes_per_example: Estimated bytes of a graph: (fixed, for each example); None where nothing was estimated yet.
    """

    largest: int | None = None
    bytes_per_example: tuple[float, float] | None = None


class MicroBatches:
    """Iterates over ((batch, part) numbers, part) pairs, whole batches where they fit.

    Use it inside the problem's session.

    Args:
        batches: The batches.
        loss_sum: The loss sum of a batch or a part of one, without a graph; parts have to add up to their batch.
        graph_bytes: Bytes that the graph of a part holds, to foresee how many examples fit.
        device: Whose memory counts.
        need: What is known already; what is found out is written into it.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        loss_sum: Callable[[Any], Tensor],
        graph_bytes: Callable[[Any], int],
        *,
        device: torch.device,
        need: MemoryNeed,
    ):
        self._batches, self._loss_sum, self._graph_bytes = batches, loss_sum, graph_bytes
        self._device, self.need = device, need
        self._latest: tuple[int, Any] = (0, None)  # number of the batch at work, and the batch

    def __iter__(self) -> Iterator[tuple[tuple[int, int], Any]]:
        for i, batch in enumerate(self._batches):
            if self.need.bytes_per_example is None:
                self._estimate(batch)
            for j, part in enumerate(self._cut(i, batch)):
                yield (i, j), part

    def split(self, shortage: str) -> None:
        """Halves the micro-batches after one did not fit into memory.

        Args:
            shortage: The error's text.

        Raises:
            ComputationError: They hold a single example already, or cannot be cut.
        """
        i, batch = self._latest
        n = count(batch)
        if n is None:
            raise ComputationError(_UNCUT.format(i=i, n="its", what="into parts"))
        size = min(n, self.need.largest or n)
        if size <= 1:
            free = available_bytes(self._device) / 2**30
            raise ComputationError(
                f"a product with a single example of batch {i} needs more memory than there is ({free:.1f} GiB "
                f"free on {self._device}): select fewer parameters by params=, or measure in float32. "
                f"({shortage.splitlines()[0] if shortage else 'out of memory'})"
            )
        self.need.largest = math.ceil(size / 2)

    def _cut(self, i: int, batch: Any) -> list[Any]:
        largest = self.need.largest
        self._latest = (i, batch)
        n = None if largest is None else count(batch)
        if largest is None or (n is not None and n <= largest):
            return [batch]
        parts = sliced(batch, n, largest) if n is not None else []
        if not parts or not self._adds_up(batch, parts):
            raise ComputationError(_UNCUT.format(i=i, n=n, what=f"into parts of {largest}"))
        return parts

    def _adds_up(self, batch: Any, parts: list[Any]) -> bool:
        """Whether the loss sum of the batch is that of its parts, so that the examples do not depend on each other."""
        try:
            return self._same(batch, parts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Not even the losses of the whole batch fit: one part and its halves tell as well.
        n = count(parts[0])
        return n == 1 or n is None or self._same(parts[0], sliced(parts[0], n, math.ceil(n / 2)))

    def _same(self, batch: Any, parts: list[Any]) -> bool:
        whole = self._loss_sum(batch)
        pieces = torch.stack([self._loss_sum(part) for part in parts])
        tolerance = SAME * torch.finfo(whole.dtype).eps * pieces.abs().sum()
        return bool((whole - pieces.sum()).abs() <= tolerance)

    def _estimate(self, batch: Any) -> None:
        """Foresees from one and two examples how many fit; says nothing where the batch cannot be cut."""
        self.need.bytes_per_example = (0.0, 0.0)
        n = count(batch)
        if n is None or n < 3:
            return
        room = available_bytes(self._device) / WORK
        try:
            one = self._graph_bytes(sliced(batch, n, 1)[0])
            if n * one <= room:
                return
            two = self._graph_bytes(sliced(batch, n, 2)[0])
        except Exception:  # a model that cannot take one example: memory is then found by trying
            return
        each = max(0, two - one)
        self.need.bytes_per_example = (one - each, each)
        room -= one - each
        if each > 0 and n * each > room:
            self.need.largest = max(1, int(room / each))
