"""Every strategy for every matrix on every case, against the dense matrix."""

import shutil

import pytest
import torch
from models import Case
from strategy_cases import LACKING, STRATEGY_CASES, dense_gauss_newton
from torch import nn

import geomtraj as gt
from geomtraj.errors import ComputationError
from geomtraj.operators.hvp import OLD_NAMES, STRATEGIES
from geomtraj.operators.hvp.batch_loss import BatchLoss
from geomtraj.operators.hvp.gauss_newton import GAUSS_NEWTON
from geomtraj.operators.hvp.hessian import HESSIAN

TOLERANCE = {"finite-differences": 1e-7}  # float64, relative to the largest entry; 1e-10 for the others
EAGER = [name for name in STRATEGIES if name != "compiled"]


def error(found, expected):
    return float((found - expected).abs().max()) / (float(expected.abs().max()) or 1.0)


MATRICES = {"hessian": (gt.Hessian, HESSIAN, Case.hessian), "ggn": (gt.GGN, GAUSS_NEWTON, dense_gauss_newton)}


class Subject:
    """A matrix of a case, and the dense one."""

    def __init__(self, matrix, name):
        self.operator, self.curvature, dense = MATRICES[matrix]
        self.case = STRATEGY_CASES[name]()
        self.dense = dense(self.case)


@pytest.fixture(scope="module")
def subjects():
    return {}


@pytest.fixture
def subject(matrix, name, subjects):
    if (matrix, name) not in subjects:
        subjects[matrix, name] = Subject(matrix, name)
    return subjects[matrix, name]


def every(strategies):
    found = [
        (matrix, name, strategy)
        for matrix in MATRICES
        for name in STRATEGY_CASES
        for strategy in strategies
        if (matrix, name, strategy) not in LACKING
    ]
    return pytest.mark.parametrize(("matrix", "name", "strategy"), found)


@every(EAGER)
def test_every_strategy_gives_the_dense_matrix(subject, strategy):
    dense = subject.dense
    operator = subject.operator(subject.case.problem, strategy=strategy)
    vectors = torch.randn(len(dense), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors = torch.cat([vectors, torch.eye(len(dense), dtype=torch.float64)[:, ::11]], dim=1)
    assert error(operator @ vectors, dense @ vectors) < TOLERANCE.get(strategy, 1e-10)
    assert operator.strategy == strategy
    names = list(subject.case.problem.layout)[1:3]
    rows = subject.case.problem.layout.indices(names)
    expected = dense[rows][:, rows] @ vectors[rows, :2]
    assert error(operator.block(names) @ vectors[rows, :2], expected) < TOLERANCE.get(strategy, 1e-10)


@every(EAGER)
def test_every_strategy_elsewhere_than_at_the_current_parameters(subject, strategy):
    problem = subject.case.problem
    theta = problem.theta() + 0.1
    vector = torch.linspace(-1, 1, len(theta), dtype=theta.dtype)
    if subject.operator is gt.Hessian:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            expected = torch.func.vjp(torch.func.grad(subject.case.flat_reference), theta)[1](vector)[0]
    else:
        expected = gt.GGN(problem, theta, strategy="double-backward") @ vector
    found = subject.operator(problem, theta, strategy=strategy) @ vector
    assert error(found, expected) < TOLERANCE.get(strategy, 1e-10)


@every([strategy for strategy in EAGER if STRATEGIES[strategy].in_one_pass])
def test_several_vectors_in_one_pass(subject, strategy):
    problem, found = subject.case.problem, 0.0
    rows = torch.randn(3, problem.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for batch in problem.batches:
        loss = BatchLoss(problem, problem.layout.unflatten(problem.theta()), problem.layout, batch)
        found += STRATEGIES[strategy](loss, subject.curvature).block(rows)
    assert error(found / problem.total_weight, rows @ subject.dense) < 1e-10


def test_the_names_of_before_are_still_taken():
    problem = STRATEGY_CASES["mlp"]().problem
    assert {old: gt.Hessian(problem, strategy=old).strategy for old in OLD_NAMES} == OLD_NAMES
    assert set(OLD_NAMES.values()) <= set(STRATEGIES)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_strategy_gives_the_dense_hessian():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(5, 3).double()
    problem = gt.Problem(model, lambda m, b: m(b).square().sum(1), [x])
    vectors = torch.randn(problem.size, 2, dtype=torch.float64)
    hessian = gt.Hessian(problem, strategy="compiled")
    assert error(hessian @ vectors, gt.Hessian(problem, strategy="double-backward") @ vectors) < 1e-10
    assert hessian.strategy == "compiled"


def test_without_a_compiler_the_compiled_strategy_says_so(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setattr(torch, "compile", lambda program, **options: broken)
    problem = STRATEGY_CASES["mlp"]().problem
    with pytest.raises(ComputationError, match=r"could not be compiled \(no C\+\+ compiler was found\)"):
        gt.Hessian(problem, strategy="compiled") @ problem.theta()


@pytest.mark.parametrize(("matrix", "name", "strategy"), LACKING)
def test_what_a_strategy_cannot_do_it_says(matrix, name, strategy):
    problem = STRATEGY_CASES[name]().problem
    with pytest.raises(ComputationError, match=LACKING[matrix, name, strategy]):
        MATRICES[matrix][0](problem, strategy=strategy) @ problem.theta()
