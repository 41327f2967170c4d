"""Is R_med a fair stand-in for the condition number? Densities of both optimizers' Hessians at equal loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from analyses.common import trajectories
from analyses.common.command import Command, options
from analyses.common.jobs import Job, compute
from analyses.common.run import Analysis, Options, start
from analyses.spectra import page
from analyses.spectra.data import Task, gather, spectrum_at
from geomtraj.comparing import run_name
from geomtraj.errors import ComputationError, InputError
from geomtraj.inference import Match, match_iterates
from geomtraj.measuring import Measurement, Results
from geomtraj.statistics import REGISTRY as STATISTICS

NAME = "spectra"

Matches = dict[int, list[Match]]


@click.command(NAME, cls=Command, context_settings={"show_default": True})
@options
def main(**options: Any) -> None:
    """Is R_med a fair stand-in for the condition number, the largest over the median |eigenvalue|?

    Takes the iterates of Adam and of SGD with momentum that are nearest to each other in loss, computes Lanczos
    densities of the full Hessian and of each weight matrix's block there, and asks whether R_med ranks iterates and
    layers as lambda_max / median |lambda| does, and whether both tell the same of the two optimizers. Writes
    runs/analyses/spectra/index.html; runs are kept in runs/analyses/trajectories/, and the same command goes on.
    """
    run(start(NAME, Options(**options), base="trajectories"))


def run(analysis: Analysis) -> Path:
    """Compute what is missing and write the page."""
    config = analysis.config
    check(config)
    rates = trajectories.tuned(analysis)
    runs = trajectories.measured(analysis, rates, {"r_med": config["r_med"]})
    matches = {name: matched(analysis, name, groups) for name, groups in runs.items()}
    spectra = _measured(analysis, rates, matches)
    found: list[Task] = []
    for name, groups in runs.items():
        if any(key[0] == name for key in spectra):
            title = config["recipes"][name]["title"]
            found.append(gather(name, title, config["optimizers"], groups, matches[name], spectra))
    return page.write(analysis, rates, found)


def check(config: dict[str, Any]) -> None:
    """Refuse what cannot be run or read, before anything is trained.

    Raises:
        InputError: An unknown recipe or setting, or a number out of range.
    """
    trajectories.check(config)
    STATISTICS["condition"].with_settings(config["condition"])
    if config["condition"].get("max_steps", 1) < config["condition"].get("steps", 1):
        raise InputError("condition.max_steps must not be below condition.steps.")
    if not 1 <= config["pairs"] <= config["latest"]:
        raise InputError(
            f"pairs is {config['pairs']}: compare at least one pair of iterates for each seed, and at most as many as "
            f"latest, {config['latest']}."
        )
    if not 0 < config["loss_difference"] < 1:
        raise InputError(f"loss_difference is {config['loss_difference']}: give a share between 0 and 1.")
    if not 0 < config["fair"] < 1:
        raise InputError(f"fair is {config['fair']}: give a rank correlation between 0 and 1.")


def matched(analysis: Analysis, name: str, groups: Mapping[str, list[Results]]) -> Matches:
    """Seed -> the pairs of iterates of both optimizers that are nearest in loss; what is left out is told."""
    config = analysis.config
    runs: dict[str, dict[int, Results]] = {}
    for optimizer in config["optimizers"]:
        runs[optimizer] = {}
        for i, results in enumerate(groups.get(optimizer, [])):
            if results.diverged:
                analysis.problems.append(f"{name}: {run_name(optimizer, results, i)} is left out: it diverged.")
            else:
                runs[optimizer][results.meta["seed"]] = results
    first, other = (runs[optimizer] for optimizer in config["optimizers"])
    found: Matches = {}
    tolerance = math.log1p(config["loss_difference"])
    for seed in [seed for seed in first if seed in other]:
        losses = [_late(r[seed].losses(), config["latest"]) for r in (first, other)]
        found[seed] = match_iterates(*losses, count=config["pairs"], tolerance=tolerance)
        if len(found[seed]) < config["pairs"]:
            covers = " and ".join(
                f"{optimizer} has {', '.join(f'{loss:.4g}' for loss in mine.values()) or 'none'}"
                for optimizer, mine in zip(config["optimizers"], losses, strict=True)
            )
            analysis.problems.append(
                f"{name} seed {seed}: {len(found[seed])} of {config['pairs']} pairs of iterates have losses within "
                f"{100 * config['loss_difference']:g} % of each other among the last {config['latest']} ({covers})."
            )
    return found


def _late(losses: Mapping[int, float], count: int) -> dict[int, float]:
    """The last iterates: near the start most medians are below rounding."""
    return {step: losses[step] for step in sorted(losses)[-count:] if losses[step] > 0}


def _measured(
    analysis: Analysis, rates: Mapping[str, Any], matches: Mapping[str, Matches]
) -> dict[tuple[str, str, int, int], Measurement]:
    """(recipe, optimizer, seed, step) -> the measurement of the spectrum."""
    config = analysis.config
    jobs: list[Job] = []
    for name, seeds in matches.items():
        for seed, pairs in seeds.items():
            for which, optimizer in enumerate(config["optimizers"]):
                steps = [pair.other if which else pair.first for pair in pairs]
                common = trajectories.common_job(analysis, name)
                jobs += [
                    {**common, "optimizer": optimizer, "lr": rates[name][optimizer].lr, "seed": seed,
                     "iterates": config["iterates"], "step": step, "condition": config["condition"]}
                    for step in steps
                ]  # fmt: skip
    if not jobs:
        raise ComputationError(
            "no two iterates of the optimizers have nearly equal losses: record more (iterates), train longer (steps), "
            f"or allow a larger loss_difference. {' '.join(analysis.problems)}"
        )
    done = compute(analysis, spectrum_at, jobs, "spectra")
    return {
        (job["name"], job["optimizer"], job["seed"], job["step"]): Measurement.from_json(result) for job, result in done
    }


if __name__ == "__main__":
    main()
