"""Calibration of the diagonal's standard errors and of R_med's intervals, over many seeds and several models.

    python benchmarks/calibration.py --out benchmarks/results/calibration.json

For each model: the variance of (estimate - exact) / sem over entries and seeds, the share of 95 % intervals of entries
that hold the exact entry, and the share of R_med's 95 % intervals that hold the exact R_med of the block, with
products (`gt.r_med` as it is) and without (`max_matvecs=0`), over the intervals that are not exact already. The figure
beside the JSON file draws the standardised errors' quantiles against the normal ones, and the coverages.
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
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj import tasks


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy per example."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


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
    """Three layers on 48 random points of 6 features, in 3 classes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), activation(), nn.Linear(10, 10), activation(), nn.Linear(10, 3)).double()
    x, y = torch.randn(48, 6).double(), torch.randint(0, 3, (48,))
    return settled(gt.Problem(model, classify, [(x[:32], y[:32]), (x[32:], y[32:])]))


def cnn() -> gt.Problem:
    """The digits with a narrow CNN."""
    task = tasks.make("digits-cnn", width=4, eval_examples=48, dtype="float64")
    return settled(task.problem(task.model(0)), 20)


def gpt() -> gt.Problem:
    """pydoc-lm with one narrow block and the head tied to the embedding."""
    task = tasks.make("pydoc-lm", layers=1, width=8, heads=2, context=16, eval_sequences=24, tied=True, dtype="float64")
    return settled(task.problem(task.model(0)), 20)


def linear() -> gt.Problem:
    """The two-layer linear network."""
    task = tasks.make("two-layer-linear", d=12)
    return settled(task.problem(task.model(0)), 20)


MODELS: dict[str, Callable[[], gt.Problem]] = {
    "tanh MLP": lambda: mlp(nn.Tanh),
    "ReLU MLP": lambda: mlp(nn.ReLU),
    "CNN": cnn,
    "tied GPT": gpt,
    "two-layer linear": linear,
}


FEW_PROBES = ("tanh MLP", "ReLU MLP", "CNN")


@click.command()
@click.option("--models", default=",".join(MODELS), help="Names of models, with commas.")
@click.option("--seeds", default=100)
@click.option("--samples", default=4, help="Probes; networks without positions get two, more make them exact.")
@click.option("--method", default="probing")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(models: str, seeds: int, samples: int, method: str, out: Path) -> None:
    """Run the calibration; write its numbers as JSON and its figure as PNG and PDF."""
    warnings.filterwarnings("ignore")
    rows, standardised = {}, {}
    for name in models.split(","):
        problem = MODELS[name]()
        probes = min(samples, 2) if name in FEW_PROBES else samples
        exact = gt.diagonal(problem, "exact")
        truth = gt.r_med(exact)
        errors: list[np.ndarray] = []
        intervals: dict[str, list[tuple[bool, float, float]]] = {"": [], " without products": []}
        for seed in range(seeds):
            found = gt.diagonal(problem, method, probes, seed)
            noisy = found.sem > 1e-9 * exact.values.abs().max()
            errors.append(((found.values - exact.values)[noisy] / found.sem[noisy]).numpy())
            for kind, budget in (("", None), (" without products", 0)):
                found_ratios = gt.r_med(problem, method, seed, samples=probes, max_matvecs=budget)
                for block, r in found_ratios.items():
                    exactly, slack = truth[block].value, 1e-6 * truth[block].value
                    if np.isfinite(exactly) and r.high > r.low * (1 + 1e-9):
                        held = r.low - slack <= exactly <= r.high + slack
                        intervals[kind].append((held, r.high / r.low, float(np.log(r.value / exactly))))
        z = np.concatenate(errors)
        standardised[name] = z
        rows[name] = {
            "parameters": problem.size,
            "samples": probes,
            "noisy entries": int(len(z) / seeds),
            "variance of standardised errors": float(z.var()) if len(z) else None,
            "coverage of entries": float((np.abs(z) < 1.96).mean()) if len(z) else None,
        }
        for kind, found_intervals in intervals.items():
            held, widths, logs = (
                (np.array(c) for c in zip(*found_intervals, strict=True)) if found_intervals else [[]] * 3
            )
            some = len(found_intervals) > 0
            rows[name] |= {
                f"intervals{kind}": len(held),
                f"coverage of R_med{kind}": float(np.mean(held)) if some else None,
                f"median high/low of R_med{kind}": float(np.median(widths)) if some else None,
                f"without upper end{kind}": int(np.isinf(widths).sum()),
                f"mean log(value / exact){kind}": float(np.mean(logs)) if some else None,
            }
        click.echo(f"{name}: {json.dumps(rows[name])}")
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "command": f"python benchmarks/calibration.py --seeds {seeds} --samples {samples} --method {method}",
        "versions": {"torch": torch.__version__, "geomtraj": gt.__version__},
        "models": rows,
    }
    out.write_text(json.dumps(content, indent=1))
    draw(standardised, rows).savefig(out.with_suffix(".png"), dpi=120)


def draw(standardised: dict[str, np.ndarray], rows: dict[str, dict]) -> Figure:
    """Quantiles of the standardised errors against the normal's, and coverages beside the nominal 95 %."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    levels = np.linspace(0.002, 0.998, 200)
    for name, z in standardised.items():
        if len(z):
            left.plot(norm.ppf(levels), np.quantile(z, levels), label=name, lw=1.2)
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
    right.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
