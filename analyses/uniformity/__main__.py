"""Where R_med comes from: singular vectors, near-dead units, token frequencies, or the two sides of a layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from analyses.common import trajectories
from analyses.common.command import Command, options
from analyses.common.run import Analysis, Options, start
from analyses.common.trajectories import Tuned
from analyses.uniformity import page
from analyses.uniformity.data import CONTROL, points_of
from geomtraj.errors import InputError

NAME = "uniformity"


@click.command(NAME, cls=Command, context_settings={"show_default": True})
@options
def main(**options: Any) -> None:
    """Is R_med the non-uniformity of the weights' leading singular vectors, or do dead units and rare tokens make it?

    In the two-layer linear network of the theorem R_med of a layer is max over median of the squared entries of a
    leading singular vector. On the runs that all analyses share, this measures the same of every weight matrix, with
    the units that are near-dead, the tokens' frequencies and the two factors of the Gauss-Newton diagonal, and says how
    much of log R_med each accounts for: within layers, between layers, and of the contrast of the two optimizers at
    equal loss. The two-layer network is run along as a control in which the answer is known. Writes
    runs/analyses/uniformity/index.html; what is computed is kept, and the same command goes on from there.
    """
    run(start(NAME, Options(**options), base="trajectories"))


def run(analysis: Analysis) -> Path:
    """Compute what is missing and write the page."""
    config = analysis.config
    trajectories.check(config)
    check(config)
    statistics = {"r_med": config["r_med"], "singular_vectors": {}, "units": config["units"]}
    rates = trajectories.tuned(analysis)
    runs = trajectories.measured(analysis, rates, statistics)
    analysis.problems += trajectories.edge_remarks(rates)
    known = replace(analysis, config={**config, "recipes": {CONTROL: config["control"]}})
    fixed = {CONTROL: {name: Tuned(rate[0], False, []) for name, rate in config["control"]["rates"].items()}}
    runs |= trajectories.measured(known, fixed, statistics, config["control_iterates"])
    points = {name: points_of(name, pair) for name, pair in runs.items()}
    return page.write(analysis, points, trajectories.rates_sheet(config, rates))


def check(config: dict[str, Any]) -> None:
    """Refuse what cannot be run or compared.

    Raises:
        InputError: A control without a learning rate for one of the optimizers, or a recipe of its name.
    """
    for optimizer in config["optimizers"]:
        if len(config["control"]["rates"].get(optimizer, [])) != 1:
            raise InputError(f"control.rates must give one learning rate for {optimizer}: the control is not tuned.")
    if CONTROL in config["tasks"]:
        raise InputError(f"{CONTROL!r} is the name of the control: give the recipe another one.")
    if config["levels"] < 1:
        raise InputError(f"levels is {config['levels']}: compare at one loss at least.")


if __name__ == "__main__":
    main()
