"""`contrast`: the ratio of a statistic between optimizers, at equal loss, step or time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from geomtraj.comparing.alignment import PAIRINGS, Alignment, check_groups, pair_by_seed, usable_runs
from geomtraj.comparing.kinds import Kind, kinds_of
from geomtraj.comparing.logs import log_ratios
from geomtraj.comparing.matrices import choose
from geomtraj.comparing.primary import Comparison, Question, compared
from geomtraj.comparing.row import Row, rows_of
from geomtraj.comparing.table import PLACES, Table
from geomtraj.errors import InputError, unknown_name
from geomtraj.measuring.results import Results


def contrast(
    groups: Mapping[str, Sequence[Results]],
    statistic: str = "r_med",
    at: str = "loss",
    levels: int = 5,
    *,
    over: str | Sequence[str] | None = None,
) -> Table:
    """Ratios of a statistic, each other group over the first one, with their intervals over seeds.

    With {"adam": ..., "sgdm": ...} the ratio is that of SGDM over Adam. The answer is `table.primary` and
    `table.verdict`: the geometric mean over the weight matrices (blocks of two or more dimensions that are not
    embeddings), one number for each pair of runs and a t-interval over pairs. The rows of single blocks, with Holm's
    correction over them, are for exploring.

    Runs are paired by the seed in their `meta`, by order where it is not known. At equal loss a run counts up to its
    lowest loss, and its value at a level comes from the first two consecutive iterates between which the loss falls
    past it, interpolated log-linearly; nothing is extrapolated. Values that are missing, NaN, zero or infinite enter no
    mean and are counted in the rows' status.

    Args:
        groups: Name -> the results of its runs, one per seed.
        statistic: What to compare; each of its labels (blocks) gives rows of its own.
        at: "loss" (equal evaluation loss), "step" (same step) or "time" (equal training time).
        levels: How many losses or times to compare at; at "step" all common steps are taken.
        over: Labels, or globs of them, that the primary answer is the mean over, in place of the weight matrices.

    Returns:
        The primary answer, and one row per comparison, label and level, with rows at "all" for the pairs' mean log
        ratio over the levels.

    Raises:
        InputError: Groups of another form, fewer than two of them, an unknown statistic or `at`, an `over` that fits
            nothing, or runs that cannot be compared, such as two that never reach a common loss.
    """
    checked = check_groups(groups)
    if at not in PAIRINGS:
        raise unknown_name("pairing (at)", str(at), PAIRINGS)
    if not isinstance(statistic, str):
        raise InputError(f"statistic must be a name such as 'r_med', not {type(statistic).__name__}.")
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1:
        raise InputError(f"levels is {levels!r}: it must be a whole number, 1 or more.")
    if len(checked) < 2:
        raise InputError(f"a contrast needs two groups or more, but there is only {next(iter(checked))!r}.")

    usable, notes = usable_runs(checked, statistic, needs_loss=at == "loss")
    notes += _unlike_settings(checked, statistic)
    first, *others = usable
    rows: list[Row] = []
    comparisons: list[Comparison] = []
    kinds: list[Kind] = []
    for other in others:
        if not usable[first] or not usable[other]:
            empty = other if usable[first] else first
            notes.append(f"{other} cannot be compared with {first}: {empty} has no run left.")
            continue
        pairs, remarks = pair_by_seed(usable[first], usable[other])
        alignment = PAIRINGS[at](pairs, levels)
        notes += [*(f"{other} / {first}: {remark}" for remark in remarks), *alignment.notes]
        if alignment.pairs:
            measured = [r for name in (first, other) for r in checked[name] if statistic in r.statistics]
            made, answer, by_kind = _compared(alignment, measured, (other, first), statistic, over)
            rows += made
            kinds += by_kind
            comparisons.append(answer)
            alone = _not_everywhere(alignment)
            if alone:
                notes.append(f"{', '.join(alone)}: not measured in every run of {first} and {other}.")
    if not rows:
        reason = " ".join(notes) or f"no measurement of {statistic} holds a value."
        raise InputError(f"nothing can be compared at equal {at}: {reason}")
    return Table(statistic, at, tuple(rows), tuple(dict.fromkeys(notes)), tuple(comparisons), tuple(kinds))


def _compared(
    alignment: Alignment, runs: list[Results], names: tuple[str, str], statistic: str, over: str | Sequence[str] | None
) -> tuple[list[Row], Comparison, tuple[Kind, ...]]:
    """The rows of one comparison, its primary answer, and the ratios of kinds of layers."""
    logs = log_ratios(alignment)
    robust = log_ratios(alignment, open_ends=False) if logs.open_ended.any() else logs
    choice = choose(runs, alignment.labels, over)
    pairs = [(b.name, a.name, a.seed if a.seed == b.seed else None) for a, b in alignment.pairs]
    question = Question(*names, statistic, PLACES[alignment.at], choice, _reasons(runs, statistic))
    answer = compared(logs, robust, question, pairs)
    return (
        rows_of(logs, alignment.places[0].tolist() if alignment.shared else None, *names),
        answer,
        kinds_of(logs, *names),
    )


def _reasons(runs: list[Results], statistic: str) -> dict[str, str]:
    """Label -> the first reason that a measurement gives for a value that cannot be used."""
    found: dict[str, str] = {}
    for m in (m for r in runs for m in r.of(statistic)):
        for label, q in m.quantities.items():
            if label not in found and not (math.isfinite(q.value) and q.value):
                details = m.details.get(label)
                if isinstance(details, dict) and isinstance(details.get("status"), str):
                    found[label] = details["status"]
    return found


def _not_everywhere(alignment: Alignment) -> list[str]:
    """Labels that some run lacks."""
    every = [set(run.curve.labels) for pair in alignment.pairs for run in pair]
    return [label for label in alignment.labels if any(label not in labels for labels in every)]


def _unlike_settings(groups: dict[str, list[Results]], statistic: str) -> list[str]:
    """Notes on runs measured on different losses, or with different settings."""
    measured = [m for runs in groups.values() for r in runs for m in r.measurements]
    notes = []
    if len({str(m.settings) for m in measured if m.statistic == statistic}) > 1:
        notes.append(f"{statistic} was measured with different settings in different runs.")
    if len({m.made["problem"] for m in measured if "problem" in m.made}) > 1:
        notes.append("the runs were measured on different losses (model, batches): equal values may not mean the same.")
    return notes
