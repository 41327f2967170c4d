"""The theorem on the two-layer linear network: closed forms, SGD with momentum of order log d, Adam near 1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from analyses.common.command import Command, options
from analyses.common.jobs import Job, compute
from analyses.common.run import Analysis, Options, start
from analyses.two_layer_linear import page
from analyses.two_layer_linear.data import check_engine, train_one
from geomtraj.errors import InputError

NAME = "two_layer_linear"
SMALLEST = 8  # dimension; below it the law of the maximum of d squares says next to nothing


@click.command(NAME, cls=Command, context_settings={"show_default": True})
@options
def main(**options: Any) -> None:
    """Does R_med stay of order log d under SGD with momentum, and go to 1 under Adam, as the theorem says?

    Trains the two-layer linear network L = 1/2 ||W2 W1 - A||^2 from a small Gaussian start with both optimizers, at
    several dimensions and seeds, reads R_1 and R_2 where the loss has fallen to given fractions of the start's, and
    compares them with the closed forms. The learning rates are those of the config over sqrt(d), and are swept; Adam is
    also run with steps below the start's standard deviation. Writes runs/analyses/two_layer_linear/index.html; what is
    computed is kept, and the same command goes on from there.
    """
    run(start(NAME, Options(**options)))


def run(analysis: Analysis) -> Path:
    """Compute what is missing and write the page."""
    config = analysis.config
    check(config)
    common = {"alpha": config["alpha"], "device": analysis.device, "target_seed": config["target_seed"]}
    common |= {"levels": sorted(config["levels"], reverse=True), "max_steps": config["max_steps"]}
    names = list(config["rates"])

    def jobs(dims: Sequence[int], seeds: Sequence[int], curve: Sequence[int] = (), **changed: Any) -> list[Job]:
        return [
            {**common, "optimizer": name, "hyper": config["hyper"][name], "c": config["rates"][name], "d": d,
             "seed": seed, "curve": d == config["curve_dim"] and seed in curve, **changed}
            for d in dims for name in names for seed in seeds
        ]  # fmt: skip

    seeds, some = config["seeds"], config["seeds"][: config["sweep_seeds"]]
    engine = compute(analysis, check_engine, jobs(config["engine_dims"], seeds[:1]), "engine")
    by_dimension = compute(
        analysis, train_one, jobs(config["dims"], seeds, curve=seeds[: config["curve_seeds"]]), "dimensions"
    )
    at = [config["sweep_dim"]]
    rates = [job for c in config["rate_grid"] for job in jobs(at, some, c=c)]
    starts = [job for alpha in config["alpha_grid"] for job in jobs(at, some, alpha=alpha)]
    slow = [job | {"share": config["small_steps"]} for job in jobs(config["small_step_dims"], some)]
    slowly = compute(
        analysis, train_one, [job | {"curve": False} for job in slow if job["optimizer"] == "adam"], "small steps"
    )
    swept = compute(analysis, train_one, rates, "learning rates")
    started = compute(analysis, train_one, starts, "starts")
    return page.write(analysis, engine, by_dimension, slowly, swept, started)


def check(config: dict[str, Any]) -> None:
    """Refuse what cannot be run or read.

    Raises:
        InputError: A dimension, level, seed or optimizer that does not do.
    """
    dims = [*config["dims"], config["sweep_dim"], *config["engine_dims"], *config["small_step_dims"]]
    if min(dims) < SMALLEST:
        raise InputError(
            f"d = {min(dims)} is too small: the prediction is one for large d, give dimensions of at least {SMALLEST} "
            "(results of other dimensions are kept)."
        )
    if not all(0 < level < 1 for level in config["levels"]):
        raise InputError(f"the levels {config['levels']} must be fractions of the start's loss, between 0 and 1.")
    if config["reference"] not in config["levels"]:
        raise InputError(f"the reference {config['reference']} must be one of the levels {config['levels']}.")
    if len(set(config["seeds"])) < len(config["seeds"]):
        raise InputError(f"the seeds {config['seeds']} must differ from each other.")
    if config["sweep_seeds"] < 1 or config["max_steps"] < 1:
        raise InputError("sweep_seeds and max_steps must be at least 1.")


if __name__ == "__main__":
    main()
