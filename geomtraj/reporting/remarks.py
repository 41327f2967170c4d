"""Remarks on single values, grouped by what they say: each once, with how many values and blocks it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from geomtraj.measuring.results import Measurement
from geomtraj.reporting.data import ReportData, listed
from geomtraj.status import OK, Status

NUMBER = re.compile(r"[-+−]?\d[\d.,]*(?:e[-+]?\d+)?")


@dataclass
class Remark:
    """One kind of remark.

    Attributes:
        statistic: Of the values.
        text: The first of them; others of the kind differ in their numbers.
        first: Where that one is.
        total: How many values of these blocks the statistic has.
        count: How many carry it.
        groups: How many in each group of runs.
        labels: The blocks that it is about; empty where it is about a whole measurement.
    """

    statistic: str
    text: str
    first: str
    total: int = 0
    count: int = 0
    groups: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)

    def row(self) -> list[str]:
        """Cells: statistic, remark, how many values, by group, blocks, the first."""
        blocks = sorted(self.labels, key=lambda label: -self.labels[label])
        by_group = ", ".join(f"{name} {count}" for name, count in self.groups.items())
        number = f"{self.count} of {self.total}"
        return [self.statistic, self.text, number, by_group, listed(blocks, 4) if blocks else "–", self.first]


COLUMNS = ("statistic", "remark (the first of its kind)", "values", "in", "blocks, most frequent first", "first at")


def remarks(data: ReportData) -> list[Remark]:
    """The remarks of runs that did not diverge, the most frequent kinds first within each statistic."""
    found: dict[tuple[str, str], Remark] = {}
    totals: dict[tuple[str, str], int] = {}
    for group, name, m in _measurements(data):
        for label in m.quantities or [""]:
            totals[m.statistic, label] = totals.get((m.statistic, label), 0) + 1
        for label, text in said(m):
            key = (m.statistic, NUMBER.sub("#", text))
            remark = found.setdefault(key, Remark(m.statistic, text.rstrip("."), f"{name}, step {m.step}"))
            remark.count += 1
            remark.groups[group] = remark.groups.get(group, 0) + 1
            if label:
                remark.labels[label] = remark.labels.get(label, 0) + 1
    measurements: dict[str, int] = {}
    for _, _, m in _measurements(data):
        measurements[m.statistic] = measurements.get(m.statistic, 0) + 1
    for remark in found.values():
        known = sum(totals.get((remark.statistic, label), 0) for label in remark.labels)
        remark.total = max(known or measurements[remark.statistic], remark.count)
    order = list(dict.fromkeys(r.statistic for r in found.values()))
    return sorted(found.values(), key=lambda r: (order.index(r.statistic), -r.count))


def said(m: Measurement) -> list[tuple[str, str]]:
    """(block, remark) of each value that carries one; the whole measurement's, with no block, where blocks say nothing.

    A block's own status stands in its details; what stands there behind an "ok" is no remark.
    """
    if m.status == OK:
        return []
    own = m.own_statuses()
    if own:
        alone = [(label, text) for label, text in own.items() if text != OK and not text.startswith(f"{OK};")]
        return alone or [("", m.status)]
    return [(r.label, r.text) for r in Status.read(m.status).remarks]


def _measurements(data: ReportData) -> Iterator[tuple[str, str, Measurement]]:
    for group, runs in data.everything.items():
        for i, r in enumerate(runs):
            if not r.diverged:
                for m in r.measurements:
                    yield group, data.name(group, r, i), m
