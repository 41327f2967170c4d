"""The folder of a run: one writer, nothing half-begun, nothing that goes on in two places."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.trajectory import Recorder, Trajectory, every, payload, store


def pair():
    model = nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()


WRITER = """
    import sys, time, torch
    from geomtraj.trajectory import Recorder, every
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(sys.argv[1], model, optimizer, every(1), resume=True):
        optimizer.step()
        print("recording", flush=True)
        time.sleep(60)
"""


def test_a_second_writer_is_refused_and_a_killed_one_lets_go(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "recording\n"
    before = sorted(tmp_path.rglob("*"))
    model, optimizer = pair()
    for resume in (True, False):
        with (
            pytest.raises(TrajectoryError, match=f"recorded by process {process.pid} on {socket.gethostname()}"),
            Recorder(tmp_path / "run", model, optimizer, resume=resume),
        ):
            pass
    assert sorted(tmp_path.rglob("*")) == before
    assert len(Trajectory(tmp_path / "run")) == 2  # readers need no lock
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with Recorder(tmp_path / "run", model, optimizer, resume=True) as rec:
        assert rec.step == 1


def test_two_writers_in_one_process_are_two(tmp_path):
    model, optimizer = pair()
    with Recorder(tmp_path, model, optimizer):
        with (
            pytest.raises(TrajectoryError, match=f"recorded by process {os.getpid()}"),
            Recorder(tmp_path, model, optimizer, resume=True),
        ):
            pass
        step(model, optimizer)
    assert Trajectory(tmp_path).steps == [0, 1]
    with Recorder(tmp_path, model, optimizer, resume=True):
        pass


def test_a_failure_at_entry_leaves_the_disk_and_the_optimizer_as_they_were(tmp_path, monkeypatch):
    model, optimizer = pair()
    optimizer.state[model.weight]["odd"] = object()
    recorder = Recorder(tmp_path / "deep" / "run", model, optimizer, every(1))
    with pytest.raises(InputError, match="odd holds a object"):
        recorder.start()
    assert list(tmp_path.iterdir()) == []
    assert not optimizer._optimizer_step_post_hooks and not optimizer._optimizer_step_pre_hooks
    optimizer.state.clear()
    with recorder:
        step(model, optimizer)
    assert Trajectory(tmp_path / "deep" / "run").steps == [0, 1]

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    monkeypatch.setattr(torch.optim.Optimizer, "register_step_post_hook", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Recorder(tmp_path / "mine", model, optimizer).start()
    assert [p.name for p in (tmp_path / "mine").rglob("*")] == ["notes.txt"]


@pytest.mark.parametrize("what", ["removed", "renamed", "replaced", "iterates", "log"])
def test_a_folder_that_goes_away_is_an_error_in_training(tmp_path, what):
    model, optimizer = pair()
    path = tmp_path / "run"
    with pytest.raises(TrajectoryError, match="removed, renamed or replaced"), Recorder(path, model, optimizer) as rec:
        rec.log(loss=1.0)
        if what in ("renamed", "replaced"):
            path.rename(tmp_path / "elsewhere")
        if what == "replaced":
            path.mkdir()
            (path / "iterates").mkdir()
            (path / "log.jsonl").write_text("")
        if what == "removed":
            subprocess.run(["rm", "-r", str(path)], check=True)
        if what == "iterates":
            (path / "iterates").rename(path / "other")
        if what == "log":
            (path / "log.jsonl").unlink()
            rec.log(loss=2.0)
        for _ in range(100):
            step(model, optimizer)
    assert not (path.exists() and what in ("renamed", "removed"))
    if what == "replaced":
        assert sorted(p.name for p in path.rglob("*")) == ["iterates", "log.jsonl"]


def test_a_change_of_the_working_directory_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, optimizer = pair()
    (tmp_path / "other").mkdir()
    with Recorder("run", model, optimizer, every(1)) as rec:
        monkeypatch.chdir(tmp_path / "other")
        rec.log(loss=1.0)
        step(model, optimizer)
    monkeypatch.chdir(tmp_path)
    trajectory = Trajectory("run")
    monkeypatch.chdir(tmp_path / "other")
    assert [i.step for i in trajectory] == [0, 1]
    assert list((tmp_path / "other").iterdir()) == []


def test_half_written_files_of_killed_processes_go_and_others_stay(tmp_path):
    model, optimizer = pair()
    with Recorder(tmp_path, model, optimizer):
        step(model, optimizer)
    orphans = [tmp_path / "iterates" / ".00000100.h5.0af3.tmp", tmp_path / ".manifest.json.12ab.tmp"]
    others = [tmp_path / ".measured.json.12ab.tmp", tmp_path / "iterates" / "mine.tmp"]
    for path in orphans + others:
        path.write_bytes(b"half")
    with Recorder(tmp_path, model, optimizer, resume=True):
        pass
    assert not any(p.exists() for p in orphans) and all(p.exists() for p in others)


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_what_is_no_damage_is_not_taken_for_damage(tmp_path, monkeypatch, error):
    model, optimizer = pair()
    with Recorder(tmp_path, model, optimizer, every(1)):
        step(model, optimizer)
    before = sorted(tmp_path.rglob("*"))

    def fail(*args):
        raise error

    monkeypatch.setattr(payload.os, "preadv", fail)
    with pytest.raises(
        MemoryError if isinstance(error, MemoryError) else TrajectoryError, match="rror|memory does"
    ) as caught:
        Recorder(tmp_path, *pair(), resume=True).start()
    monkeypatch.undo()
    assert not isinstance(caught.value, store.DamagedFile)
    assert sorted(tmp_path.rglob("*")) == before
    assert [i.step for i in Trajectory(tmp_path)] == [0, 1]


@pytest.mark.parametrize("path", ["a" * 300, "nul\0l", 3, None])
def test_paths_that_no_file_system_takes_are_refused(path):
    with pytest.raises(InputError, match="no usable path"):
        Recorder(path, *pair())
    with pytest.raises(InputError, match="no usable path"):
        Trajectory(path)


def test_secrets_of_the_command_line_stay_out_of_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--lr", "0.1", "--api-key", "s1", "--hf_token=s2", "password=s3", "--tokens", "8"]
    )
    with Recorder(tmp_path, *pair()):
        pass
    shown = json.loads((Path(tmp_path) / "manifest.json").read_text())["sessions"][0]["command"]
    assert "0.1" in shown and not any(secret in shown for secret in ("s1", "s2", "s3"))
