import errno
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from trajectory_helpers import OPTIMIZERS, assert_equal_models, odd, train

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.trajectory import Recorder, Trajectory, every, files, store


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_recording_is_the_identity_on_training(tmp_path, name):
    plain, recorded = odd(), odd()
    train(plain, OPTIMIZERS[name](plain.parameters()), 0, 6)
    optimizer = OPTIMIZERS[name](recorded.parameters())
    rng = torch.get_rng_state()
    with Recorder(tmp_path, recorded, optimizer, every(2)) as rec:
        train(recorded, optimizer, 0, 6, rec)
    assert_equal_models(plain, recorded)
    assert torch.equal(rng, torch.get_rng_state())
    assert Trajectory(tmp_path).steps == [0, 2, 4, 6]
    assert len(optimizer._optimizer_step_post_hooks) == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_bit_equal_from_every_recorded_step(tmp_path, name):
    model = odd()
    optimizer = OPTIMIZERS[name](model.parameters())
    with Recorder(tmp_path, model, optimizer, every(2)):
        train(model, optimizer, 0, 6)
    trajectory = Trajectory(tmp_path)
    for step in trajectory.steps:
        again = odd(seed=5)
        optimizer = OPTIMIZERS[name](again.parameters())
        train(again, optimizer, 90, 92)
        trajectory.load_into(again, step, optimizer)
        assert again.head.weight is again.embedding.weight
        train(again, optimizer, step, 6)
        assert_equal_models(model, again)


def test_a_learning_rate_changed_on_the_way_is_restored(tmp_path):
    model = odd()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    with Recorder(tmp_path, model, optimizer, every(1)):
        train(model, optimizer, 0, 1)
        optimizer.param_groups[0]["lr"] = 0.125
        train(model, optimizer, 1, 2)
    Trajectory(tmp_path).load_into(model, 0, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.01
    Trajectory(tmp_path).load_into(model, 2, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_state_of_another_number_type_comes_back_in_its_own(tmp_path):
    class Wide(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {"lr": 0.1})

        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                total = self.state[p].setdefault("total", torch.full(p.shape, 1 / 3, dtype=torch.float64))
                total += 1e-12

    model = nn.Linear(2, 2)
    optimizer = Wide(model.parameters())
    with Recorder(tmp_path, model, optimizer, every(1)):
        optimizer.step()
    expected = optimizer.state[model.weight]["total"].clone()
    again = Wide(model.parameters())
    Trajectory(tmp_path).load_into(model, 1, again)
    assert torch.equal(again.state[model.weight]["total"], expected)


def run(path, steps, resume=False, name="adam", schedule=None, stop=None):
    model = odd()
    optimizer = OPTIMIZERS[name](model.parameters())
    with Recorder(path, model, optimizer, schedule or every(2), {"lr": 0.01}, resume) as rec:
        for step in range(rec.step, steps):
            if step == stop:
                raise KeyboardInterrupt
            train(model, optimizer, step, step + 1, rec)
    return model


def test_an_interrupted_run_is_marked_and_goes_on_bit_equal(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", 9, stop=5)
    halted = Trajectory(tmp_path / "b")
    assert halted.status == "interrupted" and halted.steps == [0, 2, 4]
    assert [row["step"] for row in halted.log] == [1, 2, 3, 4, 5]
    whole, resumed = run(tmp_path / "a", 9), run(tmp_path / "b", 9, resume=True)
    assert_equal_models(whole, resumed)
    a, b = Trajectory(tmp_path / "a"), Trajectory(tmp_path / "b")
    assert b.status == "complete" and a.steps == b.steps
    assert [(r["step"], r["loss"]) for r in a.log] == [(r["step"], r["loss"]) for r in b.log]
    times = [iterate.wall_time for iterate in b]
    assert times == sorted(times) and b[2].wall_time >= halted[-1].wall_time
    assert [s["from_step"] for s in b.manifest["sessions"]] == [0, 4]


def test_resuming_drops_the_log_rows_that_training_will_write_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 9, stop=5)
    run(tmp_path, 4, resume=True)
    assert [row["step"] for row in Trajectory(tmp_path).log] == [1, 2, 3, 4]


def test_resuming_passes_over_damaged_iterates(tmp_path):
    whole = run(tmp_path, 8)
    for step in (6, 8):
        path = store.iterate_path(tmp_path, step)
        path.write_bytes(path.read_bytes()[:-900])
    (tmp_path / "iterates" / ".00000008.h5.0.tmp").write_bytes(b"half")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    with pytest.warns(UserWarning, match="2 damaged iterates were kept as 00000008.h5.damaged, 00000006.h5.damaged"):
        assert_equal_models(whole, run(tmp_path, 8, resume=True))
    assert sorted(f.name for f in (tmp_path / "iterates").iterdir()) == [
        "00000000.h5", "00000002.h5", "00000004.h5", "00000006.h5", "00000006.h5.damaged", "00000008.h5",
        "00000008.h5.damaged",
    ]  # fmt: skip
    assert Trajectory(tmp_path).steps == [0, 2, 4, 6, 8]
    assert [row["step"] for row in Trajectory(tmp_path).log] == list(range(1, 9))
    assert Trajectory(tmp_path).manifest["sessions"][-1]["from_step"] == 4


def test_a_folder_in_which_nothing_is_whole_is_not_started_over(tmp_path):
    run(tmp_path, 3)
    for path in (tmp_path / "iterates").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(TrajectoryError, match="none of the 3 iterates .* can be read"):
        run(tmp_path, 3, resume=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_full_folder_another_optimizer_and_another_model_are_refused(tmp_path):
    run(tmp_path, 3)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="resume=True"):
        run(tmp_path, 3)
    with pytest.raises(TrajectoryError, match="recorded with Adam, not SGD"):
        run(tmp_path, 3, resume=True, name="sgd")
    model = odd(width=4)
    with (
        pytest.raises(TrajectoryError, match=r"\(11, 8\) there and \(11, 4\) in the model"),
        Recorder(tmp_path, model, OPTIMIZERS["adam"](model.parameters()), resume=True),
    ):
        pass
    assert before == sorted(tmp_path.rglob("*"))
    assert Trajectory(tmp_path).status == "complete"


def test_diverged_runs_are_marked_and_go_on_quietly(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "loss", model, optimizer, every(5)) as rec:
        for loss in (1.0, float("nan"), 2.0):
            rec.log(eval_loss=loss, note=float("inf"))
            optimizer.step()
        assert rec.diverged
    manifest = Trajectory(tmp_path / "loss").manifest
    assert manifest["status"] == "diverged" and manifest["diverged_at"] == 1

    with Recorder(tmp_path / "theta", model, optimizer, every(2)) as rec:
        for step in range(4):
            rec.log(grad=float("inf"))
            if step == 2:
                model.weight.data[0, 1] = float("inf")
            optimizer.step()
    manifest = Trajectory(tmp_path / "theta").manifest
    assert manifest["status"] == "diverged" and manifest["diverged_at"] == 4


def test_log_takes_numbers_and_nothing_else(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path, model, optimizer) as rec:
        rec.log(loss=torch.tensor(0.5, requires_grad=True), a=1, b=np.float32(0.25))
        rec.log(c=True)
        for bad in (torch.ones(2), torch.ones(1), "x", None, [1.0]):
            with pytest.raises(InputError, match="log one number"):
                rec.log(x=bad)
        with pytest.raises(InputError, match="keeps 'step' itself"):
            rec.log(step=3)
    with pytest.raises(InputError, match="inside the block"):
        rec.log(loss=1.0)
    assert Trajectory(tmp_path)[0].logged == {"loss": 0.5, "a": 1, "b": 0.25, "c": 1}


def test_bad_arguments_are_refused(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for build in (
        lambda: Recorder(tmp_path, "model", optimizer),
        lambda: Recorder(tmp_path, model, None),
        lambda: Recorder(tmp_path, nn.Linear(2, 1), optimizer),
        lambda: Recorder(tmp_path, model, optimizer, schedule=100),
        lambda: Recorder(tmp_path, model, optimizer, meta={"a": object()}),
        lambda: Recorder(tmp_path, model, optimizer, meta=["a"]),
        lambda: Recorder(tmp_path, nn.LazyLinear(3), optimizer),
    ):
        with pytest.raises(InputError):
            build()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"), Recorder(tmp_path / "file", model, optimizer):
        pass


def test_compiled_models_keep_their_clean_names(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), torch.compile(nn.Linear(3, 2), backend="eager"))
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    with Recorder(tmp_path, compiled, optimizer, every(1)):
        optimizer.step()
    trajectory = Trajectory(tmp_path)
    assert list(trajectory[0].parameters) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    trajectory.load_into(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), 1)
    trajectory.load_into(compiled, 1)


def test_a_grad_scaler_that_skips_a_step_is_followed(tmp_path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with Recorder(tmp_path, model, optimizer, every(1)) as rec:
        for factor in (1.0, float("inf"), 1.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 3)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    assert rec.step == 2 and Trajectory(tmp_path).steps == [0, 1, 2]


def test_manifest_says_where_the_run_comes_from(tmp_path):
    run(tmp_path, 2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["format_version"] == 2 and manifest["status"] == "complete" and manifest["last_step"] == 2
    assert manifest["parameters"]["middle.weight"] == [8, 8]
    assert manifest["aliases"] == {"head.weight": "embedding.weight"}
    assert "scale" in manifest["parameters"] and "scale" not in manifest["trainable"]
    assert manifest["optimizer"]["class"] == "Adam" and manifest["optimizer"]["groups"][0]["betas"] == [0.9, 0.999]
    assert manifest["schedule"] == "every(2)" and manifest["meta"] == {"lr": 0.01}
    assert manifest["sessions"][0]["versions"]["torch"] == torch.__version__


def test_a_full_disk_ends_the_run_with_a_clear_error_and_keeps_the_rest(tmp_path, monkeypatch):
    real = files.os.replace

    def full(source, target):
        if Path(target).name == "00000004.h5":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(TrajectoryError, match=r"disk is full.*resume=True"):
        run(tmp_path, 8)
    monkeypatch.undo()
    trajectory = Trajectory(tmp_path)
    assert trajectory.steps == [0, 2] and trajectory.status == "interrupted"
    assert [i.step for i in trajectory] == [0, 2]
    assert_equal_models(run(tmp_path / "other", 8), run(tmp_path, 8, resume=True))


def test_a_killed_process_leaves_a_whole_trajectory_that_goes_on(tmp_path):
    script = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from trajectory_helpers import *
        from geomtraj.trajectory import Recorder, every
        torch.set_num_threads({torch.get_num_threads()})  # sums depend on it in their last bit
        model = odd()
        optimizer = OPTIMIZERS["adam"](model.parameters())
        with Recorder({str(tmp_path / "killed")!r}, model, optimizer, every(1)) as rec:
            for step in range(10_000):
                train(model, optimizer, step, step + 1, rec)
                print(step, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 7:
            break
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    process.wait()
    trajectory = Trajectory(tmp_path / "killed")
    last = trajectory.steps[-1]
    assert trajectory.status == "running" and last >= 8
    assert [iterate.step for iterate in trajectory] == list(range(last + 1))
    assert len(trajectory.log) >= 8
    resumed = run(tmp_path / "killed", last + 5, resume=True, schedule=every(1))
    assert_equal_models(run(tmp_path / "whole", last + 5, schedule=every(1)), resumed)
