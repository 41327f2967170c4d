"""Resuming where another checkpoint was restored: the Recorder attaches to its step, or refuses."""

import copy

import pytest
import torch
from trajectory_helpers import OPTIMIZERS, odd, train

from geomtraj.errors import TrajectoryError
from geomtraj.trajectory import Recorder, Trajectory, every


def recorded(path, name, checkpoints=()):
    """Twenty steps, every tenth recorded; checkpoints of model and optimizer at some steps."""
    model, held = odd(), {}
    optimizer = OPTIMIZERS[name](model.parameters())
    with Recorder(path, model, optimizer, every(10)) as rec:
        for step in range(20):
            if step in checkpoints:
                held[step] = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            train(model, optimizer, step, step + 1, rec)
    train(model, optimizer, 20, 25)
    held[25] = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    return held


def restored(checkpoint, name, optimizer_too=True):
    model = odd(seed=5)
    optimizer = OPTIMIZERS[name](model.parameters())
    model.load_state_dict(checkpoint[0])
    if optimizer_too:
        optimizer.load_state_dict(checkpoint[1])
    return model, optimizer


@pytest.mark.parametrize("step", [13, 25])
def test_a_checkpoint_between_or_after_the_iterates_is_attached_to_by_the_optimizers_count(tmp_path, step):
    held = recorded(tmp_path, "adam", (13,))
    model, optimizer = restored(held[step], "adam")
    with Recorder(tmp_path, model, optimizer, every(10), resume=True) as rec:
        assert rec.step == step
        train(model, optimizer, rec.step, 30, rec)
    trajectory = Trajectory(tmp_path)
    assert trajectory.steps == [0, 10, 20, 30]
    assert trajectory.manifest["sessions"][-1]["attached"] is True
    assert [row["step"] for row in trajectory.log] == [s for s in range(1, 31) if s <= 20 or s > step]
    assert len(list((tmp_path / "iterates").glob("*.superseded"))) == (step == 13)
    whole = odd()
    optimizer = OPTIMIZERS["adam"](whole.parameters())
    train(whole, optimizer, 0, 30)
    assert all(map(torch.equal, whole.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize("name", ["sgdm", "adam"])
@pytest.mark.parametrize("optimizer_too", [True, False])
def test_a_checkpoint_that_equals_an_iterate_is_attached_to_at_its_step(tmp_path, name, optimizer_too):
    held = recorded(tmp_path, name, (10,))
    model, optimizer = restored(held[10], name, optimizer_too)
    with Recorder(tmp_path, model, optimizer, every(10), resume=True) as rec:
        assert rec.step == 10
    assert Trajectory(tmp_path).steps == [0, 10]
    assert (tmp_path / "iterates" / "00000020.h5.superseded").exists()


def test_what_cannot_be_placed_is_refused_and_changes_nothing(tmp_path):
    held = recorded(tmp_path / "a", "sgdm")
    before = sorted((tmp_path / "a").rglob("*"))
    model, optimizer = restored(held[25], "sgdm")
    with pytest.raises(TrajectoryError, match="keeps no count of its steps"):
        Recorder(tmp_path / "a", model, optimizer, resume=True).start()
    assert all(map(torch.equal, held[25][0].values(), model.state_dict().values()))

    recorded(tmp_path / "b", "adam")
    model = odd(seed=3)  # a checkpoint of another run, at a step that is recorded
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, 0, 10)
    with pytest.raises(TrajectoryError, match="at step 10, where the iterate is another"):
        Recorder(tmp_path / "b", model, optimizer, resume=True).start()
    assert sorted((tmp_path / "a").rglob("*")) == before


@pytest.mark.parametrize("name", ["adam", "adagrad", "sgd"])
def test_a_fresh_start_goes_on_at_the_last_iterate(tmp_path, name):
    recorded(tmp_path, name)
    for seed in (0, 5):  # the initial model of the run, and any other
        model = odd(seed)
        with Recorder(tmp_path, model, OPTIMIZERS[name](model.parameters()), resume=True) as rec:
            assert rec.step == 20
