"""What adam_vs_sgd found, in words computed from the numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from analyses.adam_vs_sgd.data import LEVEL, MEANS, VARIANTS, Task, adjusted, shown
from geomtraj.comparing import Row
from geomtraj.inference import OverSeeds, Verdict, holm, larger, over_seeds, within
from geomtraj.reporting import WIDE, Answer, listed, number

ABOVE, BELOW, OPEN, UNKNOWN = "above", "below", "open", "unknown"


def answers(
    claimed: Sequence[Task], controls: Sequence[Task], pairs: Sequence[tuple[Task, Task]], margin: float
) -> list[Answer]:
    """The findings, in the order of the page.

    Args:
        claimed: The language tasks, on which the claim is made.
        controls: The image tasks, on which the gap should be absent.
        pairs: Tasks with mini-batches, each with its full-batch control.
        margin: Factor within which a ratio counts as 1.
    """
    after_holm, sides = adjusted(claimed), _faster([*claimed, *controls])
    return [
        *(_claim(task, after_holm[task.name], len(claimed), margin, sides.get(task.name)) for task in claimed),
        *(_control(task, margin) for task in controls),
        *(_full_batch(noisy, full) for noisy, full in pairs),
        *_variants(claimed, controls),
        _speed([*claimed, *controls], sides),
        *_precision([*claimed, *controls, *(full for _, full in pairs)]),
    ]


def state(row: Row | None, p: float) -> str:
    """On which side of 1 a ratio lies, as far as a p-value allows to say so."""
    if row is None or math.isnan(p):
        return UNKNOWN
    if p >= LEVEL:
        return OPEN
    return ABOVE if row.ratio > 1 else BELOW


def _claim(task: Task, p: float, family: int, margin: float, faster: str | None) -> Answer:
    higher, lower = shown(task.sgd), shown(task.adaptive)
    title = f"{task.title}: does {higher} run through larger R_med than {lower} at equal loss?"
    row = task.means.get(("r_med", "loss"))
    if row is None or not row.n:
        return Answer(title, f"It cannot be decided: {_why(task)}", _layers(task), outcome=Verdict.UNDECIDED)
    if row.n < 2:
        return Answer(
            title,
            "It cannot be decided with n = 1: one seed gives no interval.",
            [_mean(task, row)],
            outcome=Verdict.UNDECIDED,
        )
    found = larger(row.interval, p, margin)
    if found is Verdict.HOLDS:
        verdict = f"The claim holds here: {_times(row)} (n = {row.n})."
    elif p < LEVEL:
        verdict = f"The claim does not hold here, the gap is reversed: {_times(row)} (n = {row.n})."
    elif found is Verdict.FAILS:
        verdict = (
            f"The claim does not hold here: a gap, if there is one, is smaller than a factor of {number(margin)}: "
            f"{_times(row)} (n = {row.n})."
        )
    elif row.low > 1 or row.high < 1:
        verdict = (
            f"It cannot be decided: the interval leaves out 1, {_times(row)}, but not after correction for {family} "
            f"tasks (n = {row.n})."
        )
    else:
        verdict = f"It cannot be decided: the interval contains 1, {_times(row)} (n = {row.n})."
    texts = [_mean(task, row), f"Holm-adjusted p over {family} task{'s' * (family != 1)}: {number(p, 2)}."]
    return Answer(title, verdict, [*texts, *_layers(task), *_scope(task, faster)], outcome=found)


def _control(task: Task, margin: float) -> Answer:
    title = f"{task.title}: is the gap absent, as the claim has it for images?"
    row = task.means.get(("r_med", "loss"))
    if row is None or not row.n:
        return Answer(title, f"It cannot be decided: {_why(task)}", _layers(task), outcome=Verdict.UNDECIDED)
    if row.n < 2:
        return Answer(
            title,
            "It cannot be decided with n = 1: one seed gives no interval.",
            [_mean(task, row)],
            outcome=Verdict.UNDECIDED,
        )
    found, near = within(row.interval, margin), f"within a factor of {number(margin)}"
    if found is Verdict.HOLDS:
        verdict = f"It is, {near}: {_times(row)} (n = {row.n})."
        if row.low > 1 or row.high < 1:
            verdict = f"It is, {near}, though the interval leaves out 1: {_times(row)} (n = {row.n})."
    elif row.low > 1:
        verdict = f"It is not: {shown(task.sgd)} has the larger R_med here, too, {_times(row)} (n = {row.n})."
    elif row.high < 1:
        verdict = f"It is reversed: {shown(task.adaptive)} has the larger R_med here, {_times(row)} (n = {row.n})."
    else:
        verdict = (
            f"It cannot be decided: the interval contains 1 but reaches beyond a factor of {number(margin)}, "
            f"{_times(row)} (n = {row.n})."
        )
    return Answer(title, verdict, [_mean(task, row), *_layers(task)], outcome=found)


def _full_batch(noisy: Task, full: Task) -> Answer:
    title = f"{noisy.title}: is the gap there without gradient noise?"
    rows = [t.means.get(("r_med", "loss")) for t in (noisy, full)]
    texts = [f"{_mean(t, row)}" for t, row in zip((noisy, full), rows, strict=True) if row is not None and row.n]
    if rows[0] is None or rows[1] is None or min(r.n for r in rows if r is not None) < 2:
        reason = _why(full) if rows[1] is None else _why(noisy) if rows[0] is None else "that takes two seeds or more."
        return Answer(title, f"It cannot be decided: {reason}", texts, outcome=Verdict.UNDECIDED)
    before, after = (state(row, row.t_test_p) for row in rows if row is not None)
    here = f"full batch {_interval(rows[1])}, mini-batches {_interval(rows[0])}"
    n = min(rows[0].n, rows[1].n)
    mine, theirs = full.by_seed(), noisy.by_seed()
    change = over_seeds([mine[s] - theirs[s] for s in mine if s in theirs])
    smaller = change.high < 1 if before == ABOVE else change.low > 1
    if before == OPEN:
        verdict = f"It cannot be asked: with mini-batches no gap is seen that could survive ({here}, n = {n})."
    elif after == before:
        verdict = f"It is, in the same direction: gradient noise is not needed for it ({here}, n = {n})."
    elif after == OPEN and smaller:
        verdict = (
            f"It is smaller without gradient noise, {_interval(change)} times what it is with mini-batches; whether it "
            f"is there at all cannot be decided ({here}, n = {n})."
        )
    elif after == OPEN:
        verdict = f"It cannot be decided: without noise the interval contains 1 ({here}, n = {n})."
    else:
        verdict = f"It is reversed without gradient noise ({here}, n = {n})."
    if change.n > 1:
        texts.append(f"The full-batch gap over the mini-batch gap, paired by seed: {_interval(change)}.")
    texts.append(
        "Full-batch runs descend on the very examples that R_med is measured on, mini-batch runs on draws from the "
        "whole training set, at learning rates tuned for each; they are compared where losses are "
        f"{_range(full)} instead of {_range(noisy)}."
    )
    return Answer(title, verdict, texts)


def _variants(claimed: Sequence[Task], controls: Sequence[Task]) -> list[Answer]:
    """Whether the verdicts depend on the variant of R_med or on pairing by step."""
    tasks = [*claimed, *controls]
    if not any(("r_med", "loss") in t.means for t in tasks):
        return []
    cases = [(v, "loss") for v in MEANS if v != "r_med"] + [(v, "step") for v in VARIANTS]
    reference = _states(claimed, controls, "r_med", "loss")
    changes: dict[str, list[str]] = {"loss": [], "step": []}
    counted = {"loss": 0, "step": 0}
    texts = []
    for variant, at in cases:
        here = _states(claimed, controls, variant, at)
        for task in tasks:
            before, after = reference[task.name], here[task.name]
            if UNKNOWN in (before, after):
                continue
            counted[at] += 1
            if after != before:
                changes[at].append(f"{task.title} ({MEANS[variant]}): {_change(before, after)}")
        known = [(t, t.means[variant, at]) for t in tasks if (variant, at) in t.means]
        where = "at equal loss" if at == "loss" else "at the same step"
        if known:
            texts.append(f"{MEANS[variant]} {where}: {listed((f'{t.title} {_interval(r)}' for t, r in known), 12)}.")
    steps = [(t, t.means["r_med", "step"].loss_ratio) for t in tasks if ("r_med", "step") in t.means]
    if steps:
        texts.append(
            "At the same step the losses are not equal, and the ratio mixes terrain with progress: the loss of the "
            f"second optimizer over the first one's is {listed((f'{number(x)} ({t.title})' for t, x in steps), 12)}."
        )
    few = [f"{t.title} {len(t.firm)} of {len(t.averaged)}" for t in tasks if t.averaged]
    split = sum(at == "loss" and any((v, at) in t.means for t in tasks) for v, at in cases)
    well = (
        "Well-measured are those matrices of which at most a tenth of the R_med values lack an upper end: "
        f"{listed(few, 12)}."
    )
    return [
        _verdict_on(
            "Does the verdict change with the steadier variants, or over well-measured matrices alone?",
            changes["loss"], counted["loss"], [*texts[:split], well],
        ),
        _verdict_on("Does it change when runs are paired by step?", changes["step"], counted["step"], texts[split:]),
    ]  # fmt: skip


def _verdict_on(title: str, changes: Sequence[str], counted: int, texts: Sequence[str]) -> Answer:
    if not counted:
        return Answer(title, "It cannot be decided: no interval is known.", list(texts), outcome=Verdict.UNDECIDED)
    if not changes:
        return Answer(title, f"No: all {counted} are on the same side of 1 as R_med at equal loss.", list(texts))
    return Answer(title, f"Yes, in {len(changes)} of {counted} cases: {'; '.join(changes)}.", list(texts))


def _change(before: str, after: str) -> str:
    words = {ABOVE: "above 1", BELOW: "below 1", OPEN: "undecided"}
    return f"{words[before]} becomes {words[after]}"


def _states(claimed: Sequence[Task], controls: Sequence[Task], variant: str, at: str) -> dict[str, str]:
    """Task -> side of 1, with Holm's correction over the claimed tasks."""
    p = adjusted(claimed, variant, at)
    rows = {t.name: t.means.get((variant, at)) for t in [*claimed, *controls]}
    p |= {t.name: row.t_test_p if (row := rows[t.name]) is not None else math.nan for t in controls}
    return {name: state(row, p[name]) for name, row in rows.items()}


def _faster(tasks: Sequence[Task]) -> dict[str, str]:
    """Task -> `ABOVE` where the second optimizer's loss at equal steps is the higher one, after Holm's correction."""
    rows = _loss_ratios(tasks)
    after_holm = dict(zip(rows, holm([r.t_test_p for r in rows.values()]), strict=True))
    return {name: state(row, after_holm[name]) for name, row in rows.items()}


def _loss_ratios(tasks: Sequence[Task]) -> dict[str, Row]:
    """Task -> ratio of the losses at the last common step, whose training loss the learning rates were tuned for."""
    found = {}
    for task in tasks:
        rows = [r for r in task.loss if r.at != "all" and r.n > 1] if task.loss is not None else []
        if rows:
            found[task.name] = max(rows, key=lambda r: float(r.at))
    return found


def _speed(tasks: Sequence[Task], sides: dict[str, str]) -> Answer:
    """Which optimizer has the lower evaluation loss at equal steps."""
    title, rows = "Which optimizer is faster?", _loss_ratios(tasks)
    if not rows:
        return Answer(title, "It cannot be decided: no two pairs of runs share a step.", [], outcome=Verdict.UNDECIDED)
    titles = {t.name: t.title for t in tasks}
    adaptive, sgd = shown(tasks[0].adaptive), shown(tasks[0].sgd)
    parts = [
        f"{who} on {listed(titles[n] for n, s in sides.items() if s == side)}"
        for side, who in ((ABOVE, adaptive), (BELOW, sgd), (OPEN, "neither is seen to be faster"))
        if side in sides.values()
    ]
    texts = [
        f"Evaluation loss of {sgd} over that of {adaptive} at the last step: "
        f"{listed((f'{titles[n]} {_interval(r)} (step {r.at})' for n, r in rows.items()), 12)}; decided by "
        f"Holm-adjusted p over {len(rows)} task{'s' * (len(rows) != 1)}. The steps before stand in the table.",
        "The claim is made for tasks on which the adaptive method is faster.",
    ]
    return Answer(title, f"At the last of equal steps: {'; '.join(parts)}.", texts)


def _precision(tasks: Sequence[Task]) -> list[Answer]:
    """How far single measurements can be trusted."""
    texts, worst, open_ended, total = [], 1.0, 0, 0
    for task in tasks:
        parts = []
        for optimizer in (task.adaptive, task.sgd):
            own = [q for q in task.measured(optimizer, task.averaged) if q.low > 0]
            if not own:
                continue
            widths = [q.high / q.low for q in own]
            none = sum(math.isinf(w) for w in widths)
            open_ended, total = open_ended + none, total + len(widths)
            worst = max(worst, statistics.median(widths))
            parts.append(f"{shown(optimizer)} {number(statistics.median(widths))} ({none} of {len(widths)} without an "
                         "upper end)")  # fmt: skip
        if parts:
            texts.append(f"{task.title}: {', '.join(parts)}.")
    if not total:
        return []
    share = f"{open_ended} of {total} have no upper end"
    if worst <= WIDE and open_ended <= 0.1 * total:
        verdict = f"Mostly: their intervals span at most a factor of {number(worst)} in a task's median; {share}."
    else:
        verdict = (
            f"With care: their intervals span up to a factor of {number(worst)} in a task's median, and {share}. A "
            "noisy diagonal may read R_med wrong by a factor that differs between optimizers and that intervals over "
            "seeds do not show."
        )
    lead = "High over low end of the 95 % interval of one R_med of one weight matrix, median by task and optimizer."
    return [Answer("How far can single R_med measurements be trusted?", verdict, [lead, *texts])]


def _why(task: Task) -> str:
    if task.reasons:
        return task.reasons[0].removeprefix(f"{task.title}: ")
    return "no weight matrix has a positive and finite R_med at every iterate of every run."


def _mean(task: Task, row: Row) -> str:
    left = len(task.layers) - len(task.averaged)
    out = f" ({left} left out, of them {len(task.lookups)} embeddings)" if left else ""
    return (
        f"{task.title}: {task.ratio} {_interval(row)}, geometric mean over {len(task.averaged)} weight matrices{out} "
        f"and over losses {_range(task)}; {row.above} of {row.n} seeds above 1."
    )


def _layers(task: Task) -> list[str]:
    table = task.tables.get(("r_med", "loss"))
    rows = [r for r in table.overall() if r.n] if table is not None else []
    if not rows:
        return []
    low, high = min(rows, key=lambda r: r.ratio), max(rows, key=lambda r: r.ratio)
    ends = [f"{number(r.ratio)} ({r.label})" for r in (low, high)]
    span = f"single weight matrices lie between {ends[0]} and {ends[1]}"
    if max(r.n for r in rows) < 2:
        return [f"Ratios of {span}."]
    above, below = sum(r.low > 1 for r in rows), sum(r.high < 1 for r in rows)
    firm = [sum(r.holm_p < LEVEL and (r.ratio > 1) == up for r in rows) for up in (True, False)]
    return [
        f"Ratios of {span}; of {len(rows)} the interval lies above 1 for {above}, below 1 for {below} (after Holm's "
        f"correction over them {firm[0]} and {firm[1]})."
    ]


def _scope(task: Task, side: str | None) -> list[str]:
    if side is None:
        return []
    if side == ABOVE:
        return [f"{shown(task.adaptive)} is the faster one here, as the claim supposes."]
    what = f"{shown(task.sgd)} is the faster one" if side == BELOW else "neither is seen to be faster"
    return [f"Here {what}, so that the task lies outside what the claim is made for."]


def _times(row: Row) -> str:
    return f"the mean ratio over weight matrices is {_interval(row)}"


def _interval(row: Row | OverSeeds | None) -> str:
    if row is None:
        return "not known"
    return number(row.ratio) if math.isnan(row.low) else f"{number(row.ratio)} [{number(row.low)}, {number(row.high)}]"


def _range(task: Task) -> str:
    levels = task.levels()
    if not levels:
        return "of each pair's own"
    return f"between {number(min(levels))} and {number(max(levels))}"
