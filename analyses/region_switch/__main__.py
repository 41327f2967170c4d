"""Does the region matter, or the optimizer? From equal loss in Adam's and SGDM's region, on with each optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from analyses.common import trajectories
from analyses.common.command import Command, options
from analyses.common.jobs import Job, Result, compute
from analyses.common.levels import common_level
from analyses.common.run import Analysis, Options, start
from analyses.region_switch import page
from analyses.region_switch.data import Runs, go, look, reach, retune, whole
from geomtraj.errors import ComputationError, InputError
from geomtraj.training import optimizers

NAME = "region_switch"


@click.command(NAME, cls=Command, context_settings={"show_default": True})
@options
def main(**options: Any) -> None:
    """Does the region matter, or the optimizer?

    Adam and SGD with momentum train to the same evaluation loss. From both iterates training goes on with Adam, SGD
    with momentum and plain SGD, with fresh optimizer state, and with carried state where region and optimizer agree;
    the learning rate is tuned again for each region and optimizer, on other seeds. Compared are the speeds at which
    the evaluation loss falls, paired by seed, and R_med on the way. Writes runs/analyses/region_switch/index.html; what
    is computed is kept, and the same command goes on from there.
    """
    run(start(NAME, Options(**options), base="trajectories"))


def run(analysis: Analysis) -> Path:
    """Compute what is missing and write the page."""
    config = analysis.config
    check(config)
    rates = trajectories.tuned(analysis)
    analysis.problems += trajectories.edge_remarks(rates)
    levels = switch_levels(analysis, rates)
    starts = reached(analysis, rates, levels)
    retuned = retune_all(analysis, rates, starts)
    looks = compute(analysis, look, _looks(analysis, starts), "R_med at the switch")
    arms = compute(analysis, go, _arms(analysis, starts, retuned), "arms")
    return page.write(analysis, rates, levels, retuned, Runs(arms, looks, starts))


def check(config: dict[str, Any]) -> None:
    """Refuse what cannot be run or compared.

    Raises:
        InputError: A value that does not do.
    """
    trajectories.check(config)
    if set(config["seeds"]) & set(config["retune_seeds"]):
        raise InputError(
            f"seeds {config['seeds']} and retune_seeds {config['retune_seeds']} share a seed: learning rates must be "
            "chosen on other seeds than those that are compared."
        )
    if not 0 < config["switch_share"] < 1:
        raise InputError(f"switch_share is {config['switch_share']}: it must be between 0 and 1.")
    if min(config["window"], config["evaluate_every"], *config["r_med_at"]) < 1:
        raise InputError("window, evaluate_every and the steps in r_med_at must be at least 1.")
    if max(config["r_med_at"]) > config["window"]:
        raise InputError(f"r_med_at {config['r_med_at']} must not go beyond the window of {config['window']} steps.")
    if min(config["factors"]) <= 0:
        raise InputError(f"the factors {config['factors']} of the learning rates must be positive.")
    for name, centre in config["continue_with"].items():
        optimizers.entry(name)
        if centre["of"] not in config["optimizers"]:
            raise InputError(f"continue_with.{name}.of is {centre['of']!r}: choose one of {config['optimizers']}.")
    lacking = [name for name in config["optimizers"] if name not in config["continue_with"]]
    if lacking:
        raise InputError(f"continue_with lacks {', '.join(lacking)}: each region's own optimizer must go on too.")


def switch_levels(analysis: Analysis, rates: Any) -> dict[str, float]:
    """Recipe -> the loss at which is switched, from whole runs of the seeds that are not compared."""
    config, levels = analysis.config, {}
    jobs = [
        {**trajectories.common_job(analysis, name), "region": region, "lr": pair[region].lr, "seed": seed}
        for name, pair in rates.items()
        for region in config["optimizers"]
        for seed in config["retune_seeds"]
    ]
    curves: dict[str, dict[str, list[float]]] = {}
    for job, result in compute(analysis, whole, jobs, "whole runs"):
        curves.setdefault(job["name"], {})[f"{job['region']} seed {job['seed']}"] = result["losses"]
    for name, known in curves.items():
        try:
            levels[name] = common_level(known, config["switch_share"])
        except InputError as error:
            analysis.problems.append(f"{name} is left out: {error}")
    if not levels:
        raise ComputationError(f"no task can be switched: {' '.join(analysis.problems)}")
    return levels


def reached(analysis: Analysis, rates: Any, levels: dict[str, float]) -> list[tuple[Job, Result]]:
    """Every run up to the switch loss; what never passes it is told."""
    config = analysis.config
    jobs = [
        {**trajectories.common_job(analysis, name), "region": region, "lr": rates[name][region].lr, "seed": seed,
         "level": level}
        for name, level in levels.items()
        for seed in [*config["retune_seeds"], *config["seeds"]]
        for region in config["optimizers"]
    ]  # fmt: skip
    done = compute(analysis, reach, jobs, "regions")
    for name, level in levels.items():
        for seed in dict.fromkeys(j["seed"] for j, _ in done if j["name"] == name):
            pair = {j["region"]: r for j, r in done if (j["name"], j["seed"]) == (name, seed)}
            if any(r["step"] is None for r in pair.values()):
                covers = " and ".join(f"{region} covers losses {r['covers']}" for region, r in pair.items())
                analysis.problems.append(
                    f"{name}, seed {seed} is left out: its two runs do not both pass the switch loss {level:.4g} "
                    f"({covers})."
                )
    good = [(j, r) for j, r in done if r["step"] is not None]
    regions = len(config["optimizers"])
    pairs = [(j["name"], j["seed"]) for j, _ in good]
    whole_pairs = [(j, r) for j, r in good if pairs.count((j["name"], j["seed"])) == regions]
    names = {j["name"] for j, _ in whole_pairs if j["seed"] in config["seeds"]}
    names &= {j["name"] for j, _ in whole_pairs if j["seed"] in config["retune_seeds"]}
    if not names:
        raise ComputationError(f"no task has a pair of runs at equal loss: {' '.join(analysis.problems)}")
    return [(j, r) for j, r in whole_pairs if j["name"] in names]


def retune_all(analysis: Analysis, rates: Any, starts: Sequence[tuple[Job, Result]]) -> list[tuple[Job, Result]]:
    """The learning rate of every arm, each from a grid of as many and on the same seeds."""
    config, jobs = analysis.config, []
    for name in dict.fromkeys(j["name"] for j, _ in starts):
        for region in config["optimizers"]:
            own = [r for j, r in starts if (j["name"], j["region"]) == (name, region)
                   and j["seed"] in config["retune_seeds"]]  # fmt: skip
            for optimizer, carry in _continuations(config, region):
                centre = config["continue_with"][optimizer]
                grid = sorted(float(f"{rates[name][centre['of']].lr * centre['times'] * f:.2g}")
                              for f in config["factors"])  # fmt: skip
                common = trajectories.common_job(analysis, name)
                jobs.append({**common, "region": region, "optimizer": optimizer, "carry": carry, "grid": grid,
                             "starts": own, "window": config["window"]})  # fmt: skip
    return compute(analysis, retune, jobs, "learning rates after the switch")


def _continuations(config: dict[str, Any], region: str) -> list[tuple[str, bool]]:
    fresh = [(optimizer, False) for optimizer in config["continue_with"]]
    return [*fresh, (region, True)]


def _looks(analysis: Analysis, starts: Sequence[tuple[Job, Result]]) -> list[Job]:
    config = analysis.config
    return [
        {**trajectories.common_job(analysis, j["name"]), "region": j["region"], "seed": j["seed"], "start": r,
         "r_med": config["r_med"]}
        for j, r in starts
        if j["seed"] in config["seeds"]
    ]  # fmt: skip


def _arms(analysis: Analysis, starts: Any, retuned: Any) -> list[Job]:
    config = analysis.config
    return [
        {**trajectories.common_job(analysis, t["name"]), "region": t["region"], "optimizer": t["optimizer"],
         "carry": t["carry"], "lr": found["lr"], "seed": j["seed"], "start": start, "window": config["window"],
         "evaluate_every": config["evaluate_every"], "r_med": config["r_med"],
         "r_med_at": [] if t["carry"] else sorted(config["r_med_at"])}
        for t, found in retuned
        for j, start in starts
        if (j["name"], j["region"]) == (t["name"], t["region"]) and j["seed"] in config["seeds"]
    ]  # fmt: skip


if __name__ == "__main__":
    main()
