"""The ratio of every single pair of runs: what tables of the form "mean (std)" are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from geomtraj.comparing.alignment import PAIRINGS, check_groups, pair_by_seed, usable_runs
from geomtraj.errors import InputError, unknown_name
from geomtraj.measuring.results import Results


@dataclass(frozen=True)
class PairRatio:
    """One ratio of one pair of runs, numerator over denominator, dimensionless.

    Attributes:
        label: The quantity: block name, or the statistic's own name.
        at: Loss, step or time in seconds where the two are compared.
        seed: Of both runs; None where they are paired by their order.
        ratio: NaN where one of the two values is missing, zero, infinite, or of the other sign.
        numerator_loss: Evaluation loss of the run above the line.
        denominator_loss: Evaluation loss of the run below it.
    """

    label: str
    at: float
    seed: int | None
    ratio: float
    numerator_loss: float
    denominator_loss: float


def pair_ratios(
    numerator: Sequence[Results],
    denominator: Sequence[Results],
    statistic: str = "r_med",
    at: str = "step",
    levels: int = 5,
) -> list[PairRatio]:
    """The ratios behind the rows of `contrast` of the same runs, one for each label, place and pair.

    Args:
        numerator: Runs above the line, one per seed.
        denominator: Runs below it.
        statistic: What to compare.
        at: "loss", "step" or "time", as in `contrast`.
        levels: How many losses or times; at "step" all common steps are taken.

    Raises:
        InputError: As `contrast`.
    """
    if at not in PAIRINGS:
        raise unknown_name("pairing (at)", str(at), PAIRINGS)
    groups = check_groups({"denominator": denominator, "numerator": numerator})
    usable, notes = usable_runs(groups, statistic, needs_loss=at == "loss")
    pairs, remarks = pair_by_seed(usable["denominator"], usable["numerator"])
    alignment = PAIRINGS[at](pairs, levels) if pairs else None
    if alignment is None or not alignment.pairs:
        notes += [*remarks, *(alignment.notes if alignment else [])]
        raise InputError(f"nothing can be compared at equal {at}: {' '.join(notes)}")
    labels = alignment.labels
    found: list[PairRatio] = []
    for (below, above), places in zip(alignment.pairs, alignment.places, strict=True):
        top, bottom = (
            alignment.reading(run, places).read(run.curve.rows(labels, run.curve.values)) for run in (above, below)
        )
        losses = [alignment.losses(run, places) for run in (above, below)]
        seed = below.seed if below.seed == above.seed else None
        found += [
            PairRatio(label, float(x), seed, _ratio(top[i, k], bottom[i, k]), float(losses[0][k]), float(losses[1][k]))
            for i, label in enumerate(labels)
            for k, x in enumerate(places)
        ]
    return sorted(found, key=lambda p: labels.index(p.label))


def mean_ratios(ratios: Sequence[PairRatio], label: str) -> list[PairRatio]:
    """Geometric means over the labels of `pair_ratios`, pair by pair and place by place; NaN where one is missing."""
    by_label: dict[str, list[PairRatio]] = {}
    for p in ratios:
        by_label.setdefault(p.label, []).append(p)
    return [
        replace(same[0], label=label, ratio=float(np.exp(np.mean([np.log(p.ratio) for p in same]))))
        for same in zip(*by_label.values(), strict=True)
    ]


def _ratio(above: float, below: float) -> float:
    usable = np.isfinite(above) and np.isfinite(below) and np.sign(above) * np.sign(below) > 0
    return float(above / below) if usable else np.nan
