"""The page of region_switch: tables, figures and findings from the stored runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.common import trajectories
from analyses.common.run import Analysis, finish
from analyses.region_switch import figures, findings
from analyses.region_switch.data import MEASURES, Arm, Done, Runs, name_of
from geomtraj.inference import fall, holm
from geomtraj.reporting import Content, Sheet, listed


def write(analysis: Analysis, rates: Any, levels: dict[str, float], retuned: Sequence[Done], runs: Runs) -> Path:
    """The page, its figures and tables."""
    config = analysis.config
    analysis.problems += remarks(config, retuned, runs)
    content = Content(
        "Does the region matter, or the optimizer?",
        _question(config),
        findings.answers(config, runs),
        [
            lambda: figures.speed(config, runs),
            lambda: figures.by_seed(config, runs),
            lambda: figures.r_med(config, runs),
        ],
        [_speeds(config, runs), _effects(config, runs), _retuned(config, retuned), _starts(runs),
         trajectories.rates_sheet(config, rates), *_single(config, runs)],
    )  # fmt: skip
    return finish(analysis, content, main_figure="speed")


def remarks(config: dict[str, Any], retuned: Any, runs: Runs) -> list[str]:
    """Learning rates at the end of their grids, arms that diverged, and what one seed cannot say."""
    texts = [
        f"{j['name']}: the learning rate {r['lr']:g} of {name_of(j['optimizer'])} ({_state(j)} state) from "
        f"{name_of(j['region'])}'s region is at the end of its grid; a better one may lie beyond."
        for j, r in retuned
        if r["at_edge"]
    ]
    gone = [f"{j['name']} {j['region']} to {j['optimizer']}, {_state(j)}, seed {j['seed']}" for j, r in runs.arms
            if r["status"] == "diverged"]  # fmt: skip
    if gone:
        texts.append(f"{len(gone)} of {len(runs.arms)} arms diverged ({listed(gone, 4)}); they have no speed.")
    if len(config["seeds"]) < 2:
        texts.append("There is one seed only: ratios have no interval, and nothing can be decided; give at least two.")
    return texts


def _question(config: dict[str, Any]) -> str:
    first, second = (name_of(o) for o in config["optimizers"])
    others = ", ".join(name_of(o) for o in config["continue_with"])
    return (
        f"{first} and {second} train from the same start to the same evaluation loss; from both iterates training goes "
        f"on for {config['window']} steps with each of {others} (SGDM is SGD with momentum). If an optimizer is faster "
        "from one region than from the other, the region matters; if two optimizers differ in the same region, the "
        f"optimizer does. SGD's own region is the one that {second} reached. The switch is "
        f"{config['switch_share']:g} of the way, on the log scale, from the start's loss down to what all runs of the "
        "tuning seeds reach, at the iterate nearest to it. Learning rates after the switch are tuned for each region "
        f"and optimizer, {len(config['factors'])} each, on seeds {config['retune_seeds']}, by the training loss at the "
        "window's end; intervals are over the compared seeds at the chosen learning rates and do not hold what another "
        "choice would change. All arms of a seed see the same batches, drawn after those of the runs before. Falls "
        "are also counted from the first tenth of the window on: that leaves out what happens at once, a fall as the "
        "noise of large steps goes or a jump as an optimizer starts anew, but then the way back from a jump counts."
    )


def _speeds(config: dict[str, Any], runs: Runs) -> Sheet:
    first, second = config["optimizers"]
    rows = []
    for name in runs.tasks:
        here = runs.of(name)
        for measure, what in MEASURES.items():
            ratios = findings.region_ratios(config, here, measure)
            p = findings.corrected(ratios)
            for o, c in ratios.items():
                rows.append([name, what, o, c.over.n, c.over.ratio, c.over.low, c.over.high, c.over.above,
                             c.over.sign_test_p, p[o], ", ".join(map(str, c.missing))])  # fmt: skip
    return Sheet(
        "speed", f"Speed from {name_of(first)}'s region over speed from {name_of(second)}'s",
        ["task", "measure", "optimizer", "seeds", "ratio", "low", "high", "above 1", "sign p", "Holm p", "left out"],
        rows,
        "Fresh state; geometric mean with 95 % t-interval, paired by seed; Holm's correction over optimizers. "
        "Left out: seeds for which an arm diverged or its loss did not fall.",
    )  # fmt: skip


def _effects(config: dict[str, Any], runs: Runs) -> Sheet:
    own, rows = config["optimizers"], []
    sets = [(own, False), (own, True)] + [([own[0], o], False) for o in config["continue_with"] if o not in own]
    for name in runs.tasks:
        for measure in ("fall", "steps"):
            for columns, carry in sets:
                t = runs.of(name).decomposed(own, columns, measure, carry)
                p = holm([t.rows.t_test_p, t.columns.t_test_p, t.interaction.t_test_p])
                ends = [v for x in (t.rows, t.columns, t.interaction) for v in (x.ratio, x.low, x.high)]
                larger = {"rows": "region", "columns": "optimizer", "": "undecided"}[t.larger]
                what = f"{columns[0]} / {columns[1]}" + ", own state carried" * carry
                rows.append([name, measure, what, t.rows.n, *ends, *p, larger])
    columns = ["task", "measure", "optimizers", "seeds"]
    columns += [f"{x}{end}" for x in ("region", "optimizer", "interaction") for end in ("", " low", " high")]
    return Sheet(
        "effects", "Region and optimizer", [*columns, "p region", "p optimizer", "p interaction", "larger"], rows,
        "Two-way decomposition of log speed over four arms, as ratios (region: first over second, averaged over both "
        "optimizers), 95 % t-intervals over seeds, Holm's correction over the three; larger: where the intervals of "
        "both product and quotient of the two effects leave out 1. Fall: of the loss over the window; steps: to the "
        "common lower loss, inverted.",
    )  # fmt: skip


def _retuned(config: dict[str, Any], retuned: Sequence[Done]) -> Sheet:
    rows = [
        [j["name"], j["region"], j["optimizer"], _state(j), row["lr"], row["mean"],
         "" if row["mean"] is not None else "diverged",
         ("taken, at the grid's end" if r["at_edge"] else "taken") if row["lr"] == r["lr"] else ""]
        for j, r in retuned
        for row in r["rows"]
    ]  # fmt: skip
    return Sheet(
        "switch_learning_rates", "Learning rates after the switch",
        ["task", "region", "optimizer", "state", "learning rate", "training loss at the end", "status", "taken"], rows,
        f"Chosen by the mean loss of the training batches in the last tenth of the window, on seeds "
        f"{config['retune_seeds']} that are not compared.",
    )  # fmt: skip


def _starts(runs: Runs) -> Sheet:
    rows = [[j["name"], j["seed"], j["region"], j["level"], r["step"], r["loss"], r["loss"] / j["level"] - 1, r["norm"]]
            for j, r in runs.starts if j["seed"] in runs.seeds]  # fmt: skip
    return Sheet(
        "starts", "Where the arms begin",
        ["task", "seed", "region", "switch loss", "step", "loss", "relative difference", "norm of the parameters"],
        rows,
    )  # fmt: skip


def _single(config: dict[str, Any], runs: Runs) -> list[Sheet]:
    """Every arm, and R_med block by block; not shown on the page."""
    arms = [
        [j["name"], j["region"], j["optimizer"], _state(j), j["seed"], j["lr"], r["status"],
         *((r["losses"][0], fall(r["losses"]), r["losses"][-1]) if r["losses"] else (math.nan,) * 3), r["path"]]
        for j, r in runs.arms
    ]  # fmt: skip
    blocks = [
        [j["name"], j["region"], j.get("optimizer", ""), j["seed"], m["step"] if "optimizer" in j else 0, label,
         q["value"], q["low"], q["high"]]
        for j, r in [*runs.looks, *runs.arms]
        for m in r["measurements"] if m["statistic"] == "r_med"
        for label, q in m["quantities"].items()
    ]  # fmt: skip
    means = []
    for name in runs.tasks:
        here = runs.of(name)
        value = here.r_med()
        for region in config["optimizers"]:
            places = [(region, "", 0)] + [
                (Arm(region, o), o, s) for o in config["continue_with"] for s in config["r_med_at"]
            ]
            means += [[name, region, o, s, seed, x] for what, o, s in places for seed, x in value(what, s).items()]
    return [
        Sheet(
            "arms", "Every arm",
            ["task", "region", "optimizer", "state", "seed", "learning rate", "status", "first loss", "fall",
             "last loss", "path"],
            arms, shown=False,
        ),
        Sheet(
            "r_med_blocks", "R_med of every block",
            ["task", "region", "optimizer", "seed", "step", "block", "R_med", "low", "high"], blocks, shown=False,
        ),
        Sheet(
            "r_med", "R_med over blocks", ["task", "region", "optimizer", "step", "seed", "R_med"], means, shown=False
        ),
    ]  # fmt: skip


def _state(job: dict[str, Any]) -> str:
    return "carried" if job["carry"] else "fresh"
