"""R_med, the median condition ratio max|diag H| / median|diag H| of each parameter tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomtraj.blocks import Blocks
from geomtraj.diagonals import EXACT_UP_TO, Diagonal, diagonal
from geomtraj.diagonals.exact import entries as exact_entries
from geomtraj.diagonals.gauss_newton import NoSplit, gauss_newton
from geomtraj.display import InFields, clipped, interval
from geomtraj.errors import ExamplesInteract, InputError
from geomtraj.failures import in_one_sentence
from geomtraj.isolation import in_plain_torch
from geomtraj.layout import Layout
from geomtraj.linalg.chunks import at_least
from geomtraj.operators import Hessian, SymmetricOperator
from geomtraj.problem import Problem
from geomtraj.statistics.base import STRATEGY, Outcome, Point, Quantity, Statistic
from geomtraj.statistics.r_med.apart import Apart, is_rounding, take_apart
from geomtraj.statistics.r_med.entries import exactly
from geomtraj.statistics.r_med.interval import Ratios, over, ratios
from geomtraj.statistics.r_med.refine import Refinement
from geomtraj.status import Code, Remark, Status

ALL = "all"
MEDIAN_GAP = 0.10
BUDGET = 4
"""Products that may be spent on exact entries, in units of `samples`."""
PROBING = "probing"
TINY, ROUNDING = 1e4, 1.0
"""Units of rounding, relative to the largest entry, up to which a block is looked at again for being nothing else, and
up to which it counts as that where there is no Gauss-Newton part to look at."""
FEW = 4
"""Random vectors for that part."""
UNCORRELATED = ("hutchinson", "xdiag")
"""Methods whose errors are nearly independent within a row of a weight."""


@dataclass(frozen=True, repr=False)
class RMed(InFields):
    """R_med = max|d| / median|d| of the entries d of one block of the Hessian diagonal.

    Attributes:
        value: R_med over all entries; inf when the median is zero, NaN when an entry is not finite.
        low: Lower end of the 95 % interval; equals `value` where all entries are exact.
        high: Upper end; inf where the estimate is too noisy to tell the median from zero.
        max: max|d|; exact where a product confirmed it, else given the noise.
        median: median|d|, the mean of the two middle values, given the noise where there is any.
        zeros: Number of entries that are exactly zero.
        size: Number of entries.
        method: How the diagonal was made, and how many of the block's entries were then measured exactly.
        nonzero: R_med over the entries that are not exactly zero.
        tenth: 10th largest |d| over the median, a steadier variant; NaN with fewer than 10 entries.
        q99: 0.99 quantile of |d| over the median.
        status: "ok", or a `Status` of what makes the number missing or doubtful, and what the diagonal's status says of
            this block as notes, such as "w: probed in parameter space".
    """

    value: float
    low: float
    high: float
    max: float
    median: float
    zeros: int
    size: int
    method: str
    nonzero: float
    tenth: float
    q99: float
    status: str = "ok"

    def __repr__(self) -> str:
        value = f"{self.value:.4g} {interval(self.low, self.high)}".strip()
        return f"RMed({value}, {self.size} entries; {clipped(self.status)})"


@in_plain_torch
def r_med(
    problem: Problem | SymmetricOperator | Diagonal,
    method: str = "auto",
    seed: int = 0,
    theta: Tensor | None = None,
    *,
    samples: int = 64,
    rtol: float = 0.1,
    max_matvecs: int | None = None,
) -> dict[str, RMed]:
    """R_med of each block, and of all parameters together under the key "all".

    Where a Problem's loss can be taken apart at the model's output, H_ii = G_ii + R_ii with the Gauss-Newton part G
    known everywhere to the same small relative error. The residual share r = R_ii / G_ii is then what entries of a
    block with G_ii of similar size have in common: its distribution is learned from entries of many blocks that each
    product with R measures (see `survey`), and value and interval follow from draws of it. Entries that may be the
    largest are measured again, and with what `max_matvecs` allows exactly.

    Elsewhere the diagonal as a whole comes with standard errors, and noise raises max|d| and shifts median|d|. Value
    and interval are then those of the entries given their estimates, by empirical Bayes (see `posterior.draws`), and
    exact entries, at one product each, are measured where an interval is wider than `rtol`.

    How far off values are and how often intervals hold the exact R_med on trained networks that the method was not
    tuned on: `python benchmarks/r_med.py`. Iterates near the start of deep networks have much wider intervals.

    Args:
        problem: A `Problem`, an operator, or a `Diagonal` that is there already: then nothing more can be measured
            and the interval follows from its standard errors.
        method: Method of `gt.diagonal`; "probing" takes the loss apart where it can.
        seed: Seed of a randomised method and of the sample.
        theta: Where to measure (P,); the problem's current parameters if left out.
        samples: How much is spent on what is random: 16 + 8 samples backward passes for G, 32 + 14 samples products for
            R; products or probes where the diagonal is taken as a whole.
        rtol: Width high / low - 1 at which an interval is narrow enough.
        max_matvecs: Products to spend on exact entries at most, beyond those of the diagonal; 4 `samples` if left
            out. With 0 there are none.

    Returns:
        Block name -> `RMed`, and "all" -> `RMed`. Its status says where the budget ended before `rtol` was reached.

    Raises:
        InputError: As `gt.diagonal`; or `theta` given together with a `Diagonal`; or `rtol` or `max_matvecs` is
            negative.

    Source: Jiang, Malik, Li (2023), "How does adaptive optimization impact local neural network geometry?",
        arXiv 2211.02254, section 2.
    """
    budget = BUDGET * samples if max_matvecs is None else at_least("max_matvecs", max_matvecs, 0)
    if not rtol >= 0:
        raise InputError(f"rtol is {rtol!r}: it is a relative width, such as 0.1.")
    if not isinstance(problem, Diagonal):
        return _measured(problem, method, seed, theta, samples, rtol, budget)[0]
    if theta is not None:
        raise InputError("theta cannot be given together with a Diagonal, which was taken somewhere already.")
    return _ratios(_refinement(problem, None, 0, rtol, seed), problem)


def _measured(
    problem: Problem | SymmetricOperator,
    method: str,
    seed: int,
    theta: Tensor | None,
    samples: int,
    rtol: float,
    budget: int,
    hessian: SymmetricOperator | None = None,
) -> tuple[dict[str, RMed], int]:
    """R_med by label, and the products that it took."""
    if isinstance(problem, Problem) and _probed(problem, method, samples):
        try:
            with in_one_sentence():
                apart = take_apart(problem, theta, seed, samples, rtol, budget, hessian)
            return _of_apart(apart, rtol, budget), apart.matvecs
        except (NoSplit, ExamplesInteract):
            pass  # the diagonal as a whole
    found = diagonal(problem, method=method, samples=samples, seed=seed, theta=theta)
    operator = problem if isinstance(problem, SymmetricOperator) else hessian

    def measure(indices: np.ndarray) -> np.ndarray:
        nonlocal operator
        if operator is None:
            assert isinstance(problem, Problem)
            operator = Hessian(problem, theta, STRATEGY)
        return exact_entries(operator, torch.from_numpy(indices)).double().cpu().numpy()

    refinement = _refinement(found, measure, budget, rtol, seed)
    refinement.run()
    squares = found.gauss_newton is not None and found.method != "exact"
    if not squares and isinstance(problem, Problem) and _tiny(found):
        with suppress(NoSplit, ExamplesInteract):
            found = replace(found, gauss_newton=gauss_newton(problem, FEW, seed, theta).gauss_newton)
    return _ratios(refinement, found), found.cost.matvecs + refinement.spent


def _probed(problem: Problem, method: str, samples: int) -> bool:
    return method == "probing" or (method == "auto" and problem.size > EXACT_UP_TO * samples)


def _refinement(found: Diagonal, measure: Any, budget: int, rtol: float, seed: int) -> Refinement:
    values, sem = found.values.double().cpu().numpy(), found.sem.double().cpu().numpy()
    rounding = 4 * torch.finfo(found.values.dtype).eps * np.abs(values)
    sem = np.where(sem <= rounding, 0.0, sem)
    dof = None if found.dof is None else found.dof.double().cpu().numpy()
    labels = {name: block.indices.numpy() for name, block in found.blocks.items()} | {ALL: np.arange(values.size)}
    rows = np.arange(values.size) if found.method in UNCORRELATED else _rows(found.blocks.layout)
    return Refinement(values, sem, rows, labels, measure, budget, rtol, seed, dof)


def _rows(layout: Layout) -> np.ndarray:
    """A number for the row (index of the first axis) of each entry (P,); entries of a vector are rows of their own."""
    rows, first = [np.empty(0, dtype=int)], 0
    for slot in layout.values():
        count = slot.size if len(slot.shape) < 2 else max(slot.shape[0], 1)
        rows.append(first + np.arange(slot.size) // max(slot.size // max(count, 1), 1))
        first += count
    return np.concatenate(rows)


def _ratios(refinement: Refinement, found: Diagonal) -> dict[str, RMed]:
    notes, tiny = _notes(found.status, found.blocks), _tiny(found)
    result = {}
    for label, where in refinement.labels.items():
        own = refinement.entries.take(where)
        how = _method(found.method, int((~np.isnan(own.exact)).sum()), own.values.size)
        seen = _Seen(own.best, own.known, how, refinement.spent, refinement.budget, refinement.rtol)
        if label in tiny and _is_rounding(found, label, own.best):
            result[label] = _zero(seen, notes[label])
        else:
            result[label] = _ratio(seen, lambda label=label: refinement.of(label), notes[label])  # type: ignore[misc]
    return result


def _tiny(found: Diagonal) -> list[str]:
    """Labels of blocks that may be nothing but rounding beside the others, but are not exactly zero."""
    magnitudes = found.values.abs().double().nan_to_num(torch.inf)
    largest = {name: float(block.take(magnitudes).max()) for name, block in found.blocks.items() if block.size}
    bound = TINY * torch.finfo(found.values.dtype).eps * max(largest.values(), default=0.0)
    return [name for name, size in largest.items() if 0 < size <= bound]


def _is_rounding(found: Diagonal, label: str, entries: np.ndarray) -> bool:
    """By the Gauss-Newton part where it is a sum of squares, which tells small entries from rounding."""
    if found.gauss_newton is not None:
        g = found.gauss_newton.values.double().cpu().numpy()
        return is_rounding(found.blocks[label].take(g), g, found.values.dtype)
    limit = ROUNDING * torch.finfo(found.values.dtype).eps * float(found.values.abs().nan_to_num().max())
    return bool(np.abs(entries).max() <= limit)


def _of_apart(apart: Apart, rtol: float, budget: int) -> dict[str, RMed]:
    notes = _notes(apart.gauss_newton.status, apart.blocks)
    result = {}
    for label, block in apart.blocks.items():
        if label in apart.zero:
            values = np.zeros(block.size)
            seen = _Seen(values, np.ones(block.size, dtype=bool), PROBING, apart.exact, budget, rtol)
            nothing = apart.zero[label]
            result[label] = _ratio(seen, lambda: _plain_zero(), notes[label]) if nothing else _zero(seen, notes[label])
            continue
        known, draws = apart.survey.known[label], apart.survey.draws[label]
        exact = ~np.isnan(known.exact)
        best, sure = (np.concatenate([a, np.full(known.zeros, z)]) for a, z in ((draws.best, 0.0), (exact, True)))
        how = _method(PROBING, int(exact.sum()), block.size)
        seen = _Seen(best, sure.astype(bool), how, apart.exact, budget, rtol)
        result[label] = _ratio(seen, lambda label=label: apart.ratios(label), notes[label])  # type: ignore[misc]
    if apart.survey.known:
        best = np.concatenate([d.best for d in apart.survey.draws.values()])
        best = np.concatenate([best, np.zeros(apart.blocks.size - best.size)])
        seen = _Seen(
            best, np.zeros(best.size, dtype=bool), _method(PROBING, apart.exact, best.size), apart.exact, budget, rtol
        )
        result[ALL] = _ratio(seen, apart.of_all, notes[ALL])
    else:
        seen = _Seen(np.zeros(apart.blocks.size), np.ones(apart.blocks.size, dtype=bool), PROBING, 0, budget, rtol)
        result[ALL] = _ratio(seen, _plain_zero, notes[ALL])
    return result


@dataclass(frozen=True)
class _Seen:
    """What a block's R_med is told from: entries, which of them are exact, how they were made, products and width."""

    best: np.ndarray
    known: np.ndarray
    method: str
    spent: int
    budget: int
    rtol: float


def _plain_zero() -> Ratios:
    return ratios(exactly(np.zeros(1)))


def _method(method: str, measured: int, size: int) -> str:
    return f"{method}, {measured} of {size} entries exact" if measured else method


def _notes(status: str, blocks: Blocks) -> dict[str, list[Remark]]:
    """What the diagonal's status says of each label; entries that are not finite are counted anew."""
    own: dict[str, list[Remark]] = {label: [] for label in [*blocks, ALL]}
    for remark in Status.read(status).remarks:
        if remark.code is Code.NOT_FINITE:
            continue
        of = [block.name for block in blocks.of_parameter(remark.label)] if remark.label in blocks.layout else []
        for label in [*of, ALL] if of else own:
            own[label].append(replace(remark, code=Code.NOTE, label=""))
    return own


def _zero(seen: _Seen, notes: list[Remark]) -> RMed:
    """A block of rounding errors, which has no ratio."""
    magnitudes, nan = np.abs(seen.best), math.nan
    reason = "zero to rounding: the block's entries are what rounding leaves beside those of the other blocks"
    return RMed(
        nan, nan, nan, float(magnitudes.max()), float(np.median(magnitudes)), int((magnitudes == 0).sum()),
        magnitudes.size, seen.method, nan, nan, nan, Status([Remark(Code.ZERO, reason), *notes]),
    )  # fmt: skip


def _ratio(seen: _Seen, of: Callable[[], Ratios], notes: list[Remark]) -> RMed:
    size = seen.best.size
    zeros = int(((seen.best == 0) & seen.known).sum())
    bad = size - int(np.isfinite(seen.best).sum())
    if bad or not size:
        nan = math.nan
        reason = Remark(Code.LEFT_OUT, "the block has no entries")
        if size:
            reason = Remark(Code.NOT_FINITE, f"{bad} of {size} entries of the diagonal are not finite")
        return RMed(nan, nan, nan, nan, nan, zeros, size, seen.method, nan, nan, nan, Status([reason, *notes]))
    found = of()
    entries = np.sort(np.abs(seen.best))
    value, low, high = found.ratio
    return RMed(
        value=value,
        low=low,
        high=high,
        max=found.max,
        median=found.median,
        zeros=zeros,
        size=size,
        method=seen.method,
        nonzero=_nonzero(entries, zeros, found),
        tenth=found.tenth,
        q99=found.q99,
        status=Status([*_remarks(seen, entries, zeros, low, high), *notes]),
    )


def _nonzero(entries: np.ndarray, zeros: int, found: Ratios) -> float:
    if zeros == entries.size:
        return math.nan
    return over(found.max, float(np.median(entries[entries > 0])) if zeros else found.median)


def _remarks(seen: _Seen, entries: np.ndarray, zeros: int, low: float, high: float) -> list[Remark]:
    """What makes a ratio of entries (n,), ascending, doubtful: the first reason that holds."""
    size = entries.size
    lower, upper = float(entries[(size - 1) // 2]), float(entries[size // 2])
    if zeros == size:
        return [Remark(Code.ZERO, "all entries are exactly zero: the loss does not curve along this block")]
    if upper == 0:
        return [Remark(Code.ZERO, f"the median is zero: {zeros} of {size} entries are exactly zero")]
    if seen.known.all() and (lower == 0 or upper > (1 + MEDIAN_GAP) * lower):
        gap = f"the lower and the upper median differ by more than {100 * MEDIAN_GAP:.0f} %"
        return [Remark(Code.TIES, f"{gap}: {lower:.3g} and {upper:.3g}")]
    spent = f" after {seen.spent} of at most {seen.budget} exact entries" if seen.budget else ""
    if math.isinf(high):
        return [Remark(Code.FEW_SAMPLES, f"too few samples to bound the median away from zero: no upper end{spent}")]
    if seen.budget and high > (1 + seen.rtol) * low:
        width = f"the interval is {100 * (high / low - 1):.0f} % wide, not {100 * seen.rtol:.0f} %"
        return [Remark(Code.WIDE, f"{width}{spent}")]
    return []


@dataclass(frozen=True)
class MedianConditionRatio(Statistic):
    """R_med of each block and of all parameters: quantities by block name, and "all". Settings as for `gt.r_med`."""

    name = "r_med"
    title = "median condition ratio R_med"

    method: str = "auto"
    samples: int = 64
    seed: int = 0
    rtol: float = 0.1
    max_matvecs: int | None = None

    def measure(self, point: Point) -> Outcome:
        """R_med with its interval, and the other fields of `RMed` as details by label."""
        ratios, matvecs = _measured(
            point.problem,
            self.method,
            self.seed,
            point.theta,
            self.samples,
            self.rtol,
            BUDGET * self.samples if self.max_matvecs is None else self.max_matvecs,
            point.hessian,
        )
        return outcome_of(ratios, matvecs)


def outcome_of(ratios: dict[str, RMed], matvecs: int) -> Outcome:
    """R_med by label as a statistic's outcome; notes behind an "ok" stay in the details."""
    quantities = {label: Quantity(r.value, r.low, r.high) for label, r in ratios.items()}
    kept = [f.name for f in fields(RMed) if f.name not in ("value", "low", "high")]
    details: dict[str, Any] = {label: {k: asdict(r)[k] for k in kept} for label, r in ratios.items()}
    doubtful = {label: Status.read(r.status) for label, r in ratios.items() if not Status.read(r.status).good}
    status = Status(remark for label, own in doubtful.items() for remark in own.under(label).remarks)
    return Outcome(quantities, details, status, matvecs)
