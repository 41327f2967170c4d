"""Which way of multiplying suits a problem: measured on the problem itself, and remembered for its trajectory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from geomtraj.errors import ComputationError
from geomtraj.layout import Layout
from geomtraj.operators.hvp import WAYS, Way
from geomtraj.operators.hvp.batch_loss import BatchLoss
from geomtraj.problem import Problem
from geomtraj.seeding import gaussian, generator

Result = TypeVar("Result")

TRUSTED = ("kept", "fresh", "differences")  # double backward, and what states an error of its own
# Seconds that products have to take before a way is tried. Recording forward derivatives makes torch import its
# compiler, which takes two seconds.
KEEPING = {"linearized-reverse": 0.2, "linearized-forward": 3.0}
PASSING = {"forward": 0.2}
TRIAL_PRODUCTS = 8
ROUNDS = 2
SLOW = 10
BLOCK = 4


@dataclass(frozen=True)
class Timing:
    """Seconds that a way takes on one batch.

    Attributes:
        setup: Before the first product.
        product: For each vector.
        held: Bytes that it keeps of that batch.
        block: For each vector where several go in one pass; None where they cannot.
    """

    setup: float
    product: float
    held: int = 0
    block: float | None = None

    def total(self, products: int, wide: bool) -> float:
        """Seconds for so many products."""
        each = min(self.product, self.block) if wide and self.block is not None else self.product
        return self.setup + products * each


@dataclass
class History:
    """What was learnt about one problem and one set of parameters.

    Attributes:
        timings: By way.
        refused: Ways that cannot be used here, and why.
        verified: Ways whose numbers were found equal to those of double backward.
        checked: Whether the model was found free of functions that are differentiable only once.
        spent: Seconds spent on products before any trial.
        products: Products made at the last theta.
        kept: Bytes that "kept" holds of all batches; None where that is not known.
        largest: Most examples that fit into memory at once; None for no limit.
        bytes_per_example: Estimated bytes of the gradient's graph: (fixed, for each example).
    """

    timings: dict[str, Timing] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    verified: set[str] = field(default_factory=set)
    checked: bool = False
    spent: float = 0.0
    products: int = 0
    kept: int | None = None
    largest: int | None = None
    bytes_per_example: tuple[float, float] | None = None

    def fits(self, name: str, room: float) -> bool:
        """Whether a measured way can hold all batches in so many bytes, as far as can be told from the first."""
        if self.kept is None or "kept" not in self.timings or name not in self.timings:
            return True
        return self.kept * self.timings[name].held <= room * max(1, self.timings["kept"].held)

    def best(self, names: Iterable[str], products: int, wide: bool) -> str | None:
        """The quickest of the measured ways for so many products; None where none is measured."""
        known = [name for name in names if name in self.timings]
        return min(known, key=lambda name: self.timings[name].total(products, wide), default=None)


_HISTORIES: WeakKeyDictionary[Problem, dict[tuple[str, ...], History]] = WeakKeyDictionary()


def history(problem: Problem, layout: Layout) -> History:
    """The history of this problem and these parameters, shared by all iterates of a trajectory."""
    return _HISTORIES.setdefault(problem, {}).setdefault(tuple(layout), History())


def try_ways(names: Sequence[str], loss: BatchLoss, width: int, room: float, learnt: History) -> None:
    """Times the ways on one batch, a few products each in turn, and writes what comes out into the history.

    The first is double backward, which the others are held against: one that raises, needs more than `room` bytes or
    gives other numbers is refused.
    """
    probe = _probes(loss, 1)
    ready: dict[str, Way] = {}
    seconds: dict[str, list[float]] = {}
    setups: dict[str, float] = {}
    expected: Tensor | None = None
    for name in names:
        try:
            setups[name], ready[name] = _timed(partial(WAYS[name], loss), loss)
            if ready[name].held > room:
                raise ComputationError(f"it would keep {ready[name].held / 2**20:.0f} MiB for one batch.")
            first, found = _timed(partial(ready[name].products, probe), loss)
            expected = found if expected is None else expected
            if not torch.isfinite(expected).all():
                return  # there is nothing to compare
            verify(name, ready[name], found, expected)
        except Exception as error:  # whatever a model's operations raise in a mode that they do not support
            if expected is None:
                raise
            ready.pop(name, None)
            learnt.refused[name] = str(error)
            continue
        seconds[name] = [first]
        if setups[name] > SLOW * first:  # the first time includes what torch imports
            setups[name] = min(setups[name], _timed(partial(WAYS[name], loss), loss)[0])
    for _ in range(ROUNDS):
        for name, way in ready.items():
            seconds[name].append(_timed(partial(way.products, probe), loss)[0])
    for name, way in ready.items():
        learnt.verified.add(name)
        learnt.timings[name] = Timing(setups[name], min(seconds[name]), way.held)
    fastest = min(ready, key=lambda name: min(seconds[name]))
    if width > 1 and ready[fastest].in_one_pass:
        _try_block(fastest, ready[fastest], min(width, BLOCK), learnt)


def verified(name: str, way: Way, learnt: History) -> Way:
    """The way itself, once it has been found equal to double backward on this problem.

    Raises:
        ComputationError: It is not.
    """
    if name not in TRUSTED and name not in learnt.verified:
        probe = _probes(way.loss, 1)
        verify(name, way, way.products(probe), WAYS["fresh"](way.loss).products(probe))
        learnt.verified.add(name)
    return way


def verify(name: str, way: Way, found: Tensor, expected: Tensor) -> None:
    """Compares a way's products (k, P) with those of double backward, parameter by parameter.

    Raises:
        ComputationError: They differ by more than the square root of the rounding error.
    """
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    floor = 1e-2 * expected.norm()
    for parameter, slot in way.loss.layout.items():
        part = expected[:, slot.slice]
        error, scale = (found[:, slot.slice] - part).norm(), torch.maximum(part.norm(), floor)
        if not bool(error <= tolerance * scale):
            raise ComputationError(
                f"strategy={name!r} gives other numbers than double backward for {parameter!r} (relative difference "
                f"{float(error / scale):.1e}): leave strategy='auto', which does not choose it."
            )


def _try_block(name: str, way: Way, width: int, learnt: History) -> None:
    """Times several vectors in one pass; leaves things as they are where that fails or gives other numbers."""
    probes = _probes(way.loss, width)
    try:
        seconds, found = _timed(partial(way.block, probes), way.loss)
        verify(name, way, found[-1:], way.products(probes[-1:]))
    except Exception:  # no batching rule, too little memory: one by one then
        return
    learnt.timings[name] = replace(learnt.timings[name], block=seconds / width)


def _probes(loss: BatchLoss, count: int) -> Tensor:
    return gaussian((count, loss.layout.size), generator(0, "way"), loss.values[0])


def _timed(work: Callable[[], Result], loss: BatchLoss) -> tuple[float, Result]:
    device = loss.values[0].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    # With one thread its own time is what counts, whatever else the machine does.
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start, result
