"""What was run, what it cost, and what failed or was left out."""

from __future__ import annotations

import json
import math
from typing import Any

from geomtraj.comparing.alignment import run_name
from geomtraj.comparing.naming import UNKNOWN, Optimizer, optimizer_of
from geomtraj.comparing.row import LEFT_OUT
from geomtraj.measuring.results import COLUMNS, Results
from geomtraj.reporting.data import ReportData, listed
from geomtraj.reporting.style import number
from geomtraj.spreadsheets import csv_text

RUN_COLUMNS = "group, seed, task, lr, status, last step, iterates, last loss, training (s), products, measuring (s)"


def runs_table(data: ReportData) -> list[list[str]]:
    """One row per run, in the columns of `RUN_COLUMNS`; a dash where something is not known."""
    rows = []
    for group, runs in data.everything.items():
        for r in runs:
            losses = [x for x in (r.losses() if "loss" in r.statistics else {}).values() if math.isfinite(x)]
            times = [m.wall_time for m in r.measurements if math.isfinite(m.wall_time)]
            products = sum(m.matvecs for m in r.measurements)
            rows.append(
                [
                    group,
                    *(_cell(r.meta.get(key)) for key in ("seed", "task", "lr")),
                    _cell(r.manifest.get("status")),
                    _cell(max(r.steps, default=None)),
                    str(len(r.steps)),
                    _cell(losses[-1] if losses else None),
                    _cell(max(times, default=None)),
                    f"{products:,}".replace(",", " "),
                    _cell(sum(m.seconds for m in r.measurements)),
                ]
            )
    return rows


GROUP_COLUMNS = ("group", "optimizer", "learning rate", "settings", "runs", "seeds")


def groups_table(data: ReportData) -> list[list[str]]:
    """One row per group and optimizer in it: class, rates and settings as the manifests tell, runs and seeds."""
    rows = []
    for group, runs in data.everything.items():
        alike: dict[Optimizer, list[Results]] = {}
        for r in runs:
            alike.setdefault(optimizer_of(r), []).append(r)
        for o, same in alike.items():
            seeds = [r.meta.get("seed") for r in same]
            rows.append([group, o.name, o.rate, o.settings, str(len(same)), ", ".join(_cell(x) for x in seeds)])
    return rows


def cost(data: ReportData) -> str:
    """Hessian-vector products and seconds of all measurements, by statistic."""
    measured = [m for runs in data.everything.values() for r in runs for m in r.measurements]
    by_statistic = {
        name: (
            sum(m.matvecs for m in measured if m.statistic == name),
            sum(m.seconds for m in measured if m.statistic == name),
        )
        for name in sorted({m.statistic for m in measured})
    }
    total = f"{sum(m.matvecs for m in measured):,}".replace(",", " ")
    parts = [f"{name} {products} in {number(seconds)} s" for name, (products, seconds) in by_statistic.items()]
    return f"Measuring took {total} Hessian-vector products and {number(sum(m.seconds for m in measured))} s in all" + (
        f" ({'; '.join(parts)})." if parts else "."
    )


def provenance(data: ReportData) -> list[dict[str, str]]:
    """Commands, versions, devices, commits: one entry per kind of session, with the runs it stands behind."""
    found: dict[str, tuple[dict[str, str], list[str]]] = {}
    for group, runs in data.everything.items():
        for i, r in enumerate(runs):
            for session in r.manifest.get("sessions") or [{}]:
                versions = session.get("versions") or {}
                entry = {
                    "command": _cell(session.get("command")),
                    "versions": ", ".join(f"{k} {v}" for k, v in versions.items()) or UNKNOWN,
                    "device": _cell(session.get("device")),
                    "platform": _cell(session.get("platform")),
                    "git commit": _cell(session.get("git_commit"))[:12],
                }
                names = found.setdefault(json.dumps(entry), (entry, []))[1]
                name = run_name(group, r, i)
                if name not in names:
                    names.append(name)
    return [{"runs": ", ".join(names), **entry} for entry, names in found.values()]


def configs(data: ReportData) -> list[tuple[str, str]]:
    """The whole `meta` of each run that has one, as JSON text."""
    return [
        (run_name(group, r, i), json.dumps(r.meta, sort_keys=True, ensure_ascii=False))
        for group, runs in data.everything.items()
        for i, r in enumerate(runs)
        if r.meta
    ]


def problems(data: ReportData) -> list[str]:
    """What diverged or stopped, and what contrasts left out; one sentence each."""
    texts = []
    for group, runs in data.everything.items():
        for i, r in enumerate(runs):
            name, status = run_name(group, r, i), r.manifest.get("status")
            if r.diverged:
                at = r.manifest.get("diverged_at")
                when = "" if at is None else f" at step {at}"
                texts.append(f"{name} ({r.path.name}) diverged{when}: it is left out of all figures and ratios.")
            texts += r.remarks
            if not r.diverged and status not in (None, "complete"):
                texts.append(f"{name} ({r.path.name}) has status “{status}”: it may have stopped early.")
    return [*texts, *_of_contrasts(data)]


def _of_contrasts(data: ReportData) -> list[str]:
    """What contrasts left out, each remark once, with the contrasts that it stands for."""
    remarks: dict[str, dict[str, list[str]]] = {}
    for (statistic, at), table in data.tables.items():
        unusual: dict[tuple[str, bool], list[str]] = {}
        for row in table.overall():
            if row.left_out and not (statistic == "r_med" and row.label in data.explained):
                unusual.setdefault((f"{row.numerator} / {row.denominator}", not row.n), []).append(row.label)
        for text in [
            *(note for note in table.notes if "training diverged" not in note),
            *(
                f"{names}, {'no' if none else 'some'} ratios of {len(labels)} labels "
                f"{'can be given' if none else 'are left out'} ({LEFT_OUT}; counts in the tables): {listed(labels)}."
                for (names, none), labels in unusual.items()
            ),
        ]:
            remarks.setdefault(text, {}).setdefault(at, []).append(statistic)
    if len(data.everything) > 1:
        for (statistic, at), reason in data.missing.items():
            remarks.setdefault(reason, {}).setdefault(at, []).append(statistic)
    where = {"loss": "at equal loss", "step": "at the same step"}
    texts = []
    for text, places in remarks.items():
        named = [f"{where[at]} ({', '.join(names)})" for at, names in places.items()]
        texts.append(f"Ratios {' and '.join(named)}: {text}")
    return texts


def measurements_csv(data: ReportData) -> str:
    """Every measured number of every run, one line each."""
    return csv_text(
        ("group", "run", *COLUMNS),
        (
            (group, i + 1, *row)
            for group, runs in data.everything.items()
            for i, r in enumerate(runs)
            for row in r.rows()
        ),
    )


def runs_csv(data: ReportData) -> str:
    """The table of runs as CSV."""
    return csv_text(RUN_COLUMNS.split(", "), runs_table(data))


def _cell(value: Any) -> str:
    if value is None or value == "":
        return UNKNOWN
    return number(value, 4) if isinstance(value, float) else str(value)
