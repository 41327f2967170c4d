"""The measured points of uniformity: log R_med and log predictors by layer, iterate, optimizer and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from geomtraj.comparing import Row, contrast, pair_ratios
from geomtraj.errors import InputError
from geomtraj.inference import Explained, Share, explained, share_of
from geomtraj.measuring import Measurement, Results
from geomtraj.statistics import Quantity
from geomtraj.tasks import two_layer_linear as theory

CONTROL = "theorem"
NAMES = {
    "vectors": "singular vectors",
    "dead": "near-dead units",
    "frequency": "token frequency",
    "input": "inputs",
    "output": "output gradients",
    "factorised": "factorised diagonal",
}
"""Predictors that are compared with R_med as they are, with a slope of 1."""

SETS: dict[str, tuple[str, ...]] = {
    "loss": ("loss",),
    "singular vectors": ("left", "right"),
    "near-dead units": ("live_share",),
    "token frequency": ("frequency",),
    "inputs": ("input",),
    "output gradients": ("output",),
    "inputs and output gradients": ("input", "output"),
    "factorised diagonal": ("factorised",),
    "singular vectors and near-dead units": ("left", "right", "live_share"),
    "all of them": ("left", "right", "live_share", "factorised"),
}
"""What log R_med is regressed on."""


JUDGED = 4  # explanations that are judged for each task
CONFIDENCE = 1 - 0.05 / JUDGED
"""Of every interval of R^2 and of shares, so that all of a task's hold together with 95 % (Bonferroni)."""


@dataclass(frozen=True)
class Point:
    """One layer at one iterate of one run.

    Attributes:
        optimizer: Name.
        seed: Of the run.
        step: Of the iterate.
        loss: There.
        layer: Name of the weight matrix.
        r_med: With its interval.
        values: Predictor -> value, not its logarithm; NaN where there is none.
    """

    optimizer: str
    seed: int
    step: int
    loss: float
    layer: str
    r_med: Quantity
    values: Mapping[str, float]

    def log(self, name: str) -> float:
        """Natural logarithm of "r_med" or of a predictor; NaN where there is no finite one."""
        value = self.r_med.value if name == "r_med" else self.values[name]
        return math.log(value) if 0 < value < math.inf else math.nan


@dataclass
class Points:
    """The points of one task.

    Attributes:
        task: Name of the recipe.
        points: Those that were measured.
        remarks: What was left out.
    """

    task: str
    points: list[Point]
    remarks: list[str] = field(default_factory=list)

    @property
    def layers(self) -> list[str]:
        """Names of the weight matrices, in the order of the model."""
        return list(dict.fromkeys(p.layer for p in self.points))

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len({p.seed for p in self.points})

    def where(self, **fixed: Any) -> Points:
        """The points with these values."""
        return Points(self.task, [p for p in self.points if all(getattr(p, k) == v for k, v in fixed.items())])

    def mean(self, name: str, of: Callable[[Point], float] | None = None) -> float:
        """Geometric mean of a predictor over the points that have it; with `of` the arithmetic mean of that."""
        values = np.array([p.log(name) if of is None else of(p) for p in self.points], dtype=np.float64)
        values = values[np.isfinite(values)]
        if not values.size:
            return math.nan
        return float(values.mean()) if of else math.exp(float(values.mean()))

    def explained(self, name: str, part: str, with_loss: bool = False) -> Explained:
        """How much of log R_med one of `SETS` accounts for; all sets but token frequency on the same points."""
        needed = {"loss", *SETS["all of them"], "input", "output", *SETS[name]}
        columns = [*SETS[name], *(["loss"] if with_loss else [])]
        good = [p for p in self.points if all(math.isfinite(p.log(n)) for n in ("r_med", *needed))]
        y, x = [p.log("r_med") for p in good], [[p.log(c) for c in columns] for p in good]
        shaped = np.array(x, dtype=np.float64).reshape(len(y), len(columns))
        layers, seeds = [p.layer for p in good], [p.seed for p in good]
        return explained(y, shaped, layers, seeds, part, confidence=CONFIDENCE)  # type: ignore[arg-type]

    def level(self, name: str, layer: str | None = None) -> Share:
        """A predictor's share of log R_med, seed by seed over all points that have both."""
        sums: dict[int, list[tuple[float, float]]] = {}
        for p in self.points:
            pair = p.log("r_med"), p.log(name)
            if (layer is None or p.layer == layer) and all(map(math.isfinite, pair)):
                sums.setdefault(p.seed, []).append(pair)
        means = np.array([np.mean(pairs, axis=0) for pairs in sums.values()]).reshape(-1, 2)
        return share_of(means[:, 0], means[:, 1], CONFIDENCE)

    def noise(self) -> float:
        """Variance of the measurement of log R_med over the variance within layers, as far as intervals are known."""
        logs = [
            math.log(p.r_med.high / p.r_med.low) / (2 * 1.96)
            for p in self.points
            if 0 < p.r_med.low <= p.r_med.high < math.inf
        ]
        groups = [[p.log("r_med") for p in self.points if p.layer == layer] for layer in self.layers]
        spread = [float(np.var(known)) for g in groups if (known := [v for v in g if math.isfinite(v)])]
        return float(np.mean(np.square(logs)) / np.mean(spread)) if logs and np.mean(spread) > 0 else math.nan


@dataclass(frozen=True)
class Contrasts:
    """SGDM over Adam (the second optimizer over the first) at equal loss.

    Attributes:
        rows: "r_med" or a predictor -> layer -> the mean over losses, with interval and Holm's p over layers.
        shares: Predictor -> its share of the log contrast of R_med over the layers where that is firm, each counted in
            its own direction.
        notes: What was left out.
    """

    rows: Mapping[str, Mapping[str, Row]]
    shares: Mapping[str, Share]
    notes: Sequence[str]

    def firm(self) -> list[str]:
        """Layers in which R_med differs after Holm's correction."""
        return [layer for layer, row in self.rows.get("r_med", {}).items() if row.holm_p < 0.05]

    def alike(self, name: str) -> tuple[int, int]:
        """In how many of the firm layers a predictor differs firmly the same way, and the other way."""
        same = opposite = 0
        for layer in self.firm():
            row, mine = self.rows["r_med"][layer], self.rows.get(name, {}).get(layer)
            if mine is not None and mine.holm_p < 0.05:
                agrees = (mine.ratio > 1) == (row.ratio > 1)
                same, opposite = same + agrees, opposite + (not agrees)
        return same, opposite


def points_of(task: str, runs: Mapping[str, Sequence[Results]]) -> Points:
    """The points of all runs of one task; of the control only those in the window in which the theorem speaks."""
    found = Points(task, [])
    infinite = missing = 0
    for optimizer, each in runs.items():
        for results in each:
            seed = results.meta["seed"]
            if results.diverged:
                found.remarks.append(f"{task}, {optimizer} seed {seed}: training diverged; it is left out.")
                continue
            losses, parts = results.losses(), {s: {m.step: m for m in results.of(s)} for s in results.statistics}
            start = results.log[0].get("loss", math.nan) if results.log else math.nan
            for step in results.steps:
                here = {s: parts[s].get(step) for s in ("r_med", "singular_vectors", "units")}
                loss = losses.get(step, math.nan)
                if task == CONTROL and not theory.WINDOW[1] <= loss / start <= theory.WINDOW[0]:
                    continue
                new = _at_iterate(here, optimizer, seed, step, loss)
                found.points += new
                missing += not new
                infinite += sum(not math.isfinite(p.r_med.value) for p in new)
    if infinite:
        found.remarks.append(
            f"{task}: {infinite} of {len(found.points)} values of R_med are infinite or not known (more than half of a "
            "diagonal is zero, say); they take no part in what is explained."
        )
    if missing:
        found.remarks.append(f"{task}: {missing} iterates were not measured, mostly because the loss is not finite.")
    return found


def _at_iterate(
    here: Mapping[str, Measurement | None], optimizer: str, seed: int, step: int, loss: float
) -> list[Point]:
    r_med, vectors, units = (here[s] for s in ("r_med", "singular_vectors", "units"))
    if r_med is None or vectors is None or units is None:
        return []
    points = []
    for layer, quantity in r_med.quantities.items():
        if layer not in units.details or layer not in vectors.details:
            continue
        u, v = units.details[layer], vectors.details[layer]
        values = {
            "loss": loss,
            "left": v["left"],
            "right": v["right"],
            "vectors": v["left"] * v["right"],
            "first_share": v["share"],
            "input": u["input"],
            "output": u["output"],
            "combined": u["combined"],
            "factorised": u["value"],
            "rest": quantity.value / u["value"],
            "dead": u["value"] / u["live"],
            "dead_inputs": u["dead_inputs"],
            "dead_outputs": u["dead_outputs"],
            "live_share": (1 - u["dead_inputs"]) * (1 - u["dead_outputs"]),
            "frequency": u["frequency"],
        }
        points.append(Point(optimizer, seed, step, loss, layer, quantity, values))
    return points


def contrasts(points: Points, optimizers: Sequence[str], levels: int) -> Contrasts:
    """The contrast of R_med and of each predictor at equal loss.

    Raises:
        InputError: The runs have no loss in common; the message says which losses each covers.
    """
    first, second = optimizers
    rows: dict[str, dict[str, Row]] = {}
    singles: dict[str, dict[tuple[str, int], float]] = {}
    notes: list[str] = []
    for name in ("r_med", *NAMES):
        groups = {o: _results(points.where(optimizer=o), name) for o in (first, second)}
        empty = [
            o
            for o, runs in groups.items()
            if not any(m.quantities for r in runs for m in r.measurements if m.statistic == name)
        ]
        if empty:
            if name == "r_med":
                raise InputError(f"no R_med of {empty[0]} can be compared: no run of it is left.")
            continue
        try:
            table = contrast(groups, name, at="loss", levels=levels)
        except InputError as error:
            if name == "r_med":
                raise
            notes.append(f"{NAMES[name]}: {error}")
            continue
        notes += table.notes if name == "r_med" else ()
        rows[name] = {row.label: row for row in table.overall()}
        logs: dict[tuple[str, int], list[float]] = {}
        for one in pair_ratios(groups[second], groups[first], name, "loss", levels):
            if one.seed is not None and 0 < one.ratio < math.inf:
                logs.setdefault((one.label, one.seed), []).append(math.log(one.ratio))
        singles[name] = {key: float(np.mean(values)) for key, values in logs.items()}
    made = Contrasts(rows, {}, notes)
    firm = made.firm()
    return replace_shares(made, {n: _share(singles, rows["r_med"], firm, n) for n in NAMES if n in singles})


def replace_shares(made: Contrasts, shares: Mapping[str, Share]) -> Contrasts:
    """The same contrasts with shares."""
    return Contrasts(made.rows, shares, made.notes)


def _share(
    singles: Mapping[str, Mapping[tuple[str, int], float]], r_med: Mapping[str, Row], firm: Sequence[str], name: str
) -> Share:
    sums: dict[int, list[float]] = {}
    layers = [layer for layer in firm if any(key[0] == layer for key in singles[name])]
    seeds = {seed for _, seed in singles["r_med"]}
    for seed in seeds:
        pairs = [(singles["r_med"].get((layer, seed)), singles[name].get((layer, seed))) for layer in layers]
        if pairs and all(a is not None and b is not None for a, b in pairs):
            signs = [1 if r_med[layer].ratio > 1 else -1 for layer in layers]
            sums[seed] = [sum(s * pair[k] for s, pair in zip(signs, pairs, strict=True)) for k in (0, 1)]  # type: ignore[operator,misc]
    both = np.array(list(sums.values())).reshape(-1, 2)
    return share_of(both[:, 0], both[:, 1], CONFIDENCE)


def _results(points: Points, name: str) -> list[Results]:
    """The runs with one number by layer in place of a statistic, so that they can be contrasted like R_med."""
    runs = []
    for seed in sorted({p.seed for p in points.points}):
        mine = points.where(seed=seed)
        measurements = []
        for step in sorted({p.step for p in mine.points}):
            here = [p for p in mine.points if p.step == step]
            numbers = {p.layer: p.r_med if name == "r_med" else Quantity(p.values[name]) for p in here}
            numbers = {layer: q for layer, q in numbers.items() if 0 < q.value < math.inf}
            measurements += [
                Measurement(step, math.nan, name, {}, numbers),
                Measurement(step, math.nan, "loss", {}, {"loss": Quantity.exact(here[0].loss)}),
            ]
        optimizer = mine.points[0].optimizer
        manifest = {"status": "complete", "meta": {"seed": seed, "optimizer": optimizer}}
        runs.append(Results(Path(optimizer) / f"seed-{seed}", manifest, measurements))
    return runs
