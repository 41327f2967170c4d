"""What is known of strategies: about a structure, for every problem of it, and about one problem."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch

from geomtraj.layout import Layout
from geomtraj.microbatches import MemoryNeed
from geomtraj.operators.hvp import Curvature
from geomtraj.problem import Problem


@dataclass(frozen=True)
class Timing:
    """Seconds that a strategy takes on one micro-batch.

    Attributes:
        setup: Before the first product.
        product: For each vector.
        held: Bytes that it keeps of that micro-batch.
        block: For each vector where several go in one pass; infinite where they cannot, None where that was not tried.
    """

    setup: float
    product: float
    held: int = 0
    block: float | None = None

    def each(self, wide: bool) -> float:
        """Seconds for a vector, among several if `wide`."""
        return min(self.product, self.block) if wide and self.block is not None else self.product

    def total(self, products: int, wide: bool) -> float:
        """Seconds for so many products."""
        return self.setup + products * self.each(wide)


@dataclass
class Learnt:
    """What a process learnt about a structure: a model's layers, sizes, number types and amount of data.

    Attributes:
        timings: By strategy.
        nodes: Operations that a product by double backward goes through; 0 where that is not known.
        products: Products made at the last theta.
        in_products: Seconds spent on products.
        in_trials: Seconds spent on trying strategies.
    """

    timings: dict[str, Timing] = field(default_factory=dict)
    nodes: int = 0
    products: int = 0
    in_products: float = 0.0
    in_trials: float = 0.0

    def observe(self, name: str, product: float, setup: float | None, held: int) -> None:
        """Notes seconds that were measured; the shortest count, since whatever else a machine does only adds."""
        known = self.timings.get(name, Timing(setup or 0.0, product))
        setup = known.setup if setup is None else min(setup, known.setup)
        self.timings[name] = replace(known, setup=setup, product=min(product, known.product), held=held or known.held)

    def best(self, names: Iterable[str], products: int, wide: bool) -> str | None:
        """The quickest of the timed strategies for so many products; None where none is timed."""
        known = [name for name in names if name in self.timings]
        return min(known, key=lambda name: self.timings[name].total(products, wide), default=None)


@dataclass
class Known:
    """What is known about the products with one matrix of one problem, by one set of parameters.

    Attributes:
        learnt: What is known of the structure.
        refused: Strategies that cannot be used here, and why.
        cross_checked: Strategies whose numbers were found equal to those of double backward.
        inspected: Whether the model was found free of functions that are differentiable only once.
        split: Whether the loss was found to depend on the parameters through the model's outputs alone.
        held_by_graphs: Bytes that the graphs of all batches hold; None where that is not known.
        memory: How many examples fit into memory at once.
    """

    learnt: Learnt
    refused: dict[str, str] = field(default_factory=dict)
    cross_checked: set[str] = field(default_factory=set)
    inspected: bool = False
    split: bool = False
    held_by_graphs: int | None = None
    memory: MemoryNeed = field(default_factory=MemoryNeed)

    def fits(self, name: str, base: str, room: float) -> bool:
        """Whether a timed strategy can hold all batches in so many bytes, as far as can be told from the first.

        Args:
            name: The strategy.
            base: The one whose bytes for all batches are known.
            room: Bytes.
        """
        timings = self.learnt.timings
        if self.held_by_graphs is None or base not in timings or name not in timings:
            return True
        return self.held_by_graphs * timings[name].held <= room * max(1, timings[base].held)


STRUCTURES: dict[str, Learnt] = {}
"""What this process learnt, by structure."""
_KNOWN: WeakKeyDictionary[Problem, dict[tuple[str, ...], Known]] = WeakKeyDictionary()


def known(problem: Problem, curvature: Curvature, layout: Layout) -> Known:
    """What is known of this matrix of this problem, shared by all iterates of a trajectory."""
    of_problem = _KNOWN.setdefault(problem, {})
    key = (curvature.name, str(torch.get_num_threads()), *layout)
    if key not in of_problem:
        learnt = STRUCTURES.setdefault(structure(problem, curvature, layout), Learnt())
        of_problem[key] = Known(learnt)
    return of_problem[key]


def structure(problem: Problem, curvature: Curvature, layout: Layout) -> str:
    """A name for everything that a product's time is taken to depend on (16 hexadecimal digits)."""
    device = problem.device
    parts = [
        curvature.name, str(problem.dtype), str(torch.__version__), str(torch.get_num_threads()),
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        repr(layout), str(problem.examples), f"{problem.total_weight:g}",
        _code(problem.objective.loss), *(_code(type(module).forward) for module in problem.model.modules()),
        *(type(module).__qualname__ for module in problem.model.modules()),
    ]  # fmt: skip
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _code(function: object) -> str:
    """What a function does, as far as its own bytes and names tell."""
    code = getattr(function, "__code__", None)
    return "" if code is None else f"{code.co_name} {code.co_names} {code.co_code.hex()}"


def worth_changing(
    timings: dict[str, Timing], now: str, other: str, ahead: int, wide: bool, paid: bool = False
) -> bool:
    """Whether to change from one strategy to another for the products that are expected.

    Args:
        timings: By strategy.
        now: The strategy that is prepared.
        other: The one to change to.
        ahead: How many products are expected.
        wide: Whether several vectors come at once.
        paid: Whether the other is prepared already.
    """
    if now not in timings or other not in timings:
        return False
    setup = 0.0 if paid else timings[other].setup
    before, after = timings[now].each(wide), timings[other].each(wide)
    return math.isfinite(after) and setup + ahead * after < ahead * before * MARGIN


MARGIN = 0.97
"""Gains smaller than this may be noise."""
