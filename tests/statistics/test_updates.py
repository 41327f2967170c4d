import math

import pytest
import torch
from standing import adam, at, classification, trained

from geomtraj.statistics import REGISTRY


def measured(tmp_path, make, step=3):
    problem = classification()
    run = trained(tmp_path / "run", problem, make)
    with at(run, problem, step) as point:
        outcome = REGISTRY["updates"]().measure(point)
    return run[step + 1].theta - run[step].theta, problem, outcome


def test_the_measures_of_each_matrix(tmp_path):
    d, problem, outcome = measured(tmp_path, adam)
    found = outcome.quantities
    stable = []
    for name in ("0.weight", "2.weight"):
        D = problem.blocks[name].take(d).reshape(problem.blocks[name].shape)
        s = torch.linalg.svdvals(D)
        stable.append(float(D.square().sum() / s[0] ** 2))
        assert found[f"{name}: stable_rank"].value == pytest.approx(stable[-1])
        nuclear = float(torch.linalg.matrix_norm(D, "nuc"))
        assert found[f"{name}: orthogonality"].value == pytest.approx(nuclear**2 / (len(s) * float(D.square().sum())))
        assert found[f"{name}: rms"].value == pytest.approx(float(D.square().mean().sqrt()))
        assert outcome.arrays[name].tolist() == pytest.approx(s.tolist())
    assert found["stable_rank"].value == pytest.approx(sum(stable) / 2)
    assert "0.bias: rms" not in found and outcome.status == "ok"


if hasattr(torch.optim, "Muon"):

    def test_all_singular_values_of_a_muon_step_are_one(tmp_path):
        lr = 0.02

        def make(model):
            matrices = [model[0].weight, model[2].weight]
            return [
                torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, ns_steps=10, ns_coefficients=(2.0, -1.5, 0.5)),
                torch.optim.SGD([model[0].bias, model[2].bias], lr=0.1),
            ]

        _, problem, outcome = measured(tmp_path, make)
        values = outcome.arrays["0.weight"]  # the head's gradient has rank 2: its rows sum to zero
        rows, columns = problem.blocks["0.weight"].shape
        scale = lr * math.sqrt(max(1.0, rows / columns))
        assert (values / scale).tolist() == pytest.approx([1.0] * 4, abs=0.02)
        assert outcome.quantities["0.weight: orthogonality"].value == pytest.approx(1, abs=0.01)
        assert outcome.quantities["0.weight: stable_rank"].value == pytest.approx(4, rel=0.03)


def test_a_step_of_zero(tmp_path):
    _, _, outcome = measured(tmp_path, lambda m: torch.optim.SGD(m.parameters(), lr=0.0))
    assert not outcome.quantities and "no weight matrix moves" in outcome.status


def test_a_layer_that_does_not_move(tmp_path):
    def make(model):
        return torch.optim.SGD(
            [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}], lr=0.1
        )

    _, _, outcome = measured(tmp_path, make)
    assert outcome.status == "0.weight: its next step is zero" and "2.weight: rms" in outcome.quantities
