"""A stored result is believed only if it is of what is measured now."""

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from measured import X, Y, alter, files, losses, net, numbers, problem, record
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.errors import InputError, TrajectoryError
from geomtraj.measuring import lookup, unit
from geomtraj.measuring.content import content_of
from geomtraj.measuring.lookup import CHECKED
from geomtraj.measuring.record import Measurement, from_text, read_measurement, to_text
from geomtraj.statistics import Outcome, Quantity, Statistic

FORMAT_1 = Path(__file__).parent / "format_1"


@pytest.fixture
def run(tmp_path):
    return record(tmp_path / "run")


@pytest.fixture
def counted(monkeypatch):
    """How many statistics are measured."""
    calls, real = [], unit._outcome
    monkeypatch.setattr(
        unit, "_outcome", lambda statistic, point: calls.append(statistic.name) or real(statistic, point)
    )
    return calls


def measured(run, *statistics, **kwargs):
    return gt.measure(run, kwargs.pop("problem", None) or problem(), statistics or ["trace"], progress=False, **kwargs)


def fresh(run, tmp_path, *statistics):
    """What is measured where nothing is stored."""
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy, ignore=shutil.ignore_patterns("results", "measured.json"))
    return numbers(measured(copy, *statistics))


def test_iterates_recorded_anew_with_another_seed_are_noticed(run, tmp_path, counted):
    measured(run)
    shutil.rmtree(run.path / "iterates")
    other = record(tmp_path / "other", seed=1)
    shutil.copytree(other.path / "iterates", run.path / "iterates")
    shutil.copy(other.path / "manifest.json", run.path)
    assert len(gt.measure(run.path, problem(), ["trace"]).measurements) == 8 and len(counted) == 16
    results = measured(run.path)
    assert numbers(results) == fresh(gt.Trajectory(run.path), tmp_path) and len(counted) == 24


def test_stale_results_are_counted_and_left_out_where_nothing_is_measured(run, caplog):
    measured(run)
    for step in (2, 6):
        alter(run, step)
    loaded = gt.Results.load(run.path)
    assert loaded.steps == [0, 4]
    assert any("4 stored results of other iterates" in sentence for sentence in loaded.remarks)
    again = measured(run.path)
    assert any("4 stored results of other iterates" in sentence for sentence in again.remarks)
    assert "4 stored results" in caplog.text and again.steps == [0, 2, 4, 6]
    assert not gt.Results.load(run.path).remarks


def test_results_of_iterates_that_cannot_be_read_any_more_are_not_believed(run):
    first = measured(run)
    a, b = (run.path / "iterates" / f"{step:08d}.h5" for step in (2, 4))
    content = a.read_bytes(), b.read_bytes()
    a.write_bytes(content[1]), b.write_bytes(content[0])  # each says another step than its name
    loaded = gt.Results.load(run.path)
    assert loaded.steps == [0, 6] and "4 stored results of unreadable iterates" in loaded.remarks[0]
    again = measured(run)
    assert again.losses().keys() == {0, 6} and all(
        "damaged" in m.status for m in again.measurements if m.step in (2, 4)
    )
    a.write_bytes(content[0]), b.write_bytes(content[1])
    assert numbers(gt.Results.load(run.path)) == numbers(first) == numbers(measured(run))


def test_what_a_file_says_must_be_what_its_name_says(run, counted, tmp_path):
    measured(run)
    truth = fresh(run, tmp_path)
    a, b = (next(f for f in files(run) if f.name.startswith(s) and "trace" in f.name) for s in ("00000002", "00000004"))
    kept = a.read_bytes()
    a.write_bytes(b.read_bytes())
    counted.clear()
    results = measured(run)
    assert counted == ["trace"] and numbers(results) == truth
    assert any("1 result passed over" in r and a.name in r for r in results.remarks)
    other = next(f for f in files(run) if "loss" in f.name)
    other.rename(other.with_name(a.name.replace("00000002", "00000000")))
    assert numbers(measured(run)) == truth
    assert a.read_bytes() != kept  # its seconds differ


@pytest.mark.parametrize("seed", range(2))
def test_a_mutated_result_is_never_used(run, tmp_path, seed):
    measured(run)
    truth = fresh(run, tmp_path)
    rng = random.Random(seed)
    for _ in range(15):
        file = rng.choice(files(run))
        text = bytearray(file.read_bytes())
        kind = rng.randrange(4)
        place = rng.randrange(len(text))
        if kind == 0:
            text[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del text[place:]
        elif kind == 2:
            text[place:place] = b"9"
        else:
            text = bytearray(text.replace(b'"step": ', b'"step": 1', 1))
        if bytes(text) == file.read_bytes():
            continue
        file.write_bytes(text)
        loaded = gt.Results.load(run.path)
        assert numbers(loaded) == [n for n in truth if n in numbers(loaded)] and len(loaded) == 7
        assert len(loaded.remarks) == 1 and file.name in loaded.remarks[0]
        assert numbers(measured(run)) == truth


def test_a_mutated_summary_is_told_and_written_anew(run):
    first = measured(run)
    path = run.path / "measured.json"
    path.write_text(path.read_text().replace('"trace": "trace', '"trace": "loss'))
    with pytest.raises(TrajectoryError, match=r"measured\.json is damaged"):
        gt.Results.load(run.path)
    assert any("is damaged" in r for r in measured(run).remarks)
    assert numbers(gt.Results.load(run.path)) == numbers(first)


def test_one_forward_pass_on_resume_must_give_the_stored_loss(run, monkeypatch, counted):
    """Even where a fingerprint sees no difference."""
    measured(run)
    monkeypatch.setattr(gt.Problem, "fingerprint", lambda self: "0123456789abcdef")
    measured(run)
    counted.clear()
    assert len(measured(run)) == 8 and not counted

    def doubled(model, batch):
        return 2 * losses(model, batch)

    results = measured(run, problem=gt.Problem(net(), doubled, [(X, Y)]))
    assert len(counted) == 8 and any("8 stored results of another loss" in r for r in results.remarks)
    assert results.losses()[0] == pytest.approx(2 * float(problem().loss()))


def test_results_of_another_problem_stay_and_the_newest_is_loaded(run):
    first = measured(run, "r_med")
    kept = {f: f.read_bytes() for f in files(run)}
    other = gt.Problem(net(), losses, [(X + 1, Y)])
    results = measured(run, "trace", problem=other)
    assert any("were measured before on another problem" in r for r in results.remarks)
    assert gt.Results.load(run.path).statistics == ["loss", "trace"]
    assert all(f.read_bytes() == content for f, content in kept.items())
    assert numbers(measured(run, "r_med")) == numbers(first)


def test_measuring_more_statistics_adds_to_what_is_loaded(run):
    measured(run, "r_med")
    measured(run, "trace")
    assert gt.Results.load(run.path).statistics == ["loss", "r_med", "trace"]
    measured(run, gt.STATISTICS["trace"](probes=2))
    loaded = gt.Results.load(run.path)
    assert [m.settings["probes"] for m in loaded.of("trace")] == [2] * 4 and len(loaded) == 12


@dataclass(frozen=True)
class Constant(Statistic):
    name = "constant"
    title = "a number"

    def measure(self, point):
        return Outcome({"constant": Quantity.exact(1.0)})


def test_a_users_statistic_whose_code_changed_is_measured_anew(run, monkeypatch, counted):
    measured(run, Constant())
    counted.clear()
    measured(run, Constant())
    assert not counted
    monkeypatch.setattr(unit, "code_of", lambda s: "another code" * (s.name == "constant"))
    monkeypatch.setattr(lookup, "code_of", lambda s: "another code" * (s.name == "constant"))
    results = measured(run, Constant())
    assert counted == ["constant"] * 4 and any("whose code has changed" in r for r in results.remarks)


def test_results_of_format_1_are_loaded_and_measured_anew(run):
    shutil.copytree(FORMAT_1 / "results", run.path / "results")
    shutil.copy(FORMAT_1 / "measured.json", run.path)
    old = gt.Results.load(run.path)
    assert len(old) == 6 and old.statistics == ["loss", "spectrum", "trace"] and old.steps == [0, 2]
    assert old.losses()[2] == 0.7458878755569458
    low = old.of("spectrum")[0].quantities["lambda_min"]
    assert low.low != low.low and low.high == float("inf")
    results = measured(run)
    assert len(results) == 8 and any("6 results of format 1" in r for r in results.remarks)
    assert gt.Results.load(run.path).statistics == ["loss", "trace"]
    assert results.losses()[2] == pytest.approx(old.losses()[2], rel=1e-6)
    assert sum(f.read_bytes().startswith(b"{\n") for f in files(run)) >= 2  # those of the spectrum


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("step"),
        lambda c: c.update(step="two"),
        lambda c: c.update(step=True),
        lambda c: c.update(quantities=[]),
        lambda c: c.update(quantities={"trace": 3}),
        lambda c: c.update(quantities={"trace": {"value": "3"}}),
        lambda c: c.update(quantities={"trace": {"value": 10**400}}),
        lambda c: c.update(made=None),
        lambda c: c.update(format_version="1"),
        lambda c: c.update(details=7),
    ],
)
def test_what_format_1_cannot_check_is_validated(tmp_path, change):
    file = tmp_path / "result.json"
    content = json.loads((FORMAT_1 / "results" / "00000000.trace.05708802d2.json").read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(TrajectoryError, match="result.json is no whole result"):
        read_measurement(file)


def test_stored_text_is_strict_json_and_gives_the_record_back(run):
    nan, inf = float("nan"), float("inf")
    record = Measurement(
        3, 0.5, "s", {"rtol": inf}, {"a": Quantity(-inf, nan, 1e308)},
        {"list": [nan, inf, -inf, 1.0], "text": ["NaN", "\\NaN", "\\\\Infinity", "no"], "tensor": torch.tensor([1.5])},
        made={"problem": "x"}, iterate="y",
    )  # fmt: skip
    text = to_text(record)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    back = from_text(text)
    assert repr(back) == repr(replace(record, details=record.details | {"tensor": [1.5]}))
    measured(run)
    for file in [*files(run), run.path / "measured.json"]:
        json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_content_of_an_iterate_is_its_tensors_alone(run, tmp_path):
    here = content_of(run.at_step(2))
    assert here == content_of(record(tmp_path / "again").at_step(2)) != content_of(run.at_step(4))
    iterate = run.at_step(2)
    iterate.buffers["1.running_mean"][0] += 1e-6
    assert content_of(iterate) != here
    assert all(m.iterate == content_of(run.at_step(m.step)) for m in measured(run).measurements)


def test_iterates_that_have_not_changed_since_are_not_read_again(run, monkeypatch):
    import os

    for file in (run.path / "iterates").iterdir():
        os.utime(file, (1, 1))
    measured(run)
    reads = []
    real = gt.Trajectory.at_step
    monkeypatch.setattr(gt.Trajectory, "at_step", lambda self, step: reads.append(step) or real(self, step))
    measured(run)
    assert len(reads) == len(set(reads)) <= CHECKED  # those of the forward passes
    forward = len(reads)
    gt.Results.load(run.path)
    assert len(reads) == forward
    os.utime(run.path / "iterates" / "00000004.h5")
    assert len(gt.Results.load(run.path)) == 8 and reads[forward:] == [4]


def test_each_iterate_is_read_once(run, monkeypatch):
    from geomtraj.trajectory import store

    reads, real = [], store.read_iterate
    monkeypatch.setattr(
        store, "read_iterate", lambda folder, step, *a, **k: reads.append(step) or real(folder, step, *a, **k)
    )
    measured(run, "trace", "r_med")
    assert reads == [0, 2, 4, 6]


def test_what_numbers_depend_on_is_stored(run):
    made = measured(run).of("trace")[0].made
    assert made["threads"] == torch.get_num_threads() and made["dtype"] == "float32" and made["problem"]
    assert made["checked"] and made["guard"]["status"] == "ok"


def test_what_was_not_checked_says_so_and_is_measured_anew_by_a_problem_that_checks(run, counted):
    trusting = gt.Problem(net(), losses, [(X, Y)], check=False)
    results = measured(run, problem=trusting)
    assert all("not checked (check=False)" in m.status for m in results.of("trace"))
    assert all(m.status == "ok" for m in results.of("loss"))
    counted.clear()
    measured(run, problem=trusting)
    assert not counted
    again = measured(run, problem=gt.Problem(net(), losses, [(X, Y)]))
    assert counted == ["trace"] * 4 and any("4 stored results of derivatives that were not" in r for r in again.remarks)
    assert all(m.status == "ok" for m in again.measurements)


class WrongSquare(torch.autograd.Function):
    """Its second derivative is silently zero."""

    @staticmethod
    def forward(ctx, x):
        ctx.twice = 2 * x
        return x * x

    @staticmethod
    def backward(ctx, g):
        return g * ctx.twice


def test_a_problem_whose_derivatives_are_wrong_is_refused(run):
    wrong = gt.Problem(net(), lambda model, b: WrongSquare.apply(model(b[0])).sum(1), [(X, Y)])
    with pytest.raises(InputError, match="WrongSquare"):
        measured(run, problem=wrong)
    with ThreadPoolExecutor(2) as executor, pytest.raises(InputError, match="WrongSquare"):
        measured(run, problem=wrong, executor=executor)


def test_a_problem_is_named_once_in_a_call(run, monkeypatch):
    calls, real = [], gt.Problem.fingerprint
    monkeypatch.setattr(gt.Problem, "fingerprint", lambda self: calls.append(1) or real(self))
    measured(run)
    assert len(calls) == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_a_loss_that_changes_without_its_source(tmp_path, smoothing):
    run = record(tmp_path / "run")

    def make(value):
        return lambda model, b: F.cross_entropy(model(b[0]), b[1], reduction="none", label_smoothing=value)

    measured(run, problem=gt.Problem(net(), make(0.5), [(X, Y)]))
    model = net()
    other = gt.Problem(model, make(smoothing), [(X, Y)])
    results = measured(run, problem=other)
    run.load_into(model, 6)
    assert results.losses()[6] == pytest.approx(float(other.loss()), rel=1e-6)


def test_a_loss_that_differs_at_late_iterates_alone_is_noticed(tmp_path):
    """At the fixed values of the fingerprint, and at the first iterate, the bound is not reached."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    x = torch.randn(5, 2).double()
    with gt.Recorder(tmp_path / "run", model, optimizer, schedule=gt.every(1)):
        for _ in range(6):
            for p in model.parameters():
                p.grad = -2 * p.detach()
            optimizer.step()

    def bounded(most):
        return gt.Problem(model, lambda m, b: m(b).square()[:, 0].clamp(max=most), [x])

    assert bounded(200.0).fingerprint() == bounded(1e9).fingerprint()
    few = measured(tmp_path / "run", problem=bounded(200.0)).losses()
    many = measured(tmp_path / "run", problem=bounded(1e9)).losses()
    assert few[0] == many[0] < 200 and few[6] <= 200 < many[6]
