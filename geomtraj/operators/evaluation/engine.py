"""Products summed over the batches: the strategy, what is kept of it, and what fits into memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from geomtraj.errors import ComputationError, GeomtrajError, unknown_name
from geomtraj.failures import explained, in_one_sentence, is_out_of_memory
from geomtraj.layout import Layout
from geomtraj.memory import available_bytes
from geomtraj.microbatches import MicroBatches
from geomtraj.operators.evaluation import autotune
from geomtraj.operators.evaluation.timings import known, worth_changing
from geomtraj.operators.hvp import OLD_NAMES, STRATEGIES, Curvature, Strategy, name_of
from geomtraj.operators.hvp.batch_loss import BatchLoss
from geomtraj.operators.hvp.double_backward import DoubleBackward
from geomtraj.operators.hvp.refusals import check_functions
from geomtraj.problem import Problem

KEEP_FRACTION = 0.25
WIDEST = 64
OBSERVED = 16
"""Calls of an engine whose time is looked at closely."""


class Engine:
    """Products with a curvature matrix of the loss sum at one theta.

    Args:
        curvature: Which matrix.
        problem: The loss.
        parameters: Values of all the problem's parameters, by name.
        layout: The parameters to differentiate by.
        strategy: A name in `STRATEGIES`, or "auto".

    Attributes:
        asked: The strategy that was asked for.
        known: What is known of the strategies on this problem.
        parts: The batches, cut as far as memory asks for.

    Raises:
        InputError: The strategy is unknown.
    """

    def __init__(
        self, curvature: Curvature, problem: Problem, parameters: Mapping[str, Tensor], *, layout: Layout, strategy: str
    ):
        strategy = OLD_NAMES.get(strategy, strategy)
        if strategy != "auto" and strategy not in STRATEGIES:
            raise unknown_name("strategy", strategy, ["auto", *STRATEGIES])
        self._curvature, self._problem, self._parameters, self._layout = curvature, problem, parameters, layout
        self.asked = strategy
        self.known = known(problem, curvature, layout)
        self.parts = MicroBatches(
            problem.batches,
            partial(problem.value, parameters),
            partial(_graph_bytes, curvature, problem, parameters, layout),
            device=problem.device,
            need=self.known.memory,
        )
        self._strategy = "double-backward" if strategy == "auto" else strategy
        self._expected = self.known.learnt.products
        self._done = self._calls = 0
        self._setup: float | None = None  # of the micro-batch at work
        self._kept: dict[tuple[int, int], Strategy] = {}
        self._held = 0
        self._budget = 0.0
        self._complete = False
        self._full = False
        self._width = WIDEST

    @property
    def strategy(self) -> str:
        """The strategy of the next product: the one that is kept where there is room for it."""
        if not self._full:
            return self._strategy
        return f"{self._strategy} + {self._passing()}" if self._kept else self._passing()

    def products(self, rows: Tensor) -> Tensor:
        """The products (k, P) with the rows of (k, P).

        Raises:
            ComputationError: Not even a single example fits into memory, or the model has no second derivative.
            InputError: The model does something that cannot be differentiated.
        """
        auto = self.asked == "auto"
        with in_one_sentence(), self._usable():
            if auto:
                self._choose(wide=len(rows) > 1)
            watched = auto and self._calls < OBSERVED
            seconds, total = autotune.timed(partial(self._within_memory, rows), rows.device, wait=watched)
            self._done += len(rows)
            self._calls += 1
            if auto:
                learnt = self.known.learnt
                learnt.products = self._done
                learnt.in_products += seconds
                self._try(rows, total)
        return total

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Turns whatever a strategy raises that was asked for and that a model does not support into a sentence."""
        try:
            yield
        except RuntimeError as error:
            plain = self.asked in ("auto", *autotune.TRUSTED)
            if plain or is_out_of_memory(error) or isinstance(error, GeomtrajError) or explained(error) is not None:
                raise
            raise ComputationError(
                f"strategy={self.asked!r} cannot be used on this model ({str(error).strip().splitlines()[0]}): leave "
                "strategy='auto', which does not choose it."
            ) from error

    def _within_memory(self, rows: Tensor) -> Tensor:
        while True:
            try:
                return self._sum(rows)
            except Exception as error:
                if is_out_of_memory(error):
                    relieve = partial(self._relieve, str(error))
                elif self._untrusted() is not None:
                    relieve = partial(self._refuse, str(error))
                else:
                    raise
            relieve()

    def _sum(self, rows: Tensor) -> Tensor:
        watched = self.asked == "auto" and self._calls < OBSERVED
        total: Tensor | None = None
        self._setup = None
        if self._complete:
            for i, made in enumerate(self._kept.values()):
                total = _added(total, self._products(made, rows, watched and i == 0))
        else:
            if not self._kept:
                self._budget = KEEP_FRACTION * available_bytes(self._problem.device)
            with self._problem.session():
                for place, part in self.parts:
                    first = watched and total is None
                    made = self._kept[place] if place in self._kept else self._prepared(place, part, first)
                    total = _added(total, self._products(made, rows, first))
            self.known.inspected = self.asked != "finite-differences"
            self._complete = not self._full and STRATEGIES[self._strategy].keeps
            if self._complete and self._strategy == "double-backward":
                self.known.held_by_graphs = self._held
        return torch.zeros_like(rows) if total is None else total

    def _products(self, made: Strategy, rows: Tensor, watched: bool) -> Tensor:
        """The products of one micro-batch, several vectors in one pass where that was found to be quicker."""
        name, learnt = name_of(made), self.known.learnt
        timing = learnt.timings.get(name)
        quick = timing is not None and timing.block is not None and timing.block < timing.product
        if self.asked != "auto" or len(rows) == 1 or not (quick and made.in_one_pass):
            seconds, found = autotune.timed(partial(made.products, rows), rows.device, wait=watched)
            if watched and (made.keeps or len(rows) == 1):
                learnt.observe(name, seconds / len(rows), self._setup, made.held)
            return found
        room = KEEP_FRACTION * available_bytes(rows.device)
        width = max(1, min(self._width, len(rows), int(room / max(1, made.held))))
        while True:
            try:
                return torch.cat([made.block(part) for part in rows.split(width)])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):  # a mode in which another problem of the structure was not
                    autotune.one_by_one(self.known, name)
                    return made.products(rows)
                if width == 1:
                    raise
            width = self._width = width // 2

    def _loss(self, part: Any) -> BatchLoss:
        inspect = None if self.known.inspected or self.asked == "finite-differences" else check_functions
        return BatchLoss(self._problem, self._parameters, self._layout, part, inspect=inspect)

    def _prepared(self, place: tuple[int, int], part: Any, watched: bool) -> Strategy:
        """The strategy for one micro-batch, kept if there is room for it."""
        name = self._passing() if self._full else self._strategy
        make = partial(STRATEGIES[name], self._loss(part), self._curvature)
        seconds, made = autotune.timed(make, self._problem.device, wait=watched)
        self._setup = seconds if watched else None
        autotune.cross_checked(name, made, self.known)
        if made.keeps:
            self._held += made.held
            self._full = self._full or self._held > self._budget
            if not self._full:
                self._kept[place] = made
        return made

    def _passing(self) -> str:
        """The strategy for what cannot be kept."""
        if not STRATEGIES[self._strategy].keeps:
            return self._strategy
        names = ["double-backward-fresh", *(n for n in autotune.PASSING if n not in self.known.refused)]
        return self.known.learnt.best(names, 1, wide=False) or "double-backward-fresh"

    def release(self) -> None:
        """Forgets what is kept from product to product."""
        self._kept, self._held, self._complete = {}, 0, False

    # The choice.

    def _choose(self, wide: bool) -> None:
        """Takes the quickest of the strategies that are timed for the products that are to come."""
        known, timings = self.known, self.known.learnt.timings
        if self._full or len(timings) < 2:
            return
        room = KEEP_FRACTION * (available_bytes(self._problem.device) + self._held)
        names = [n for n in autotune.KEEPING if n not in known.refused and known.fits(n, "double-backward", room)]
        names.insert(0, "double-backward")
        if self._done == 0:
            self._strategy = known.learnt.best(names, self._expected, wide) or self._strategy
            return
        for name in names:
            if name != self._strategy and worth_changing(timings, self._strategy, name, self._ahead, wide):
                self.release()
                self._strategy = name

    @property
    def _ahead(self) -> int:
        """How many products are expected: as many as at the last theta, or as many as were made already."""
        return max(self._done, self._expected - self._done)

    def _try(self, rows: Tensor, total: Tensor) -> None:
        """Tries what the products made so far have paid for, on the first micro-batch and these rows."""
        known = self.known
        base = "double-backward-fresh" if self._full else "double-backward"
        candidates = autotune.PASSING if self._full else autotune.KEEPING
        if not known.learnt.nodes and self._kept:
            first = next(iter(self._kept.values()))
            known.learnt.nodes = first.graph.nodes() if isinstance(first, DoubleBackward) else 0
        name = autotune.due(known, base, candidates)
        together = not self._full and autotune.block_is_due(known, self._strategy, len(rows))
        if name is None and not together:
            return
        start = autotune.clock(rows.device)
        with self._problem.session():
            try:
                for place, part in self.parts:
                    trial = self._trial(place, part, rows[: autotune.BLOCK], total[: autotune.BLOCK])
                    if name is not None:
                        self._adopt(name, place, trial, wide=len(rows) > 1)
                    elif place in self._kept:
                        trial.block(self._strategy, self._kept[place], known)
                    break
            except Exception as error:  # too little memory, or what a loss raises: the products are there all the same
                if name is None:
                    autotune.one_by_one(known, self._strategy)
                else:
                    known.refused[name] = str(error)
        known.learnt.in_trials += autotune.clock(rows.device) - start

    def _trial(self, place: tuple[int, int], part: Any, rows: Tensor, total: Tensor) -> autotune.Trial:
        loss = self._loss(part)
        if self._alone:
            return autotune.Trial(loss, self._curvature, rows, total)
        made = self._kept.get(place) or STRATEGIES["double-backward-fresh"](loss, self._curvature)
        return autotune.Trial(loss, self._curvature, rows, made.products(rows))

    @property
    def _alone(self) -> bool:
        """Whether all data are one micro-batch, so that a product with it is the product."""
        return self._complete and len(self._kept) == 1

    def _adopt(self, name: str, place: tuple[int, int], trial: autotune.Trial, wide: bool) -> None:
        """Tries a strategy, and goes on with it if it is quicker."""
        made = trial.strategy(name, KEEP_FRACTION * available_bytes(self._problem.device), self.known)
        if made is None or self._full:
            return
        if worth_changing(self.known.learnt.timings, self._strategy, name, self._ahead, wide, paid=self._alone):
            self.release()
            self._strategy, self._kept[place], self._held = name, made, made.held

    # What did not work.

    def _untrusted(self) -> str | None:
        """The strategy in use, if it was chosen here and is not one that always works."""
        name = self._passing() if self._full else self._strategy
        return name if self.asked == "auto" and name not in autotune.TRUSTED else None

    def _refuse(self, reason: str) -> None:
        """Goes back to double backward after another strategy failed on this problem."""
        name = self._untrusted()
        if name is not None:
            self.known.refused[name] = reason
        self.release()
        self._strategy = "double-backward"

    def _relieve(self, shortage: str) -> None:
        """Makes the next attempt need less memory than the one that failed.

        Raises:
            ComputationError: It cannot.
        """
        if self._kept:
            self.release()
        else:
            self.parts.split(shortage)
        self._full = True
        gc.collect()
        if self._problem.device.type == "cuda":
            torch.cuda.empty_cache()


def _added(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.add_(more)


def _graph_bytes(
    curvature: Curvature, problem: Problem, parameters: Mapping[str, Tensor], layout: Layout, part: Any
) -> int:
    # A method would refer to its engine, whose graphs would then be freed late.
    return curvature.graph(BatchLoss(problem, parameters, layout, part)).held
