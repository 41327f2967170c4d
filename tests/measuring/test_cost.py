"""What measuring costs is said before the work, and it ends when it is told to."""

import os
import re
import shutil
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
from click.testing import CliRunner
from measured import Troubled, numbers, problem, record

import geomtraj as gt
from geomtraj.cli import main
from geomtraj.errors import InputError, TrajectoryError
from geomtraj.measuring import progress
from geomtraj.measuring.progress import Bar, Pace, in_words, widths
from geomtraj.measuring.record import Measurement
from geomtraj.statistics import Quantity
from geomtraj.status import Code, Remark, Status


@pytest.fixture
def run(tmp_path):
    return record(tmp_path / "run")


def measured(run, *statistics, **kwargs):
    return gt.measure(run, problem(), statistics or ["trace"], progress=kwargs.pop("progress", False), **kwargs)


def test_after_the_first_iterate_the_cost_is_said(run, capsys):
    measured(run, "r_med", progress=True, settings={"r_med": {"method": "hutchinson", "max_matvecs": 0}})
    said = capsys.readouterr().err
    assert re.search(r"run: 4 iterates, about \d+ s; expected width of r_med a factor of [\d.]+", said)
    measured(run, "r_med", progress=True, settings={"r_med": {"method": "hutchinson", "max_matvecs": 0}})
    assert capsys.readouterr().err == ""


def test_durations_are_in_the_unit_that_suits_them():
    assert [in_words(s) for s in (0.2, 59, 100, 2400, 6000, 90000, 1e6)] == [
        "1 s", "59 s", "1.7 min", "40 min", "1.7 h", "25 h", "12 d",
    ]  # fmt: skip


def test_widths_are_those_of_intervals_that_have_any():
    quantities = [Quantity(2, 1, 3), Quantity(2, 1, 2), Quantity(2, 1, float("inf")), Quantity(1, 1, 1), Quantity(1)]
    m = Measurement(0, 0.0, "r_med", {}, dict(zip("abcde", quantities, strict=True)))
    exact = Measurement(0, 0.0, "loss", {}, {"loss": Quantity(1, 1, 1)})
    assert widths([m, exact]) == ["expected width of r_med a factor of 2.5 (1 of 3 without upper end)"]


def test_time_left_is_what_each_statistic_took(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    pace = Pace({"trace": 10, "loss": 10}, 100)
    for name, seconds in (("trace", 30.0), ("trace", 50.0), ("loss", 1.0)):
        pace.learn(Measurement(0, 0.0, name, {}, {}, seconds=seconds))
    pace.learn(Measurement(0, 0.0, "trace", {}, {}, seconds=1e-3, status=Status([Remark(Code.FAILED, "failed: x")])))
    assert pace.expected("trace") == 40 and pace.remaining() == 410 and pace.expected("r_med") is None
    clock[0] = 59
    assert not pace.over("trace") and not pace.over()
    clock[0] = 61
    assert pace.over("trace") and not pace.over("loss") and not pace.over("r_med")
    clock[0] = 100
    assert pace.over("r_med")


def test_the_bar_moves_within_a_measurement(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Bar(2, "run", True) as bar:
        shares = []
        for name, expected in (("trace", 10.0), ("r_med", None)):
            bar.expect(f"step 0, {name}", expected)
            for seconds in (1, 5, 20):
                clock[0] += seconds
                bar._move()
                shares.append(bar._bar.n)
            bar.done()
    assert shares == pytest.approx([0.1, 0.6, progress.NEARLY, 1, 1, 1])
    assert bar._bar.n == 2 and "step 0, r_med" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [0, 2])
def test_it_stops_in_between_and_goes_on_from_there(run, processes, monkeypatch):
    real = Pace.over
    steps = iter(range(100))
    monkeypatch.setattr(
        Pace, "over", lambda self, statistic="": real(self, statistic) or next(steps) > (1 if processes else 5)
    )
    if processes:
        with ProcessPoolExecutor(processes) as executor:
            first = measured(run, max_seconds=1000, executor=executor)
    else:
        first = measured(run, max_seconds=1000)
    left = 8 - len(first)
    assert 0 < left < 8
    assert any(f"max_seconds=1000 with {left} result" in r for r in first.remarks)
    assert numbers(gt.Results.load(run.path)) == numbers(first)
    monkeypatch.setattr(Pace, "over", real)
    again = measured(run, max_seconds=1000)
    assert len(again) == 8 and not again.remarks
    for wrong in (0, -1, "1", float("nan")):
        with pytest.raises(InputError, match="max_seconds is"):
            measured(run, max_seconds=wrong)


def test_a_measurement_that_would_take_longer_than_is_left_is_not_begun(run, tmp_path):
    started = time.monotonic()
    slow = Troubled("none", "", str(tmp_path), str(run.path))
    assert len(measured(run, slow, max_seconds=1e-6)) == 0
    assert time.monotonic() - started < 60


def test_results_go_elsewhere_where_a_run_is_not_to_be_written(run, tmp_path, monkeypatch):
    before = sorted(run.path.rglob("*"))
    out = tmp_path / "a" / "b"
    results = measured(run, out=out)
    assert sorted(run.path.rglob("*")) == before and results.path == out
    loaded = gt.Results.load(out)
    assert numbers(loaded) == numbers(results) and loaded.meta == {"seed": 0} and loaded.log == results.log
    assert numbers(measured(run, out=out)) == numbers(results)
    other = record(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"holds results of .*run, not of .*other: give each run a folder"):
        measured(other, out=out)
    (tmp_path / "file").touch()
    with pytest.raises(TrajectoryError, match="cannot make"):
        measured(run, out=tmp_path / "file" / "x")
    shutil.rmtree(run.path)
    assert numbers(gt.Results.load(out)) == numbers(results)


def test_a_run_that_cannot_be_written_says_so_before_any_work_and_needs_no_writing_once_measured(run, monkeypatch):
    from geomtraj.measuring import folder, summary

    def refuse(path, content):
        raise TrajectoryError(f"cannot write {path}")

    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: False if mode == os.W_OK else real(path, mode))
    with pytest.raises(TrajectoryError, match=r"pass out=FOLDER to keep them elsewhere"):
        measured(run)
    assert not (run.path / "results").exists()
    monkeypatch.undo()
    first = measured(run)
    monkeypatch.setattr(os, "access", lambda path, mode: False if mode == os.W_OK else real(path, mode))
    monkeypatch.setattr(folder, "write_bytes", refuse)
    monkeypatch.setattr(summary, "write_json", refuse)
    assert numbers(measured(run)) == numbers(first)


def cli(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_command_line_passes_it_on(tmp_path):
    runs = [tmp_path / "runs" / optimizer / "seed-0" for optimizer in ("adam", "sgdm")]
    for path in runs:
        task = ["--task", "two-layer-linear", "--option", "d=4", "--steps", "2", "--iterates", "1"]
        assert cli("train", *task, "--optimizer", path.parent.name, "--out", path).exit_code == 0
    out = tmp_path / "out"
    done = cli("measure", *runs, "--statistics", "trace", "--set", "trace.probes=2", "--workers", 2, "--out", out)
    assert done.exit_code == 0, done.output
    assert gt.Results.load(out / "adam" / "seed-0").of("trace")[0].settings["probes"] == 2
    assert not any((path / "results").exists() for path in runs)
    assert cli("contrast", out / "adam" / "seed-0", out / "sgdm" / "seed-0", "--statistic", "trace").exit_code == 0
    assert "left" in cli("measure", runs[0], "--statistics", "trace", "--max-seconds", 1e-9).stderr
    wrong = cli("measure", runs[0], "--max-seconds", 0)
    assert wrong.exit_code == 2 and "--max-seconds 0.0 must be above 0" in wrong.stderr


@pytest.mark.parametrize("meta", [{"task": "cifar"}, {"task": "pydoc-lm", "task_options": 3}, {"task": ["x"]}, {}])
def test_a_run_of_ones_own_is_told_to_be_measured_in_python(tmp_path, meta):
    import torch

    model = torch.nn.Linear(2, 1)
    with gt.Recorder(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), meta=meta):
        pass
    said = cli("measure", tmp_path / "run")
    assert said.exit_code == 2 and "measure it in Python, with gt.measure" in said.stderr
