"""The primary answer of a comparison: one ratio over the weight matrices, with runs as units, fixed before looking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from geomtraj.comparing.logs import Logs
from geomtraj.comparing.matrices import Choice
from geomtraj.comparing.row import Row
from geomtraj.inference.interval import Interval, means, t_interval
from geomtraj.inference.ratios import exp, over_seeds

ABOVE, BELOW, UNDECIDED = "above", "below", "undecided"


@dataclass(frozen=True)
class PairLog:
    """One pair's part in a primary answer.

    Attributes:
        numerator: Run above the line, in words.
        denominator: Run below it.
        seed: Of both; None where they are paired by order.
        log_ratio: Mean log ratio over the blocks and places; NaN where the pair is left out.
        noise: Its standard error by the single measurements' own intervals.
    """

    numerator: str
    denominator: str
    seed: int | None
    log_ratio: float
    noise: float


@dataclass(frozen=True)
class Comparison:
    """The one question of two groups, and its answer.

    Attributes:
        numerator: Group above the line.
        denominator: Group below it.
        side: "above", "below" or "undecided".
        primary: Geometric mean of the ratio over `blocks`, runs as units; None where nothing can be said.
        verdict: "above: ...", "below: ..." or "undecided: ...".
        blocks: The blocks that the mean is over, the same in every pair.
        without: Blocks that were chosen but have no value in some pair -> why.
        pairs: Each pair's own mean log ratio.
        seeds_alone: The primary ratio with the interval that the spread over pairs alone would give.
        sensitivity: The same without single values that have no upper end; None where there are none such.
        remarks: What the reader must know of the numbers behind the answer, one sentence each.
    """

    numerator: str
    denominator: str
    side: str
    primary: Row | None
    verdict: str
    blocks: tuple[str, ...]
    without: dict[str, str]
    pairs: tuple[PairLog, ...]
    seeds_alone: Interval
    sensitivity: Row | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """What is asked of two groups.

    Attributes:
        numerator: Group above the line.
        denominator: Group below it.
        statistic: Name of what is compared.
        where: "at equal loss" or the like.
        choice: The blocks that the answer is the mean over.
        reasons: Block -> why it has no value somewhere, as its measurements say.
    """

    numerator: str
    denominator: str
    statistic: str
    where: str
    choice: Choice
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class Mean:
    """The mean over blocks, before it becomes a row.

    Attributes:
        blocks: That every pair has a value of, in positions of `Logs.labels`.
        logs: Mean log ratio of each pair, shape (n,); NaN for pairs without any block.
        noise: Standard errors by the single measurements, shape (n,).
        rests_on: Number of single measurements.
        open_ended: Of them, those without an upper end.
        left_out: Ratios at single places that do not exist, of blocks that are in the mean.
        places: All ratios at single places that could be there.
    """

    blocks: list[int]
    logs: np.ndarray
    noise: np.ndarray
    rests_on: int
    open_ended: int
    left_out: int
    places: int


def mean_over(logs: Logs, blocks: list[int]) -> Mean:
    """Each pair's mean over the same blocks: those of which every pair that has any value has one."""
    known = np.isfinite(logs.mean[:, blocks])
    pairs = known.any(axis=1)
    whole = [b for b, good in zip(blocks, known[pairs].all(axis=0), strict=True) if good] if pairs.any() else []
    if not whole:
        n = len(logs.mean)
        return Mean([], np.full(n, math.nan), np.zeros(n), 0, 0, 0, 0)
    here = np.ix_(np.flatnonzero(pairs), np.array(whole))
    cells = logs.each[here]
    return Mean(
        whole,
        np.where(pairs, logs.mean[:, whole].mean(axis=1), math.nan),
        np.where(pairs, np.sqrt((logs.mean_noise[:, whole] ** 2).sum(axis=1)) / len(whole), 0.0),
        int(logs.rests_on[here].sum()),
        int(logs.open_ended[here].sum()),
        int(np.isnan(cells).sum()),
        cells.size,
    )


def primary_row(mean: Mean, logs: Logs, label: str, numerator: str, denominator: str) -> Row:
    """The row of a mean over blocks; p is for this one question, so that Holm has nothing to correct."""
    found = over_seeds(mean.logs, mean.noise)
    remarks = []
    missing = int(np.isnan(mean.logs).sum())
    if missing:
        remarks.append(f"{missing} of {len(mean.logs)} pairs left out (no block has a usable value)")
    if mean.left_out:
        remarks.append(
            f"{mean.left_out} of {mean.places} ratios left out (missing, zero, infinite, NaN or of unlike signs)"
        )
    if mean.open_ended:
        remarks.append(f"{mean.open_ended} of {mean.rests_on} single values have no upper end")
    if found.n == 1:
        remarks.append("no interval can be given with one pair of runs")
    losses = means(logs.losses[np.isfinite(mean.logs)].mean(axis=1)).mean if found.n else math.nan
    return Row(
        label=label,
        numerator=numerator,
        denominator=denominator,
        at="all",
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        n=found.n,
        above=found.above,
        sign_test_p=found.sign_test_p,
        t_test_p=found.t_test_p,
        holm_p=found.t_test_p,
        loss_ratio=float(exp(losses)),
        status="; ".join(remarks) or "ok",
        rests_on=mean.rests_on,
        open_ended=mean.open_ended,
        left_out=mean.left_out,
    )


def side(row: Row | None) -> str:
    """On which side of 1 the interval lies."""
    if row is None or math.isnan(row.low):
        return UNDECIDED
    return ABOVE if row.low > 1 else BELOW if row.high < 1 else UNDECIDED


def bracketed(row: Row) -> str:
    """A ratio with its interval as text."""
    ends = "" if math.isnan(row.low) else f" [{row.low:.3g}, {row.high:.3g}]"
    return f"{row.ratio:.3g}{ends}"


def verdict(row: Row | None, question: Question, what: str) -> str:
    """The answer in a sentence that begins with "above", "below" or "undecided".

    Args:
        row: The primary row.
        question: What was asked.
        what: What it is: "geometric mean over 18 weight matrices".
    """
    if row is None or not row.n:
        return f"{UNDECIDED}: {_no_answer(question.choice, question.statistic)}"
    found = side(row)
    units = f"n = {row.n} pair{'s' * (row.n != 1)} of runs"
    subject = f"{question.statistic} of {row.numerator} over that of {row.denominator} {question.where}"
    numbers = f"{bracketed(row)}, {what}, {units}"
    if row.n < 2:
        return f"{UNDECIDED}: {subject} is {numbers}; one pair gives no interval."
    if found == UNDECIDED:
        return f"{UNDECIDED}: the 95 % interval of {subject} contains 1: {numbers}."
    return f"{found}: {subject} is {numbers}."


def compared(logs: Logs, robust: Logs, question: Question, runs: Sequence[tuple[str, str, int | None]]) -> Comparison:
    """The primary answer of one comparison.

    Args:
        logs: Log ratios of all labels.
        robust: The same without values that have no upper end.
        question: What is asked.
        runs: Names of each pair's runs above and below the line, and their seed.
    """
    choice, names = question.choice, (question.numerator, question.denominator)
    chosen = [label for label in choice.labels if label in logs.labels]
    mean = mean_over(logs, logs.at(tuple(chosen)))
    blocks = tuple(logs.labels[i] for i in mean.blocks)
    without = {label: _why(logs, label, question.reasons) for label in chosen if label not in blocks}
    row = primary_row(mean, logs, choice.words, *names) if blocks else None
    what = _what(blocks, choice)
    remarks = _remarks(choice, without)
    alone = _seeds_alone(mean.logs)
    if row is not None and row.n > 1 and row.high > 1.0001 * alone.high:
        remarks.append(
            f"The spread over pairs alone would give [{alone.low:.3g}, {alone.high:.3g}]: the single values' own "
            "intervals are wider than so much agreement allows."
        )
    sensitivity = None
    if row is not None and mean.open_ended:
        rest = mean_over(robust, robust.at(blocks))
        share = f"{mean.open_ended} of the {mean.rests_on} single values behind the answer have no upper end"
        if rest.blocks:
            sensitivity = primary_row(rest, robust, choice.words, *names)
            same = "the same side" if side(sensitivity) == side(row) else f"{side(sensitivity)}, not {side(row)}"
            remarks.append(
                f"{share}; without them the ratio is {bracketed(sensitivity)}, "
                f"{_what(tuple(rest.blocks), choice)}, n = {sensitivity.n} ({same})."
            )
        else:
            remarks.append(f"{share}; without them no block has a value in every pair.")
    pairs = tuple(
        PairLog(*run, float(log), float(noise)) for run, log, noise in zip(runs, mean.logs, mean.noise, strict=True)
    )
    text = verdict(row, question, what)
    return Comparison(*names, side(row), row, text, blocks, without, pairs, alone, sensitivity, tuple(remarks))


def _seeds_alone(logs: np.ndarray) -> Interval:
    found = t_interval(logs)
    value, low, high = (float(exp(x)) for x in (found.value, found.low, found.high))
    return Interval(value, low, high, found.n, found.status)


def _what(blocks: tuple, choice: Choice) -> str:
    if choice.words in choice.labels:
        return f"of {choice.words}"
    words = choice.words
    if len(blocks) == 1:
        words = words.replace("matrices", "matrix").replace("blocks", "block")
    return f"geometric mean over {len(blocks)} {words}"


def _no_answer(choice: Choice, statistic: str) -> str:
    if not choice.words:
        return f"{statistic} is not a number of each weight matrix: name what to average with over=[...]."
    if not choice.labels:
        return f"there is no weight matrix among the blocks of {statistic}: name what to average with over=[...]."
    return f"no block of the {len(choice.labels)} has a usable value of {statistic} in every pair of runs."


def _why(logs: Logs, label: str, reasons: Mapping[str, str]) -> str:
    bad = int((~np.isfinite(logs.mean[:, logs.labels.index(label)])).sum())
    reason = f" ({reasons[label]})" if label in reasons else ""
    return f"no usable value in {bad} of {len(logs.mean)} pairs{reason}"


def _remarks(choice: Choice, without: dict[str, str]) -> list[str]:
    texts = []
    if choice.words == "blocks of unknown shape":
        texts.append("The shapes of the blocks are not stored: the mean is over all of them, not over weight matrices.")
    if choice.others.get("embeddings"):
        texts.append(f"Not in the mean as embeddings: {', '.join(choice.others['embeddings'])}.")
    reasons: dict[str, list[str]] = {}
    for label, reason in without.items():
        reasons.setdefault(reason, []).append(label)
    texts += [f"Not in the mean, {reason}: {', '.join(labels)}." for reason, labels in reasons.items()]
    return texts
