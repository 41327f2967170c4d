"""What of an iterate is stored and kept, by whom, and what the formats promise."""

import errno
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from trajectory_helpers import OPTIMIZERS, assert_equal_models, odd, train

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.trajectory import Recorder, Trajectory, every, payload, store

FROZEN = Path(__file__).parent / "frozen"


def recorded(path, steps=6, name="adam", schedule=None, **options):
    model = odd()
    optimizer = OPTIMIZERS[name](model.parameters())
    with Recorder(path, model, optimizer, schedule or every(2), **options) as rec:
        train(model, optimizer, 0, steps, rec)
    return model, Trajectory(path)


@pytest.mark.parametrize("version", ["format1", "format2"])
def test_files_of_every_format_are_read_for_ever(version):
    trajectory = Trajectory(FROZEN / version)
    content = torch.load(FROZEN / "content.pt", weights_only=True)
    assert trajectory.steps == [0, 2, 4] == list(content)
    assert [row["step"] for row in trajectory.log] == [0, 1, 2, 3]
    for iterate in trajectory:
        theta, buffers, state = content[iterate.step]
        assert torch.equal(iterate.theta, theta)
        assert iterate.buffers.keys() == buffers.keys()
        for name, tensor in buffers.items():
            assert tensor.dtype == iterate.buffers[name].dtype and torch.equal(tensor, iterate.buffers[name])
        assert iterate.optimizer_state["param_groups"] == state["param_groups"]
        for key, entries in state["state"].items():
            assert all(torch.equal(value, iterate.optimizer_state["state"][key][k]) for k, value in entries.items())
    assert trajectory.wall_time(2) > 0
    assert trajectory.parameters(2, "2.*").keys() == {"2.weight", "2.bias"}
    assert len({trajectory.digest(step) for step in trajectory.steps}) == 3


def test_a_run_of_the_first_format_goes_on_in_the_second(tmp_path):
    for file in (FROZEN / "format1").rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(FROZEN / "format1")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    model.register_buffer("short", torch.zeros(2, dtype=torch.bfloat16))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.125)
    with Recorder(tmp_path, model, optimizer, every(2), resume=True) as rec:
        assert rec.step == 4
        for _ in range(2):
            optimizer.step()
    trajectory = Trajectory(tmp_path)
    assert [i.step for i in trajectory] == [0, 2, 4, 6] and trajectory.log[3]["step"] == 3


@pytest.mark.parametrize("compress", [False, True])
def test_writing_makes_no_second_copy_and_reads_by_the_tensor(tmp_path, compress, monkeypatch):
    many = {f"layer.{i}.weight": torch.full((300,), float(i)) for i in range(3000)}
    state = {i: {"step": torch.tensor(1.0), "exp_avg": torch.randn(300)} for i in range(3000)}
    content = {"parameters": many, "optimizer": {"state": state}, "step": 0}
    store.write_iterate(tmp_path, 0, content, compress=compress)
    size, data = store.iterate_path(tmp_path, 0).stat().st_size, 3000 * 601 * 4
    assert size < (1.05 * data if not compress else 0.8 * data)
    read = []
    real = payload.read_tensor
    monkeypatch.setattr(payload, "read_tensor", lambda row, reader: read.append(row.name) or real(row, reader))
    part = store.read_iterate(tmp_path, 0, ("parameters",), names={"layer.7.weight", "layer.2999.weight"}.__contains__)
    assert torch.equal(part["parameters"]["layer.2999.weight"], many["layer.2999.weight"])
    assert read == ["parameters/layer.7.weight", "parameters/layer.2999.weight"]

    large = torch.zeros(4 * payload.PIECE // 4)
    held = []
    monkeypatch.setattr(payload, "array_of", lambda t, real=payload.array_of: held.append(real(t)) or held[-1])
    store.write_iterate(tmp_path, 1, {"parameters": {"a": large}})
    storage = large.untyped_storage()
    inside = range(storage.data_ptr(), storage.data_ptr() + storage.nbytes())
    assert all(array.ctypes.data in inside for array in held) and len(held) == 4


def test_a_subset_of_the_parameters_is_recorded_and_told(tmp_path):
    model, trajectory = recorded(tmp_path, subset=["middle.*", "embedding.weight"])
    iterate = trajectory[-1]
    assert list(iterate.parameters) == ["embedding.weight", "middle.weight", "middle.bias"]
    assert torch.equal(iterate.parameters["middle.weight"], model.middle.weight)
    assert len(iterate.optimizer_state["state"]) == 3
    assert trajectory.manifest["storage"] == {"subset": ["middle.*", "embedding.weight"]}
    other = odd(seed=3)
    before = other.norm.weight.detach().clone() + 1
    other.norm.weight.data += 1
    with pytest.raises(TrajectoryError, match="partial=True"):
        trajectory.load_into(other, 6)
    trajectory.load_into(other, 6, partial=True)
    assert torch.equal(other.middle.weight, model.middle.weight) and torch.equal(other.norm.weight, before)
    with pytest.raises(TrajectoryError, match="holds only the parameters middle"):
        resumed(tmp_path)
    with pytest.raises(InputError, match="unknown parameter or glob 'midle"):
        recorded(tmp_path / "b", subset="midle.*")


def resumed(path, model=None, **options):
    model = odd() if model is None else model
    with Recorder(path, model, OPTIMIZERS["adam"](model.parameters()), every(2), resume=True, **options) as rec:
        return rec.step


def test_numbers_may_be_stored_in_another_type(tmp_path):
    model, trajectory = recorded(tmp_path, dtype=torch.bfloat16)
    iterate = trajectory[-1]
    assert iterate.theta.dtype == torch.bfloat16 and iterate.buffers["calls"].dtype == torch.int64
    assert torch.equal(iterate.parameters["middle.weight"], model.middle.weight.bfloat16())
    assert iterate.optimizer_state["state"][1]["exp_avg"].dtype == torch.bfloat16
    again = odd(seed=2)
    trajectory.load_into(again, 6)
    assert torch.equal(again.middle.weight, model.middle.weight.bfloat16().float())
    with pytest.raises(TrajectoryError, match="numbers rounded to bfloat16"):
        resumed(tmp_path)
    assert resumed(tmp_path, model, dtype="bfloat16") == 6  # the checkpoint of one's own was restored


def test_the_optimizers_state_may_be_left_out(tmp_path):
    model, trajectory = recorded(tmp_path, optimizer_state=False)
    assert trajectory[-1].optimizer_state is None
    trajectory.load_into(odd(), 6)
    with pytest.raises(TrajectoryError, match="recorded without optimizer state"):
        trajectory.load_into(model, 6, OPTIMIZERS["adam"](model.parameters()))
    with pytest.raises(TrajectoryError, match="holds no optimizer state"):
        resumed(tmp_path)


def test_compressed_runs_are_the_same_and_smaller(tmp_path):
    model, plain = recorded(tmp_path / "a", name="sgd")
    _, small = recorded(tmp_path / "b", name="sgd", compress=True)
    for a, b in zip(plain, small, strict=True):
        assert torch.equal(a.theta, b.theta)
    assert_equal_models(model, load(small))


def load(trajectory):
    model = odd(seed=9)
    trajectory.load_into(model, trajectory.steps[-1])
    return model


@pytest.mark.parametrize("keep, steps", [(2, [7, 8]), (every(4), [0, 4, 8]), (1, [8])])
def test_old_iterates_go_when_a_newer_one_is_on_the_disk(tmp_path, keep, steps):
    _, trajectory = recorded(tmp_path, 8, schedule=every(1), keep=keep)
    assert trajectory.steps == steps and [i.step for i in trajectory] == steps


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_background_changes_nothing(tmp_path, name):
    plain = odd()
    train(plain, OPTIMIZERS[name](plain.parameters()), 0, 6)
    model, trajectory = recorded(tmp_path / "a", 6, name, every(1), background=True)
    assert_equal_models(plain, model)
    _, same = recorded(tmp_path / "b", 6, name, every(1))
    assert trajectory.steps == same.steps == list(range(7)) and trajectory.status == "complete"
    for a, b in zip(trajectory, same, strict=True):
        assert torch.equal(a.theta, b.theta)
    assert not [t for t in threading.enumerate() if t.name == "geomtraj recorder"]


def test_the_background_holds_one_copy_and_training_waits_for_it(tmp_path, monkeypatch):
    running, most, gate = [], [], threading.Event()
    real = store.write_iterate

    def slow(folder, step, content, **options):
        running.append(step)
        most.append(len(running))
        gate.wait(0.05)
        real(folder, step, content, **options)
        running.pop()

    monkeypatch.setattr(store, "write_iterate", slow)
    _, trajectory = recorded(tmp_path, 6, schedule=every(1), background=True)
    assert max(most) == 1 and len(trajectory) == 7


def test_an_error_of_the_background_is_raised_in_training(tmp_path, monkeypatch):
    real = store.replace_file

    def full(path, fill):
        if path.name == "00000002.h5":
            raise store.write_error(path, OSError(errno.ENOSPC, "No space left on device"))
        real(path, fill)

    monkeypatch.setattr(store, "replace_file", full)
    model = odd()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    reached = 0
    with (
        pytest.raises(TrajectoryError, match="disk is full"),
        Recorder(tmp_path, model, optimizer, every(1), background=True),
    ):
        for reached in range(10):
            train(model, optimizer, reached, reached + 1)
    assert reached <= 3 and Trajectory(tmp_path).steps == [0, 1] and Trajectory(tmp_path).status == "interrupted"
    monkeypatch.setattr(store, "replace_file", real)
    with (
        pytest.raises(ZeroDivisionError),
        Recorder(tmp_path, *pair_for(tmp_path), every(1), resume=True, background=True),
    ):
        raise ZeroDivisionError


def pair_for(path):
    model = odd()
    return model, OPTIMIZERS["adam"](model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"subset": []}, {"subset": 3}, {"dtype": torch.int8}, {"dtype": "half_precision"}, {"keep": 0},
        {"keep": True}, {"keep": "all"},
    ],
)  # fmt: skip
def test_bad_options_are_refused(tmp_path, options):
    model, optimizer = pair_for(tmp_path)
    with pytest.raises(InputError):
        Recorder(tmp_path, model, optimizer, **options)
