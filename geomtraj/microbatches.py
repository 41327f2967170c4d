"""The batches in parts of as many examples as memory has room for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from geomtraj.errors import ComputationError
from geomtraj.failures import is_out_of_memory
from geomtraj.layout import Layout
from geomtraj.memory import available_bytes, with_saved_bytes
from geomtraj.operators.evaluation.autotune import History
from geomtraj.operators.hvp.batch_loss import BatchLoss
from geomtraj.problem import Problem
from geomtraj.slicing import count, sliced

WORK = 2.0  # bytes that a product needs over those that its graph holds
SAME = 1e4  # roundings by which a batch's loss may differ from the sum over its parts


_UNCUT = (
    "batch {i} with {n} examples does not fit into memory and cannot be cut {what} (not all its tensors have the "
    "examples first, or they depend on each other): pass smaller batches."
)


class Parts:
    """Iterates over ((batch, part) numbers, part) pairs, whole batches where they fit. Use it inside the session.

    Args:
        problem: The loss.
        parameters: Values of all the problem's parameters, by name.
        layout: The parameters that are differentiated by.
        known: Holds the largest number of examples that fits, and the estimate of their memory.
    """

    def __init__(self, problem: Problem, parameters: Mapping[str, Tensor], layout: Layout, known: History):
        self._problem, self._parameters, self._layout, self._known = problem, parameters, layout, known
        self._latest: tuple[int, Any] = (0, None)  # number of the batch at work, and the batch

    def __iter__(self) -> Iterator[tuple[tuple[int, int], Any]]:
        for i, batch in enumerate(self._problem.batches):
            if self._known.bytes_per_example is None:
                self._estimate(batch)
            for j, part in enumerate(self._cut(i, batch)):
                yield (i, j), part

    def halve(self, shortage: str) -> None:
        """Halves the parts after a product did not fit into memory.

        Raises:
            ComputationError: They hold a single example already, or cannot be cut.
        """
        i, batch = self._latest
        n = count(batch)
        if n is None:
            raise ComputationError(_UNCUT.format(i=i, n="its", what="into parts"))
        size = min(n, self._known.largest or n)
        if size <= 1:
            free = available_bytes(self._problem.device) / 2**30
            raise ComputationError(
                f"a Hessian product with a single example of batch {i} needs more memory than there is ({free:.1f} GiB "
                f"free on {self._problem.device}): select fewer parameters by params=, or measure in float32. "
                f"({shortage.splitlines()[0] if shortage else 'out of memory'})"
            )
        self._known.largest = math.ceil(size / 2)

    def _cut(self, i: int, batch: Any) -> list[Any]:
        largest = self._known.largest
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
        whole = self._problem.value(self._parameters, batch)
        pieces = torch.stack([self._problem.value(self._parameters, part) for part in parts])
        tolerance = SAME * torch.finfo(whole.dtype).eps * pieces.abs().sum()
        return bool((whole - pieces.sum()).abs() <= tolerance)

    def _estimate(self, batch: Any) -> None:
        """Foresees from one and two examples how many fit; says nothing where the batch cannot be cut."""
        self._known.bytes_per_example = (0.0, 0.0)
        n = count(batch)
        if n is None or n < 3:
            return
        try:
            one, two = (self._graph_bytes(sliced(batch, n, k)[0]) for k in (1, 2))
        except Exception:  # a model that cannot take one example: memory is then found by trying
            return
        each = max(0, two - one)
        self._known.bytes_per_example = (one - each, each)
        room = available_bytes(self._problem.device) / WORK - (one - each)
        if each > 0 and n * each > room:
            self._known.largest = max(1, int(room / each))

    def _graph_bytes(self, part: Any) -> int:
        loss = BatchLoss(self._problem, self._parameters, self._layout, part)
        leaves = [value.detach().requires_grad_() for value in loss.values]
        with loss.evaluation(leaves):
            return with_saved_bytes(lambda: loss.gradient(leaves, twice=True))[1]
