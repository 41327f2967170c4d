"""What every statistic of the registry must pass; a new one is tested by being there."""

import json
import math

import numpy as np
import pytest
import torch
from standing import adam, at, classification, classifier, tokens, trained
from torch import nn

import geomtraj as gt
from geomtraj.errors import InputError
from geomtraj.measuring.history import NEEDS
from geomtraj.statistics import REGISTRY, Point, Statistic

NAMES = sorted(REGISTRY)
CHEAP = {
    "batch_sharpness": {"batch_size": 8, "most": 16},
    "r_med": {"samples": 8},
    "condition": {"steps": 20, "max_steps": 30},
    "spectrum": {"steps": 20},
}


def statistic_of(name):
    return REGISTRY[name].with_settings(CHEAP.get(name, {}))


def problem_of(name, **options):
    return tokens(**options) if name == "token_groups" else classification(**options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {kind: trained(folder / kind, make(), adam) for kind, make in (("c", classification), ("t", tokens))}


def run_of(runs, name):
    return runs["t" if name == "token_groups" else "c"]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is_and_its_numbers_are_finite_in_their_intervals_and_json(name, runs):
    statistic = statistic_of(name)
    problem = problem_of(name)
    with at(run_of(runs, name), problem, 3) as point:
        outcome = statistic.measure(point)
        again = statistic.measure(point)
    assert statistic.name == name and statistic.title and isinstance(statistic, Statistic)
    assert set(statistic.needs) <= set(NEEDS)
    assert outcome.quantities and outcome.status == "ok"
    for label, quantity in outcome.quantities.items():
        assert quantity.low <= quantity.value <= quantity.high, label
    assert {k: q.value for k, q in again.quantities.items()} == {k: q.value for k, q in outcome.quantities.items()}
    json.dumps([outcome.details, statistic.settings()])
    assert all(isinstance(a, np.ndarray) and a.dtype.kind in "fiu" for a in outcome.arrays.values())
    assert type(statistic).with_settings(statistic.settings()) == statistic


@pytest.mark.parametrize("name", NAMES)
def test_it_leaves_everything_as_it_was(name, runs):
    problem = problem_of(name)
    with at(run_of(runs, name), problem, 2) as point:
        model = problem.model.train()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        rng = torch.random.get_rng_state()
        statistic_of(name).measure(point)
        assert model.training and torch.equal(torch.random.get_rng_state(), rng)
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_measured_by_name_along_a_run(name, runs):
    run = run_of(runs, name)
    settings = {name: CHEAP[name]} if name in CHEAP else None
    results = gt.measure(run[2:4], problem_of(name), [name], settings=settings, progress=False)
    assert len(results.of(name)) == 2 and not any(m.status.startswith("failed") for m in results.of(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_criterion_of_torchs_is_the_loss_written_out(name, runs):
    run = run_of(runs, "c")
    written = classification()
    criterion = gt.Problem(written.model, nn.CrossEntropyLoss(), written.batches)
    with at(run, written, 3) as point, at(run, criterion, 3) as other:
        expected, found = statistic_of(name).measure(point), statistic_of(name).measure(other)
    assert found.quantities.keys() == expected.quantities.keys() and found.quantities
    for label, q in found.quantities.items():
        assert q.value == pytest.approx(expected.quantities[label].value, rel=1e-6), label


@pytest.mark.parametrize("name", [n for n in NAMES if REGISTRY[n].needs])
def test_one_that_needs_a_trajectory_says_so_at_a_point_of_its_own(name):
    with pytest.raises(InputError, match="not one of a trajectory"):
        statistic_of(name).measure(Point(problem_of(name)))


def degenerate(kind):
    """Problems at the ends of what can be measured."""
    x, y = torch.ones(1, 4).double(), torch.zeros(1, dtype=torch.long)
    if kind == "one example":
        return gt.Problem(classifier(), lambda m, b: m(b[0]).square().sum(1), [(x, y)])
    if kind == "one block":
        return gt.Problem(nn.Linear(4, 3, bias=False).double(), lambda m, b: m(b[0]).square().sum(1), [(x, y)])
    model = classifier()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    return gt.Problem(model, lambda m, b: m(b[0]).square().sum(1), [(x.repeat(6, 1), y.repeat(6))], check=False)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "token_groups"])
@pytest.mark.parametrize("kind", ["one example", "one block", "zero gradient"])
def test_what_cannot_be_measured_has_a_reason_and_not_a_nan(name, kind, tmp_path):
    problem = degenerate(kind)
    run = trained(tmp_path / "run", problem, lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9), 3)
    with at(run, problem, 1) as point:
        outcome = statistic_of(name).measure(point)
    assert outcome.status != "ok" or outcome.quantities
    missing = [label for label, q in outcome.quantities.items() if math.isnan(q.value)]
    assert not missing or outcome.status != "ok"
