"""R_med of every block of a GPT of 10 or 124 million parameters: time, memory, and how wide its intervals are.

    python benchmarks/r_med_large.py --threads 2 --out benchmarks/results/r_med_large.json

Eight sequences of 64 tokens of a random Markov chain, after a few steps of Adam (none for 124 million). CPU seconds are
those of all threads together; memory is the peak above what the process had before. A result is added to what the file
holds.
"""

from __future__ import annotations

import json
import math
import resource
import time
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.tasks.gpt import GPT

SEQUENCES, CONTEXT = 8, 64
MODELS = {
    "gpt-10M": {"vocabulary": 4096, "layers": 8, "width": 304, "heads": 8, "steps": 10},
    "gpt-124M": {"vocabulary": 50_257, "layers": 12, "width": 768, "heads": 12, "steps": 0},
}


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Losses (B, T) of each token."""
    return F.cross_entropy(model(batch[0]).transpose(1, 2), batch[1], reduction="none")


def made(vocabulary: int, layers: int, width: int, heads: int, steps: int) -> gt.Problem:
    """The model after some steps on its own batch, with tied embeddings."""
    torch.manual_seed(0)
    followers = torch.randint(vocabulary, (vocabulary, 4))
    tokens = torch.randint(vocabulary, (SEQUENCES, CONTEXT + 1))
    for t in range(CONTEXT):
        tokens[:, t + 1] = followers[tokens[:, t], torch.randint(4, (SEQUENCES,))]
    batch = tokens[:, :-1], tokens[:, 1:]
    model = GPT(vocabulary, CONTEXT, layers=layers, width=width, heads=heads, tied=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, batch).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return gt.Problem(model.eval(), loss, [batch])


def peak() -> float:
    """The most memory that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measured(problem: gt.Problem, samples: int, max_matvecs: int, threads: int) -> dict[str, float]:
    """What R_med of every block took, and how wide its intervals are."""
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    found = gt.r_med(problem, "probing", samples=samples, max_matvecs=max_matvecs)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    widths = [found[name].high / found[name].low for name in problem.blocks if math.isfinite(found[name].value)]
    return {
        "parameters": problem.size,
        "blocks": len(problem.blocks),
        "with_a_value": len(widths),
        "without_upper_end": float(np.mean(np.isinf(widths))),
        "median_width": float(np.median(widths)),
        "widest_of_90_percent": float(np.quantile(widths, 0.9)),
        "seconds": wall,
        "cpu_seconds": cpu,
        "gib_above_the_model": peak() - before,
        "samples": samples,
        "max_matvecs": max_matvecs,
        "threads": threads,
    }


@click.command()
@click.option("--model", default="gpt-10M", type=click.Choice(list(MODELS)), show_default=True)
@click.option("--samples", default=4, show_default=True)
@click.option("--max-matvecs", default=32, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="JSON file to add the result to.")
def main(model: str, samples: int, max_matvecs: int, threads: int, out: Path | None) -> None:
    """Time, memory and widths of R_med on a large model."""
    torch.set_num_threads(threads)
    row = measured(made(**MODELS[model]), samples, max_matvecs, threads)
    click.echo(model + ": " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
    if out is not None:
        rows = json.loads(out.read_text()) if out.exists() else {}
        out.write_text(json.dumps({**rows, model: {**row, "torch": torch.__version__}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
