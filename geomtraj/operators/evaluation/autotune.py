"""Which strategy suits a problem: tried on its own products, for a small share of the time that these take."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from geomtraj.errors import ComputationError
from geomtraj.operators.evaluation.timings import Known, Timing
from geomtraj.operators.hvp import STRATEGIES, Curvature, Strategy
from geomtraj.operators.hvp.batch_loss import BatchLoss
from geomtraj.seeding import gaussian, generator

Result = TypeVar("Result")

TRUSTED = ("double-backward", "double-backward-fresh", "finite-differences")
"""Double backward, and what states an error of its own."""
KEEPING = ("linearized-double-backward", "linearized-forward-over-reverse")
"""What is tried where there is room to keep something, the cheapest to try and likeliest to win first."""
PASSING = ("forward-over-reverse",)
"""What is tried where there is none."""
SHARE = 0.05
"""Part of the time spent on products that trials may take."""
PRICE = 6
"""Products that a trial takes the time of: preparing and two products; on a GPT, a CNN and an MLP it was 4 to 7 ..."""
RECORDING = 6e-4
"""... besides so many seconds for each operation that is recorded and simplified."""
COMPILER = 2.5
"""Seconds that torch takes to import its compiler, which forward derivatives make it do."""
BLOCK = 4
BLOCK_PRICE = 6


def due(known: Known, base: str, candidates: Sequence[str]) -> str | None:
    """The strategy whose trial the products made so far have paid for; None where there is none."""
    learnt = known.learnt
    if base not in learnt.timings:
        return None
    for name in candidates:
        if name not in learnt.timings and name not in known.refused:
            price = PRICE * learnt.timings[base].product
            if name in KEEPING:
                price += RECORDING * learnt.nodes
            if "forward" in name and "torch._dynamo" not in sys.modules:
                price += COMPILER
            return name if _paid(known, price) else None
    return None


def block_is_due(known: Known, name: str, width: int) -> bool:
    """Whether to try several vectors in one pass."""
    timing = known.learnt.timings.get(name)
    able = timing is not None and timing.block is None and STRATEGIES[name].in_one_pass and width > 1
    return able and timing is not None and _paid(known, BLOCK_PRICE * timing.product)


def one_by_one(known: Known, name: str) -> None:
    """Notes that several vectors in one pass are not to be tried."""
    known.learnt.timings[name] = replace(known.learnt.timings[name], block=math.inf)


def _paid(known: Known, price: float) -> bool:
    return known.learnt.in_trials + price <= SHARE * known.learnt.in_products


@dataclass(frozen=True)
class Trial:
    """A micro-batch to try strategies on.

    Attributes:
        loss: Its loss sum.
        curvature: The matrix.
        rows: Vectors (k, P).
        expected: The products (k, P) with them by double backward.
    """

    loss: BatchLoss
    curvature: Curvature
    rows: Tensor
    expected: Tensor

    def strategy(self, name: str, room: float, known: Known) -> Strategy | None:
        """Times a strategy and holds its numbers against double backward; None where it is refused.

        Args:
            name: The strategy.
            room: Bytes that it may keep.
            known: Takes what comes out.
        """
        if not torch.isfinite(self.expected).all():
            return None  # there is nothing to compare
        try:
            setup, made = timed(partial(STRATEGIES[name], self.loss, self.curvature), self.rows.device)
            if made.held > room:
                raise ComputationError(f"it would keep {made.held / 2**20:.0f} MiB for one batch.")
            seconds, found = timed(partial(made.products, self.rows[:1]), self.rows.device)
            cross_check(name, self.loss, found, self.expected[:1])
            again, _ = timed(partial(made.products, self.rows[:1]), self.rows.device)
        except Exception as error:  # whatever a model's operations raise in a mode that they do not support
            known.refused[name] = str(error)
            return None
        known.cross_checked.add(name)
        known.learnt.timings[name] = Timing(setup, min(seconds, again), made.held)
        return made

    def block(self, name: str, made: Strategy, known: Known) -> None:
        """Times several vectors in one pass; leaves it at one by one where that fails or gives other numbers."""
        width, each = min(len(self.rows), BLOCK), math.inf
        try:
            seconds, found = timed(partial(made.block, self.rows[:width]), self.rows.device)
            cross_check(name, self.loss, found, self.expected[:width])
            each = seconds / width
        except Exception:  # no batching rule, too little memory
            pass
        known.learnt.timings[name] = replace(known.learnt.timings[name], block=each)


def cross_checked(name: str, made: Strategy, known: Known) -> Strategy:
    """The strategy itself, once it has been found equal to double backward on this problem.

    Raises:
        ComputationError: It is not.
    """
    if name not in TRUSTED and name not in known.cross_checked:
        loss = made.loss
        probe = gaussian((1, loss.layout.size), generator(0, "cross-check"), loss.values[0])
        reference = STRATEGIES["double-backward-fresh"](loss, made.curvature)
        cross_check(name, loss, made.products(probe), reference.products(probe))
        known.cross_checked.add(name)
    return made


def cross_check(name: str, loss: BatchLoss, found: Tensor, expected: Tensor) -> None:
    """Compares a strategy's products (k, P) with those of double backward, parameter by parameter.

    Raises:
        ComputationError: They differ by more than the square root of the rounding error.
    """
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    floor = 1e-2 * expected.norm()
    for parameter, slot in loss.layout.items():
        part = expected[:, slot.slice]
        error, scale = (found[:, slot.slice] - part).norm(), torch.maximum(part.norm(), floor)
        if not bool(error <= tolerance * scale):
            raise ComputationError(
                f"strategy={name!r} gives other numbers than double backward for {parameter!r} (relative difference "
                f"{float(error / scale):.1e}): leave strategy='auto', which does not choose it."
            )


def clock(device: torch.device) -> float:
    """Seconds; with one thread its own time, whatever else the machine does."""
    one = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time() if one else time.perf_counter()


def timed(work: Callable[[], Result], device: torch.device, wait: bool = True) -> tuple[float, Result]:
    """Seconds that the work takes, and what it returns; the device is waited for if `wait`."""
    wait = wait and device.type == "cuda"
    if wait:
        torch.cuda.synchronize(device)
    start = clock(device)
    result = work()
    if wait:
        torch.cuda.synchronize(device)
    return clock(device) - start, result
