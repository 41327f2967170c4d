"""R_med's errors, intervals and time on trained networks that the method was not tuned on, against exact diagonals.

    python benchmarks/r_med.py --out benchmarks/results/r_med.json

GPTs on pydoc's topics with one, two and three layers, trained with Adam and with SGD with momentum, and convolution
nets with smooth activations on digits. For each, over blocks and seeds: the rms of log(value / exact), the share of
intervals that hold the exact R_med among those that are not exact already, the share without upper end, the median of
high / low, and CPU seconds for each call. `--samples` and `--max-matvecs` are r_med's own.

What an earlier geomtraj gives on the same networks, such as the one before R_med was taken apart, by its checkout:

    git worktree add ../before 8a14111
    PYTHONPATH=../before python benchmarks/r_med.py --out before.json
    python benchmarks/r_med.py --before before.json

Then seconds are given relative to those too, which is what a busy machine allows: run both at the same time.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj import tasks


def gpt(optimizer: str, steps: int, **shape: int) -> Callable[[], gt.Problem]:
    """A GPT of a few layers, trained on pydoc's topics."""

    def make() -> gt.Problem:
        task = tasks.make("pydoc-lm", **shape)
        model = task.model(3)
        rule = {
            "adam": lambda p: torch.optim.Adam(p, lr=3e-3),
            "sgdm": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9),
        }[optimizer](model.parameters())
        for step in range(steps):
            losses = task.loss(model, task.batch(step, seed=5))
            losses = losses[0] if isinstance(losses, tuple) else losses
            rule.zero_grad()
            losses.mean().backward()
            rule.step()
        return task.problem(model)

    return make


def cnn(activation: type[nn.Module], width: int, steps: int) -> Callable[[], gt.Problem]:
    """A convolution net with a smooth activation, trained on digits with SGD with momentum."""

    def make() -> gt.Problem:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        images = torch.tensor(x[:96] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        labels = torch.tensor(y[:96])
        torch.manual_seed(7)
        model = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), activation(), nn.AvgPool2d(2), nn.Conv2d(width, width, 3, padding=1),
            activation(), nn.Flatten(), nn.Linear(width * 16, 24), activation(), nn.Linear(24, 10),
        )  # fmt: skip

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

        rule = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(steps):
            rule.zero_grad()
            loss(model, (images, labels)).mean().backward()
            rule.step()
        return gt.Problem(model, loss, [(images, labels)])

    return make


MODELS = {
    "gpt-1-adam": gpt("adam", 150, width=20, layers=1, heads=2, context=24),
    "gpt-2-sgdm": gpt("sgdm", 200, width=20, layers=2, heads=4, context=24),
    "gpt-3-adam": gpt("adam", 100, width=16, layers=3, heads=2, context=24),
    "cnn-softplus": cnn(nn.Softplus, 6, 60),
    "cnn-silu": cnn(nn.SiLU, 8, 120),
}


def measured(problem: gt.Problem, seeds: int, samples: int, max_matvecs: int) -> dict[str, float]:
    """What comes out over blocks and seeds."""
    exact = gt.r_med(gt.diagonal(problem, "exact"))
    logs, held, widths, seconds = [], [], [], 0.0
    for seed in range(seeds):
        start = time.process_time()
        found = gt.r_med(problem, "probing", seed, samples=samples, max_matvecs=max_matvecs)
        seconds += time.process_time() - start
        for label in problem.blocks:
            true, r = exact[label].value, found[label]
            if math.isfinite(true) and math.isfinite(r.value):
                logs.append(math.log(r.value / true))
                widths.append(r.high / r.low)
                if r.high > r.low * (1 + 1e-6):
                    held.append(r.low <= true <= r.high)
    return {
        "parameters": problem.size,
        "blocks": len(problem.blocks),
        "rms_log_error": float(np.sqrt(np.mean(np.square(logs)))),
        "worst_log_error": float(np.max(np.abs(logs))),
        "coverage": float(np.mean(held)) if held else math.nan,
        "intervals": len(held),
        "without_upper_end": float(np.mean(np.isinf(widths))),
        "median_width": float(np.median(widths)),
        "seconds": seconds / seeds,
    }


@click.command()
@click.option("--models", default=",".join(MODELS), show_default=True, help="Names, with commas.")
@click.option("--seeds", default=4, show_default=True)
@click.option("--samples", default=8, show_default=True)
@click.option("--max-matvecs", default=32, show_default=True)
@click.option(
    "--before", type=click.Path(path_type=Path, exists=True), default=None, help="JSON file of an earlier run."
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="JSON file to write.")
def main(models: str, seeds: int, samples: int, max_matvecs: int, before: Path | None, out: Path | None) -> None:
    """Errors, coverage and time of R_med against exact diagonals."""
    torch.set_num_threads(1)
    rows, earlier = {}, json.loads(before.read_text())["models"] if before else {}
    for name in models.split(","):
        rows[name] = measured(MODELS[name](), seeds, samples, max_matvecs)
        if name in earlier:
            rows[name]["seconds_over_before"] = rows[name]["seconds"] / earlier[name]["seconds"]
        click.echo(name + ": " + ", ".join(f"{key} {value:.3g}" for key, value in rows[name].items()))
    if out is not None:
        settings = {"seeds": seeds, "samples": samples, "max_matvecs": max_matvecs, "torch": torch.__version__}
        out.write_text(json.dumps({"settings": settings, "models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
