"""Products that `eigsh` needs: on a prescribed spectrum beside ARPACK, and from one iterate to the next.

Run `python benchmarks/eigsh.py --out benchmarks/results/eigsh.json`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import numpy as np
import scipy.sparse.linalg
import torch
from common import provenance

import geomtraj as gt
from geomtraj import tasks
from geomtraj.training import train

SIZE, OUTLIERS, PAIRS = 2000, 20, 10


class Scaling(gt.MatrixOperator):
    """A diagonal matrix, which is as hard for Lanczos as any other with its eigenvalues."""

    def __init__(self, values: torch.Tensor):
        super().__init__(torch.zeros(1, 1, dtype=values.dtype))
        self.layout = type(self.layout)({"diagonal": values.shape})
        self._values = values

    def _matmat(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._values[:, None] * vectors


def prescribed(seeds: int) -> dict:
    """Products for the largest eigenvalues of 20 outliers above a bulk, by us and by ARPACK."""
    bulk = torch.linspace(-0.5, 0.5, SIZE - OUTLIERS, dtype=torch.float64)
    values = torch.cat([bulk, torch.linspace(2, 40, OUTLIERS, dtype=torch.float64)])
    ours = [gt.eigsh(Scaling(values), k=PAIRS, seed=seed).matvecs for seed in range(seeds)]
    theirs = {}
    for basis in (20, 40):
        operator = Scaling(values)
        scipy.sparse.linalg.eigsh(operator.to_scipy(), k=PAIRS, which="LA", tol=1e-4, ncv=basis)
        theirs[f"ARPACK, {basis} vectors"] = operator.matvecs
    return {"geomtraj": ours, **theirs}


def along_a_trajectory(name: str, options: dict, first: int, gaps: list[int]) -> dict:
    """Products of cold and warm starts at iterates some steps apart."""
    task = tasks.make(name, **options)
    stops = sorted({first} | {first + gap * n for gap in gaps for n in (1, 2, 3)})
    found: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        trajectory = train(
            task, "adam", 3e-3, max(stops), path=Path(folder) / "run", schedule=gt.at(stops), progress=False
        )
        model = task.model(0)
        problem = task.problem(model)

        def pairs(step: int, start: torch.Tensor | None = None) -> gt.Eigenpairs:
            trajectory.load_into(model, step)
            return gt.eigsh(gt.Hessian(problem), k=PAIRS, tol=1e-3, start=start)

        for gap in gaps:
            cold, warm = [], []
            before = pairs(first)
            for n in (1, 2, 3):
                cold.append(pairs(first + gap * n).matvecs)
                before = pairs(first + gap * n, before.vectors)
                warm.append(before.matvecs)
            found[f"{gap} steps apart"] = {"cold": cold, "warm": warm, "ratio": float(np.sum(warm) / np.sum(cold))}
    return {"parameters": problem.size, **found}


@click.command()
@click.option("--seeds", default=10)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(seeds: int, out: Path) -> None:
    """Count products; write JSON."""
    torch.set_num_threads(1)
    content = provenance(f"python benchmarks/eigsh.py --seeds {seeds} --out {out}")
    content["prescribed spectrum"] = prescribed(seeds)
    content["digits-mlp"] = along_a_trajectory("digits-mlp", {"width": 64}, 100, [1, 5, 20])
    gpt = {"layers": 2, "width": 48, "context": 32, "eval_sequences": 16}
    content["pydoc-lm"] = along_a_trajectory("pydoc-lm", gpt, 100, [1, 5, 20])
    click.echo(json.dumps({k: v for k, v in content.items() if k not in ("versions", "command")}, indent=1))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
