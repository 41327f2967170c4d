"""Every way of multiplying by a Hessian on every case, against the dense matrix."""

import shutil

import pytest
import torch
from strategy_cases import LACKING, WAY_CASES
from torch import nn

import geomtraj as gt
from geomtraj.errors import ComputationError
from geomtraj.operators.hvp import WAYS
from geomtraj.operators.hvp.batch_loss import BatchLoss

TOLERANCE = {"differences": 1e-7}  # float64, relative to the largest entry; 1e-10 for the others
EAGER = [name for name in WAYS if name != "compiled"]


def error(found, expected):
    return float((found - expected).abs().max()) / float(expected.abs().max())


@pytest.fixture(scope="module")
def cases():
    return {}


@pytest.fixture
def case(name, cases):
    if name not in cases:
        made = WAY_CASES[name]()
        cases[name] = made, made.hessian()
    return cases[name][0]


@pytest.fixture
def dense(name, case, cases):
    return cases[name][1]


def every(ways):
    pairs = [(name, way) for name in WAY_CASES for way in ways if (name, way) not in LACKING]
    return pytest.mark.parametrize(("name", "way"), pairs)


@every(EAGER)
def test_every_way_gives_the_dense_hessian(case, dense, way):
    hessian = gt.Hessian(case.problem, strategy=way)
    vectors = torch.randn(len(dense), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vectors = torch.cat([vectors, torch.eye(len(dense), dtype=torch.float64)[:, ::11]], dim=1)
    assert error(hessian @ vectors, dense @ vectors) < TOLERANCE.get(way, 1e-10)
    assert hessian.strategy == way


@every(EAGER)
def test_every_way_elsewhere_than_at_the_current_parameters(case, way):
    theta = case.problem.theta() + 0.1
    vector = torch.linspace(-1, 1, len(theta), dtype=theta.dtype)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = torch.func.vjp(torch.func.grad(case.flat_reference), theta)[1](vector)[0]
    assert error(gt.Hessian(case.problem, theta, strategy=way) @ vector, expected) < TOLERANCE.get(way, 1e-10)


@every([way for way in EAGER if WAYS[way].in_one_pass])
def test_several_vectors_in_one_pass(case, dense, way):
    problem, found = case.problem, 0.0
    rows = torch.randn(3, problem.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for batch in problem.batches:
        loss = BatchLoss(problem, problem.layout.unflatten(problem.theta()), problem.layout, batch)
        found += WAYS[way](loss).block(rows)
    assert error(found / problem.total_weight, rows @ dense) < 1e-10


@every(EAGER)
def test_every_way_on_a_block(case, dense, way):
    names = list(case.problem.layout)[1:3]
    rows = case.problem.layout.indices(names)
    vectors = torch.randn(len(rows), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    part = gt.Hessian(case.problem, strategy=way).block(names)
    assert error(part @ vectors, dense[rows][:, rows] @ vectors) < TOLERANCE.get(way, 1e-10)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_way_gives_the_dense_hessian():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(5, 3).double()
    problem = gt.Problem(model, lambda m, b: m(b).square().sum(1), [x])
    vectors = torch.randn(problem.size, 2, dtype=torch.float64)
    hessian = gt.Hessian(problem, strategy="compiled")
    assert error(hessian @ vectors, gt.Hessian(problem, strategy="kept") @ vectors) < 1e-10
    assert hessian.strategy == "compiled"


def test_without_a_compiler_the_compiled_way_says_so(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setattr(torch, "compile", lambda program, **options: broken)
    problem = WAY_CASES["mlp"]().problem
    with pytest.raises(ComputationError, match=r"could not be compiled \(no C\+\+ compiler was found\)"):
        gt.Hessian(problem, strategy="compiled") @ problem.theta()


@pytest.mark.parametrize(("name", "way"), LACKING)
def test_what_a_way_cannot_do_it_says(name, way):
    problem = WAY_CASES[name]().problem
    with pytest.raises(ComputationError, match=LACKING[name, way]):
        gt.Hessian(problem, strategy=way) @ problem.theta()
