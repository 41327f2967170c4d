"""What pages list is taken from the package: the statistics there are, and the command line's help."""

import click

import geomtraj as gt
from geomtraj.cli import main


def statistics() -> str:
    """One entry for each registered statistic."""
    entries = []
    for name, statistic in gt.STATISTICS.items():
        where = f"{statistic.__module__}.{statistic.__qualname__}"
        entries.append(f'::: {where}\n    options:\n      heading: "{name}: {statistic.title}"\n      members: []\n')
    return "\n".join(entries)


def commands() -> str:
    """The help of each command."""
    entries = []
    for name, command in sorted(main.commands.items()):
        help_text = command.get_help(click.Context(command, info_name=f"geomtraj {name}"))
        entries.append(f"## geomtraj {name}\n\n```text\n{help_text}\n```\n")
    return "\n".join(entries)


LISTS = {"<!-- statistics -->": statistics, "<!-- commands -->": commands}


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    """Put lists in the place of their markers."""
    for marker, made in LISTS.items():
        if marker in markdown:
            markdown = markdown.replace(marker, made())
    return markdown
