"""The answer in words: the contrast's own verdict, what it means for the claim, and what it rests on."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from geomtraj.comparing import Comparison, Row, Table
from geomtraj.comparing.primary import ABOVE, UNDECIDED, bracketed
from geomtraj.inference.verdicts import Verdict
from geomtraj.measuring.results import Results
from geomtraj.reporting.data import ALL, ReportData
from geomtraj.reporting.style import number

# The paper's claim is about these two families: SGD's path runs through larger R_med than that of adaptive methods.
ADAPTIVE = ("adam", "adamw", "nadam", "radam", "rmsprop", "adagrad", "adafactor", "adamax", "adadelta")
SGD = ("sgd", "sgdm", "momentum", "nesterov")
WIDE = 1.5  # a single measurement's high / low from which on the reader is warned


@dataclass(frozen=True)
class Answer:
    """What the contrast says on one pair of optimizers.

    Attributes:
        title: Which pair.
        verdict: In one sentence.
        numbers: What is behind it, one sentence each.
        side: "above", "below" or "undecided", where the verdict is a contrast's.
        outcome: Whether the claim that is asked about holds, where there is one.
    """

    title: str
    verdict: str
    numbers: list[str]
    side: str = ""
    outcome: Verdict | None = None


def answers(data: ReportData) -> list[Answer]:
    """One answer for each optimizer compared with the first one."""
    table = data.tables.get(("r_med", "loss"))
    return [_answer(data, table, c) for c in table.comparisons] if table is not None else []


def _answer(data: ReportData, table: Table, found: Comparison) -> Answer:
    names = (found.numerator, found.denominator)
    rows = [r for r in table.overall() if (r.numerator, r.denominator) == names]
    blocks = [r for r in rows if r.label != ALL and r.n] or [r for r in rows if r.n]
    levels = [float(r.at) for r in table if r.at != "all" and r.numerator == names[0] and r.label == rows[0].label]
    texts = [*claim(found.side, family(data, *names), *names), _where(levels, rows), *found.remarks]
    if blocks:
        texts.append(_counts(blocks, *names))
    texts += [_overall(r) for r in rows if r.label == ALL and r.n]
    texts += _same_step(data, *names)
    return Answer(f"{names[0]} against {names[1]}", found.verdict, texts, found.side)


def claim(side: str, direction: int, numerator: str, denominator: str) -> list[str]:
    """What an answer means for the paper's claim, in one sentence; nothing where the claim says nothing.

    Args:
        side: "above", "below" or "undecided".
        direction: What the claim says, from `family`.
        numerator: Group above the line.
        denominator: Group below the line.
    """
    if not direction:
        return []
    lower, higher = (denominator, numerator) if direction > 0 else (numerator, denominator)
    text = f"The claim that {higher} runs through larger R_med than {lower}"
    if side == UNDECIDED:
        return [f"{text} is neither borne out nor refuted here."]
    holds = (side == ABOVE) == (direction > 0)
    return [f"{text} {'holds here' if holds else 'does not hold here: it is the other way round'}."]


def family(data: ReportData, numerator: str, denominator: str) -> int:
    """+1 where the paper's claim says ratio > 1 (SGD over adaptive), -1 where it says < 1, 0 where it says nothing."""

    def kind(group: str) -> str:
        names = {str(r.meta.get("optimizer", group)).lower() for r in data.everything[group]}
        if names <= set(ADAPTIVE):
            return "adaptive"
        return "sgd" if names <= set(SGD) else "other"

    return {("sgd", "adaptive"): 1, ("adaptive", "sgd"): -1}.get((kind(numerator), kind(denominator)), 0)


def precision(data: ReportData) -> list[str]:
    """How far single R_med measurements can be trusted, from their own intervals."""
    quantities = [q for runs in data.measured("r_med").values() for r in runs for q in _quantities(r)]
    if not quantities:
        return []
    known = [q for q in quantities if not (math.isnan(q.low) or math.isnan(q.high))]
    texts = []
    if len(known) < len(quantities):
        texts.append(f"For {len(quantities) - len(known)} of {len(quantities)} R_med values no interval is known.")
    if not known:
        return texts
    factors = [q.high / q.low if q.low > 0 else math.inf for q in known]
    median, open_ended = statistics.median(factors), sum(math.isinf(f) for f in factors)
    if median == 1.0:
        return [*texts, "The R_med values come from exact diagonals, without estimation error."]
    spread = "is unbounded" if math.isinf(median) else f"spans a factor of {number(median)}"
    texts.append(
        f"The 95 % interval of a single R_med measurement {spread} in the median"
        + (f"; {open_ended} of {len(factors)} have no upper end." if open_ended else ".")
    )
    if median > WIDE or open_ended > 0.1 * len(factors):
        texts.append(
            "Warning: these intervals are wide. A noisy diagonal reads R_med too high, by a factor that may differ "
            "between optimizers and that intervals over seeds do not show; measure with more samples, or exactly, "
            "before you rely on the ratios."
        )
    return texts


def _quantities(r: Results) -> list:
    return [q for m in r.of("r_med") for q in m.quantities.values() if math.isfinite(q.value)]


def _where(levels: list, rows: list[Row]) -> str:
    pairs = max(r.n for r in rows)
    at = (
        f"at {len(levels)} level{'s' * (len(levels) != 1)} of the evaluation loss between {number(min(levels))} and "
        f"{number(max(levels))}"
        if levels
        else "at levels of the evaluation loss of each pair's own"
    )
    return f"Compared {at}, over {pairs} pair{'s' * (pairs != 1)} of runs."


def _counts(blocks: list[Row], numerator: str, denominator: str) -> str:
    total = len(blocks)
    lead = f"Block by block, for exploring: R_med of {numerator} over that of {denominator} "
    if max(r.n for r in blocks) < 2:
        return lead + f"is above 1 in {sum(r.ratio > 1 for r in blocks)} of {total} blocks, without intervals."
    above, below = sum(r.low > 1 for r in blocks), sum(r.high < 1 for r in blocks)
    firm_above = sum(r.holm_p < 0.05 and r.ratio > 1 for r in blocks)
    firm_below = sum(r.holm_p < 0.05 and r.ratio < 1 for r in blocks)
    return lead + (
        f"has an interval above 1 in {above} of {total}, below 1 in {below} and around 1 in {total - above - below} "
        f"(after Holm's correction over blocks {firm_above} above and {firm_below} below)."
    )


def _overall(row: Row) -> str:
    interval = "" if math.isnan(row.low) else f" [{number(row.low)}, {number(row.high)}]"
    return f"Over all parameters together the ratio is {number(row.ratio)}{interval}."


def _same_step(data: ReportData, numerator: str, denominator: str) -> list[str]:
    table = data.tables.get(("r_med", "step"))
    names = (numerator, denominator)
    comparisons = table.comparisons if table is not None else ()
    found = next((c.primary for c in comparisons if (c.numerator, c.denominator) == names), None)
    if found is None:
        return []
    text = f"At the same step instead, the ratio over {found.label} is {bracketed(found)}"
    if math.isfinite(found.loss_ratio):
        text += (
            f"; the losses are not equal there, {numerator}'s being {number(found.loss_ratio)} times "
            f"{denominator}'s, so that ratio mixes terrain with progress"
        )
    return [text + "."]
