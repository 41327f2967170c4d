"""How the cost of the probed diagonal grows with parameters and with examples.

    python benchmarks/diagonal_growth.py --out benchmarks/results/diagonal-growth-cpu.json

A GPT of pydoc-lm with random initial parameters, `samples` probes. The exponent is the slope of log time against log
size over the upper half of the sizes: 1 is linear growth. Parameters grow by layers: matrix shapes stay the same.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import numpy as np
import torch

import geomtraj as gt
from geomtraj import tasks


def seconds(samples: int, **options: int) -> tuple[int, float]:
    """Number of parameters, and the faster of two runs."""
    task = tasks.make("pydoc-lm", context=32, **options)
    problem = task.problem(task.model(0))
    times = []
    for seed in range(2):
        started = time.perf_counter()
        gt.diagonal(problem, "probing", samples, seed)
        times.append(time.perf_counter() - started)
    return problem.size, min(times)


def exponent(sizes: list[int], times: list[float]) -> float:
    """Slope of log time against log size over the upper half."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(times[half:]), 1)[0])


@click.command()
@click.option("--samples", default=8)
@click.option("--threads", default=2)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(samples: int, threads: int, out: Path) -> None:
    """Time the probing over growing models and growing data; write JSON."""
    torch.set_num_threads(threads)
    examples = [8, 16, 32, 64, 128]
    by_examples = [seconds(samples, eval_sequences=n)[1] for n in examples]
    layers = [1, 2, 4, 8]
    by_layers = [seconds(samples, layers=n, eval_sequences=16) for n in layers]
    content = {
        "command": f"python benchmarks/diagonal_growth.py --samples {samples} --threads {threads}",
        "versions": {"torch": torch.__version__, "geomtraj": gt.__version__},
        "examples": {"n": examples, "seconds": by_examples, "exponent": exponent(examples, by_examples)},
        "parameters": {
            "n": [p for p, _ in by_layers],
            "seconds": [s for _, s in by_layers],
            "exponent": exponent([p for p, _ in by_layers], [s for _, s in by_layers]),
        },
    }
    for key in ("examples", "parameters"):
        click.echo(f"{key}: {content[key]}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
