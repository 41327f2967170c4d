"""Runs that begin at an iterate of another run, and evaluation losses logged on the way."""

import json

import pytest
import torch

from geomtraj import tasks
from geomtraj.errors import InputError, TrajectoryError
from geomtraj.training import optimizers, train
from geomtraj.trajectory import Trajectory, every

TASK = tasks.make("digits-mlp", width=8, batch_size=8, eval_examples=32)
COMMON = {"seed": 3, "schedule": every(4), "progress": False}


def same(a, b):
    return torch.equal(a.theta, b.theta)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return train(TASK, "sgdm", 0.05, 12, path=tmp_path_factory.mktemp("base") / "run", **COMMON)


@pytest.mark.parametrize("optimizer", ["sgdm", "adam", "adamw", "rmsprop", "muon"])
def test_a_carried_start_goes_on_as_if_uninterrupted(tmp_path, optimizer):
    if optimizer not in optimizers.names():
        pytest.skip("this torch lacks it")
    task = TASK if optimizer != "muon" else tasks.make("pydoc-lm", layers=1, width=8, context=8, batch_size=2)
    whole = train(task, optimizer, 0.01, 12, path=tmp_path / "whole", **COMMON)
    rest = train(task, optimizer, 0.01, 8, path=tmp_path / "rest", start=whole.at_step(4), carry=True, **COMMON)
    assert rest.steps == [0, 4, 8]
    assert all(same(rest.at_step(k), whole.at_step(k + 4)) for k in rest.steps)
    assert [row["loss"] for row in rest.log] == [row["loss"] for row in whole.log[4:]]
    fresh = train(task, optimizer, 0.01, 8, path=tmp_path / "fresh", start=whole.at_step(4), **COMMON)
    assert same(fresh[0], rest[0]) and not same(fresh[-1], rest[-1])
    assert fresh.log[0]["loss"] == rest.log[0]["loss"]


def test_the_learning_rate_is_that_of_the_new_run(tmp_path, base):
    a = train(TASK, "sgdm", 0.001, 4, path=tmp_path / "a", start=base.at_step(4), carry=True, **COMMON)
    assert a[-1].optimizer_state["param_groups"][0]["lr"] == 0.001 and not same(a[-1], base.at_step(8))
    # One step by hand: velocity 0.9 v + g, learning rate of the new run.
    model, start = TASK.model(0), base.at_step(4)
    base.load_into(model, 4)
    one = train(TASK, "sgdm", 0.001, 1, path=tmp_path / "one", start=start, carry=True, **COMMON)
    TASK.loss(model, TASK.batch(4, 3)).mean().backward()
    for i, (name, parameter) in enumerate(model.named_parameters()):
        velocity = 0.9 * start.optimizer_state["state"][i]["momentum_buffer"] + parameter.grad
        torch.testing.assert_close(one[-1].parameters[name], (parameter - 0.001 * velocity).detach())


def test_another_optimizer_starts_fresh_on_the_batches_that_are_asked_for(tmp_path, base):
    start = base.at_step(8)
    run = train(TASK, "adam", 0.01, 2, path=tmp_path / "a", start=start, first_batch=50, **COMMON)
    model = TASK.model(0)
    base.load_into(model, 8)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(2):
        loss = TASK.loss(model, TASK.batch(50 + step, 3)).mean()
        assert run.log[step]["loss"] == loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(run[-1].theta, torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert run.meta["first_batch"] == 50 and run.meta["start"]["step"] == 8
    default = train(TASK, "adam", 0.01, 2, path=tmp_path / "b", start=start, **COMMON)
    assert default.meta["first_batch"] == 8


def test_a_stopped_continuation_resumes_bit_equal(tmp_path, base):
    arguments = {"start": base.at_step(4), "carry": True, "evaluate": every(3), **COMMON}
    whole = train(TASK, "sgdm", 0.05, 8, path=tmp_path / "whole", **arguments)
    train(TASK, "sgdm", 0.05, 5, path=tmp_path / "cut", **arguments)
    resumed = train(TASK, "sgdm", 0.05, 8, path=tmp_path / "cut", **arguments)
    assert same(resumed[-1], whole[-1]) and resumed.meta == whole.meta

    def losses(run):
        return [(row["loss"], row.get("evaluation_loss")) for row in run.log]

    assert losses(resumed) == losses(whole)


def test_runs_of_another_start_are_not_mixed(tmp_path, base):
    path = tmp_path / "run"
    first = train(TASK, "sgdm", 0.05, 4, path=path, start=base.at_step(4), **COMMON)
    assert train(TASK, "sgdm", 0.05, 4, path=path, start=base.at_step(4), **COMMON).log == first.log
    other = train(TASK, "sgdm", 0.06, 12, path=tmp_path / "other", **COMMON)
    for change in (
        {"start": base.at_step(4), "carry": True},
        {"start": base.at_step(8), "first_batch": 4},
        {"start": other.at_step(4)},
        {"start": None, "first_batch": 4},
    ):
        with pytest.raises(InputError, match="start .*another path"):
            train(TASK, "sgdm", 0.05, 4, path=path, **{**COMMON, **change})
    with pytest.raises(InputError, match="first_batch 4, not 5"):
        train(TASK, "sgdm", 0.05, 4, path=path, start=base.at_step(4), first_batch=5, **COMMON)


def test_runs_recorded_before_there_were_starts_are_still_known(tmp_path, base):
    run = train(TASK, "sgdm", 0.05, 4, path=tmp_path, **COMMON)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for key in ("start", "first_batch", "full_batch"):
        del manifest["meta"][key]
    del manifest["sha256"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))
    assert train(TASK, "sgdm", 0.05, 4, path=tmp_path, **COMMON).log == run.log
    with pytest.raises(InputError, match="start None, not "):
        train(TASK, "sgdm", 0.05, 4, path=tmp_path, start=base.at_step(4), first_batch=0, **COMMON)


def test_the_evaluation_loss_is_the_measured_one_and_leaves_training_alone(tmp_path, base):
    run = train(TASK, "sgdm", 0.05, 12, path=tmp_path, evaluate=every(4), **COMMON)
    assert all(same(a, b) for a, b in zip(run, base, strict=True))
    model = TASK.model(0)
    for row in run.log:
        assert ("evaluation_loss" in row) == (row["step"] % 4 == 0)
        if row["step"] % 4 == 0:
            run.load_into(model, row["step"])
            assert row["evaluation_loss"] == TASK.problem(model).loss().item()
    assert [row["loss"] for row in run.log] == [row["loss"] for row in base.log]


@pytest.mark.parametrize(("optimizer", "hyper"), [("adam", {}), ("sgd", {}), ("sgdm", {"momentum": 0.5})])
def test_state_of_another_optimizer_is_refused(tmp_path, base, optimizer, hyper):
    with pytest.raises(InputError, match="start with carry=False"):
        train(TASK, optimizer, 0.01, 4, path=tmp_path / "run", start=base[-1], carry=True, **COMMON, **hyper)
    assert not (tmp_path / "run").exists()


def test_bad_starts(tmp_path, base):
    with pytest.raises(InputError, match="give start"):
        train(TASK, "sgdm", 0.01, 4, path=tmp_path / "run", carry=True, **COMMON)
    with pytest.raises(InputError, match="first_batch"):
        train(TASK, "sgdm", 0.01, 4, path=tmp_path / "run", first_batch=-1, **COMMON)
    wider = tasks.make("digits-mlp", width=9, batch_size=8, eval_examples=32)
    with pytest.raises(TrajectoryError, match="another model"):
        train(wider, "sgdm", 0.01, 4, path=tmp_path / "run", start=base[-1], **COMMON)
    assert not (tmp_path / "run").exists()
    assert Trajectory(base.path).status == "complete"
