import math

import numpy as np
import pytest
import torch
from standing import at, classification, quadratic, trained
from torch import nn

import geomtraj as gt
from geomtraj.statistics import REGISTRY, path
from geomtraj.statistics.path import formed, share, wishart


def walked(folder, moves, name="run"):
    """A run whose parameters take these moves, (T, P), recorded after each."""
    model = nn.Linear(moves.shape[1], 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with gt.Recorder(folder / name, model, optimizer, gt.every(1)):
        for move in moves:
            model.weight.grad = -move[None].clone()
            optimizer.step()
    problem = gt.Problem(model, lambda m, b: m(b)[:, 0].square(), [torch.ones(2, moves.shape[1]).double()], check=False)
    return gt.Trajectory(folder / name), problem


def measured(run, problem, step, **settings):
    with at(run, problem, step) as point:
        return REGISTRY["path"](**settings).measure(point)


@pytest.mark.parametrize(
    ("settings", "expected", "tolerance"),
    [({}, 8 / math.pi**2, 0.01), ({"centred": True}, 6 / math.pi**2, 0.01), ({"normalised": True}, 0.697, 0.012)],
)
def test_a_random_walks_share_is_its_null(tmp_path, settings, expected, tolerance):
    moves = torch.randn(50, 4000, generator=torch.Generator().manual_seed(1)).double()
    run, problem = walked(tmp_path, moves)
    outcome = measured(run, problem, 50, **settings)
    found, null = outcome.quantities["pc1"], outcome.quantities["pc1_null"]
    assert null.low <= found.value <= null.high
    assert null.value == pytest.approx(expected, abs=tolerance)
    theta = moves.cumsum(0)
    rows = theta - theta.mean(0) * settings.get("centred", 0)
    rows = rows / rows.norm(dim=1, keepdim=True) if settings.get("normalised") else rows
    values = torch.linalg.svdvals(rows).square()
    assert found.low == found.value == found.high == pytest.approx(float(values[0] / values.sum()))


def test_the_nulls_interval_is_the_spread_of_walks_in_as_many_dimensions():
    rng, size, count = np.random.default_rng(0), 6, 12
    times = np.arange(1, count + 1)
    null = REGISTRY["path"]()._null(times, size)
    shares = []
    for _ in range(400):
        walk = np.cumsum(rng.standard_normal((count, size)), 0)
        shares.append(share(walk @ walk.T))
    assert null.value == pytest.approx(np.mean(shares), abs=0.03)
    assert 0.88 <= np.mean([null.low <= s <= null.high for s in shares]) <= 0.99
    few = np.random.default_rng(1)
    mean = sum(wishart(4, 9, few) for _ in range(2000)) / 2000  # Bartlett's factor against its mean
    assert np.allclose(mean, np.eye(4), atol=0.05)


def test_uneven_records_have_a_null_of_their_own(tmp_path):
    moves = torch.randn(60, 3000, generator=torch.Generator().manual_seed(2)).double()
    run, problem = walked(tmp_path, moves)
    for step in [s for s in run.steps if s not in (0, 1, 2, 4, 8, 16, 32, 60)]:
        (run.path / "iterates" / f"{step:08d}.h5").unlink()
    run = gt.Trajectory(run.path)
    outcome = measured(run, problem, 60)
    null = outcome.quantities["pc1_null"]
    assert null.low <= outcome.quantities["pc1"].value <= null.high and null.value < 0.77


def test_a_straight_path_and_a_corner(tmp_path):
    moves = torch.zeros(4, 5).double()
    moves[:2, 0] = 1.0
    moves[2, 1] = 2.0
    moves[3, 0] = -1.0
    run, problem = walked(tmp_path, moves)
    straight, corner = measured(run, problem, 1), measured(run, problem, 2)
    assert straight.quantities["turning"].value == pytest.approx(0, abs=1e-6)
    assert corner.quantities["turning"].value == pytest.approx(math.pi / 2)
    assert corner.quantities["pc1"].value == pytest.approx(1)
    null = corner.quantities["turning_null"]
    assert null.value == math.pi / 2 and null.high - null.value == pytest.approx(1.96 / 5**0.5)
    first, last = measured(run, problem, 0), measured(run, problem, 4)
    assert not first.quantities and "fewer than two moves" in first.status
    assert "turning" not in last.quantities and last.details["distance"] == pytest.approx(5**0.5)


def test_each_iterate_is_read_once_for_all_of_them_and_in_blocks(tmp_path, monkeypatch):
    problem = classification()
    run = trained(tmp_path / "run", problem, lambda m: torch.optim.Adam(m.parameters()), 20)
    read = []
    real = gt.Trajectory.at_step
    monkeypatch.setattr(gt.Trajectory, "at_step", lambda self, step: read.append(step) or real(self, step))
    whole = gt.measure(run, problem, ["path"], progress=False, out=tmp_path / "whole").of("path")
    assert len(read) < 6 * len(run.steps)  # once for the path, and each point with its neighbours
    monkeypatch.setattr(path, "BLOCK_BYTES", 8 * 2 * problem.size)
    blocks = gt.measure(run, problem, ["path"], progress=False, out=tmp_path / "blocks").of("path")
    for a, b in zip(whole, blocks, strict=True):
        ours, theirs = ({k: q.value for k, q in m.quantities.items()} for m in (a, b))
        assert ours == pytest.approx(theirs)
    (alone,) = gt.measure(run[7:8], problem, ["path"], progress=False, out=tmp_path / "alone").of("path")
    assert alone.quantities == blocks[7].quantities


def test_damaged_iterates_are_left_out(tmp_path):
    problem, _ = quadratic()
    run = trained(tmp_path / "run", problem, lambda m: torch.optim.SGD(m.parameters(), lr=0.01), 5)
    file = run.path / "iterates" / "00000002.h5"
    file.write_bytes(file.read_bytes()[:-300])
    outcome = measured(run, problem, 5)
    assert "1 iterates cannot be read" in outcome.status and outcome.details["iterates"] == 5


def test_a_path_that_stands_still(tmp_path):
    run, problem = walked(tmp_path, torch.zeros(3, 4).double())
    outcome = measured(run, problem, 2)
    assert not outcome.quantities and "nothing has moved" in outcome.status


def test_forms():
    rows = np.random.default_rng(0).standard_normal((5, 8))
    centred = rows - rows.mean(0)
    assert np.allclose(formed(rows @ rows.T, True, False), centred @ centred.T)
