"""What region_switch found, in words computed from the numbers."""

from __future__ import annotations

import math
from typing import Any

from analyses.region_switch.data import MEASURES, Arm, Compared, Runs, name_of, paired
from geomtraj.inference import OverSeeds, holm, over_seeds
from geomtraj.reporting import Answer, number

LEVEL = 0.05


def answers(config: dict[str, Any], runs: Runs) -> list[Answer]:
    """The findings, recipe by recipe."""
    found = []
    for name in runs.tasks:
        here, title = runs.of(name), config["recipes"][name]["title"]
        found += [_speed(config, here, title), _larger(config, here, title), _r_med(config, here, title)]
    return found


def region_ratios(config: dict[str, Any], runs: Runs, measure: str) -> dict[str, Compared]:
    """Optimizer -> speed from the first region over speed from the second, fresh state."""
    first, second = config["optimizers"]
    return {o: runs.ratio(Arm(first, o), Arm(second, o), measure) for o in config["continue_with"]}


def corrected(ratios: dict[str, Compared]) -> dict[str, float]:
    """Optimizer -> p after Holm's correction over the optimizers."""
    return dict(zip(ratios, holm([c.over.t_test_p for c in ratios.values()]), strict=True))


def _speed(config: dict[str, Any], runs: Runs, title: str) -> Answer:
    first, second = config["optimizers"]
    chosen = "sgd" if "sgd" in config["continue_with"] else list(config["continue_with"])[-1]
    falls, late, steps = (region_ratios(config, runs, m) for m in MEASURES)
    p = corrected(falls)
    title = f"{title}: {name_of(chosen)} from {name_of(first)}'s region and from {name_of(second)}'s"
    texts = [
        f"{_capital(name_of(o))} from {name_of(first)}'s region over {name_of(second)}'s: fall of the loss in "
        f"{config['window']} steps {_ratio(falls[o].over)} (n = {falls[o].over.n}, Holm's p over {len(falls)} "
        f"optimizers {number(p[o], 2)}), counted from the first tenth of them on {_ratio(late[o].over)}; speed to the "
        f"common lower loss {_ratio(steps[o].over)}.{_missing(falls[o], late[o], steps[o])}"
        for o in falls
    ]
    difference = runs.difference(Arm(first, chosen), Arm(second, chosen))
    texts.append(
        f"Difference of the two falls for {name_of(chosen)}: {number(difference.mean)} [{number(difference.low)}, "
        f"{number(difference.high)}] nats."
    )
    jumps = [
        f"{_capital(name_of(o))} {' and '.join(_ratio(runs.jump(Arm(r, o))) for r in (first, second))}" for o in falls
    ]
    texts.append(
        f"Highest loss in the first tenth of the window over that at the switch, from {name_of(first)}'s and from "
        f"{name_of(second)}'s region: {'; '.join(jumps)}."
    )
    texts.append(_starts(config, runs, chosen))
    counted = runs.ratio(Arm(first, chosen), Arm(second, chosen), "fall", runs.level())
    return Answer(title, speed_verdict(falls[chosen], counted, steps[chosen], p[chosen], first, second, chosen), texts)


def speed_verdict(
    falls: Compared, counted: Compared, steps: Compared, p: float, first: str, second: str, chosen: str
) -> str:
    """One sentence on the region's effect on one optimizer.

    Args:
        falls: Ratio of the falls over the window, each from its own start's loss.
        counted: The same counted from the switch loss, since starts are not exactly there.
        steps: Ratio of the speeds to a common lower loss.
        p: Holm's p of the falls' ratio.
        first: The region above the line.
        second: The region below the line.
        chosen: The optimizer.
    """
    over, who = falls.over, _capital(name_of(chosen))
    if falls.missing:
        seeds = ", ".join(map(str, falls.missing))
        return (
            f"It cannot be decided by a ratio: for seed{'s' * (len(falls.missing) > 1)} {seeds} an arm diverged or its "
            "loss did not fall."
        )
    if over.n < 2:
        return f"It cannot be decided with {over.n} seed{'s' * (over.n != 1)}: there is no interval."
    span = f"{number(over.ratio)} [{number(over.low)}, {number(over.high)}] times as far (n = {over.n})"
    other = f"counted from the switch loss rather than from each start's own it is {_ratio(counted.over)}"
    if not p < LEVEL and over.low <= 1 <= over.high and not counted.over.low <= 1 <= counted.over.high:
        return (
            f"It cannot be decided: from {name_of(first)}'s region {name_of(chosen)}'s loss falls {span}, but {other}."
        )
    if not p < LEVEL:
        lead = "No difference between the regions is seen" if over.low <= 1 <= over.high else (
            "It cannot be decided: the interval leaves out 1, but not after Holm's correction"
        )  # fmt: skip
        return f"{lead}: from {name_of(first)}'s region {name_of(chosen)}'s loss falls {span}."
    faster = over.ratio > 1
    text = f"{who} is {'faster' if faster else 'slower'} from {name_of(first)}'s region: its loss falls {span}"
    if not (counted.over.low > 1 if faster else counted.over.high < 1):
        return f"It cannot be decided: {text[0].lower()}{text[1:]}, but {other}."
    agree = steps.over.low > 1 if faster else steps.over.high < 1
    if agree:
        return f"{text}, and steps to a common loss say the same."
    oppose = steps.over.high < 1 if faster else steps.over.low > 1
    doubt = "but steps to a common loss say the opposite" if oppose else "not confirmed by steps to a common loss"
    return f"{text}, {doubt}."


def _larger(config: dict[str, Any], runs: Runs, title: str) -> Answer:
    first, second = config["optimizers"]
    own = [first, second]
    main = runs.decomposed(own, own, "fall")
    texts = [
        _effects(f"{_capital(MEASURES[m])}, fresh state", runs.decomposed(own, own, m), first, second)
        for m in ("fall", "steps")
    ]
    texts.append(
        _effects("Fall, state carried where region and optimizer agree",
                 runs.decomposed(own, own, "fall", carry=True), first, second)
    )  # fmt: skip
    if "sgd" in config["continue_with"]:
        plain = runs.decomposed(own, [first, "sgd"], "fall")
        texts.append(_effects(f"Fall, {name_of(first)} and plain SGD as the optimizers", plain, first, "sgd", second))
    for region in own:
        found = runs.ratio(Arm(region, region, True), Arm(region, region), "fall")
        texts.append(
            f"State carried over against fresh, {name_of(region)} in its own region: fall {_ratio(found.over)}."
            f"{_missing(found)}"
        )
    verdict = larger_verdict(main, len(runs.seeds), first, second, _simple(runs, first, second))
    return Answer(f"{title}: is the region or the optimizer the larger effect on speed?", verdict, texts)


def larger_verdict(found: Any, seeds: int, first: str, second: str, simple: str) -> str:
    """One sentence or two from the decomposition over four arms.

    Args:
        found: `TwoWay` of region (rows) and optimizer (columns).
        seeds: How many there are in all.
        first: First region and optimizer.
        second: The other one.
        simple: The effects of the optimizer by region, for where the two interact.
    """
    n = found.rows.n
    if n < seeds:
        return f"It cannot be decided: in {seeds - n} of {seeds} seeds an arm diverged or its loss did not fall."
    if n < 2:
        return f"It cannot be decided with {n} seed{'s' * (n != 1)}: there is no interval."
    p = holm([found.rows.t_test_p, found.columns.t_test_p, found.interaction.t_test_p])
    what = {
        "rows": "The region is the larger effect",
        "columns": "The optimizer is the larger effect",
        "": "Which of the two is larger cannot be decided",
    }[found.larger]
    both = (
        f"{name_of(first)}'s region in place of {name_of(second)}'s multiplies the speed by {_ratio(found.rows)}"
        f"{_seen(p[0], found.rows)}, {name_of(first)} in place of {name_of(second)} as the optimizer by "
        f"{_ratio(found.columns)}{_seen(p[1], found.columns)}"
    )
    interact = (
        f" The two interact, so neither number holds alone: {simple}." if p[2] < LEVEL
        else " No interaction of the two is seen."
    )  # fmt: skip
    return f"{what} (n = {n}): {both}.{interact}"


def _simple(runs: Runs, first: str, second: str) -> str:
    parts = [
        f"by {_ratio(found.over)} in {name_of(region)}'s region"
        for region in (first, second)
        for found in [runs.ratio(Arm(region, first), Arm(region, second), "fall")]
    ]
    return f"{name_of(first)} in place of {name_of(second)} multiplies it {' and '.join(parts)}"


def _effects(what: str, found: Any, first: str, second: str, other: str | None = None) -> str:
    p = holm([found.rows.t_test_p, found.columns.t_test_p, found.interaction.t_test_p])
    larger = {"rows": "the region", "columns": "the optimizer", "": "undecided"}[found.larger]
    return (
        f"{what} (n = {found.rows.n}): region, {name_of(first)}'s over {name_of(other or second)}'s, "
        f"{_ratio(found.rows)} (Holm's p {number(p[0], 2)}); optimizer, {name_of(first)} over {name_of(second)}, "
        f"{_ratio(found.columns)} ({number(p[1], 2)}); interaction {_ratio(found.interaction)} ({number(p[2], 2)}); "
        f"larger: {larger}."
    )


def _r_med(config: dict[str, Any], runs: Runs, title: str) -> Answer:
    first, second = config["optimizers"]
    value, end = runs.r_med(), max(config["r_med_at"])
    stay = {o: value(Arm(o, o), end) for o in (first, second)}
    moved = {r: value(Arm(r, o), end) for r, o in ((first, second), (second, first))}
    gap = paired(stay[second], stay[first])
    changes = {r: paired(moved[r], stay[r]) for r in (first, second)}
    p = holm([gap.t_test_p, *(c.t_test_p for c in changes.values())])
    start = paired(value(second, 0), value(first, 0))
    loss = {r: _loss_ratio(runs, Arm(r, o), Arm(r, r)) for r, o in ((first, second), (second, first))}
    texts = [
        f"R_med, geometric mean over {_blocks(runs)}, {name_of(second)}'s region over {name_of(first)}'s: "
        f"{_ratio(start)} at the switch, {_ratio(gap)} after {end} steps, each with its own optimizer (fresh state).",
        *(
            f"{end} steps after the switch from {name_of(r)}'s region to {name_of(o)}, over staying with {name_of(r)}: "
            f"R_med {_ratio(changes[r])} (n = {changes[r].n}, Holm's p over three ratios {number(q, 2)}), loss "
            f"{number(loss[r])}."
            for r, o, q in ((first, second, p[1]), (second, first, p[2]))
        ),
    ]
    others = [o for o in config["continue_with"] if o not in (first, second)]
    for o, r in ((o, r) for o in others for r in (first, second)):
        found = paired(value(Arm(r, o), end), stay[r])
        texts.append(
            f"{_capital(name_of(o))} from {name_of(r)}'s region, over staying with {name_of(r)}: R_med {_ratio(found)}."
        )
    texts.append("At the same step losses differ, so a ratio here mixes the optimizer with progress.")
    verdict = r_med_verdict(gap, changes, p, first, second)
    return Answer(f"{title}: does R_med move towards the new optimizer's level after the switch?", verdict, texts)


def r_med_verdict(
    gap: OverSeeds, changes: dict[str, OverSeeds], p: list[float], first: str, second: str
) -> str:  # fmt: skip
    """One sentence on R_med after the switch.

    Args:
        gap: R_med of staying with the second optimizer over that of staying with the first.
        changes: Region left -> R_med after the switch over that of staying.
        p: Holm's p of the gap and of both changes.
        first: First optimizer.
        second: The other one.
    """
    if min(gap.n, *(c.n for c in changes.values())) < 2:
        return "It cannot be decided: there are not two seeds with R_med in all arms."
    if not p[0] < LEVEL:
        return (
            f"It cannot be asked here: no difference of R_med is seen between staying with {name_of(second)} and "
            f"staying with {name_of(first)} (ratio {_ratio(gap)}, n = {gap.n})."
        )
    parts = []
    for region, to, q in ((first, second, p[1]), (second, first, p[2])):
        c = changes[region]
        wanted = gap.ratio > 1 if to == second else gap.ratio < 1
        lead = f"from {name_of(region)} to {name_of(to)}"
        if not q < LEVEL:
            parts.append(f"{lead} no change is seen ({_ratio(c)})")
        elif (c.ratio > 1) == wanted:
            share = abs(math.log(c.ratio) / math.log(gap.ratio))
            parts.append(f"{lead} it moves that way ({_ratio(c)}, {number(100 * share, 2)} % of the gap in logarithms)")
        else:
            parts.append(f"{lead} it moves the other way ({_ratio(c)})")
    return (
        f"The levels differ ({name_of(second)} over {name_of(first)} {_ratio(gap)}, n = {gap.n}); {'; '.join(parts)}."
    )


def _starts(config: dict[str, Any], runs: Runs, chosen: str) -> str:
    """How equal the losses at the switch are, and what is left when the difference is taken out."""
    first, second = config["optimizers"]
    pairs = [(runs.start(first, s), runs.start(second, s)) for s in runs.seeds]
    worst = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
    falls = [v for x in runs.speeds([Arm(first, chosen), Arm(second, chosen)], "fall").values() for v in x if v > 0]
    counted = runs.ratio(Arm(first, chosen), Arm(second, chosen), "fall", runs.level())
    norms = over_seeds([math.log(a["norm"] / b["norm"]) for a, b in pairs])
    steps = over_seeds([math.log(a["step"] / b["step"]) for a, b in pairs if a["step"] and b["step"]])
    share = f", {number(100 * worst / min(falls), 2)} % of the smallest fall" if falls else ""
    return (
        f"The switch is at loss {number(runs.level(), 4)}; the two losses of a seed differ by at most "
        f"{number(worst, 2)}{share}. Counted from the switch loss rather than from each one's own, the ratio for "
        f"{name_of(chosen)} is {_ratio(counted.over)}. At the switch {name_of(first)} over {name_of(second)}: steps "
        f"taken {_ratio(steps)}, norm of the parameters {_ratio(norms)}."
    )


def _blocks(runs: Runs) -> str:
    used, every = len(runs.blocks()), len(runs.blocks(usable=False))
    return (
        f"{used} of {every} blocks (R_med of the others is not positive and finite everywhere)"
        if used < every
        else f"{used} blocks"
    )


def _loss_ratio(runs: Runs, above: Arm, below: Arm) -> float:
    a, b = runs.seeds_of(above), runs.seeds_of(below)
    both = [s for s in a if s in b and "diverged" not in (a[s]["status"], b[s]["status"])]
    return over_seeds([math.log(a[s]["losses"][-1] / b[s]["losses"][-1]) for s in both]).ratio


def _missing(*found: Compared) -> str:
    seeds = sorted({s for c in found for s in c.missing})
    names = ", ".join(map(str, seeds))
    return f" Seeds left out, since an arm diverged or its loss did not fall: {names}." if seeds else ""


def _seen(p: float, over: OverSeeds) -> str:
    if p < LEVEL:
        return ""
    return " (1 cannot be excluded" + (")" if over.low <= 1 <= over.high else " after Holm's correction)")


def _ratio(x: OverSeeds) -> str:
    if not x.n:
        return "unknown"
    return f"{number(x.ratio)} [{number(x.low)}, {number(x.high)}]" if x.n > 1 else f"{number(x.ratio)} (one seed)"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
