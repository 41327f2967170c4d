"""Products that `eigenvectors` saves by beginning at the iterate before: `python benchmarks/warm_starts.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import geomtraj as gt
from geomtraj import tasks
from geomtraj.statistics import REGISTRY
from geomtraj.training.loop import train


def main() -> None:
    """Both ways along two optimizers' paths on digits-mlp, 13 iterates 5 steps apart."""
    task, kind = tasks.make("digits-mlp"), REGISTRY["eigenvectors"]
    with tempfile.TemporaryDirectory() as folder:
        for optimizer in ("adam", "sgdm"):
            path = Path(folder) / optimizer
            run = train(task, optimizer, steps=60, path=path, schedule=gt.every(5), progress=False)
            problem = task.problem(task.model(0))
            for k in (1, 5):
                found = {}
                for warm in (True, False):
                    chosen = kind.with_settings({"k": k, "warm": warm})
                    out = Path(folder) / f"{optimizer}-{k}-{warm}"
                    found[warm] = gt.measure(run, problem, [chosen], progress=False, out=out).of("eigenvectors")
                warm, cold = (sum(m.matvecs for m in found[way]) for way in (True, False))
                print(f"{optimizer}, k = {k}: {warm} products warm, {cold} cold, over {len(run)} iterates")


if __name__ == "__main__":
    main()
