"""What a fused query-key-value matrix hides: exact R_med of the whole and of its parts, under two optimizers."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path

import click
import torch

import geomtraj as gt
from geomtraj import tasks
from geomtraj.training import train

RATES = {"adam": 0.003, "sgdm": 0.3}


@click.command(context_settings={"show_default": True})
@click.option("--steps", default=300, help="Of training.")
@click.option("--layers", default=1, help="Of the GPT.")
@click.option("--width", default=16, help="Of the GPT.")
@click.option("--out", default="benchmarks/results/fused.json", type=click.Path(path_type=Path))
def main(steps: int, layers: int, width: int, out: Path) -> None:
    """Train the small language model with both optimizers, and take max over median of exact diagonals."""
    torch.set_num_threads(1)
    options = {"layers": layers, "width": width, "context": 32, "eval_sequences": 16}
    task, double = tasks.make("pydoc-lm", **options), tasks.make("pydoc-lm", **options, dtype="float64")
    rows = []
    for optimizer, lr in RATES.items():
        with tempfile.TemporaryDirectory() as folder:
            run = train(task, optimizer, lr, steps, 0, path=Path(folder) / "run", progress=False)
            model = double.model(0)
            run.load_into(model, run.steps[-1])
        problem = double.problem(model)
        entries = gt.diagonal(problem, "exact").values.abs()
        parameters = [name for name in problem.layout if name.endswith("qkv.weight")]
        for parameter in parameters:
            for block in [problem.blocks.find(parameter), *problem.blocks.of_parameter(parameter)]:
                own = block.take(entries)
                ratio, mean = float(own.max() / own.quantile(0.5)), float(own.mean())
                row = {"optimizer": optimizer, "loss": float(problem.loss()), "block": block.name, "r_med": ratio}
                rows.append({**row, "mean": mean})
                print(json.dumps(rows[-1]), flush=True)
    made = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__, "geomtraj": gt.__version__,
            "python": platform.python_version()}  # fmt: skip
    out.write_text(json.dumps({**made, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
