"""Values of the public functions on six models, frozen before rooms were moved: a move changes none of them.

The numbers here are held to a tolerance that any CPU passes. On the machine that froze them they are the same to the
last bit, which `python tests/operators/test_frozen.py` tells; with `--write` it freezes them anew.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from models import CASES
from strategy_cases import STRATEGY_CASES

import geomtraj as gt
from geomtraj.statistics.base import Point

PATH = Path(__file__).parent / "frozen.json"
MODELS = [*CASES, "activations"]
SEEDS = (0, 1)
RTOL, ATOL = 1e-6, 1e-9  # of the largest number of its kind


def some(tensor):
    """The first entries, the norm and the sum: a change anywhere shows."""
    return [*tensor[:6].tolist(), float(tensor.norm()), float(tensor.sum())]


def values(name):
    """Kind -> numbers of one model."""
    found = {}
    problem = STRATEGY_CASES[name]().problem
    for seed in SEEDS:
        vectors = torch.randn(2, problem.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).T
        theta = problem.theta() + 0.1 * seed
        hessian, ggn = gt.Hessian(problem, theta, strategy="double-backward"), gt.GGN(problem, theta)
        pairs = gt.eigsh(hessian, k=3, seed=seed)
        trace = gt.trace(hessian, probes=8, seed=seed)
        spectrum = gt.spectrum(hessian, steps=16, probes=2, k=2, seed=seed)
        condition = gt.STATISTICS["condition"](steps=24, max_steps=24, probes=1, seed=seed).measure(
            Point(problem, theta)
        )
        for kind, numbers in {
            "hvp": some((hessian @ vectors)[:, 1]),
            "block": some(hessian.block(next(iter(problem.layout))).dense(chunk=5).reshape(-1)),
            "ggn": some((ggn @ vectors)[:, 1]),
            "ggn trace": [gt.trace(ggn, probes=8, seed=seed).value],
            "eigsh": pairs.values.tolist(),
            "trace": [trace.value, trace.sem],
            "spectrum": [*spectrum.eigenpairs.values.tolist(), *some(spectrum.density.nodes.reshape(-1))],
            "condition": [q.value for q in condition.quantities.values() if q.value < 1e6],
        }.items():
            found[f"{kind} {seed}"] = [float(number) for number in numbers]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_public_functions_give_what_they_gave(name):
    frozen, now = json.loads(PATH.read_text())[name], values(name)
    assert now.keys() == frozen.keys()
    for kind, numbers in frozen.items():
        size = max(map(abs, numbers), default=0.0)
        assert now[kind] == pytest.approx(numbers, rel=RTOL, abs=ATOL * size), kind


if __name__ == "__main__":
    torch.set_num_threads(1)
    current = {name: values(name) for name in MODELS}
    if "--write" in sys.argv:
        lines = (f"{json.dumps(name)}: {json.dumps(of)}" for name, of in current.items())
        PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    old = json.loads(PATH.read_text())
    for name in MODELS:
        changed = [kind for kind in old[name] if current[name][kind] != old[name][kind]]
        print(name, "the same to the last bit" if not changed else f"changed: {changed}")
