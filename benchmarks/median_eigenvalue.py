"""How well Lanczos quadrature knows the median |eigenvalue| of a trained transformer's blocks: dense spectra know."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import torch

import geomtraj as gt
from geomtraj import tasks
from geomtraj.layout import Layout
from geomtraj.linalg.magnitudes import magnitudes
from geomtraj.operators import Hessian
from geomtraj.operators.base import SymmetricOperator
from geomtraj.training import train

RATES = {"adam": 0.01, "sgdm": 0.32}
NUMBERS = ("median", "ninth", "outliers", "negative")


class Diagonal(SymmetricOperator):
    """diag(w): a random start sees it as it sees any matrix with these eigenvalues."""

    def __init__(self, eigenvalues: torch.Tensor):
        super().__init__(Layout({"w": tuple(eigenvalues.shape)}), eigenvalues.dtype, "cpu")
        self._values = eigenvalues

    def _matmat(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._values[:, None] * vectors


@click.command(context_settings={"show_default": True})
@click.option("--blocks", default="head.weight,blocks.1.attention.out.weight,blocks.1.mlp.down.weight", help="Globs.")
@click.option("--steps", default=600, help="Of training.")
@click.option("--starts", default=20, help="Random starts.")
@click.option("--lanczos", default=128, help="Lanczos steps at first.")
@click.option("--most", default=512, help="Lanczos steps at most.")
@click.option("--out", default="benchmarks/results/median-eigenvalue.json", type=click.Path(path_type=Path))
def main(blocks: str, steps: int, starts: int, lanczos: int, most: int, out: Path) -> None:
    """Train the small language model with both optimizers, and compare quadratures with dense spectra of its blocks."""
    torch.set_num_threads(1)
    task = tasks.make("pydoc-lm", layers=2, width=32, context=32, eval_sequences=32)
    double = tasks.make("pydoc-lm", layers=2, width=32, context=32, eval_sequences=32, dtype="float64")
    rows = []
    for optimizer, lr in RATES.items():
        with tempfile.TemporaryDirectory() as folder:
            run = train(task, optimizer, lr, steps, 0, path=Path(folder) / "run", progress=False)
            model = double.model(0)
            run.load_into(model, run.steps[-1])
        hessian = Hessian(double.problem(model), strategy="double-backward")
        for name in [block.name for block in hessian.blocks.select(blocks.split(","))]:
            matrix = hessian.block(name).dense()
            values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
            rows.append({"optimizer": optimizer, "block": name, **compared(values, starts, lanczos, most)})
            print(json.dumps(rows[-1]), flush=True)
    made = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__, "geomtraj": gt.__version__,
            "python": platform.python_version()}  # fmt: skip
    out.write_text(json.dumps({**made, "rows": rows}, indent=1) + "\n")


def compared(values: torch.Tensor, starts: int, steps: int, most: int) -> dict:
    """Largest factor of the estimates from the truth, and how many intervals hold it."""
    w = values.numpy()
    sizes = np.abs(w)
    largest = sizes.max()
    truth = {"median": np.median(sizes), "ninth": np.quantile(sizes, 0.9), "outliers": (sizes >= 0.1 * largest).sum(),
             "negative": (w < -1e-3 * largest).mean()}  # fmt: skip
    found = [magnitudes(Diagonal(values), steps, 1, most, 0, seed) for seed in range(starts)]
    row = {"size": w.size, "median over largest": float(truth["median"] / largest)}
    row["resolved"] = sum(bool(f.median.low > 0) for f in found)
    row["products"] = float(np.mean([f.matvecs for f in found]))
    for name in NUMBERS:
        numbers = [getattr(f, name) for f in found]
        row[f"{name} held"] = sum(bool(x.low * (1 - 1e-9) <= truth[name] <= x.high * (1 + 1e-9)) for x in numbers)
        if truth[name] > 0:
            factors = [abs(np.log(max(x.value, 1e-300) / truth[name])) for x in numbers]
            row[f"{name} off by"] = float(np.exp(max(factors)))
    return row


if __name__ == "__main__":
    main()
