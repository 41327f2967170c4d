"""The figures of region_switch."""

from __future__ import annotations

import math
from typing import Any

from analyses.region_switch.data import Arm, Runs, name_of
from geomtraj.inference import fall, mean_over_seeds, over_seeds
from geomtraj.reporting import COLOURS, Mark, Panel, ReportFigure, Skipped, draw_panels


def speed(config: dict[str, Any], runs: Runs) -> ReportFigure | Skipped:
    """Loss against steps after the switch, by recipe and optimizer."""
    panels = []
    for name in runs.tasks:
        here = runs.of(name)
        for optimizer in config["continue_with"]:
            marks = []
            for colour, region in zip(COLOURS, config["optimizers"], strict=False):
                for carry in (False, True):
                    label = f"from {name_of(region)}'s region" + ", state carried over" * carry
                    marks += _curve(here, Arm(region, optimizer, carry), colour, label)
            title = f"{config['recipes'][name]['title']}: {name_of(optimizer)}"
            panels.append(Panel(title, "steps after the switch", "evaluation loss", marks, "y"))
    caption = (
        f"Evaluation loss after the switch, geometric mean over {len(runs.seeds)} seeds with 95 % interval (shaded; "
        "fresh state), learning rate tuned for each region and optimizer; the same batches for all."
    )
    return draw_panels("speed", "Loss after the switch", caption, panels, len(config["continue_with"]), 2.9)


def by_seed(config: dict[str, Any], runs: Runs) -> ReportFigure | Skipped:
    """Falls of single seeds, one region against the other."""
    first, second = config["optimizers"]
    panels = []
    for name in runs.tasks:
        here, marks, seen = runs.of(name), [], [0.0]
        for colour, optimizer in zip(COLOURS[2:], config["continue_with"], strict=False):
            a, b = (here.seeds_of(Arm(region, optimizer)) for region in (first, second))
            both = [(fall(b[s]["losses"]), fall(a[s]["losses"])) for s in a if s in b]
            both = [p for p in both if all(map(math.isfinite, p))]
            seen += [v for p in both for v in p]
            nothing = [p[1] for p in both]
            marks.append(
                Mark("bars", [p[0] for p in both], nothing, colour, _capital(name_of(optimizer)), nothing, nothing)
            )
        ends = [min(seen), max(seen)]
        panels.append(
            Panel(config["recipes"][name]["title"], f"fall from {name_of(second)}'s region, nats",
                  f"fall from {name_of(first)}'s region, nats", [Mark("line", ends, ends, "#000000"), *marks])
        )  # fmt: skip
    caption = (
        f"How far the evaluation loss falls in {config['window']} steps (mean of the last tenth), one dot for each "
        f"seed, fresh state; above the line of equality the fall is larger from {name_of(first)}'s region."
    )
    return draw_panels("by_seed", "The same optimizer from both regions", caption, panels, height=3.6)


def r_med(config: dict[str, Any], runs: Runs) -> ReportFigure | Skipped:
    """R_med at the switch and after it."""
    panels = []
    for name in runs.tasks:
        here = runs.of(name)
        value = here.r_med()
        for region in config["optimizers"]:
            marks = []
            start = value(region, 0)
            for k, (colour, optimizer) in enumerate(zip(COLOURS[2:], config["continue_with"], strict=False)):
                steps, found = [0, *sorted(config["r_med_at"])], [start]
                found += [value(Arm(region, optimizer), step) for step in steps[1:]]
                logs = [mean_over_seeds([math.log(v) for v in x.values()]) for x in found]
                mean, low, high = ([math.exp(v) for v in x] for x in zip(*((m.mean, m.low, m.high) for m in logs),
                                                                          strict=True))  # fmt: skip
                places = [s + (k - 1) * config["window"] * 0.012 * (s > 0) for s in steps]
                marks.append(Mark("line", places, mean, colour))
                marks.append(Mark("bars", places, mean, colour, f"on with {name_of(optimizer)}", low, high))
            title = f"{config['recipes'][name]['title']}: from {name_of(region)}'s region"
            panels.append(Panel(title, "steps after the switch", "R_med", marks, "y"))
    caption = (
        f"R_med after the switch, geometric mean over the blocks that are usable everywhere and over {len(runs.seeds)} "
        "seeds with 95 % interval, fresh state (optimizers are drawn side by side)."
    )
    return draw_panels("r_med", "R_med after the switch", caption, panels, height=3.0)


def _curve(runs: Runs, arm: Arm, colour: str, label: str) -> list[Mark]:
    good = [r for r in runs.seeds_of(arm).values() if r["status"] != "diverged" and r["losses"]]
    if not good:
        return []
    steps = good[0]["steps"]
    means = [over_seeds([math.log(r["losses"][i]) for r in good]) for i in range(len(steps))]
    line = Mark("line", steps, [m.ratio for m in means], colour, label, dashes="--" if arm.carry else "-")
    if arm.carry or len(good) < 2:
        return [line]
    return [line, Mark("band", steps, steps, colour, "", [m.low for m in means], [m.high for m in means])]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
