"""What every analysis shares: options, configs, jobs whose results are kept, and the page with its provenance.

A script has a pure function `job -> result` (dicts as JSON holds them), a list of jobs made from its config, and text,
tables and figures made from the results; `start`, `compute` and `finish` do the rest.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import multiprocessing
import platform
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tqdm import tqdm

import geomtraj as gt
from geomtraj.errors import ComputationError, GeomtrajError, InputError, unknown_name
from geomtraj.reporting.analysis import Sheet, analysis_page
from geomtraj.reporting.summary import Answer
from geomtraj.trajectory.files import read_json, write_json
from geomtraj.trajectory.manifest import git_commit

HERE = Path(__file__).resolve().parent
SCALES = ("small", "paper")

Job = dict[str, Any]
Result = dict[str, Any]


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


def start(
    name: str, scale: str, config: Path | None, settings: Sequence[str], out: Path | None, device: str, workers: int,
    publish: bool, base: str | None = None,
) -> Analysis:  # fmt: skip
    """The analysis that the options of `options` describe; with `base`, configs/base/BASE.json gives further values.

    Raises:
        InputError: A config or a setting that cannot be read, or a name that the script's own config lacks.
    """
    known = _scaled(HERE / "configs" / "base" / f"{base}.json", scale) if base else {}
    known |= _scaled(HERE / "configs" / f"{name}.json", scale)
    values = copy.deepcopy(known)
    if config is not None:
        values.update(_scaled(config, scale))
    for setting in settings:
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
    folder = out or Path("runs") / "analyses" / (name if scale == "small" else f"{name}-{scale}")
    torch.set_num_threads(1)
    return Analysis(name, scale, values, folder, device, workers, publish)


def compute(
    analysis: Analysis, function: Callable[[Job], Result], jobs: Sequence[Job], label: str
) -> list[tuple[Job, Result]]:
    """Each job with its result, in the order of the jobs; those computed before are read, not run again.

    A job that raises one of geomtraj's errors is left out, its sentence goes into `analysis.problems`, and it is tried
    again the next time. Equal jobs are run once.

    Args:
        analysis: From `start`.
        function: Of one job, which depends on nothing else; on module level, so that other processes find it.
        jobs: What JSON can hold.
        label: Of the progress bar.

    Raises:
        ComputationError: No job at all has a result.
    """
    paths = {json.dumps(job): _part(analysis, function, job) for job in jobs}
    missing = {path: json.loads(text) for text, path in paths.items() if not path.exists()}
    bar = tqdm(total=len(set(paths.values())), initial=len(set(paths.values())) - len(missing), desc=label, unit="job")
    failed: dict[Path, str] = {}
    with bar:
        for path, outcome in _outcomes(function, missing, analysis.workers):
            try:
                write_json(path, {"job": missing[path], "result": outcome()})
            except GeomtrajError as error:
                failed[path] = str(error)
            except BrokenProcessPool:
                raise ComputationError(
                    f"{label}: a process was killed, perhaps for want of memory; what is finished is kept, go on with "
                    "fewer --workers."
                ) from None
            bar.update()
    for path, reason in failed.items():
        shown = ", ".join(f"{k}={v}" for k, v in missing[path].items() if not isinstance(v, (list, dict)))
        analysis.problems.append(f"{label}, {shown}: {reason}")
    done = [(job, read_json(path)["result"]) for job in jobs if (path := paths[json.dumps(job)]) not in failed]
    if not done:
        raise ComputationError(f"{label}: not one job has a result; the first: {next(iter(failed.values()), 'none')}")
    return done


def finish(
    analysis: Analysis,
    title: str,
    question: str,
    answers: Sequence[Answer],
    draws: Sequence[Callable[[], Any]],
    sheets: Sequence[Sheet],
    main_figure: str,
) -> Path:
    """Write the page of the analysis, say what was found on the screen, and publish it where that was asked for."""
    page = analysis_page(
        analysis.folder / "index.html", title, question, answers, draws, sheets, analysis.problems, provenance(analysis)
    )
    for answer in answers:
        click.echo(f"{answer.title}: {answer.verdict}")
    for text in analysis.problems:
        click.echo(f"remark: {text}", err=True)
    click.echo(f"wrote {page}")
    if analysis.publish:
        target = HERE / "results" / analysis.folder.name
        target.mkdir(parents=True, exist_ok=True)
        names = [f"tables/{sheet.name}.csv" for sheet in sheets if sheet.shown]
        for name in [*names, f"figures/{main_figure}.svg", "provenance.json"]:
            if (analysis.folder / name).exists():
                shutil.copyfile(analysis.folder / name, target / Path(name).name)
        findings = [{"title": a.title, "verdict": a.verdict, "numbers": list(a.numbers)} for a in answers]
        write_json(target / "findings.json", {"findings": findings, "remarks": analysis.problems})
        click.echo(f"copied tables, figure and provenance to {target}")
    return page


def provenance(analysis: Analysis) -> dict[str, Any]:
    """How the page was made."""
    text = json.dumps(analysis.config, sort_keys=True)
    return {
        "analysis": analysis.name,
        "scale": analysis.scale,
        "command": shlex.join(["python", *sys.argv]),
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


def _part(analysis: Analysis, function: Callable[[Job], Result], job: Job) -> Path:
    text = json.dumps([function.__name__, job], sort_keys=True)
    return analysis.folder / "parts" / f"{function.__name__}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _outcomes(
    function: Callable[[Job], Result], missing: dict[Path, Job], workers: int
) -> Iterator[tuple[Path, Callable[[], Result]]]:
    """The jobs as they finish: where each result belongs, and a function that returns it or raises."""
    if workers == 1 or len(missing) < 2:
        for path, job in missing.items():
            yield path, lambda job=job: function(job)
        return
    # Forked processes cannot use a GPU that their parent has touched.
    pool = ProcessPoolExecutor(min(workers, len(missing)), multiprocessing.get_context("spawn"), _quiet)
    try:
        running: dict[Future[Result], Path] = {pool.submit(function, job): path for path, job in missing.items()}
        for future in as_completed(running):
            yield running[future], future.result
    finally:
        pool.shutdown(cancel_futures=True)


def _quiet() -> None:
    """One thread, and Ctrl-C is left to the parent, which lets the running jobs end."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
