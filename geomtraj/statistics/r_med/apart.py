"""R_med of a Problem whose Hessian is taken apart as G + R, with exact entries where they help most."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from geomtraj.blocks import Block, Blocks
from geomtraj.diagonals import Diagonal
from geomtraj.diagonals.exact import entries as exact_entries
from geomtraj.diagonals.gauss_newton import gauss_newton, no_split
from geomtraj.diagonals.residual import Residual
from geomtraj.operators import Hessian, SymmetricOperator, check_derivatives, with_remark
from geomtraj.problem import Problem
from geomtraj.statistics.base import STRATEGY
from geomtraj.statistics.r_med.block import BlockKnown, middle
from geomtraj.statistics.r_med.interval import Interval, Ratios, over
from geomtraj.statistics.r_med.survey import Survey

ROUNDING = 8.0
"""Units of rounding, relative to the largest root, up to which roots of G's entries are nothing else."""
VANISHING = 1e3
"""Units of rounding, relative to G's largest entry, up to which R counts as zero where G is."""
G_PASSES, R_PASSES = (16, 8), (32, 14)
"""Backward passes for G and products for R: so many, and so many more for each of `samples`."""
SMALL, ABOUT_MEDIAN = 64, 4
"""Blocks up to this size have entries about their median measured exactly, so many at once."""
CONFIRMED = (0.4, 0.6, 1.0)
"""Shares of the exact products that are left, by rounds."""
STRETCH = 1.3
"""Stretch of the interval on the log scale, for what the model of r leaves out."""


@dataclass
class Apart:
    """R_med's draws of every block of a problem, and what they took.

    Attributes:
        blocks: The blocks.
        survey: What was measured.
        zero: Labels of blocks whose entries are zero to rounding, and of those that are exactly zero.
        gauss_newton: G's diagonal.
        matvecs: Products and passes spent.
    """

    blocks: Blocks
    survey: Survey
    zero: dict[str, bool]
    gauss_newton: Diagonal
    matvecs: int = 0
    exact: int = 0

    def ratios(self, label: str) -> Ratios:
        """R_med of one block with its interval."""
        known, draws = self.survey.known[label], self.survey.draws[label]
        certain = not np.isnan(known.exact).any()
        magnitudes = np.concatenate([draws.best, np.zeros(known.zeros)])
        if certain:
            top, mid = float(magnitudes.max()), float(np.median(magnitudes))
            ratio = Interval(over(top, mid), over(top, mid), over(top, mid))
        else:
            ratio, top, mid = _interval(draws.largest, draws.median)
        return _ratios(ratio, top, mid, magnitudes)

    def of_all(self) -> Ratios:
        """R_med of all entries together."""
        survey, zeros = self.survey, sum(self.blocks[name].size for name in self.zero)
        largest = np.max([d.largest for d in survey.draws.values()], 0)
        panels = [d.panel for d in survey.draws.values()]
        weights = [
            np.full(d.panel.shape[1], survey.known[n].g.size / d.panel.shape[1]) for n, d in survey.draws.items()
        ]
        zeros += sum(known.zeros for known in survey.known.values())
        ratio, top, mid = _interval(largest, middle(np.hstack(panels), np.concatenate(weights), zeros))
        magnitudes = np.concatenate([*(d.best for d in survey.draws.values()), np.zeros(zeros)])
        return _ratios(ratio, top, mid, magnitudes)


def take_apart(
    problem: Problem,
    theta: Tensor | None,
    seed: int,
    samples: int,
    rtol: float,
    budget: int,
    hessian: SymmetricOperator | None = None,
) -> Apart:
    """Measure G, then R by products for many blocks at once, then single entries exactly.

    Args:
        problem: The loss.
        theta: Where to measure (P,).
        seed: Seed of all that is random.
        samples: How much is spent on G and R.
        rtol: Width at which an interval is narrow enough.
        budget: Products for exact entries at most.
        hessian: The Hessian there, if it is at hand.

    Raises:
        NoSplit: The loss does not let itself be taken apart, or R leads where G vanishes.
        ExamplesInteract: Examples of a batch depend on each other.
    """
    check_derivatives(problem, problem.checked(theta))
    found = gauss_newton(problem, G_PASSES[0] + G_PASSES[1] * samples, seed, theta)
    found = replace(found, status=with_remark(problem, found.status))
    g, sem = found.values.double().cpu().numpy(), found.sem.double().cpu().numpy()
    if not np.isfinite(g).all() or not np.isfinite(sem).all():
        raise no_split()
    error = sem / np.maximum(g, np.finfo(float).tiny)
    eps = float(torch.finfo(problem.dtype).eps)
    known, zero, vanishing = {}, dict[str, bool](), [np.empty(0, dtype=int)]
    for number, (name, block) in enumerate(problem.blocks.items()):
        indices = block.indices.numpy()
        positive = indices[g[indices] > 0]
        if is_rounding(g[indices], g, problem.dtype):
            zero[name] = not positive.size
            vanishing.append(indices)
            continue
        vanishing.append(np.setdiff1d(indices, positive))
        rows, columns = _places(block, np.flatnonzero(g[indices] > 0))
        zeros = indices.size - positive.size
        known[name] = BlockKnown(number, positive, g[positive], error[positive], zeros, rows, columns)
    residual = Residual(problem, theta)

    def products(vectors: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(vectors).to(problem.device, problem.dtype)
        return (residual @ given).double().cpu().numpy()

    survey = Survey(known, products, seed, problem.size)
    nothing = np.concatenate(vanishing)
    if nothing.size and known:
        _check_vanishing(survey, nothing, g.max(), eps)
    apart = Apart(problem.blocks, survey, zero, found)
    if known:
        operator = Hessian(problem, theta, STRATEGY) if hessian is None else hessian
        single = [(name, np.zeros(1, dtype=int)) for name, one in known.items() if one.g.size == 1]
        _measure(apart, operator, single)  # nothing beside them tells their noise
        survey.run(R_PASSES[0] + R_PASSES[1] * samples, rtol)
        _confirm(apart, operator, budget, rtol)
    apart.matvecs = found.cost.matvecs + survey.spent + apart.exact
    return apart


def _places(block: Block, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of rows and columns (n,) of some of a block's entries; each entry of a vector has its own."""
    if len(block.shape) < 2:
        return positions, positions
    width = max(block.size // max(block.shape[0], 1), 1)
    return positions // width, positions % width


def is_rounding(some: np.ndarray, g: np.ndarray, dtype: torch.dtype) -> bool:
    """Whether some entries of G (n,) are what rounding leaves beside all of them (P,): G's entries are squares."""
    return bool(some.max(initial=0.0) <= (ROUNDING * torch.finfo(dtype).eps) ** 2 * g.max())


def _check_vanishing(survey: Survey, nothing: np.ndarray, largest: float, eps: float) -> None:
    """Where G vanishes R must vanish too, to rounding."""
    vector = np.zeros((survey.size, 1))
    vector[nothing, 0] = np.random.default_rng([survey.seed, 11]).choice([-1.0, 1.0], nothing.size)
    result = survey.products(vector)[nothing, 0]
    survey.spent += 1
    if not np.abs(result).max() <= VANISHING * eps * largest:
        raise no_split()


def _confirm(apart: Apart, operator: SymmetricOperator, budget: int, rtol: float) -> None:
    """Measure exactly, one product each, likely largest entries and those about the median of small blocks.

    Where a product takes most of the variance of log R_med away: half of the budget first, then the rest.
    """
    survey, before = apart.survey, apart.exact
    for share in CONFIRMED:
        left = int(share * (budget - apart.exact + before))
        options: list[tuple[float, str, np.ndarray]] = []
        for name, draws in survey.draws.items():
            if draws.width <= rtol:
                continue
            top, median = (deviation**2 for deviation in draws.spread)
            if draws.leaders.size:
                options.append((top * float(draws.lead[draws.leaders[0]]), name, draws.leaders[:1]))
            doubtful = np.argsort(-draws.doubt, kind="stable")[: min(ABOUT_MEDIAN, left)]
            doubtful = doubtful[draws.doubt[doubtful] > 0]
            if survey.known[name].size <= SMALL and doubtful.size:
                options.append((median / doubtful.size, name, doubtful))
        wanted = dict[str, np.ndarray]()
        for _, name, chosen in sorted(options, key=lambda option: -option[0]):
            if chosen.size <= left:
                wanted[name] = np.union1d(wanted.get(name, chosen), chosen)
                left -= chosen.size
        if wanted:
            _measure(apart, operator, list(wanted.items()))
            survey.analyse(list(wanted))


def _measure(apart: Apart, operator: SymmetricOperator, wanted: list[tuple[str, np.ndarray]]) -> None:
    """Exact entries of some blocks, one product each."""
    known = apart.survey.known
    places = np.concatenate([np.empty(0, dtype=int), *(known[name].indices[chosen] for name, chosen in wanted)])
    values = exact_entries(operator, torch.from_numpy(places)).double().cpu().numpy()
    apart.exact += places.size
    for name, chosen in wanted:
        known[name].exact[chosen], values = values[: chosen.size], values[chosen.size :]


def _interval(largest: np.ndarray, median: np.ndarray) -> tuple[Interval, float, float]:
    """R_med with its interval, largest entry and median from draws (D,) of both."""
    top, mid = float(np.exp(np.mean(np.log(largest)))), float(np.median(median))
    if not mid > 0:
        return Interval(np.inf, np.inf if not median.any() else 1.0, np.inf), top, 0.0
    if np.quantile(median, 0.025) <= 0:
        return Interval(top / mid, 1.0, np.inf), top, mid
    logs = np.log(largest / np.maximum(median, np.finfo(float).tiny))
    value = float(np.mean(np.clip(logs, *np.quantile(logs, [0.1, 0.9]))))
    low, high = np.quantile(logs, [0.025, 0.975]) - value
    low, high = value + STRETCH * min(low, 0.0), value + STRETCH * max(high, 0.0)
    mid = float(
        np.exp(np.mean(np.clip(np.log(median[median > 0]), *np.quantile(np.log(median[median > 0]), [0.1, 0.9]))))
    )
    return (
        Interval(max(float(np.exp(value)), 1.0), max(float(np.exp(low)), 1.0), max(float(np.exp(high)), 1.0)),
        top,
        mid,
    )


def _ratios(ratio: Interval, top: float, mid: float, magnitudes: np.ndarray) -> Ratios:
    none = np.empty(0, dtype=int)
    tenth = float(np.partition(magnitudes, -10)[-10]) if magnitudes.size >= 10 else np.nan
    return Ratios(
        ratio=ratio,
        max=top,
        median=mid,
        tenth=over(tenth, mid) if magnitudes.size >= 10 else np.nan,
        q99=over(float(np.quantile(magnitudes, 0.99)), mid),
        spread=(0.0, 0.0),
        leaders=none,
        doubtful=(none, np.empty(0)),
    )
