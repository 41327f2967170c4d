"""What the commands have in common: options, and what is written after them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from geomtraj import plugins, tasks
from geomtraj.errors import InputError
from geomtraj.problem import Problem
from geomtraj.registering import register_all, statistic
from geomtraj.statistics import Statistic, find, resolve
from geomtraj.trajectory import Trajectory

RUNS = click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    help="Threads of each process. With one, runs side by side do not wait for each other.",
)


def _registered(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> None:
    for name in names:
        register_all(name)


PLUGINS = click.option(
    "--plugin",
    "plugin",
    multiple=True,
    is_eager=True,
    expose_value=False,
    callback=_registered,
    metavar="FILE_OR_MODULE",
    help="Python code with statistics, tasks or optimizers of your own, repeatable.",
)


def task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose a task."""
    for option in (
        click.option("--task", "task_name", default="pydoc-lm", help="Name of a task."),
        click.option(
            "--option", "options", multiple=True, metavar="NAME=VALUE", help="Option of the task, repeatable."
        ),
        click.option(
            "--text", type=click.Path(path_type=Path), help="Text file for pydoc-lm in place of pydoc's topics."
        ),
        click.option("--device", default="cpu", help="cpu, cuda or cuda:N."),
        PLUGINS,
    ):
        command = option(command)
    return command


def task(name: str, options: Iterable[str], text: Path | None, device: str) -> tasks.Task:
    """The task of that name with options written as NAME=VALUE."""
    given = pairs(options, "--option") | {"device": device}
    if text is not None:
        given["text"] = str(text.resolve())
    return tasks.make(name, **given)


def pairs(written: Iterable[str], flag: str) -> dict[str, Any]:
    """NAME=VALUE pairs; values as JSON where they are that, else as text.

    Raises:
        InputError: One is written otherwise.
    """
    parsed = {}
    for pair in written:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise InputError(f"cannot read {flag} {pair!r}: write NAME=VALUE.")
        try:
            parsed[name] = json.loads(text)
        except ValueError:
            parsed[name] = text
    return parsed


def statistics_of(names: str, settings: Iterable[str]) -> list[Statistic]:
    """Statistics by name, or MODULE:CLASS, with settings written as STATISTIC.SETTING=VALUE."""
    changes: dict[str, dict[str, Any]] = {}
    for target, value in pairs(settings, "--set").items():
        name, dot, setting = target.partition(".")
        if not dot:
            raise InputError(f"cannot read --set {target!r}: write STATISTIC.SETTING=VALUE, like r_med.samples=128.")
        changes.setdefault(name, {})[setting] = value
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    return resolve([statistic(name) if ":" in name else find(name)() for name in wanted], changes)


def problem_of(trajectory: Trajectory, named: str | None, device: str | None) -> Problem:
    """The problem to measure a trajectory on.

    Args:
        trajectory: The trajectory.
        named: FILE:NAME of a `gt.Problem`, or of a function that makes one, of nothing or of the run's meta; None for
            that of the task which `geomtraj train` recorded the run on.
        device: Where to measure; None for the device of training.

    Raises:
        InputError: There is none.
    """
    if named is not None:
        return _named_problem(named, trajectory, device)
    meta = trajectory.meta
    options = meta.get("task_options")
    if not (isinstance(meta.get("task"), str) and isinstance(options, dict) and isinstance(meta.get("seed"), int)):
        raise InputError(
            f"{trajectory.path} was not recorded by `geomtraj train`: say with --problem FILE:NAME what its loss is, a "
            "gt.Problem or a function that makes one, or measure it in Python, with gt.measure."
        )
    chosen = tasks.make(meta["task"], **(options if device is None else options | {"device": device}))
    return chosen.problem(chosen.model(meta["seed"]))


def _named_problem(named: str, trajectory: Trajectory, device: str | None) -> Problem:
    found = plugins.named(named)
    if device is not None:
        raise InputError(f"--device {device} is for tasks by name: {named} makes its own problem, on its own device.")
    if not isinstance(found, Problem) and callable(found):
        takes = inspect.signature(found).parameters.values()
        needed = [p for p in takes if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(needed) > 1:
            raise InputError(f"{named} takes {len(needed)} arguments: let it take none, or the run's meta.")
        found = found(trajectory.meta) if needed else found()
    if not isinstance(found, Problem):
        raise InputError(f"{named} is a {type(found).__name__}: name a gt.Problem, or a function that returns one.")
    return found
