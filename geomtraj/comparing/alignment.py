"""Which runs are compared with each other, and where: at equal loss, at the same step, at equal training time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from geomtraj.comparing.curves import Curve, Places, at_places, between, curve
from geomtraj.errors import InputError, unknown_name
from geomtraj.measuring.results import Results


@dataclass(frozen=True)
class Run:
    """One run of a group.

    Attributes:
        name: In messages.
        seed: None where it is not known.
        curve: Its statistic along the way; up to the lowest loss where runs are paired by their loss.
        rises: Where the lowest loss is, in words, if iterates behind it were cut off; else empty.
    """

    name: str
    seed: int | None
    curve: Curve
    rises: str = ""


Pair = tuple[Run, Run]


def check_groups(groups: object) -> dict[str, list[Results]]:
    """The groups as a dict of lists.

    Raises:
        InputError: They are of another form.
    """
    example = 'write {"adam": [results, ...], "sgdm": [results, ...]}'
    if not isinstance(groups, Mapping):
        raise InputError(f"groups must be a dict of lists of Results, not {type(groups).__name__}: {example}.")
    if not groups:
        raise InputError(f"groups is empty: {example}.")
    checked: dict[str, list[Results]] = {}
    for name, runs in groups.items():
        if not isinstance(name, str):
            raise InputError(f"groups has the key {name!r}: a group's name must be a string, such as 'adam'.")
        if isinstance(runs, (str, Results)) or not isinstance(runs, Sequence):
            raise InputError(f"groups[{name!r}] must be a list of Results, not {type(runs).__name__}: {example}.")
        if not runs:
            raise InputError(f"groups[{name!r}] is an empty list: give at least one run, or leave the group out.")
        for entry in runs:
            if not isinstance(entry, Results):
                raise InputError(
                    f"groups[{name!r}] holds a {type(entry).__name__}: pass what gt.measure returned, "
                    "or geomtraj.measuring.Results.load(folder)."
                )
        checked[name] = list(runs)
    return checked


def run_name(group: str, results: Results, index: int) -> str:
    """How messages name a run: group and seed, or its place in the list."""
    seed = results.meta.get("seed")
    place = f"run {index + 1}" if seed is None else f"seed {seed}"
    return f"{group} {place}"


def usable_runs(
    groups: dict[str, list[Results]], statistic: str, needs_loss: bool
) -> tuple[dict[str, list[Run]], list[str]]:
    """The runs that can be compared, by group, and a note on each that cannot.

    Raises:
        InputError: No run has the statistic, or none has the loss although it is needed.
    """
    everything = [results for runs in groups.values() for results in runs]
    for needed in [statistic, *(["loss"] if needs_loss else [])]:
        if not any(needed in results.statistics for results in everything):
            known = sorted({s for results in everything for s in results.statistics})
            if not known:
                raise InputError("the results hold no measurement at all: measure the trajectories first.")
            raise unknown_name("measured statistic", needed, known)
    usable: dict[str, list[Run]] = {name: [] for name in groups}
    notes = []
    for group, runs in groups.items():
        for index, results in enumerate(runs):
            name = run_name(group, results, index)
            if results.diverged:
                notes.append(f"{name} ({results.path.name}) is left out: its training diverged.")
            elif statistic not in results.statistics:
                notes.append(f"{name} ({results.path.name}) is left out: {statistic!r} was not measured.")
            else:
                along = curve(results, statistic)
                falling = along.falling() if needs_loss else along
                usable[group].append(Run(name, results.meta.get("seed"), falling, _rise(along, falling)))
    return usable, [*notes, *_rising([run for runs in usable.values() for run in runs])]


def _rise(whole: Curve, falling: Curve) -> str:
    """Where a run's loss is lowest and what it rises to behind that; empty where it ends lowest."""
    if len(falling.steps) == len(whole.steps):
        return ""
    rest = whole.losses[len(falling.steps) :]
    end = f" and up to {np.nanmax(rest):.4g} behind it" if np.isfinite(rest).any() else ""
    return f"{falling.losses[-1]:.4g} at step {falling.steps[-1]}{end}"


def _rising(runs: list[Run], most: int = 6) -> list[str]:
    """A note on the runs whose loss is not lowest at their end."""
    rising = [run for run in runs if run.rises]
    if not rising:
        return []
    named = [f"{run.name} {run.rises}" for run in rising[:most]]
    more = f"; and {len(rising) - most} more" if len(rising) > most else ""
    return [
        f"in {len(rising)} of {len(runs)} runs the loss does not end at its lowest ({'; '.join(named)}{more}): "
        "runs are paired where their loss still falls, up to each one's lowest."
    ]


def pair_by_seed(first: list[Run], other: list[Run]) -> tuple[list[Pair], list[str]]:
    """Pairs (run of `first`, run of `other`), by seed where all seeds are known, else by order; and notes.

    Where a seed occurs several times in a group, its runs are paired in order.
    """
    keys_first, keys_other = _keys(first), _keys(other)
    notes = []
    if not set(keys_first) & set(keys_other):
        if first and other and first[0].seed is not None and other[0].seed is not None:
            notes.append(f"{first[0].name} and the others have no seed in common: runs are paired by their order.")
        keys_first, keys_other = {(i, 0): r for i, r in enumerate(first)}, {(i, 0): r for i, r in enumerate(other)}
    pairs = [(run, keys_other[key]) for key, run in keys_first.items() if key in keys_other]
    alone = [run.name for key, run in keys_first.items() if key not in keys_other]
    alone += [run.name for key, run in keys_other.items() if key not in keys_first]
    if alone:
        notes.append(f"left out for want of a partner: {', '.join(alone)}.")
    return pairs, notes


def _keys(runs: list[Run]) -> dict[tuple[int, int], Run]:
    """The runs by (seed, how often the seed came before); empty when a seed is not known."""
    if any(not isinstance(run.seed, int) for run in runs):
        return {}
    seen: dict[int, int] = {}
    keyed = {}
    for run in runs:
        assert run.seed is not None
        keyed[run.seed, seen.get(run.seed, 0)] = run
        seen[run.seed] = seen.get(run.seed, 0) + 1
    return keyed


@dataclass(frozen=True)
class Alignment:
    """Where the pairs of one comparison are read.

    Attributes:
        at: "loss", "step" or "time".
        pairs: The pairs that can be read there.
        places: Levels of the loss, steps or times, by pair, shape (m,); equal for all pairs if `shared`.
        shared: Whether all pairs are read at the same places.
        notes: What was left out, and why.
        log_loss: Whether losses are interpolated on the log scale.
    """

    at: str
    pairs: list[Pair]
    places: list[np.ndarray]
    shared: bool
    notes: list[str] = field(default_factory=list)
    log_loss: bool = True

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels of the runs, in the order of their first appearance."""
        return tuple(dict.fromkeys(label for pair in self.pairs for run in pair for label in run.curve.labels))

    def reading(self, run: Run, places: np.ndarray) -> Places:
        """Between which iterates a run is read at the places (m,)."""
        if self.at == "step":
            return at_places(run.curve.steps, places)
        if self.at == "time":
            return between(run.curve.times, places, log_x=False)
        return between(run.curve.losses, places, self.log_loss, falling=True)

    def losses(self, run: Run, places: np.ndarray) -> np.ndarray:
        """The loss of a run at the places, shape (m,)."""
        return places if self.at == "loss" else self.reading(run, places).read(run.curve.losses)


def meet_at_loss(pairs: list[Pair], levels: int) -> Alignment:
    """Losses strictly inside the range that both runs of every pair cover, evenly spaced on the log scale.

    The ends are left out: the highest loss is often the shared start, where the runs have not parted yet. Where no
    loss is common to all pairs each pair has levels of its own; a pair without a common loss is left out.
    """
    log_loss = all((run.curve.losses[np.isfinite(run.curve.losses)] > 0).all() for pair in pairs for run in pair)
    spaced: Callable = np.geomspace if log_loss else np.linspace

    def grid(high: float, low: float) -> np.ndarray:
        return spaced(high, low, levels + 2)[1:-1]

    alignment = _meet("loss", pairs, ("losses", "measured losses"), lambda c: c.losses, grid, log_loss)
    if not log_loss:
        alignment.notes.append("losses at or below zero occur: interpolation and levels are linear in the loss.")
    return alignment


def meet_at_time(pairs: list[Pair], levels: int) -> Alignment:
    """Training times, in seconds, evenly spaced up to the end of the shortest run."""
    return _meet(
        "time",
        pairs,
        ("times", "recorded times"),
        lambda c: c.times,
        lambda end, start: np.linspace(start, end, levels + 1)[1:],
    )


def meet_at_step(pairs: list[Pair], levels: int) -> Alignment:
    """The steps that all runs were measured at; the shared start (step 0 at equal loss) is left out."""
    del levels
    common = set.intersection(*(set(run.curve.steps.tolist()) for pair in pairs for run in pair))
    notes = []
    if 0 in common:
        starts = [run.curve.losses[run.curve.steps == 0][0] for pair in pairs for run in pair]
        if all(a == b for a, b in zip(starts[::2], starts[1::2], strict=True)):
            common.discard(0)
            notes.append("step 0 is left out: there the runs of a pair stand at the same point.")
    if not common:
        notes.append("no step past the start was measured in all runs: record the runs with the same schedule.")
        return Alignment("step", [], [], True, notes)
    return Alignment("step", pairs, [np.array(sorted(common))] * len(pairs), True, notes)


PAIRINGS: dict[str, Callable[[list[Pair], int], Alignment]] = {
    "loss": meet_at_loss,
    "step": meet_at_step,
    "time": meet_at_time,
}


def _meet(
    at: str,
    pairs: list[Pair],
    words: tuple[str, str],
    axis: Callable[[Curve], np.ndarray],
    grid: Callable[[float, float], np.ndarray],
    log_loss: bool = True,
) -> Alignment:
    """Places inside the range of `axis` that the pairs share."""
    what, measured = words
    kept, ranges, notes = [], [], []
    for pair in pairs:
        spans = [_span(axis(run.curve)) for run in pair]
        low, high = max(span[0] for span in spans), min(span[1] for span in spans)
        if low < high:
            kept.append(pair)
            ranges.append((low, high))
        else:
            covers = " and ".join(f"{run.name} covers {_range(span)}" for run, span in zip(pair, spans, strict=True))
            notes.append(f"a pair without common {what} is left out ({measured}: {covers}).")
    if not kept:
        return Alignment(at, [], [], True, notes, log_loss)
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    if low < high:
        return Alignment(at, kept, [grid(high, low)] * len(kept), True, notes, log_loss)
    notes.append(f"no {what} are common to all pairs: each pair is read at its own, and only their mean is given.")
    return Alignment(at, kept, [grid(high, low) for low, high in ranges], False, notes, log_loss)


def _span(x: np.ndarray) -> tuple[float, float]:
    x = x[np.isfinite(x)]
    return (float(x.min()), float(x.max())) if x.size else (np.nan, np.nan)


def _range(span: tuple[float, float]) -> str:
    return "none" if np.isnan(span[0]) else f"{span[0]:.4g} to {span[1]:.4g}"
