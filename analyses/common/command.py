"""The command line of every analysis: its options, and geomtraj's errors as one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from analyses.common.run import SCALES
from geomtraj.errors import GeomtrajError


class Command(click.Command):
    """Prints geomtraj's own errors as the one sentence that they are, with exit status 2."""

    def invoke(self, context: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(context)
        except GeomtrajError as error:
            click.echo(f"{context.info_name}: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo(f"{context.info_name}: stopped; what is finished is kept, the same command goes on.", err=True)
            sys.exit(130)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every analysis, to be handed on to `start`."""
    for option in (
        click.option("--publish", is_flag=True, help="Copy tables and the main figure into analyses/results/."),
        click.option("--workers", type=click.IntRange(min=1), default=1, help="Processes, of one thread each."),
        click.option("--device", default="cpu", help="cpu, cuda or cuda:N."),
        click.option("--out", type=click.Path(path_type=Path), help="Folder  [runs/analyses/NAME]."),
        click.option(
            "--set", "settings", multiple=True, metavar="NAME=VALUE",
            help="Value of the config, as JSON, repeatable: --set seeds=[5,6]; a.b=1 is b of the table a.",
        ),
        click.option("--config", type=click.Path(path_type=Path), help="JSON file  [analyses/configs/NAME.json]."),
        click.option("--scale", type=click.Choice(SCALES), default="small", help="Which part of the config."),
    ):  # fmt: skip
        command = option(command)
    return command
