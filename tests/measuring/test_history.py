from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from measured import X, Y, losses, net, numbers, problem, record

import geomtraj as gt
from geomtraj.errors import InputError, NotRecorded
from geomtraj.statistics import Outcome, Point, Quantity, Statistic


@dataclass(frozen=True)
class Along(Statistic):
    """Says what its point knows."""

    name = "along"
    title = "what a point knows"
    needs = ("optimizer", "before")

    def measure(self, point):
        d = point.next_update()
        (batch,) = point.minibatches(4, 1, 0)
        found = {
            "step": float(point.iterate.step),
            "before": -1.0 if point.before is None else float(point.before.step),
            "after": -1.0 if point.after is None else float(point.after.step),
            "rate": float(point.iterate.learning_rate),
            "step size": float(d.norm()),
            "other": float(point.next_update(batch).norm()),
            "gone": 0.0 if point.before is None else float((point.theta - point.vector(point.before)).norm()),
        }
        return Outcome({name: Quantity.exact(value) for name, value in found.items()})


@dataclass(frozen=True)
class Counts(Statistic):
    """One more than at the iterate before, as far as that was measured; and the loss there."""

    name = "counts"
    title = "a chain"
    needs = ("trajectory",)

    def measure(self, point):
        earlier = point.history.found_before(self)
        number = 1.0 if earlier is None else 1 + earlier.quantities["number"].value
        quantities = {"number": Quantity.exact(number)}
        if point.before is not None:
            with point.history.standing_before(point.problem) as other:
                quantities["loss before"] = Quantity.exact(other.loss)
        quantities["loss"] = Quantity.exact(float(point.problem.loss()))
        return Outcome(quantities, arrays={"numbers": np.arange(number)})


def test_a_point_knows_its_iterate_its_neighbours_and_its_optimizer(tmp_path):
    run = record(tmp_path / "run")
    found = [m.quantities for m in gt.measure(run, problem(), [Along()], progress=False).of("along")]
    assert [q["step"].value for q in found] == [0, 2, 4, 6]
    assert [q["before"].value for q in found] == [-1, 0, 2, 4] and [q["after"].value for q in found] == [2, 4, 6, -1]
    assert all(q["rate"].value == 0.1 for q in found)
    for place, q in enumerate(found):
        update = gt.next_update(problem(), run[place])
        assert q["step size"].value == pytest.approx(float(update.norm())) != q["other"].value
        gone = (run[place].theta - run[place - 1].theta).norm() if place else 0
        assert q["gone"].value == pytest.approx(float(gone))


def test_neighbours_are_the_recorded_ones_whichever_are_measured(tmp_path):
    run = record(tmp_path / "run")
    (alone,) = gt.measure(run[1:2], problem(), [Along()], progress=False).of("along")
    assert alone.quantities["before"].value == 0 and alone.quantities["after"].value == 4


def test_workers_reach_neighbours_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = record("run")
    alone = gt.measure(run, problem(), [Along()], progress=False, out="alone")
    with ProcessPoolExecutor(2) as executor:
        together = gt.measure(run, problem(), [Along()], executor=executor, progress=False, out="together")
    for (*_, ours), (*_, theirs) in zip(numbers(alone), numbers(together), strict=True):
        assert {k: q.value for k, q in ours.items()} == pytest.approx({k: q.value for k, q in theirs.items()}, rel=1e-5)


def test_a_statistic_finds_its_own_result_at_the_iterate_before(tmp_path):
    run = record(tmp_path / "run")
    results = gt.measure(run, problem(), [Counts()], progress=False)
    assert [m.quantities["number"].value for m in results.of("counts")] == [1, 2, 3, 4]
    told = list(results.losses().values())
    for m, before, here in zip(results.of("counts")[1:], told, told[1:], strict=False):
        assert m.quantities["loss before"].value == pytest.approx(before)
        assert m.quantities["loss"].value == pytest.approx(here)
    assert results.of("counts")[2].arrays["numbers"].tolist() == [0, 1, 2]


def test_what_a_trajectory_lacks_is_refused_before_anything_is_measured(tmp_path):
    run = record(tmp_path / "run", every=100)[:1]
    (run.path / "iterates" / "00000006.h5").unlink()
    with pytest.raises(NotRecorded, match=r"along needs two iterates, and .*run holds one"):
        gt.measure(run, problem(), [Along()], progress=False)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gt.Recorder(tmp_path / "bare", model, optimizer, gt.every(1), optimizer_state=False):
        for _ in range(2):
            losses(model, (X, Y)).mean().backward()
            optimizer.step()
    with pytest.raises(NotRecorded, match=r"along cannot be measured along .*bare: .*no optimizer state"):
        gt.measure(tmp_path / "bare", problem(), ["loss", Along()], progress=False)
    assert not (tmp_path / "bare" / "results").exists()

    class Unknown(Along):
        needs = "nothing"

    with pytest.raises(InputError, match="along needs 'nothing'"):
        gt.measure(run, problem(), [Unknown()], progress=False)


def test_a_point_of_its_own_says_that_it_has_no_history():
    point = Point(problem())
    for ask in (lambda: point.iterate, lambda: point.before, point.next_update):
        with pytest.raises(InputError, match="not one of a trajectory"):
            ask()
    assert len(point.minibatches(3, 2, 0)) == 2


def test_what_statistics_share_is_computed_once(monkeypatch):
    point = Point(problem())
    assert point.gradient is point.gradient and point.hessian is point.hessian
    pairs = point.eigenpairs(2)
    assert point.eigenpairs(2) is pairs and point.eigenpairs(1) is not pairs
    assert point.diagonal("exact") is point.diagonal("exact")
    torch.testing.assert_close(point.diagonal("exact").values, point.hessian.dense().diagonal(), rtol=1e-3, atol=1e-5)
