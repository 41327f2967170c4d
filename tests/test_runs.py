import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import geomtraj as gt
from geomtraj.cli import main
from geomtraj.overview import overview, readable, remove

FILE = """
import torch, geomtraj as gt
def problem():
    batches = [(torch.ones(4, 3), torch.ones(4, 2))]
    return gt.Problem(torch.nn.Sequential(torch.nn.Linear(3, 2)), torch.nn.MSELoss(), batches)
def load(path):
    return {"model": torch.load(path, weights_only=True)["odd"]["one"], "step": int(path.stem[1:])}
"""


def run(*arguments, **options):
    return CliRunner().invoke(main, [str(a) for a in arguments], **options)


def checkpoints(folder, steps=(1, 2, 3), form=lambda state, step: {"state_dict": state, "step": step}):
    folder.mkdir()
    torch.manual_seed(0)
    states = []
    for step in steps:
        states.append(nn.Sequential(nn.Linear(3, 2)).state_dict())
        torch.save(form(states[-1], step), folder / f"x{step}.pt")
    return states


def recorded(folder, steps=4, **options):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    meta = {"seed": 3, "steps": 8, "optimizer": "adam"}
    recorder = gt.Recorder(folder, model, optimizer, gt.every(2), meta=meta, **options).start()
    while recorder.step < steps:
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    return recorder


def test_checkpoints_are_imported_measured_and_compared_from_the_command_line(tmp_path):
    file = tmp_path / "mine_runs.py"
    file.write_text(FILE)
    for name in ("adam", "sgdm"):
        states = checkpoints(tmp_path / f"{name}-checkpoints")
        done = run(
            "import", tmp_path / f"{name}-checkpoints", "--out", tmp_path / name, "--meta", f"optimizer={name}",
            "--meta", "seed=0",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert "3 iterates, steps 1 to 3" in done.output
    trajectory = gt.Trajectory(tmp_path / "sgdm")
    assert trajectory.meta == {"optimizer": "sgdm", "seed": 0}
    model = nn.Sequential(nn.Linear(3, 2))
    for step, state in zip(trajectory.steps, states, strict=True):
        trajectory.load_into(model, step)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
    both = (tmp_path / "adam", tmp_path / "sgdm")
    done = run("measure", *both, "--problem", f"{file}:problem", "--statistics", "trace")
    assert done.exit_code == 0, done.output
    assert run("verify", *both).exit_code == 0
    compared = run("contrast", *both, "--statistic", "trace", "--at", "step")
    assert compared.exit_code == 0, compared.output
    assert "sgdm / adam" in compared.output
    assert run("report", *both, "--out", tmp_path / "page.html").exit_code == 0


def test_an_import_goes_on_with_what_has_come_since_and_says_what_is_damaged(tmp_path):
    checkpoints(tmp_path / "c", (1, 2))
    assert run("import", tmp_path / "c", "--out", tmp_path / "run").exit_code == 0
    first = (tmp_path / "run" / "iterates" / "00000001.h5").stat().st_mtime_ns
    torch.save({"state_dict": nn.Sequential(nn.Linear(3, 2)).state_dict(), "step": 5}, tmp_path / "c" / "x5.pt")
    (tmp_path / "c" / "x9.pt").write_bytes((tmp_path / "c" / "x5.pt").read_bytes()[:-40])
    done = run("import", tmp_path / "c", "--out", tmp_path / "run")
    assert done.exit_code == 1
    assert "step 9 is left out" in done.output
    assert gt.Trajectory(tmp_path / "run").steps == [1, 2, 5]
    assert (tmp_path / "run" / "iterates" / "00000001.h5").stat().st_mtime_ns == first
    checkpoints(tmp_path / "other", (1, 2))
    done = run("import", tmp_path / "other", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "holds another run" in done.output
    recorded(tmp_path / "own").stop()
    assert "holds another run" in run("import", tmp_path / "c", "--out", tmp_path / "own").output


def test_other_forms_are_imported_by_a_function(tmp_path):
    (tmp_path / "mine_load.py").write_text(FILE)
    checkpoints(tmp_path / "c", (4, 6), lambda state, step: {"odd": {"one": state, "two": state}})
    assert run("import", tmp_path / "c", "--out", tmp_path / "a").exit_code == 2
    load = f"{tmp_path / 'mine_load.py'}:load"
    assert run("import", tmp_path / "c", "--out", tmp_path / "a", "--load", load).exit_code == 0
    done = run("import", tmp_path / "c", "--out", tmp_path / "b", "--load", load, "--steps", "10,20")
    assert done.exit_code == 0
    assert gt.Trajectory(tmp_path / "b").steps == [10, 20]
    assert "cannot read --steps" in run("import", tmp_path / "c", "--out", tmp_path / "d", "--steps", "a,b").output
    assert not (tmp_path / "d").exists()


def test_an_imported_model_is_found_under_its_prefix(tmp_path):
    def lightning(state, step):
        state = {f"model.net.{name}": t for name, t in state.items()} | {"metric.total": torch.ones(2)}
        return {"pytorch-lightning_version": "2", "state_dict": state, "global_step": step}

    states = checkpoints(tmp_path / "c", (1,), lightning)
    assert run("import", tmp_path / "c", "--out", tmp_path / "run").exit_code == 0
    model = nn.Sequential(nn.Linear(3, 2))
    gt.Trajectory(tmp_path / "run").load_into(model, 1)
    assert torch.equal(model[0].weight, states[0]["0.weight"])


def test_runs_are_listed_at_a_glance(tmp_path):
    recorded(tmp_path / "runs" / "b" / "seed-3", 8).stop()
    training = recorded(tmp_path / "runs" / "a" / "seed-3")
    try:
        listed = run("ls", tmp_path / "runs")
    finally:
        training.stop()
    assert listed.exit_code == 0
    head, first, second = listed.output.splitlines()
    assert head.split() == ["run", "optimizer", "lr", "seed", "steps", "iterates", "measured", "size", "status"]
    assert first.split()[0].endswith("a/seed-3")
    assert first.split()[1:6] == ["adam", "0.1", "3", "4/8", "3"]
    assert first.split()[-1] == "training"
    assert second.split()[4:6] == ["8/8", "5"]
    assert second.split()[-1] == "complete"
    assert "no runs in" in run("ls", tmp_path / "runs" / "a" / "seed-3" / "iterates").output
    assert "there is no folder" in run("ls", tmp_path / "nowhere").output


def test_every_status_is_told(tmp_path):
    complete = recorded(tmp_path / "complete")
    complete.stop()
    diverged = recorded(tmp_path / "diverged")
    diverged.log(loss=float("nan"))
    diverged.stop()
    interrupted = recorded(tmp_path / "interrupted")
    interrupted.__exit__(ValueError, ValueError(), None)
    recorded(tmp_path / "damaged").stop()
    manifest = tmp_path / "damaged" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("adam", "adan"))
    recorded(tmp_path / "torn").stop()
    last = tmp_path / "torn" / "iterates" / "00000004.h5"
    last.write_bytes(last.read_bytes()[:100])
    killed = recorded(tmp_path / "stopped")
    killed._folder.release()
    killed._log.close()
    found = {name: overview(tmp_path / name) for name in ("complete", "diverged", "interrupted", "stopped")}
    assert {name: o.status for name, o in found.items()} == {name: name for name in found}
    for name in ("damaged", "torn"):
        assert overview(tmp_path / name).status == "damaged"
        assert str(tmp_path / name) in overview(tmp_path / name).why
    shown = run("show", tmp_path / "complete", tmp_path / "damaged")
    assert shown.exit_code == 0
    assert "Adam, lr 0.1, betas" in shown.output
    assert "3: 0, 2, 4" in shown.output
    assert "its checksum does not hold" in shown.output


def test_only_what_is_geomtrajs_is_deleted(tmp_path):
    for name in ("a", "b"):
        recorded(tmp_path / name).stop()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").write_text("x")
    (tmp_path / "b" / "iterates" / "link").symlink_to(tmp_path / "outside")
    assert "nothing is deleted" in run("rm", tmp_path / "a", input="n\n").output
    assert (tmp_path / "a").exists()
    done = run("rm", tmp_path / "a", tmp_path / "b", "--yes")
    assert done.exit_code == 0, done.output
    assert "but for notes.txt" in done.output
    assert not (tmp_path / "a").exists()
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["notes.txt"]
    assert (tmp_path / "outside" / "kept").read_text() == "x"
    assert "holds no run" in run("rm", tmp_path / "b", "--yes").output
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "manifest.json").write_text(json.dumps({"name": "not ours"}))
    assert "holds no run" in run("rm", tmp_path / "project", "--yes").output
    training = recorded(tmp_path / "c")
    try:
        with pytest.raises(gt.TrajectoryError, match="is being recorded"):
            remove(tmp_path / "c")
    finally:
        training.stop()


def test_sizes_are_readable():
    assert [readable(n) for n in (0, 999, 1000, 123456, 10**9, 10**13)] == [
        "0 B", "999 B", "1 kB", "123 kB", "1 GB", "10 TB"
    ]  # fmt: skip
