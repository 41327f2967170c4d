"""The standing list: strange models, losses and batches, each through everything that measures.

Whatever is not refused in a sentence of geomtraj's own must be the number that differences of gradients give.
"""

import importlib
import re
import warnings
from pathlib import Path

import pytest
import torch
from field.entry import Reference

import geomtraj as gt
from geomtraj.operators.hvp import STRATEGIES

KINDS = sorted(p.stem for p in (Path(__file__).parent / "kinds").glob("*.py"))
ALL = {f"{kind}-{e.name}": e for kind in KINDS for e in importlib.import_module(f"field.kinds.{kind}").ENTRIES}
RIGHT = {name: e for name, e in ALL.items() if e.refused is None}
LARGE = {"parameters-three_thousand", "models-moving_teacher"}
"""Entries whose Hessian is not compared entry by entry."""
UNTRAINABLE = {"elsewhere-views_made_before"}
"""Entries whose model torch refuses to run after a step of an optimizer."""
SLOW = {("linearized-forward-over-reverse", "parameters-three_thousand")}
"""Strategies that take long to prepare where parameters are many."""
REFUSED = {name: e for name, e in ALL.items() if e.refused is not None}


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def close(found, expected, tolerance=1e-6):
    scale = max(float(expected.abs().max()), 1e-6) if expected.numel() else 1.0
    assert torch.allclose(found.detach(), expected, rtol=tolerance, atol=tolerance * scale), (found, expected)


class Prepared:
    """The problem of an entry, and the reference for it at its parameters."""

    def __init__(self, entry):
        self.situation = entry.make()
        self.reference = Reference(entry.make())
        self.state = [t.detach().clone() for t in (*self.situation.model.parameters(), *self.situation.model.buffers())]
        with self.situation.around():
            self.problem = self.made()
        self.theta = self.reference.theta()

    def made(self):
        s = self.situation
        return gt.Problem(s.model, s.loss, s.batches, **s.options)

    def untouched(self):
        now = [*self.situation.model.parameters(), *self.situation.model.buffers()]
        assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(now, self.state, strict=True))


@pytest.mark.parametrize("name", RIGHT)
def test_products(name):
    at = Prepared(RIGHT[name])
    v = torch.randn(at.theta.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v[at.situation.still] = 0
    values = [at.reference.value(at.theta + shift) for shift in (0, 0.1)]
    gradient, product = at.reference.gradient(at.theta), at.reference.product(at.theta, v)
    dense = None if name in LARGE else at.reference.hessian(at.theta)
    with at.situation.around():
        assert [float(at.problem.loss()), float(at.problem.loss(at.theta + 0.1))] == pytest.approx(values)
        close(at.problem.gradient(), gradient)
        for strategy in (w for w in STRATEGIES if w != "compiled" and (w, name) not in SLOW):
            hessian = gt.Hessian(at.problem, strategy=strategy)
            try:
                first = hessian @ v
            except gt.ComputationError:  # a sentence: forward derivatives and recording do not work on every model
                assert strategy not in ("double-backward", "double-backward-fresh", "finite-differences")
                continue
            at.problem.loss()  # whatever is evaluated in between
            for each in (first, hessian @ v):
                close(each, product, 2e-6)
        if dense is not None:
            close(gt.Hessian(at.problem).dense(), dense, 2e-6)
            assert gt.trace(at.problem, 2).value == pytest.approx(gt.trace(gt.Hessian(at.problem), 2).value)
        try:
            assert torch.isfinite(gt.GGN(at.problem) @ v).all()
        except gt.InputError as error:
            assert "otherwise than through" in str(error)
    at.untouched()


@pytest.mark.parametrize("name", sorted(RIGHT.keys() - LARGE))
def test_diagonals(name):
    at = Prepared(RIGHT[name])
    expected = at.reference.hessian(at.theta).diagonal()
    scale = float(expected.abs().max())
    sizes = {label: expected[block.indices].abs() for label, block in at.problem.blocks.items() if block.size}
    medians = {label: float(entries.quantile(0.5)) for label, entries in sizes.items()}
    with at.situation.around():
        close(gt.diagonal(at.problem, "exact").values, expected, 2e-6)
        close(gt.diagonal(at.problem).values, expected, 2e-6)  # small problems: exact
        try:
            found = gt.diagonal(at.problem, "probing", samples=200)
        except gt.InputError as error:
            assert not at.situation.apart, error
        else:
            z = (found.values - expected).abs() - 6 * found.sem - 1e-6 * scale
            assert (z <= 0).float().mean() > 0.9, (found, expected)
        ratios = gt.r_med(at.problem)
        for label, median in medians.items():
            if median > 1e-6 * scale:
                assert ratios[label].value == pytest.approx(float(sizes[label].max()) / median, rel=1e-3)
    at.untouched()


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    """Everything that would give a number says the same sentence."""
    entry = REFUSED[name]
    situation = entry.make()
    try:
        with situation.around():
            problem = gt.Problem(situation.model, situation.loss, situation.batches, **situation.options)
    except gt.GeomtrajError as error:
        assert_sentence(error, entry.refused)
        return
    for work in (
        lambda: gt.Hessian(problem) @ problem.theta(),
        lambda: gt.eigsh(problem, 1),
        lambda: gt.diagonal(problem),
        lambda: gt.diagonal(problem, "probing", samples=2),
        lambda: gt.r_med(problem),
        lambda: gt.GGN(problem) @ problem.theta(),
    ):
        with pytest.raises(gt.GeomtrajError) as caught:
            work()
        assert_sentence(caught.value, entry.refused)


def assert_sentence(error, pattern):
    text = str(error)
    assert re.search(pattern, text), text
    assert "\n" not in text and text.endswith((".", ")", "]"))


@pytest.mark.parametrize("name", sorted(RIGHT.keys() - UNTRAINABLE))
def test_measuring(name, tmp_path):
    """Recorded, measured twice (the second time from what is stored), and anew by a Problem of its own."""
    at = Prepared(RIGHT[name])
    model = at.situation.model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gt.Recorder(tmp_path / "run", model, optimizer, schedule=gt.every(1)):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    other = Prepared(RIGHT[name]).problem
    with at.situation.around():
        options = {"settings": {"trace": {"probes": 4}}, "progress": False}
        first, again = (gt.measure(tmp_path / "run", p, ["trace"], **options) for p in (at.problem, other))
    assert not [m.status for m in first.measurements if m.status.startswith("failed")]
    assert first.losses()[0] == pytest.approx(at.reference.value(at.theta))
    assert [m.seconds for m in first.measurements] == [m.seconds for m in again.measurements]  # not made again
