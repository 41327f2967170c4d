"""`contrast`: the ratio of a statistic between optimizers, at equal loss, step or time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from geomtraj.contrast.pairing import PAIRINGS, Meeting, check_groups, pair_up, usable_runs
from geomtraj.contrast.seeds import holm, over_seeds
from geomtraj.contrast.table import Row, Table
from geomtraj.errors import InputError, unknown_name
from geomtraj.measuring.results import Results

LEFT_OUT = "missing, zero, infinite or of unlike signs"


def contrast(
    groups: Mapping[str, Sequence[Results]], statistic: str = "r_med", at: str = "loss", levels: int = 5
) -> Table:
    """Ratios of a statistic, each other group over the first one, with their intervals over seeds.

    With {"adam": ..., "sgdm": ...} the ratio is that of SGDM over Adam. Runs are paired by the seed in their `meta`,
    by order where it is not known. At equal loss, each run's value at a level comes from the first two consecutive
    iterates whose losses lie on both sides of it, interpolated log-linearly; nothing is extrapolated.

    Args:
        groups: Name -> the results of its runs, one per seed.
        statistic: What to compare; each of its labels (blocks) gives rows of its own.
        at: "loss" (equal evaluation loss), "step" (same step) or "time" (equal training time).
        levels: How many losses or times to compare at; at "step" all common steps are taken.

    Returns:
        One row per comparison, label and level, and rows at "all" for the pairs' mean log ratio over the levels.

    Raises:
        InputError: Groups of another form, fewer than two of them, an unknown statistic or `at`, or runs that cannot
            be compared, such as two that never reach a common loss.
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
    for other in others:
        if not usable[first] or not usable[other]:
            empty = other if usable[first] else first
            notes.append(f"{other} cannot be compared with {first}: {empty} has no run left.")
            continue
        pairs, remarks = pair_up(usable[first], usable[other])
        meeting = PAIRINGS[at](pairs, levels)
        notes += [*(f"{other} / {first}: {remark}" for remark in remarks), *meeting.notes]
        if meeting.pairs:
            rows += _rows(meeting, at, numerator=other, denominator=first)
            runs = [run for pair in meeting.pairs for run in pair]
            alone = [label for label in _labels(meeting) if any(label not in run.curve.values for run in runs)]
            if alone:
                notes.append(f"{', '.join(alone)}: not measured in every run of {first} and {other}.")
    if not rows:
        raise InputError(f"nothing can be compared at equal {at}: {' '.join(notes)}")
    return Table(statistic, at, tuple(rows), tuple(dict.fromkeys(notes)))


def _rows(meeting: Meeting, at: str, numerator: str, denominator: str) -> list[Row]:
    pairs, labels = meeting.pairs, _labels(meeting)
    losses = _log_ratios(
        [
            [(meeting.loss(b, x, at), meeting.loss(a, x, at)) for x in places]
            for (a, b), places in zip(pairs, meeting.places, strict=True)
        ]
    )
    logs = {
        label: _log_ratios(
            [
                [(meeting.value(b, label, x, at), meeting.value(a, label, x, at)) for x in places]
                for (a, b), places in zip(pairs, meeting.places, strict=True)
            ]
        )
        for label in labels
    }
    # The last place stands for all of them: each pair's mean.
    places: list[float | str] = ["all"]
    if meeting.shared:
        places = [*meeting.places[0].tolist(), "all"]
    rows = []
    for which, place in enumerate(places):
        entries = {label: x if place == "all" else x[:, [which]] for label, x in logs.items()}
        found = [over_seeds(_known(x)) for x in entries.values()]
        loss_ratio = over_seeds(_known(losses if place == "all" else losses[:, [which]])).ratio
        adjusted = holm([f.t_test_p for f in found])
        for (label, x), f, p in zip(entries.items(), found, adjusted, strict=True):
            rows.append(
                Row(
                    label=label,
                    numerator=numerator,
                    denominator=denominator,
                    at=place,
                    ratio=f.ratio,
                    low=f.low,
                    high=f.high,
                    n=f.n,
                    above=f.above,
                    sign_test_p=f.sign_test_p,
                    t_test_p=f.t_test_p,
                    holm_p=p,
                    loss_ratio=loss_ratio,
                    status=_status(x, f.n),
                )
            )
    # Block by block, each with its levels and their mean last.
    return [row for label in labels for row in rows if row.label == label]


def _labels(meeting: Meeting) -> list[str]:
    return list(dict.fromkeys(label for pair in meeting.pairs for run in pair for label in run.curve.values))


def _log_ratios(values: list[list[tuple[float, float]]]) -> np.ndarray:
    """log(numerator / denominator), shape (pairs, places); NaN where it does not exist."""
    array = np.array(values, dtype=np.float64)
    above, below = array[..., 0], array[..., 1]
    with np.errstate(all="ignore"):
        usable = np.isfinite(above) & np.isfinite(below) & (np.sign(above) * np.sign(below) > 0)
        return np.where(usable, np.log(np.abs(above)) - np.log(np.abs(below)), np.nan)


def _known(logs: np.ndarray) -> np.ndarray:
    """Each pair's mean over the places that can be read; pairs without any are left out."""
    return np.array([row[np.isfinite(row)].mean() for row in logs if np.isfinite(row).any()])


def _status(entries: np.ndarray, n: int) -> str:
    pairs, places = entries.shape
    missing = int(np.isnan(entries).sum())
    remarks = []
    if n == 0:
        remarks.append(f"no pair has a usable value ({LEFT_OUT})")
    elif missing and places == 1:
        remarks.append(f"{missing} of {pairs} pairs left out ({LEFT_OUT})")
    elif missing:
        remarks.append(f"{missing} of {entries.size} values left out ({LEFT_OUT})")
    if n == 1:
        remarks.append("no interval can be given with one seed")
    return "; ".join(remarks) or "ok"


def _unlike_settings(groups: dict[str, list[Results]], statistic: str) -> list[str]:
    """Notes on runs measured on different losses, or with different settings."""
    measured = [m for runs in groups.values() for r in runs for m in r.measurements]
    notes = []
    if len({str(m.settings) for m in measured if m.statistic == statistic}) > 1:
        notes.append(f"{statistic} was measured with different settings in different runs.")
    if len({m.made["problem"] for m in measured if "problem" in m.made}) > 1:
        notes.append("the runs were measured on different losses (model, batches): equal values may not mean the same.")
    return notes
