"""What the figures and the page are made from: the runs by optimizer, and their contrasts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from matplotlib.figure import Figure

from geomtraj.comparing import Table, contrast
from geomtraj.comparing.alignment import run_name
from geomtraj.comparing.curves import Curve, curve
from geomtraj.comparing.matrices import is_matrix, shapes_of
from geomtraj.errors import InputError
from geomtraj.measuring.results import Results
from geomtraj.reporting.style import Look, looks

ALL = "all"


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its file name, its title, and one sentence on what it shows and for how many seeds."""

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Skipped:
    """Why a figure is missing, in one sentence."""

    reason: str


@dataclass(frozen=True)
class ReportData:
    """The runs to report on.

    Attributes:
        everything: All runs by group.
        groups: The runs that did not diverge; groups without one are left out.
        looks: Colour of each group.
        tables: (statistic, at) -> contrast; missing where nothing can be compared.
        missing: (statistic, at) -> why there is no contrast.
    """

    everything: dict[str, list[Results]]
    groups: dict[str, list[Results]]
    looks: dict[str, Look]
    tables: dict[tuple[str, str], Table]
    missing: dict[tuple[str, str], str]
    _curves: dict[tuple[int, str], Curve] = field(default_factory=dict, repr=False)
    _measured: dict[str, dict[str, list[Results]]] = field(default_factory=dict, repr=False)

    def curve(self, results: Results, statistic: str) -> Curve:
        """A statistic along one of the runs; made once."""
        key = (id(results), statistic)
        if key not in self._curves:
            self._curves[key] = curve(results, statistic)
        return self._curves[key]

    @staticmethod
    def name(group: str, results: Results, index: int) -> str:
        """How texts name a run: group and seed, or its place in the group."""
        return run_name(group, results, index)

    def measured(self, statistic: str) -> dict[str, list[Results]]:
        """The groups' runs that have a statistic; groups without any are left out."""
        if statistic not in self._measured:
            found = {name: [r for r in runs if statistic in r.statistics] for name, runs in self.groups.items()}
            self._measured[statistic] = {name: runs for name, runs in found.items() if runs}
        return self._measured[statistic]

    def labels(self, statistic: str) -> list[str]:
        """All labels of a statistic, in the order of their first appearance."""
        runs = [r for group in self.measured(statistic).values() for r in group]
        return list(dict.fromkeys(label for r in runs for label in r.labels(statistic)))

    @cached_property
    def explained(self) -> set[str]:
        """Labels of R_med without a usable value anywhere whose measurements say why: the page's remarks name them."""
        usable: set[str] = set()
        told: set[str] = set()
        for m in (m for runs in self.measured("r_med").values() for r in runs for m in r.of("r_med")):
            usable |= {label for label, q in m.quantities.items() if math.isfinite(q.value) and q.value}
            told |= m.own_statuses().keys()
        return told - usable

    @cached_property
    def shapes(self) -> dict[str, Sequence[int]]:
        """Shape of each parameter and block, as far as manifests and measurements tell."""
        return shapes_of(r for runs in self.everything.values() for r in runs)

    def is_matrix(self, label: str) -> bool:
        """Whether a block is a weight tensor of two or more dimensions."""
        return is_matrix(label, self.shapes)

    def matrices_first(self, labels: Iterable[str]) -> list[str]:
        """The labels, weight tensors of two and more dimensions first, each kind in its order."""
        return sorted(labels, key=lambda label: not self.is_matrix(label))


def gather(groups: dict[str, list[Results]], levels: int) -> ReportData:
    """The data of a report; contrasts that cannot be made are remembered with their reason."""
    sound = {name: [r for r in runs if not r.diverged] for name, runs in groups.items()}
    tables, missing = {}, {}
    statistics = sorted({s for runs in sound.values() for r in runs for s in r.statistics} - {"loss"} | {"r_med"})
    for statistic in statistics:
        for at in ("loss", "step"):
            try:
                tables[statistic, at] = contrast(groups, statistic, at, levels)
            except InputError as error:
                missing[statistic, at] = str(error)
    return ReportData(groups, {n: r for n, r in sound.items() if r}, looks(list(groups)), tables, missing)


def not_measured(statistic: str, title: str) -> Skipped:
    """The reason of a figure whose statistic nobody measured."""
    return Skipped(f"The figure “{title}” is left out: “{statistic}” was not measured in any run that did not diverge.")


def seeds_text(groups: dict[str, list[Results]]) -> str:
    """How many seeds stand behind a figure: "3 seeds each", or the number by group."""
    counts = {name: len(runs) for name, runs in groups.items()}
    if len(set(counts.values())) == 1:
        n = next(iter(counts.values()))
        return f"{n} seed{'s' * (n != 1)}" + (" each" if len(counts) > 1 else "")
    return ", ".join(f"{name} {n} seed{'s' * (n != 1)}" for name, n in counts.items())


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names in a sentence, the rest counted."""
    names = list(names)
    more = len(names) - most
    if more > 1:
        return f"{', '.join(names[:most])} and {more} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
