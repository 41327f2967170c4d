"""The paper's main experiment: R_med along the paths of Adam and of SGD with momentum, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from analyses.adam_vs_sgd import page
from analyses.adam_vs_sgd.data import Task, compare, lookups
from analyses.common import trajectories
from analyses.common.command import Command, options
from analyses.common.run import Analysis, Options, start
from geomtraj.errors import InputError, unknown_name
from geomtraj.reporting import ADAPTIVE, SGD

NAME = "adam_vs_sgd"
FULL = "_full_batch"


@click.command(NAME, cls=Command, context_settings={"show_default": True})
@options
def main(**options: Any) -> None:
    """Does SGD with momentum run through larger R_med than Adam on language, and not on images?

    Tunes both optimizers on language modelling, text classification, translation and images with equal budgets, trains
    with several seeds, measures R_med of every layer along the way, and compares the two at equal loss and at equal
    steps. Full-batch training on translation asks whether gradient noise is the cause. Writes
    runs/analyses/adam_vs_sgd/index.html; runs are kept in runs/analyses/trajectories/, and the same command goes on.

    \b
    MNIST too:        --set tasks='["language", "images", "mnist"]'
    Your own text:    --set recipes.language.options.text='"my.txt"'
    Your own texts and labels (CSV), or sentence pairs (TSV):
                      --set recipes.classification.options.path='"my.csv"'
                      --set recipes.translation.options.path='"my.tsv"'
    """  # noqa: D301
    run(start(NAME, Options(**options), base="trajectories"))


def run(analysis: Analysis) -> Path:
    """Compute what is missing and write the page."""
    config = analysis.config
    check(config)
    add_full_batch(config)
    rates = trajectories.tuned(analysis)
    runs = trajectories.measured(analysis, rates, {"r_med": config["r_med"], "loss": {}})
    found = _compared(analysis, runs)
    noiseless = {name: found.pop(name + FULL) for name in _noiseless(config) if name + FULL in found}
    claimed = [task for name, task in found.items() if name not in config["controls"]]
    controls = [task for name, task in found.items() if name in config["controls"]]
    pairs = [(found[name], full) for name, full in noiseless.items() if name in found]
    return page.write(analysis, rates, claimed, controls, pairs)


def check(config: dict[str, Any]) -> None:
    """Refuse what cannot be run or read, before anything is trained.

    Raises:
        InputError: An unknown recipe, an optimizer of the wrong family, or a number out of range.
    """
    trajectories.check(config)
    adaptive, sgd = config["optimizers"]
    if adaptive not in ADAPTIVE or sgd not in SGD:
        raise InputError(
            f"optimizers are {config['optimizers']}: give an adaptive one first and one of SGD's family second, such "
            'as ["adam", "sgdm"].'
        )
    for key in ("controls", "full_batch"):
        for name in config[key]:
            if name not in config["recipes"]:
                raise unknown_name(f"recipe in {key}", name, config["recipes"])
    if not config["margin"] > 1:
        raise InputError(f"margin is {config['margin']}: give a factor above 1 within which a ratio counts as 1.")
    for name, changed in config["full_batch"].items():
        if list(changed) != ["steps"]:
            raise InputError(f'full_batch.{name} is {changed}: give its number of steps, such as {{"steps": 100}}.')
    if config["levels"] < 1:
        raise InputError(f"levels is {config['levels']}: it must be at least 1.")


def add_full_batch(config: dict[str, Any]) -> None:
    """Add the recipes of full-batch training, like those with mini-batches but for their steps, to the tasks."""
    for name in _noiseless(config):
        recipe, changed = config["recipes"][name], config["full_batch"][name]
        title = f"{recipe['title']}, full batch"
        config["recipes"][name + FULL] = {**recipe, **changed, "title": title, "full_batch": True}
        config["tasks"] = [*config["tasks"], name + FULL]


def _noiseless(config: dict[str, Any]) -> list[str]:
    """The tasks that are also trained on their full batch."""
    return [name for name in config["full_batch"] if name in config["tasks"]]


def _compared(analysis: Analysis, runs: Any) -> dict[str, Task]:
    """Name -> task; one that lacks an optimizer's runs is left out, and told."""
    config = analysis.config
    found = {}
    for name, by_optimizer in runs.items():
        lacking = [o for o in config["optimizers"] if o not in by_optimizer]
        title = config["recipes"][name]["title"]
        if lacking:
            analysis.problems.append(f"{title} is left out: there is no run of {', '.join(lacking)}.")
            continue
        ordered = {o: by_optimizer[o] for o in config["optimizers"]}
        model = trajectories.task_of({"recipe": config["recipes"][name], "device": "cpu"}).model(0)
        found[name] = compare(name, title, ordered, config["levels"], lookups(model))
    return found


if __name__ == "__main__":
    main()
