"""The answer in words, computed from the contrast: counts of blocks, never more than the intervals allow."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from geomtraj.contrast import Row, Table
from geomtraj.measuring.results import Results
from geomtraj.report.material import ALL, Material
from geomtraj.report.style import number

# The paper's claim is about these two families: SGD's path runs through larger R_med than that of adaptive methods.
ADAPTIVE = ("adam", "adamw", "nadam", "radam", "rmsprop", "adagrad", "adafactor", "adamax", "adadelta")
SGD = ("sgd", "sgdm", "momentum", "nesterov")
WIDE = 1.5  # a single measurement's high / low from which on the reader is warned


@dataclass(frozen=True)
class Answer:
    """What the contrast says on one pair of optimizers: a verdict in one sentence, and the numbers behind it."""

    title: str
    verdict: str
    numbers: list[str]


def answers(material: Material) -> list[Answer]:
    """One answer for each optimizer compared with the first one."""
    table = material.tables.get(("r_med", "loss"))
    if table is None:
        return []
    comparisons = dict.fromkeys((r.numerator, r.denominator) for r in table)
    return [_answer(material, table, *names) for names in comparisons]


def _answer(material: Material, table: Table, numerator: str, denominator: str) -> Answer:
    rows = [r for r in table.overall() if (r.numerator, r.denominator) == (numerator, denominator)]
    blocks = [r for r in rows if r.label != ALL and r.n] or [r for r in rows if r.n]
    levels = [r.at for r in table if r.at != "all" and r.numerator == numerator and r.label == rows[0].label]
    direction = family(material, numerator, denominator)
    texts = [_where(levels, rows)]
    if not blocks:
        return Answer(f"{numerator} against {denominator}", "It cannot be decided: no block has a usable ratio.", texts)
    texts.append(_counts(blocks, numerator, denominator))
    texts += [_overall(r) for r in rows if r.label == ALL and r.n]
    texts += _same_step(material, numerator, denominator)
    return Answer(f"{numerator} against {denominator}", verdict(blocks, numerator, denominator, direction), texts)


def family(material: Material, numerator: str, denominator: str) -> int:
    """+1 where the paper's claim says ratio > 1 (SGD over adaptive), -1 where it says < 1, 0 where it says nothing."""

    def kind(group: str) -> str:
        names = {str(r.meta.get("optimizer", group)).lower() for r in material.everything[group]}
        if names <= set(ADAPTIVE):
            return "adaptive"
        return "sgd" if names <= set(SGD) else "other"

    return {("sgd", "adaptive"): 1, ("adaptive", "sgd"): -1}.get((kind(numerator), kind(denominator)), 0)


def verdict(blocks: list[Row], numerator: str, denominator: str, direction: int) -> str:
    """The answer in one sentence, as far as the 95 % intervals over seeds allow one.

    Args:
        blocks: One row per block.
        numerator: Group above the line.
        denominator: Group below the line.
        direction: What the claim says, from `family`.
    """
    n, total = max(r.n for r in blocks), len(blocks)
    above, below = sum(r.low > 1 for r in blocks), sum(r.high < 1 for r in blocks)
    firm = sum(r.holm_p < 0.05 for r in blocks)
    lower, higher = (denominator, numerator) if direction >= 0 else (numerator, denominator)
    claim = f"the claim that {higher} runs through larger R_med than {lower}"
    agree, oppose = (above, below) if direction >= 0 else (below, above)
    if n < 2:
        subject = claim if direction else "whether the two travelled through different terrain"
        return f"{_capital(subject)} cannot be decided with n = {n}: one seed gives no interval."
    if above + below == 0:
        lead = f"{_capital(claim)} does not hold here" if direction else "No difference is seen here"
        return (
            f"{lead}: at equal loss no block's interval leaves out 1 (n = {n}; a difference may be too small to see)."
        )
    if firm == 0 and max(above, below) <= total / 2:
        subject = claim if direction else "whether the two travelled through different terrain"
        return (
            f"{_capital(subject)} cannot be decided here: {_blocks(above + below, total)} leave out 1, "
            f"none after Holm's correction over blocks (n = {n})."
        )
    if not direction:
        sides = f"larger on {numerator}'s path in {above} and smaller in {below} of {total} blocks"
        return f"The two travelled through different terrain at equal loss: R_med is {sides} (n = {n})."
    if agree > total / 2:
        return f"{_capital(claim)} holds here for most blocks: {agree} of {total} at equal loss (n = {n})."
    if oppose >= agree:
        return (
            f"{_capital(claim)} does not hold here: at equal loss {agree} of {total} blocks agree with it and {oppose} "
            f"lie the other way (n = {n})."
        )
    return (
        f"{_capital(claim)} does not hold here for most blocks: at equal loss {agree} of {total} agree with it and "
        f"{oppose} lie the other way (n = {n})."
    )


def precision(material: Material) -> list[str]:
    """How far single R_med measurements can be trusted, from their own intervals."""
    quantities = [q for runs in material.measured("r_med").values() for r in runs for q in _quantities(r)]
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
    typical = math.exp(statistics.fmean(math.log(r.ratio) for r in blocks))
    text = f"R_med of {numerator} over R_med of {denominator}: {number(typical)} in the geometric mean over blocks; "
    if max(r.n for r in blocks) < 2:
        return text + f"above 1 in {sum(r.ratio > 1 for r in blocks)} of {total} blocks, without intervals."
    above, below = sum(r.low > 1 for r in blocks), sum(r.high < 1 for r in blocks)
    firm_above = sum(r.holm_p < 0.05 and r.ratio > 1 for r in blocks)
    firm_below = sum(r.holm_p < 0.05 and r.ratio < 1 for r in blocks)
    return text + (
        f"of {total} blocks the 95 % interval lies above 1 in {above}, below 1 in {below} and contains 1 in "
        f"{total - above - below} (after Holm's correction over blocks {firm_above} above and {firm_below} below)."
    )


def _overall(row: Row) -> str:
    interval = "" if math.isnan(row.low) else f" [{number(row.low)}, {number(row.high)}]"
    return f"Over all parameters together the ratio is {number(row.ratio)}{interval}."


def _same_step(material: Material, numerator: str, denominator: str) -> list[str]:
    table = material.tables.get(("r_med", "step"))
    rows = [r for r in table.overall() if (r.numerator, r.denominator) == (numerator, denominator)] if table else []
    blocks = [r for r in rows if r.label != ALL and r.n] or [r for r in rows if r.n]
    if not blocks:
        return []
    typical = math.exp(statistics.fmean(math.log(r.ratio) for r in blocks))
    text = f"At the same step instead, the geometric mean over blocks is {number(typical)}"
    if math.isfinite(blocks[0].loss_ratio):
        text += (
            f"; the losses are not equal there, {numerator}'s being {number(blocks[0].loss_ratio)} times "
            f"{denominator}'s, so that ratio mixes terrain with progress"
        )
    return [text + "."]


def _blocks(count: int, total: int) -> str:
    return f"the intervals of {count} of {total} blocks"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
