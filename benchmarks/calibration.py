"""Calibration of the diagonal's standard errors and of R_med's intervals, over many seeds and several models.

    python benchmarks/calibration.py --out benchmarks/results/calibration.json

The models are such that probing is not exact: 40 outputs, which are more than are worked through one by one, smooth
activations, or attention.
For each model: the variance of (estimate - exact) / sem over entries and seeds; the share of 95 % intervals of entries
that hold the exact entry, by Student's t with the diagonal's degrees of freedom and by the normal; and the share of
R_med's 95 % intervals that hold the exact R_med of the block, with products (`gt.r_med` as it is) and without
(`max_matvecs=0`), over the intervals that are not exact already. The figure beside the JSON file draws the standardised
errors' quantiles against the normal ones, and the coverages. Models that are left out keep their numbers in the file.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import norm, t
from torch import Tensor, nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj import tasks


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy per example."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


LEVELS = np.linspace(0.002, 0.998, 200)
"""Levels of the quantiles of standardised errors that are kept."""


def squares(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared residual per example."""
    return (model(batch[0]) - batch[1]).square().mean(1)


def settled(problem: gt.Problem, steps: int = 60) -> gt.Problem:
    """The problem after a short training on its own batches, so that its curvature is not that of the initial point."""
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-2)
    for _ in range(steps):
        for batch in problem.batches:
            losses, weights = problem.losses(dict(problem.model.named_parameters()), batch)
            optimizer.zero_grad()
            grads = torch.autograd.grad(losses.mean(), list(problem.model.parameters()), allow_unused=True)
            del weights
            for p, g in zip(problem.model.parameters(), grads, strict=True):
                p.grad = g
            optimizer.step()
    return problem


def mlp(activation: type[nn.Module]) -> gt.Problem:
    """Three layers on 48 random points of 6 features, in 40 classes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), activation(), nn.Linear(12, 12), activation(), nn.Linear(12, 40)).double()
    x, y = torch.randn(48, 6).double(), torch.randint(0, 40, (48,))
    return settled(gt.Problem(model, classify, [(x[:32], y[:32]), (x[32:], y[32:])]))


def cnn() -> gt.Problem:
    """Two convolutions with tanh and GELU on 40 random images, in 40 classes."""
    torch.manual_seed(0)
    convolutions = nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 3, padding=1), nn.GELU()
    model = nn.Sequential(*convolutions, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(54, 40)).double()
    x, y = torch.randn(40, 1, 6, 6).double(), torch.randint(0, 40, (40,))
    return settled(gt.Problem(model, classify, [(x[:24], y[:24]), (x[24:], y[24:])]), 20)


def gpt() -> gt.Problem:
    """pydoc-lm with one narrow block and the head tied to the embedding."""
    task = tasks.make("pydoc-lm", layers=1, width=8, heads=2, context=16, eval_sequences=24, tied=True, dtype="float64")
    return settled(task.problem(task.model(0)), 20)


def linear() -> gt.Problem:
    """Two linear layers, 40 outputs, on 48 random points of 10 features with random linear targets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 12, bias=False), nn.Linear(12, 40, bias=False)).double()
    x, target = torch.randn(48, 10).double(), torch.randn(10, 40).double()
    y = x @ target
    return settled(gt.Problem(model, squares, [(x[:32], y[:32]), (x[32:], y[32:])]))


MODELS: dict[str, Callable[[], gt.Problem]] = {
    "tanh MLP": lambda: mlp(nn.Tanh),
    "ReLU MLP": lambda: mlp(nn.ReLU),
    "CNN": cnn,
    "tied GPT": gpt,
    "two-layer linear": linear,
}


@click.command()
@click.option("--models", default=",".join(MODELS), help="Names of models, with commas.")
@click.option("--seeds", default=40)
@click.option("--samples", default="4,16", help="Numbers of probes, with commas.")
@click.option("--method", default="probing")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(models: str, seeds: int, samples: str, method: str, out: Path) -> None:
    """Run the calibration; write its numbers as JSON and its figure as PNG and PDF."""
    warnings.filterwarnings("ignore")
    rows: dict[str, dict] = {}
    for name in models.split(","):
        problem = MODELS[name]()
        exact = gt.diagonal(problem, "exact")
        for probes in map(int, samples.split(",")):
            row, z = calibrated(problem, exact, method, probes, seeds)
            if row["noisy entries"]:
                rows[f"{name}, {probes}"] = {"seeds": seeds, "method": method} | row
                click.echo(f"{name}, {probes} probes: {json.dumps(row)}")
                rows[f"{name}, {probes}"]["quantiles"] = np.quantile(z, LEVELS).tolist()
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        rows = json.loads(out.read_text())["models"] | rows
    content = {"versions": {"torch": torch.__version__, "geomtraj": gt.__version__}, "models": rows}
    out.write_text(json.dumps(content, indent=1))
    draw(rows).savefig(out.with_suffix(".png"), dpi=120)


def calibrated(
    problem: gt.Problem, exact: gt.Diagonal, method: str, probes: int, seeds: int
) -> tuple[dict[str, float | int | None], np.ndarray]:
    """Variances, coverages and biases of one model over seeds, and its standardised errors."""
    truth = gt.r_med(exact)
    errors: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    intervals: dict[str, list[tuple[bool, bool, float, float]]] = {"": [], " without products": []}
    for seed in range(seeds):
        found = gt.diagonal(problem, method, probes, seed)
        noisy = found.sem > 1e-9 * exact.values.abs().max()
        errors.append(((found.values - exact.values)[noisy] / found.sem[noisy]).numpy())
        scores.append(norm.ppf(t.cdf(np.abs(errors[-1]), found.dof[noisy].numpy())))
        for kind, budget in (("", None), (" without products", 0)):
            for block, r in gt.r_med(problem, method, seed, samples=probes, max_matvecs=budget).items():
                exactly, slack = truth[block].value, 1e-6 * truth[block].value
                if np.isfinite(exactly) and r.high > r.low * (1 + 1e-9):
                    above, below = r.low - slack <= exactly, exactly <= r.high + slack
                    intervals[kind].append((above, below, r.high / r.low, float(np.log(r.value / exactly))))
    z, score = np.concatenate(errors), np.concatenate(scores)
    row: dict[str, float | int | None] = {
        "parameters": problem.size,
        "noisy entries": int(len(z) / seeds),
        "variance of standardised errors": float(z.var()) if len(z) else None,
        "coverage of entries": float((score < 1.96).mean()) if len(z) else None,
        "coverage of entries by the normal": float((np.abs(z) < 1.96).mean()) if len(z) else None,
    }
    for kind, found_intervals in intervals.items():
        above, below, widths, logs = np.array(found_intervals or np.full((1, 4), np.nan), dtype=float).T
        row |= {
            f"intervals{kind}": len(found_intervals),
            f"coverage of R_med{kind}": float(np.mean(above * below)),
            f"exact value below the interval{kind}": float(np.mean(1 - above)),
            f"exact value above the interval{kind}": float(np.mean(1 - below)),
            f"median high/low of R_med{kind}": float(np.median(widths)),
            f"without upper end{kind}": int(np.isinf(widths).sum()),
            f"mean log(value / exact){kind}": float(np.mean(logs)),
            f"median log(value / exact){kind}": float(np.median(logs)),
        }
    return row, z


def draw(rows: dict[str, dict]) -> Figure:
    """Quantiles of the standardised errors against the normal's, and coverages beside the nominal 95 %."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, row in rows.items():
        left.plot(norm.ppf(LEVELS), row["quantiles"], label=name, lw=1.2)
    left.plot([-3, 3], [-3, 3], color="0.5", lw=0.8, ls="--")
    left.set(xlabel="normal quantile", ylabel="quantile of (estimate - exact) / sem", xlim=(-3, 3), ylim=(-4, 4))
    left.legend(frameon=False, fontsize=8)
    names = list(rows)
    for offset, key in (
        (-0.16, "coverage of entries"),
        (0, "coverage of R_med"),
        (0.16, "coverage of R_med without products"),
    ):
        values = [100 * rows[n][key] if rows[n][key] is not None else np.nan for n in names]
        right.plot(values, np.arange(len(names)) + offset, "o", label=key, ms=5)
    right.axvline(95, color="0.5", lw=0.8, ls="--")
    right.axvspan(93, 97, color="0.93", zorder=0)
    right.set(xlabel="95 % intervals that hold the exact value (%)", yticks=range(len(names)), yticklabels=names)
    right.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


if __name__ == "__main__":
    main()
