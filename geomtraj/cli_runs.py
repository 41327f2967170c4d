"""The commands about runs on the disk: import, ls, show, rm, verify, repair."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from geomtraj import plugins
from geomtraj.cli_options import PLUGINS, RUNS, pairs
from geomtraj.errors import InputError
from geomtraj.measuring import check_results, repair_results
from geomtraj.overview import overview, readable, remove, runs_below, table_of
from geomtraj.trajectory import repair, verify
from geomtraj.trajectory.checkpoints import Checkpoints, copy_into


@click.command("import")
@click.argument("paths", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the trajectory.")
@click.option("--steps", help="Whole numbers with commas, in the order of the names; found by themselves if left out.")
@click.option("--load", metavar="FILE:NAME", help="Function of a path that reads another form.")
@click.option(
    "--meta", multiple=True, metavar="NAME=VALUE", help="What is known of the run (optimizer, seed, lr), repeatable."
)
@PLUGINS
def import_command(
    paths: tuple[str, ...], out: Path, steps: str | None, load: str | None, meta: tuple[str, ...]
) -> None:
    """Copy checkpoints of other tools into a trajectory: folders, globs or files (.pt, .safetensors, .ckpt, ...).

    Then measure them with `geomtraj measure OUT --problem FILE:NAME`. The same command copies what has come since.
    """
    try:
        numbers = None if steps is None else [int(step) for step in steps.split(",")]
    except ValueError:
        raise InputError(f"cannot read --steps {steps!r}: write whole numbers with commas, like 0,100,200.") from None
    source = Checkpoints(
        list(paths) if len(paths) > 1 else paths[0], numbers, None if load is None else plugins.named(load), out
    )
    left = 0
    for step, why in copy_into(out, source, pairs(meta, "--meta")):
        if why:
            left += 1
            click.echo(f"geomtraj: step {step} is left out: {why}", err=True)
    click.echo(f"{out}: {len(source.steps) - left} iterates, steps {source.steps[0]} to {source.steps[-1]}")
    if left:
        sys.exit(1)


@click.command("ls")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
def ls_command(folders: tuple[Path, ...]) -> None:
    """List runs: optimizer, progress, what is measured, size and status (runs/ if no folder is given)."""
    found = [overview(path) for folder in folders or (Path("runs"),) for path in runs_below(folder)]
    click.echo(table_of(found) if found else f"no runs in {', '.join(map(str, folders or (Path('runs'),)))}")


@click.command("show")
@RUNS
def show_command(runs: tuple[Path, ...]) -> None:
    """Show what runs are: their optimizer, settings, iterates, results and status."""
    for run in runs:
        o = overview(run)
        click.echo(f"{o.path}: {o.status}{f' ({o.why})' if o.why else ''}")
        lines = {
            "optimizer": f"{o.optimizer.name}, lr {o.optimizer.rate}, {o.optimizer.settings}"
            if o.optimizer.name
            else "",
            "meta": ", ".join(f"{k}={v}" for k, v in o.meta.items()),
            "steps": o.progress,
            "iterates": f"{len(o.steps)}: {', '.join(map(str, o.steps[:12]))}{' ...' if len(o.steps) > 12 else ''}",
            "results": ", ".join(f"{name} at {n}" for name, n in o.results.items())
            + (f"; {o.doubtful} with a remark" if o.doubtful else ""),
            "size": readable(o.bytes),
        }
        click.echo("\n".join(f"  {name:10} {text}" for name, text in lines.items() if text))


@click.command("rm")
@RUNS
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm_command(runs: tuple[Path, ...], yes: bool) -> None:
    """Delete runs, with their iterates and results; what is not geomtraj's stays."""
    found = [overview(run) for run in runs]
    click.echo(table_of(found))
    if not yes and not click.confirm("Delete these?", default=False):
        click.echo("nothing is deleted")
        return
    for o in found:
        left = remove(o.path)
        click.echo(f"deleted {o.path}" + (f", but for {', '.join(p.name for p in left[:5])}" if left else ""))


@click.command("verify")
@RUNS
def verify_command(runs: tuple[Path, ...]) -> None:
    """Read every file of runs and list what is damaged; exit status 1 where something is."""
    checks = [verify(run, check_results) for run in runs]
    click.echo("\n".join(map(str, checks)))
    if not all(check.whole for check in checks):
        sys.exit(1)


@click.command("repair")
@RUNS
def repair_command(runs: tuple[Path, ...]) -> None:
    """Set damaged files of runs aside and rebuild what the others can tell; nothing is deleted."""
    for run in runs:
        done = repair(run) + repair_results(run)
        click.echo("\n".join(f"{run}: {what}" for what in done or ["nothing to repair"]))


COMMANDS = (import_command, ls_command, show_command, rm_command, verify_command, repair_command)
