import json
import pickle

import pytest
import torch
from torch import nn
from trajectory_helpers import OPTIMIZERS, odd, train

from geomtraj.errors import TrajectoryError
from geomtraj.trajectory import Recorder, Trajectory, at, store


@pytest.fixture
def recorded(tmp_path):
    """A path, and what the model held at each recorded step."""
    model = odd()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    held = {}
    with Recorder(tmp_path / "run", model, optimizer, at([0, 3, 4]), meta={"seed": 1}) as rec:
        for step in range(10):
            held[step] = [p.detach().clone() for p in model.parameters() if p.requires_grad]
            rec.log(loss=float(step))
            if step < 9:  # the last step, 9, is recorded though the schedule does not name it
                train(model, optimizer, step, step + 1)
    return tmp_path / "run", held


def test_iterates_hold_the_parameters_in_the_models_order(recorded):
    path, held = recorded
    trajectory = Trajectory(path)
    assert len(trajectory) == 4 and trajectory.steps == [0, 3, 4, 9] and trajectory.path == path
    assert trajectory.meta == {"seed": 1} and trajectory.status == "complete"
    for iterate in trajectory:
        assert torch.equal(iterate.theta, torch.cat([p.reshape(-1) for p in held[iterate.step]]))
        assert iterate.logged == {"loss": iterate.step}
    assert set(trajectory[-1].parameters) - set(trajectory.manifest["trainable"]) == {"scale"}
    assert trajectory[-1].buffers["calls"] == 9
    assert trajectory[2].optimizer_state["state"][1]["step"] == 4
    assert "scale" in repr(trajectory[1].parameters.keys()) and "step=3" in repr(trajectory[1])


def test_indexing_is_a_sequences_and_slices_stay_lazy(recorded, monkeypatch):
    path, _ = recorded
    trajectory = Trajectory(path)
    assert trajectory[1].step == trajectory[-3].step == trajectory.at_step(3).step == 3
    with pytest.raises(IndexError):
        trajectory[4]
    read = []
    real = store.read_iterate
    monkeypatch.setattr(
        store, "read_iterate", lambda folder, step, *a, **k: read.append(step) or real(folder, step, *a, **k)
    )
    part = trajectory[1::2]
    assert part.steps == [3, 9] and trajectory.steps == [0, 3, 4, 9] and not read
    assert [iterate.step for iterate in part] == read == [3, 9]
    assert part[0].optimizer_state["state"][1]["step"] == 3  # read only now
    assert read == [3, 9, 3, 3]
    assert len(trajectory[:0]) == 0


def test_trajectories_travel_to_other_processes(recorded):
    path, _ = recorded
    trajectory = Trajectory(path)
    again = pickle.loads(pickle.dumps(trajectory[1:]))
    assert torch.equal(again[0].theta, trajectory[1].theta)


def test_missing_folders_steps_and_models_are_named(recorded, tmp_path):
    path, _ = recorded
    trajectory = Trajectory(path)
    with pytest.raises(TrajectoryError, match="no folder"):
        Trajectory(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrajectoryError, match="holds no iterates"):
        Trajectory(tmp_path / "empty")
    with pytest.raises(TrajectoryError, match="step 5: .* 3, 4, 9"):
        trajectory.at_step(5)
    with pytest.raises(TrajectoryError, match="step 100: .* 4, 9"):
        trajectory.load_into(odd(), 100)
    model = odd(width=4)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(TrajectoryError, match=r"embedding.weight is \(11, 8\) there and \(11, 4\) in the model"):
        trajectory.load_into(model, 3)
    assert all(map(torch.equal, before, model.parameters()))
    with pytest.raises(TrajectoryError, match=r"lacks its parameters scale .*has the parameters weight"):
        trajectory.load_into(nn.Linear(2, 2), 3)
    model = odd(seed=3)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(TrajectoryError, match="does not fit this Adam"):
        trajectory.load_into(model, 3, torch.optim.Adam([model.middle.weight]))
    assert all(map(torch.equal, before, model.parameters()))


def test_damaged_and_newer_trajectories_are_refused(recorded):
    path, _ = recorded
    (path / "iterates" / ".00000012.h5.1.tmp").write_bytes(b"half")
    (path / "iterates" / "notes.txt").write_text("mine")
    trajectory = Trajectory(path)
    assert trajectory.steps == [0, 3, 4, 9]
    torn = store.iterate_path(path, 4)
    torn.write_bytes(torn.read_bytes()[:1000])
    assert trajectory[1].step == 3
    with pytest.raises(TrajectoryError, match=r"00000004.h5 is damaged .* delete this file"):
        trajectory[2]
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(TrajectoryError, match="format version 99"):
        Trajectory(path)
    (path / "manifest.json").write_text('{"status": "comp')
    with pytest.raises(TrajectoryError, match=r"manifest.json cannot be read"):
        Trajectory(path)
    (path / "manifest.json").unlink()
    with pytest.raises(TrajectoryError, match=r"manifest.json is missing"):
        Trajectory(path)


def test_loading_does_not_share_memory_with_the_iterate(recorded):
    path, _ = recorded
    trajectory = Trajectory(path)
    iterate, model = trajectory[1], odd()
    theta = iterate.theta.clone()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    trajectory.load_into(model, 3, optimizer)
    train(model, optimizer, 3, 5)
    assert torch.equal(iterate.theta, theta) and torch.equal(trajectory[1].theta, theta)


def test_a_float64_copy_takes_the_same_numbers(recorded):
    path, held = recorded
    model = odd().double()
    Trajectory(path).load_into(model, 4)
    assert torch.equal(model.middle.weight, held[4][3].double())
