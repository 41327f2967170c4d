import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import geomtraj as gt

WORKER = Path(__file__).parent / "ddp_worker.py"
gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


@gloo
def test_the_first_of_several_processes_records_and_all_go_on_from_its_iterates(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    commands = [[sys.executable, WORKER, str(rank), str(tmp_path)] for rank in range(2)]
    started = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
    errors = [p.communicate(timeout=200)[1] for p in started]
    assert [p.returncode for p in started] == [0, 0], errors
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    said = [[one[0] for one in mine] for mine in found]
    once, _, twice, _ = (mine[1] for mine in found[0])
    assert said[0][:3] == said[1][:3] == ["0 6", "0 3", "3 6"]
    assert said[0][3].startswith("InputError: ")
    assert said[1][3].startswith("TrajectoryError: the process that records failed: InputError: ")
    assert all(map(torch.equal, once, found[1][0][1]))
    assert all(map(torch.equal, once, twice))
    assert all(map(torch.equal, once, found[1][2][1]))
    trajectory = gt.Trajectory(tmp_path / "once")
    assert trajectory.steps == [0, 2, 4, 6]
    assert len(trajectory.log) == 6
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    trajectory.load_into(model, 6)
    assert all(map(torch.equal, model.parameters(), once))


def test_the_step_of_a_restored_checkpoint_is_taken_from_who_knows_it(tmp_path):
    def pair():
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    def step(model, optimizer):
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = pair()
    saved = {}
    with gt.Recorder(tmp_path / "run", model, optimizer, gt.every(2)) as rec:
        while rec.step < 7:
            saved[rec.step] = {k: v.clone() for k, v in model.state_dict().items()}
            step(model, optimizer)
    for known in (3, 4):
        model, optimizer = pair()
        model.load_state_dict(saved[known])
        rec = gt.Recorder(tmp_path / "run", model, optimizer, gt.every(2)).start(step=known)
        assert rec.step == known
        assert torch.equal(model.weight, saved[known]["weight"])
        while rec.step < 7:
            step(model, optimizer)
        rec.stop()
        trajectory = gt.Trajectory(tmp_path / "run")
        assert trajectory.steps == [0, 2, 4, 6, 7]
        assert torch.equal(trajectory.at_step(4).parameters["weight"], saved[4]["weight"])
    model, optimizer = pair()
    with pytest.raises(gt.TrajectoryError, match="said to be at step 4, where the iterate is another"):
        gt.Recorder(tmp_path / "run", model, optimizer).start(step=4)
    late = gt.Recorder(tmp_path / "late", model, optimizer, gt.every(2)).start(step=6)
    step(model, optimizer)
    late.stop()
    assert gt.Trajectory(tmp_path / "late").steps == [6, 7]


def test_a_step_can_be_recorded_beside_the_schedule(tmp_path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gt.Recorder(tmp_path / "run", model, optimizer, gt.every(100)) as rec:
        for _ in range(5):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            if rec.step == 3:
                rec.record()
                rec.record()
    assert gt.Trajectory(tmp_path / "run").steps == [0, 3, 5]
    with pytest.raises(gt.InputError, match="inside the block"):
        rec.record()
