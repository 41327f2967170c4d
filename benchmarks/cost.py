"""What measuring costs: seconds and widths by parameters and examples, for the table in the docs.

python benchmarks/cost.py --out benchmarks/results/cost.json
"""

from __future__ import annotations

import json
import math
import resource
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import geomtraj as gt
from geomtraj import tasks

# layers, width, sequences of 64 characters
SIZES = [(1, 16, 8), (2, 32, 8), (2, 64, 8), (2, 64, 32), (4, 128, 8)]
SETTINGS: dict[str, dict[str, Any]] = {
    "r_med": {"samples": 8, "max_matvecs": 32},
    "spectrum": {"steps": 32, "probes": 2},
    "trace": {"probes": 32},
}


def measured(layers: int, width: int, sequences: int) -> dict[str, Any]:
    """Seconds of one thread for each statistic on a GPT after 20 steps of Adam, and R_med's median width."""
    task = tasks.make("pydoc-lm", layers=layers, width=width, heads=4, context=64, eval_sequences=sequences)
    model = task.model(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(20):
        optimizer.zero_grad()
        task.loss(model, task.batch(step, 0)).mean().backward()
        optimizer.step()
    problem = task.problem(model)
    row: dict[str, Any] = {"layers": layers, "width": width, "sequences": sequences, "parameters": problem.size}
    start = time.process_time()
    problem.gradient()
    problem.gradient()
    row["gradient"] = (time.process_time() - start) / 2
    start = time.process_time()
    gt.Hessian(problem) @ torch.ones(problem.size)
    row["check and first product"] = time.process_time() - start
    for name, settings in SETTINGS.items():
        start = time.process_time()
        made = getattr(gt, name)(problem, **settings)
        row[name] = time.process_time() - start
        if name == "r_med":
            found = [r for label, r in made.items() if label != "all" and math.isfinite(r.value)]
            widths = [r.high / r.low for r in found]
            row["median width"] = float(np.median(widths))
            row["without upper end"] = sum(math.isinf(w) for w in widths) / len(widths)
    row["peak GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row


@click.command()
@click.option("--sizes", type=click.IntRange(1, len(SIZES)), default=len(SIZES), help="How many of the sizes.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("cost.json"))
def main(sizes: int, out: Path) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    rows = []
    for size in SIZES[:sizes]:
        rows.append(measured(*size))
        click.echo(json.dumps(rows[-1]))
    content = {"torch": torch.__version__, "threads": 1, "settings": SETTINGS, "rows": rows}
    out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
