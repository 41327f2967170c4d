import numpy as np
import pytest
import torch
from models import CASES
from torch import nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.errors import ComputationError, InputError


def symmetric(size, seed=0):
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a + a.T


def gauss_newton(case, outputs, losses):
    """J^T H_z J by torch.func on the concatenated data."""
    theta = case.problem.theta()
    z = outputs(theta)
    jacobian = torch.func.jacrev(outputs)(theta).reshape(z.numel(), -1)
    inner = torch.func.hessian(losses)(z).reshape(z.numel(), z.numel())
    return jacobian.T @ inner @ jacobian


@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt", "rnn", "weighted_regression"])
def test_ggn_is_the_dense_gauss_newton_matrix(name):
    case = CASES[name]()
    problem = case.problem
    batches = list(problem.batches)
    model = problem.model.eval()

    def outputs(theta):
        parameters = problem.layout.unflatten(theta)
        key = {"gpt": lambda b: b["tokens"][:, :-1], "weighted_regression": lambda b: b["x"]}.get(name, lambda b: b[0])
        return torch.cat([torch.func.functional_call(model, parameters, (key(b),)) for b in batches])

    def losses(z):
        if name == "gpt":
            tokens, mask = (torch.cat([b[k] for b in batches]) for k in ("tokens", "mask"))
            return F.cross_entropy(z[mask], tokens[:, 1:][mask])
        if name == "weighted_regression":
            y, w = (torch.cat([b[k] for b in batches]) for k in ("y", "w"))
            return (w[:, None] * (z - y).square()).sum() / (2 * w.sum())
        y = torch.cat([b[1] for b in batches])
        return (z - y).square().sum(1).mean() if name == "rnn" else F.cross_entropy(z, y)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        reference = gauss_newton(case, outputs, losses)
    ggn = gt.GGN(problem)
    dense = ggn.dense()
    assert torch.allclose(dense, reference, rtol=1e-9, atol=1e-10 * float(reference.abs().max()))
    assert float(torch.linalg.eigvalsh(dense)[0]) > -1e-10 * float(dense.abs().max())
    names = list(problem.layout)[:2]
    rows = problem.layout.indices(names)
    assert torch.allclose(ggn.block(names).dense(), reference[rows][:, rows], atol=1e-10 * float(reference.abs().max()))


def test_ggn_takes_dict_outputs():
    class Output(dict):
        pass

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return Output(logits=self.linear(x), mask=torch.ones(3))

    problem = gt.Problem(Net(), lambda m, b: m(b)["logits"].square().sum(1), [torch.randn(4, 3)])
    assert torch.allclose(gt.GGN(problem).dense(), gt.Hessian(problem).dense(), atol=1e-6)


def test_ggn_refuses_a_loss_that_goes_around_the_models_output():
    model = nn.Linear(3, 2)
    decayed = gt.Problem(model, lambda m, b: m(b).square().sum(1) + m.weight.square().sum(), [torch.randn(4, 3)])
    with pytest.raises(InputError, match=r"'weight' otherwise than through what model"):
        gt.GGN(decayed)
    inside = gt.Problem(nn.Sequential(nn.Linear(3, 2)), lambda m, b: m[0](b).square().sum(1), [torch.randn(4, 3)])
    with pytest.raises(InputError, match=r"call model\(\.\.\.\) once"):
        gt.GGN(inside)


def test_preconditioned_is_the_rescaled_matrix():
    matrix, scale = symmetric(6), torch.rand(6, dtype=torch.float64) + 0.1
    inner = gt.MatrixOperator(matrix, {"a": (2, 2), "b": (2,)})
    operator = gt.Preconditioned(inner, scale)
    expected = scale[:, None] * matrix * scale
    assert torch.allclose(operator.dense(), expected)
    assert inner.matvecs == operator.matvecs == 6
    assert torch.allclose(gt.Preconditioned(inner, inner.layout.unflatten(scale)).dense(), expected)
    assert torch.allclose(operator.block("a").dense(), expected[:4, :4])
    with pytest.raises(InputError, match="not positive"):
        gt.Preconditioned(inner, scale - 5)
    with pytest.raises(InputError, match=r"must be \(6,\)"):
        gt.Preconditioned(inner, scale[:4])


def test_scipy_operator_multiplies_like_the_matrix():
    matrix = symmetric(5)
    operator = gt.MatrixOperator(matrix).to_scipy()
    vectors = np.random.default_rng(0).normal(size=(5, 2))
    assert np.allclose(operator @ vectors, matrix.numpy() @ vectors)
    assert np.allclose(operator.matvec(vectors[:, 0]), matrix.numpy() @ vectors[:, 0])
    assert operator.dtype == np.float64


@pytest.mark.parametrize(
    ("operand", "message"),
    [
        (torch.ones(4, dtype=torch.float64), r"tensor of shape \(4,\)"),
        (torch.ones(5), "torch.float32"),
        (np.ones(5), "not ndarray"),
        (torch.ones(5, 2, 2, dtype=torch.float64), r"\(5, k\)"),
    ],
)
def test_operands_that_do_not_fit_are_refused(operand, message):
    operator = gt.MatrixOperator(symmetric(5))
    with pytest.raises(InputError, match=message):
        operator @ operand
    assert operator.matvecs == 0


def test_matrices_that_are_none_are_refused():
    with pytest.raises(InputError, match="not symmetric"):
        gt.MatrixOperator(torch.arange(9.0).reshape(3, 3))
    with pytest.raises(InputError, match="real square"):
        gt.MatrixOperator(torch.ones(2, 3))
    with pytest.raises(InputError, match="3 entries"):
        gt.MatrixOperator(torch.eye(4), {"a": (3,)})


def test_a_dense_matrix_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr("geomtraj.operators.base.DENSE_LIMIT_BYTES", 100)
    with pytest.raises(ComputationError, match="needs 0.0 GiB"):
        gt.MatrixOperator(symmetric(5)).dense()


def test_a_glob_without_a_match_names_what_is_near():
    operator = gt.MatrixOperator(torch.eye(3), {"layers.0.weight": (2,), "head": (1,)})
    with pytest.raises(InputError, match=r"'layers.0.wieght'.*did you mean 'layers.0.weight'"):
        operator.block("layers.0.wieght")
