"""Hessian products summed over the batches: the way of making them, what is kept of it, and what fits into memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from geomtraj.errors import ComputationError, GeomtrajError, unknown_name
from geomtraj.failures import explained, in_one_sentence, is_out_of_memory
from geomtraj.layout import Layout
from geomtraj.memory import available_bytes
from geomtraj.microbatches import Parts
from geomtraj.operators.evaluation import autotune
from geomtraj.operators.hvp import WAYS, Way
from geomtraj.operators.hvp.batch_loss import BatchLoss
from geomtraj.operators.hvp.refusals import check_functions
from geomtraj.problem import Problem

KEEP_FRACTION = 0.25
WIDEST = 64


class Engine:
    """Products with the Hessian of the loss sum at one theta.

    Args:
        problem: The loss.
        parameters: Values of all the problem's parameters, by name.
        layout: The parameters to differentiate by.
        strategy: A name in `WAYS`, or "auto".

    Attributes:
        history: What is known of the ways on this problem.

    Raises:
        InputError: The strategy is unknown.
    """

    def __init__(self, problem: Problem, parameters: Mapping[str, Tensor], layout: Layout, strategy: str):
        if strategy != "auto" and strategy not in WAYS:
            raise unknown_name("strategy", strategy, ["auto", *WAYS])
        self._problem, self._parameters, self._layout, self._asked = problem, parameters, layout, strategy
        self.history = autotune.history(problem, layout)
        self._expected = self.history.products
        self._done = 0
        self._parts = Parts(problem, parameters, layout, self.history)
        self._way = "kept" if strategy == "auto" else strategy
        self._kept: dict[tuple[int, int], Way] = {}
        self._held = 0
        self._budget = 0.0
        self._complete = False
        self._full = False
        self._width = WIDEST

    @property
    def strategy(self) -> str:
        """The way of the next product: the one that is kept where there is room for it."""
        passing = self._passing()
        if not self._full or self._way == passing:
            return self._way
        return f"{self._way} + {passing}" if self._kept else passing

    def products(self, rows: Tensor) -> Tensor:
        """The products (k, P) with the rows of (k, P).

        Raises:
            ComputationError: Not even a single example fits into memory, or the model has no second derivative.
            InputError: The model does something that cannot be differentiated.
        """
        with in_one_sentence(), self._usable():
            if self._asked == "auto":
                self._choose(len(rows))
            start = time.perf_counter()
            total = self._within_memory(rows)
        self._done += len(rows)
        self.history.products = self._done
        self.history.spent += time.perf_counter() - start
        return total

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Turns whatever a strategy raises that was asked for and that a model does not support into a sentence."""
        try:
            yield
        except RuntimeError as error:
            plain = self._asked in ("auto", *autotune.TRUSTED)
            if plain or is_out_of_memory(error) or isinstance(error, GeomtrajError) or explained(error) is not None:
                raise
            raise ComputationError(
                f"strategy={self._asked!r} cannot be used on this model ({str(error).strip().splitlines()[0]}): leave "
                "strategy='auto', which does not choose it."
            ) from error

    def _within_memory(self, rows: Tensor) -> Tensor:
        while True:
            try:
                return self._sum(rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                shortage = str(error)
            self._relieve(shortage)

    def _sum(self, rows: Tensor) -> Tensor:
        total: Tensor | None = None
        if self._complete:
            for way in self._kept.values():
                total = _added(total, self._products(way, rows))
        else:
            if not self._kept:
                self._budget = KEEP_FRACTION * available_bytes(self._problem.device)
            with self._problem.session():
                for place, part in self._parts:
                    way = self._kept[place] if place in self._kept else self._prepared(place, part)
                    total = _added(total, self._products(way, rows))
            self._complete = not self._full and self._keeping()
            if self._complete and self._way == "kept":
                self.history.kept = self._held
        return torch.zeros_like(rows) if total is None else total

    def _products(self, way: Way, rows: Tensor) -> Tensor:
        timing = self.history.timings.get(self._way)
        in_passes = timing is not None and timing.block is not None and timing.block < timing.product
        if len(rows) == 1 or not (in_passes and way.in_one_pass):
            return way.products(rows)
        room = KEEP_FRACTION * available_bytes(rows.device)
        width = max(1, min(self._width, len(rows), int(room / max(1, way.held))))
        while True:
            try:
                return torch.cat([way.block(part) for part in rows.split(width)])
            except (RuntimeError, MemoryError) as error:
                if width == 1 or not is_out_of_memory(error):
                    raise
            width = self._width = width // 2

    def _prepared(self, place: tuple[int, int], part: Any) -> Way:
        """The way for one part of the batches, kept if there is room for it."""
        name = self._passing() if self._full else self._way
        loss = BatchLoss(self._problem, self._parameters, self._layout, part)
        if not self.history.checked and name != "differences":
            check_functions(loss)
            self.history.checked = True
        way = autotune.verified(name, WAYS[name](loss), self.history)
        if way.keeps:
            self._held += way.held
            self._full = self._full or self._held > self._budget
            if not self._full:
                self._kept[place] = way
        return way

    def _keeping(self) -> bool:
        return WAYS[self._way].keeps

    def _passing(self) -> str:
        """The way for what cannot be kept."""
        if not self._keeping():
            return self._way
        return self.history.best(("fresh", *autotune.PASSING), 1, wide=False) or "fresh"

    def _release(self) -> None:
        self._kept, self._held, self._complete = {}, 0, False

    def _choose(self, width: int) -> None:
        """Takes the quickest of the ways that were tried; tries one once products have taken as long as that costs."""
        known = self.history
        first, others = ("fresh", autotune.PASSING) if self._full else ("kept", autotune.KEEPING)
        if self._done >= autotune.TRIAL_PRODUCTS:
            tried = known.timings.keys() | known.refused.keys()
            due = [name for name, gate in others.items() if name not in tried and known.spent >= gate]
            if due:
                self._try([first, *due], width)
        room = KEEP_FRACTION * (available_bytes(self._problem.device) + self._held)
        names = [first, *(name for name in others if known.fits(name, room))]
        best = known.best(names, max(self._done, self._expected), wide=width > 1)
        if best is not None and best != self._way and not (self._full and self._kept):
            self._release()
            self._way = best

    def _try(self, names: list[str], width: int) -> None:
        room = KEEP_FRACTION * available_bytes(self._problem.device)
        with self._problem.session():
            part = next((part for _, part in self._parts), None)
            if part is None:  # this process has no batches
                return
            loss = BatchLoss(self._problem, self._parameters, self._layout, part)
            try:
                autotune.try_ways(names, loss, width, room, self.history)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                for name in names:
                    self.history.refused.setdefault(name, "there was too little memory to try it.")

    def _relieve(self, shortage: str) -> None:
        """Makes the next attempt need less memory than the one that failed.

        Raises:
            ComputationError: It cannot.
        """
        if self._kept:
            self._release()
        else:
            self._parts.halve(shortage)
        self._full = True
        gc.collect()
        if self._problem.device.type == "cuda":
            torch.cuda.empty_cache()


def _added(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.add_(more)
