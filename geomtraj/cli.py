"""The command line: train, measure, contrast and report, each reading what the one before stored."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import torch

from geomtraj import cli_options, statistics, tasks
from geomtraj._version import __version__
from geomtraj.cli_options import PLUGINS, RUNS, THREADS, pairs, problem_of, statistics_of, task_options
from geomtraj.cli_runs import COMMANDS
from geomtraj.comparing import contrast
from geomtraj.comparing.naming import by_optimizer
from geomtraj.demo import demo
from geomtraj.doctor import doctor
from geomtraj.errors import GeomtrajError, InputError
from geomtraj.measuring import Results, measure
from geomtraj.measuring.workers import pool
from geomtraj.overview import TRAINED
from geomtraj.reporting import report
from geomtraj.training import learning_rates, optimizers
from geomtraj.training.loop import spread, train
from geomtraj.training.sweeps import sweep
from geomtraj.trajectory import Trajectory
from geomtraj.trajectory.files import write_json


class _Commands(click.Group):
    """Prints geomtraj's own errors as the one sentence that they are, with exit status 2."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except GeomtrajError as error:
            click.echo(f"geomtraj: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("geomtraj: stopped; what is finished is stored, the same command goes on from there.", err=True)
            sys.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__)
def main() -> None:
    """See how an optimizer shapes the terrain that its own trajectory runs through."""
    logging.getLogger("geomtraj").addHandler(logging.NullHandler())  # the commands print what is logged


for _command in COMMANDS:
    main.add_command(_command)


@main.command("train")
@task_options
@click.option("--optimizer", required=True, help="Name of an optimizer.")
@click.option("--lr", type=float, help="Learning rate; the swept one if left out.")
@click.option("--hyper", multiple=True, metavar="NAME=VALUE", help="Hyperparameter of the optimizer, repeatable.")
@click.option("--steps", type=int, help="Optimizer steps; the task's default if left out.")
@click.option("--seed", type=int, default=0, help="Seed of initial parameters and batches.")
@click.option("--iterates", type=int, default=7, help="How many iterates to record besides step 0.")
@click.option("--full-batch", is_flag=True, help="Train on the whole evaluation set: no gradient noise.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the trajectory.")
@THREADS
def train_command(
    task_name: str, options: tuple[str, ...], text: Path | None, device: str, optimizer: str, lr: float | None,
    hyper: tuple[str, ...], steps: int | None, seed: int, iterates: int, full_batch: bool, out: Path, threads: int,
) -> None:  # fmt: skip
    """Train a built-in task with one optimizer, recording the trajectory.

    A run that was stopped goes on from its last iterate.
    """
    torch.set_num_threads(threads)
    task = cli_options.task(task_name, options, text, device)
    total = task.default_steps if steps is None else steps
    if iterates < 1 or total < 1:
        raise InputError(f"--iterates {iterates} and --steps {total} must be at least 1.")
    schedule = spread(total, iterates)
    trajectory = train(
        task, optimizer, lr, steps, seed, path=out, schedule=schedule, full_batch=full_batch, **pairs(hyper, "--hyper")
    )
    summary = {
        "status": trajectory.status,
        "steps": trajectory.steps,
        "wall_time": trajectory.manifest.get("wall_time"),
    }
    write_json(out / TRAINED, summary)
    click.echo(f"{out}: {trajectory.status}, {len(trajectory)} iterates up to step {trajectory.steps[-1]}")


@main.command("measure")
@RUNS
@click.option(
    "--statistics", default="r_med,spectrum", help="Names of statistics, or MODULE:CLASS or FILE:CLASS, with commas."
)
@click.option("--set", "settings", multiple=True, metavar="STATISTIC.SETTING=VALUE", help="Setting, repeatable.")
@click.option("--workers", type=click.IntRange(min=1), default=1, help="Processes that measure iterates side by side.")
@click.option("--problem", metavar="FILE:NAME", help="The loss of runs of your own: a gt.Problem, or what makes one.")
@click.option("--device", help="Where to measure; the device of training if left out.")
@click.option("--max-seconds", type=float, help="Begin nothing any more after so many seconds; what is done is stored.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results, where runs are not to be written.")
@click.option("--retry", is_flag=True, help="Measure again where a statistic failed.")
@PLUGINS
@THREADS
def measure_command(
    runs: tuple[Path, ...], statistics: str, settings: tuple[str, ...], workers: int, problem: str | None,
    device: str | None, max_seconds: float | None, out: Path | None, retry: bool, threads: int,
) -> None:  # fmt: skip
    """Measure statistics at every iterate of runs that `geomtraj train` recorded, or of your own with --problem.

    What is stored already is not measured again.
    """
    chosen = statistics_of(statistics, settings)
    if max_seconds is not None and not max_seconds > 0:
        raise InputError(f"--max-seconds {max_seconds} must be above 0.")
    started = time.monotonic()
    torch.set_num_threads(threads)
    with pool(workers, threads) as executor:
        for run in runs:
            left = None if max_seconds is None else max(max_seconds - (time.monotonic() - started), 1e-3)
            trajectory = Trajectory(run)
            results = measure(
                trajectory, problem_of(trajectory, problem, device), chosen, executor,
                max_seconds=left, out=_below(out, run, runs), retry=retry,
            )  # fmt: skip
            _tell(results)
            doubtful = sum(m.status != "ok" for m in results.measurements)
            remark = f", {doubtful} with a remark (see the report)" if doubtful else ""
            click.echo(f"{results.path}: {len(results)} results{remark}")


def _below(out: Path | None, run: Path, runs: tuple[Path, ...]) -> Path | None:
    """The folder of a run's results: `out` itself for one run, else below it by the parts in which runs differ."""
    if out is None or len(runs) == 1:
        return out
    return out / run.resolve().relative_to(os.path.commonpath([r.resolve().parent for r in runs]))


@main.command("contrast")
@RUNS
@click.option("--statistic", default="r_med", help="Which statistic to compare.")
@click.option("--at", default="loss", help="Pairing: loss, step or time.")
@click.option(
    "--over",
    multiple=True,
    metavar="BLOCK",
    help="Block, or glob of blocks, that the answer is the mean over in place of the weight matrices, repeatable.",
)
@click.option("--out", type=click.Path(path_type=Path), help="CSV file to write.")
def contrast_command(runs: tuple[Path, ...], statistic: str, at: str, over: tuple[str, ...], out: Path | None) -> None:
    """Compare measured runs of different optimizers, seed by seed.

    Runs are grouped by their optimizer, and by its learning rate and settings where these differ, in the order of the
    arguments; ratios are over the first group. The first line
    is the answer: above, below or undecided, for the mean over the weight matrices with runs as units.
    """
    table = contrast(_groups(runs), statistic=statistic, at=at, over=list(over) or None)
    if out is not None:
        table.to_csv(out)
    click.echo(str(table))


@main.command("report")
@RUNS
@click.option("--out", type=click.Path(path_type=Path), default=Path("report.html"), help="Page to write.")
def report_command(runs: tuple[Path, ...], out: Path) -> None:
    """Write one self-contained page, its figures and its tables about measured runs."""
    click.echo(f"wrote {report(_groups(runs), path=out)}")


@main.command("sweep")
@task_options
@click.option("--optimizers", "names", default="adam,sgdm", help="Names of optimizers, with commas.")
@click.option("--steps", type=int, help="Optimizer steps of each run; the task's default if left out.")
@click.option("--seeds", default="100,101", help="Seeds of the runs at each learning rate, with commas.")
@click.option("--runs", "folder", type=click.Path(path_type=Path), required=True, help="Folder of the sweep's runs.")
@click.option(
    "--save", type=click.Path(path_type=Path), help="JSON file that keeps the choice; the package's own: package."
)
@THREADS
def sweep_command(
    task_name: str, options: tuple[str, ...], text: Path | None, device: str, names: str, steps: int | None, seeds: str,
    folder: Path, save: Path | None, threads: int,
) -> None:  # fmt: skip
    """Choose each optimizer's learning rate on a log grid, with the same budget for each."""
    torch.set_num_threads(threads)
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise InputError(f"cannot read --seeds {seeds!r}: write whole numbers with commas, like 100,101.") from None
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    target = learning_rates.PATH if save == Path("package") else save
    task = cli_options.task(task_name, options, text, device)
    for name, found in sweep(task, chosen, None, steps, numbers, path=folder, save=target).items():
        edge = ", at the edge of the grid" if found.at_edge else ""
        click.echo(f"{name}: lr {found.lr:g}{edge}")
        for row in found.rows:
            click.echo(f"  {row.lr:<10g} " + ("diverged" if row.mean is None else f"evaluation loss {row.mean:.4f}"))


@main.command("demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("geomtraj-demo"), help="Folder of runs and page.")
@THREADS
def demo_command(out: Path, threads: int) -> None:
    """Train a small GPT with Adam and with SGD with momentum, measure, compare, and write a page: a minute or two.

    Takes nothing but what is installed with geomtraj.
    """
    torch.set_num_threads(threads)
    made = demo(out)
    click.echo(f"{made.table.verdict}\n\nopen {made.page}")


@main.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor_command(as_json: bool) -> None:
    """Versions, threads, memory, what is optional and missing, and a self-test; exit status 1 where something fails."""
    found = doctor()
    click.echo(json.dumps(found.to_json(), indent=1) if as_json else str(found))
    if not found.healthy:
        sys.exit(1)


@main.command("list")
@PLUGINS
def list_command() -> None:
    """List the tasks, optimizers and statistics there are."""
    for name, task in tasks.everything().items():  # their options, not their data, which may need extra packages
        options = ", ".join(f"{k}={v}" for k, v in task.defaults.items() if v is not None)
        click.echo(f"task       {name:20} {options}")
    for optimizer in optimizers.everything():
        click.echo(
            f"optimizer  {optimizer:20} "
            + ", ".join(f"{k}={v}" for k, v in optimizers.hyperparameters(optimizer).items())
        )
    for name, cls in statistics.everything().items():
        click.echo(f"statistic  {name:20} {cls.title}: " + ", ".join(f"{k}={v}" for k, v in cls().settings().items()))


def _tell(results: Results) -> None:
    for sentence in results.remarks:
        click.echo(f"geomtraj: {sentence}", err=True)


def _groups(runs: Iterable[Path]) -> dict[str, list[Results]]:
    loaded = []
    for run in runs:
        results = Results.load(run)
        _tell(results)
        loaded.append(results)
    return by_optimizer(loaded)
