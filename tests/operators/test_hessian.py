import pytest
import torch
from models import CASES
from torch import nn
from torch.nn import functional as F

import geomtraj as gt

TOLERANCE = 1e-10  # float64, relative to the largest entry


def close(a, b):
    return float((a - b).abs().max()) <= TOLERANCE * float(b.abs().max())


@pytest.fixture(params=CASES, scope="module")
def case(request):
    return CASES[request.param]()


@pytest.fixture(scope="module")
def dense(case):
    return case.hessian()


def test_equals_the_dense_hessian_on_concatenated_data(case, dense):
    assert close(gt.Hessian(case.problem).dense(chunk=7), dense)


def test_loss_and_gradient_equal_the_reference(case):
    theta = case.problem.theta()
    assert torch.allclose(case.problem.loss(), case.flat_reference(theta), rtol=1e-12)
    assert close(case.problem.gradient(), torch.func.grad(case.flat_reference)(theta))


def test_blocks_of_vectors_and_single_vectors_agree_and_are_counted(case, dense):
    hessian = gt.Hessian(case.problem)
    vectors = torch.randn(case.problem.size, 3, dtype=torch.float64)
    block = hessian @ vectors
    assert close(block, dense @ vectors)
    assert close(hessian @ vectors[:, 1], block[:, 1])
    assert hessian.matvecs == 4


def test_a_block_is_the_principal_submatrix(case, dense):
    names = list(case.problem.layout)[1:3]
    rows = case.problem.layout.indices(names)
    part = gt.Hessian(case.problem).block(names)
    assert list(part.layout) == names
    assert close(part.dense(), dense[rows][:, rows])


def test_elsewhere_than_at_the_current_parameters(case):
    theta = case.problem.theta() + 0.1
    vector = torch.randn_like(theta)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        reference = torch.func.vjp(torch.func.grad(case.flat_reference), theta)[1](vector)[0]
    assert close(gt.Hessian(case.problem, theta) @ vector, reference)


def test_without_room_for_kept_graphs_the_numbers_stay(case, dense, monkeypatch):
    monkeypatch.setattr("geomtraj.operators.evaluation.engine.available_bytes", lambda device: 0)
    hessian = gt.Hessian(case.problem)
    vectors = torch.randn(case.problem.size, 2, dtype=torch.float64)
    assert close(hessian @ vectors, dense @ vectors)
    assert close(hessian @ vectors, dense @ vectors)
    assert hessian.strategy == "double-backward-fresh"


def test_theta_is_fixed_when_the_operator_is_made():
    case = CASES["mlp"]()
    hessian = gt.Hessian(case.problem)
    before = case.hessian()
    with torch.no_grad():
        for p in case.problem.model.parameters():
            p.add_(1.0)
    assert close(hessian.dense(), before)


def test_kept_graphs_are_freed_with_the_operator():
    import gc

    def live_elements():
        gc.collect()
        return sum(o.numel() for o in gc.get_objects() if type(o) is torch.Tensor)

    case = CASES["mlp"]()
    vector = case.problem.theta()
    import psutil

    x, y = torch.randn(4000, 200, dtype=torch.float64), torch.zeros(4000, dtype=torch.long)
    model = nn.Sequential(nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 2)).double()
    problem = gt.Problem(model, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), [(x, y)])
    vector = problem.theta()
    process = psutil.Process()
    for _ in range(3):
        gt.Hessian(problem) @ vector
    before = process.memory_info().rss
    for _ in range(20):  # one graph holds about 25 MB
        gt.Hessian(problem) @ vector
    assert process.memory_info().rss - before < 150e6


def test_softmax_regression_closed_form():
    torch.manual_seed(0)
    n, d, c = 12, 3, 4
    x, y = torch.randn(n, d, dtype=torch.float64), torch.randint(0, c, (n,))
    model = nn.Linear(d, c, bias=False).double()
    problem = gt.Problem(
        model, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), [(x[:7], y[:7]), (x[7:], y[7:])]
    )
    p = torch.softmax(x @ model.weight.detach().T, dim=1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    closed = torch.einsum("nab,ni,nj->aibj", inner, x, x).reshape(c * d, c * d) / n
    assert close(gt.Hessian(problem).dense(), closed)
    assert close(gt.GGN(problem).dense(), closed)


def test_logistic_and_linear_regression_closed_forms():
    torch.manual_seed(0)
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.rand(9, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    logistic = gt.Problem(
        model, lambda m, b: F.binary_cross_entropy_with_logits(m(b[0])[:, 0], b[1], reduction="none"), [(x, y)]
    )
    s = torch.sigmoid(x @ model.weight.detach()[0])
    assert close(gt.Hessian(logistic).dense(), x.T @ ((s * (1 - s))[:, None] * x) / 9)
    linear = gt.Problem(model, lambda m, b: 0.5 * (m(b[0])[:, 0] - b[1]).square(), [(x[:2], y[:2]), (x[2:], y[2:])])
    assert close(gt.Hessian(linear).dense(), x.T @ x / 9)


@pytest.mark.parametrize("ours", [gt.Hessian, gt.GGN])
def test_curvlinops_agrees(ours):
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
    x, y = torch.randn(10, 4).double(), torch.randint(0, 3, (10,))
    data = [(x[:5], y[:5]), (x[5:], y[5:])]
    problem = gt.Problem(model, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), data)
    theirs = {gt.Hessian: curvlinops.HessianLinearOperator, gt.GGN: curvlinops.GGNLinearOperator}[ours]
    parameters = list(model.parameters())
    operator = theirs(model, nn.CrossEntropyLoss(), parameters, data)
    vector = torch.randn(problem.size, dtype=torch.float64)
    assert close(ours(problem) @ vector, operator @ vector)


def test_the_hessian_of_a_linear_loss_is_zero():
    model = nn.Linear(3, 1, bias=False)
    problem = gt.Problem(model, lambda m, b: m(b)[:, 0], [torch.ones(4, 3)])
    assert torch.equal(gt.Hessian(problem).dense(), torch.zeros(3, 3))
    assert torch.equal(gt.GGN(problem).dense(), torch.zeros(3, 3))
