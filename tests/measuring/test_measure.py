import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from measured import X, Y, files, losses, net, numbers, problem, record
from torch import nn

import geomtraj as gt
from geomtraj.comparing.matrices import choose as contrast_blocks
from geomtraj.errors import InputError, TrajectoryError
from geomtraj.measuring import unit


@pytest.fixture
def trajectory(tmp_path):
    return record(tmp_path / "run")


def test_every_iterate_is_measured_at_its_own_parameters_and_buffers(trajectory):
    measured = problem()
    held = [t.clone() for t in measured.model.state_dict().values()]
    results = gt.measure(trajectory, measured, ["loss", "r_med", "spectrum", "trace"])
    assert results.steps == [0, 2, 4, 6] and len(results) == 16
    assert all(torch.equal(a, b) for a, b in zip(held, measured.model.state_dict().values(), strict=True))
    model = net()
    for step in trajectory.steps:
        trajectory.load_into(model, step)
        fresh = problem(model)
        assert results.losses()[step] == pytest.approx(float(fresh.loss()))
        stored = dict((m.step, q) for m, q in results.series("r_med", "all"))[step]
        assert stored.value == pytest.approx(gt.r_med(fresh)["all"].value)
    assert results.labels("r_med") == [*measured.layout, "all"]


def test_what_is_stored_is_not_measured_again(trajectory, monkeypatch):
    first = gt.measure(trajectory, problem(), ["r_med"])
    stamps = {f: f.stat().st_mtime_ns for f in files(trajectory)}
    monkeypatch.setattr(unit, "_outcome", lambda *_: pytest.fail("measured again"))
    again = gt.measure(trajectory, problem(), ["r_med"])
    assert numbers(again) == numbers(first)
    assert {f: f.stat().st_mtime_ns for f in files(trajectory)} == stamps
    assert numbers(gt.Results.load(trajectory.path)) == numbers(first)


def test_what_is_measured_per_block_tells_kinds_and_shapes_and_other_blocks_are_other_results(trajectory):
    def split(blocks):
        return gt.Problem(net(), losses, [(X, Y)], blocks=blocks)

    parts = split({"0.weight": gt.split(sizes=(1, 4), names=("a", "b")), "top": gt.join("3.*")})
    results = gt.measure(trajectory, parts, ["condition", "trace"], progress=False)
    told = {"0.weight[a]": ["matrix", [1, 3]], "0.weight[b]": ["matrix", [4, 3]], "top": ["matrix", [12]]}
    assert all(m.made["blocks"] == told for m in results.of("condition"))
    assert all("blocks" not in m.made for m in results.of("trace"))
    assert contrast_blocks([results], results.labels("condition")).labels == tuple(told)
    whole = gt.measure(trajectory, split(False), ["condition"], progress=False)
    assert whole.labels("condition") == ["0.weight", "3.weight", "all"]
    loaded = gt.measure(trajectory, parts, ["condition"], progress=False)
    assert [m.made["blocks"] for m in loaded.of("condition")] == [told] * 4


def test_only_a_deleted_or_damaged_result_is_made_again(trajectory):
    first = gt.measure(trajectory, problem(), ["r_med"])
    stamps = {f: f.stat().st_mtime_ns for f in files(trajectory)}
    deleted, damaged = files(trajectory)[1], files(trajectory)[4]
    deleted.unlink()
    damaged.write_text(damaged.read_text()[:40])
    again = gt.measure(trajectory, problem(), ["r_med"])
    assert numbers(again) == numbers(first)
    assert {f for f in files(trajectory) if stamps[f] != f.stat().st_mtime_ns} == {deleted, damaged}
    gt.measure(trajectory, problem(), ["r_med"], resume=False)
    assert all(stamps[f] != f.stat().st_mtime_ns for f in files(trajectory))


def test_other_data_or_settings_are_other_results(trajectory):
    gt.measure(trajectory, problem(), ["spectrum"])
    count = len(files(trajectory))
    gt.measure(trajectory, problem(), [gt.STATISTICS["spectrum"](steps=5)])
    assert len(files(trajectory)) == count + 4
    gt.measure(trajectory, gt.Problem(net(), losses, [(X + 1, Y)]), ["spectrum"])
    assert len(files(trajectory)) == 2 * count + 4
    assert len(gt.Results.load(trajectory.path)) == count  # the last measurement's results alone


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_executors_give_the_same_numbers(trajectory, pool):
    alone = gt.measure(trajectory, problem(), ["r_med", "spectrum"])
    for file in files(trajectory):
        file.unlink()
    with pool(2 if pool is ProcessPoolExecutor else 1) as executor:
        together = gt.measure(trajectory, problem(), ["r_med", "spectrum"], executor=executor)
    for (step, name, ours), (step_b, name_b, theirs) in zip(numbers(alone), numbers(together), strict=True):
        assert (step, name) == (step_b, name_b)
        assert {k: q.value for k, q in ours.items()} == pytest.approx({k: q.value for k, q in theirs.items()}, rel=1e-4)


def test_a_diverged_iterate_is_a_result_with_a_reason(tmp_path):
    trajectory = record(tmp_path / "run", poison=4)
    results = gt.measure(trajectory, problem(), ["r_med"])
    assert results.diverged
    status = {m.step: m.status for m in results.of("r_med")}
    assert status[6] == "the parameters are not finite here: training diverged" and status[4] != status[6]
    assert results.losses().keys() == {0, 2, 4}


def test_a_damaged_iterate_is_named_and_the_others_are_measured(trajectory):
    broken = trajectory.path / "iterates" / "00000002.h5"
    broken.write_bytes(broken.read_bytes()[:-200])
    results = gt.measure(trajectory, problem(), ["r_med"])
    assert {m.step for m in results.of("r_med") if m.quantities} == {0, 4, 6}
    assert "00000002.h5" in next(m.status for m in results.of("r_med") if m.step == 2)
    assert not [f for f in files(trajectory) if f.name.startswith("00000002")]


def test_another_model_an_unknown_statistic_and_wrong_arguments_are_refused(trajectory):
    other = gt.Problem(nn.Linear(3, 2), losses, [(X, Y)])
    before = other.theta()
    with pytest.raises(TrajectoryError, match=r"weight"):
        gt.measure(trajectory, other, ["loss"])
    assert torch.equal(other.theta(), before)
    with pytest.raises(InputError, match="unknown statistic"):
        gt.measure(trajectory, problem(), ["r_mde"])
    with pytest.raises(InputError, match=r"needs a gt\.Problem, not Sequential"):
        gt.measure(trajectory, net())
    with pytest.raises(TrajectoryError, match=r"holds no measured\.json"):
        gt.Results.load(trajectory.path)


def test_an_error_in_the_middle_keeps_what_was_measured_and_restores_the_model(trajectory, monkeypatch):
    measured, before = problem(), problem().theta()
    real, calls = unit._outcome, []

    def failing(statistic, point):
        calls.append(statistic)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(statistic, point)

    monkeypatch.setattr(unit, "_outcome", failing)
    with pytest.raises(KeyboardInterrupt):
        gt.measure(trajectory, measured, ["r_med"])
    assert len(files(trajectory)) == 3
    assert torch.equal(measured.theta(), before)


def test_results_of_a_newer_format_are_refused(trajectory):
    gt.measure(trajectory, problem(), ["loss"])
    file = files(trajectory)[0]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))
    with pytest.raises(TrajectoryError, match="newer than this geomtraj reads"):
        gt.measure(trajectory, problem(), ["loss"])


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
import measured as t
from geomtraj.measuring import unit
real = unit._outcome
def slow(statistic, point):
    time.sleep(0.2)
    return real(statistic, point)
unit._outcome = slow
t.gt.measure({path!r}, t.problem(), ["r_med"], progress=False)
"""


def test_a_killed_measurement_goes_on_where_it_was(trajectory):
    tests = str(Path(__file__).parent.parent)
    code = SLOW.format(tests=tests, path=str(trajectory.path))
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not list((trajectory.path / "results").glob("*.r_med.*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    survivors = {f: f.stat().st_mtime_ns for f in files(trajectory) if f.suffix == ".json"}
    assert 0 < len(survivors) < 8
    results = gt.measure(trajectory, problem(), ["r_med"])
    assert len(results) == 8
    assert all(f.stat().st_mtime_ns == stamp for f, stamp in survivors.items())
