"""One call of an analysis: its config at the start, and the page with its provenance at the end.

An analysis has pure functions `job -> result` (dicts as JSON holds them), lists of jobs made from its config, and text,
tables and figures made from the results; `start`, `jobs.compute` and `finish` do the rest.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import geomtraj as gt
from geomtraj.errors import InputError, unknown_name
from geomtraj.reporting import Content, analysis_page
from geomtraj.trajectory import git_commit, write_json

HERE = Path(__file__).resolve().parent.parent
SCALES = ("small", "paper")


@dataclass
class Analysis:
    """One call of a script.

    Attributes:
        name: Name of the script.
        scale: "small" or "paper".
        config: The config's values.
        folder: Where results and page are written.
        device: What jobs compute on.
        workers: Processes.
        publish: Whether to copy the outcome into analyses/results/.
        problems: Sentences on what failed, for the page.
    """

    name: str
    scale: str
    config: dict[str, Any]
    folder: Path
    device: str = "cpu"
    workers: int = 1
    publish: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        scale: "small" or "paper".
        config: JSON file of values, or None.
        settings: NAME=VALUE of the config, VALUE in JSON.
        out: Folder; runs/analyses/NAME if None.
        device: What jobs compute on.
        workers: Processes.
        publish: Whether to copy the outcome into analyses/results/.
    """

    scale: str = "small"
    config: Path | None = None
    settings: Sequence[str] = ()
    out: Path | None = None
    device: str = "cpu"
    workers: int = 1
    publish: bool = False


def start(name: str, options: Options, base: str | None = None) -> Analysis:
    """The analysis that these options describe; with `base`, configs/base/BASE.json gives further values.

    Raises:
        InputError: A config or a setting that cannot be read, or a name that the script's own config lacks.
    """
    scale = options.scale
    known = _scaled(HERE / "configs" / "base" / f"{base}.json", scale) if base else {}
    known |= _scaled(HERE / "configs" / f"{name}.json", scale)
    values = copy.deepcopy(known)
    if options.config is not None:
        values.update(_scaled(options.config, scale))
    for setting in options.settings:
        key, _, text = setting.partition("=")
        *tables, last = key.split(".")
        try:
            place = functools.reduce(lambda table, part: table[part], tables, values)
            place[last] = json.loads(text)
        except ValueError:
            raise InputError(f"cannot read --set {setting!r}: write NAME=VALUE with a value in JSON.") from None
        except (KeyError, TypeError):
            raise InputError(f"cannot read --set {setting!r}: the config has no table {'.'.join(tables)}.") from None
    for key, value in values.items():
        if key not in known:
            raise unknown_name(f"value of {name}'s config", key, known)
        if not _alike(value, known[key]):
            raise InputError(f"{key} in the config is {value!r}: it must be of the form {json.dumps(known[key])}.")
    folder = options.out or Path("runs") / "analyses" / (name if scale == "small" else f"{name}-{scale}")
    torch.set_num_threads(1)
    return Analysis(name, scale, values, folder, options.device, options.workers, options.publish)


def finish(analysis: Analysis, content: Content, main_figure: str) -> Path:
    """Write the page of the analysis, say what was found on the screen, and publish it where that was asked for."""
    path = analysis.folder / "index.html"
    page = analysis_page(path, content, analysis.problems, provenance(analysis))
    for answer in content.answers:
        click.echo(f"{answer.title}: {answer.verdict}")
    for text in analysis.problems:
        click.echo(f"remark: {text}", err=True)
    click.echo(f"wrote {page}")
    if analysis.publish:
        target = HERE / "results" / analysis.folder.name
        target.mkdir(parents=True, exist_ok=True)
        names = [f"tables/{sheet.name}.csv" for sheet in content.sheets if sheet.shown]
        for name in [*names, f"figures/{main_figure}.svg", "provenance.json"]:
            if (analysis.folder / name).exists():
                shutil.copyfile(analysis.folder / name, target / Path(name).name)
        findings = [
            {"title": a.title, "verdict": a.verdict, **({"outcome": a.outcome} if a.outcome else {}),
             "numbers": list(a.numbers)}
            for a in content.answers
        ]  # fmt: skip
        write_json(target / "findings.json", {"findings": findings, "remarks": analysis.problems})
        click.echo(f"copied tables, figure and provenance to {target}")
    return page


def provenance(analysis: Analysis) -> dict[str, Any]:
    """How the page was made."""
    text = json.dumps(analysis.config, sort_keys=True)
    return {
        "analysis": analysis.name,
        "scale": analysis.scale,
        "command": shlex.join(["python", "-m", f"analyses.{analysis.name}", *sys.argv[1:]]),
        "seeds": analysis.config.get("seeds"),
        "device": analysis.device,
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"geomtraj {gt.__version__}",
        "git commit": git_commit() or "unknown",
        "config hash": hashlib.sha256(text.encode()).hexdigest()[:12],
        "config": text,
    }


def _scaled(path: Path, scale: str) -> dict[str, Any]:
    """The values of one scale: those of "small", replaced by those that "paper" names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = dict(content.get("small", {}))
        return {**values, **(content.get(scale, {}) if scale != "small" else {})}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f'the config {path} cannot be read ({error}): write {{"small": {{...}}}} in JSON.') from None


def _alike(value: Any, known: Any) -> bool:
    """Whether two JSON values are of one kind; lists must hold at least one entry, entries like the known ones."""
    if isinstance(known, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(known, bool)
    if isinstance(known, list):
        return isinstance(value, list) and bool(value) and all(_alike(v, known[0]) for v in value)
    if isinstance(known, dict):
        table = all(isinstance(entry, dict) for entry in known.values())  # of things by name
        return isinstance(value, dict) and bool(table or value.keys() == known.keys())
    if isinstance(known, float):
        return isinstance(value, (int, float))
    return isinstance(value, type(known))
