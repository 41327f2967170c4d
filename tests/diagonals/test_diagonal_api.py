import pytest
import torch
from spectra import SPECTRA, bulk, matrix, operator
from torch import nn

from geomtraj.diagonals import diagonal
from geomtraj.errors import ComputationError, InputError
from geomtraj.operators import Hessian, MatrixOperator
from geomtraj.problem import Problem


@pytest.fixture
def problem():
    rng = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng))
    batches = [(torch.randn(n, 4, generator=rng), torch.randint(0, 3, (n,), generator=rng)) for n in (5, 5, 2)]

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0].double()), batch[1], reduction="none")

    return Problem(model.double(), loss, batches)


def softmax_diagonal(problem, theta):
    """mean p_i (1 - p_i) x_j^2, the closed form for softmax regression: weights (3, 4), then biases (3,)."""
    W, b = theta[:12].reshape(3, 4), theta[12:]
    x = torch.cat([x for x, _ in problem.batches]).double()
    p = (x @ W.T + b).softmax(1)
    v = p * (1 - p)
    return torch.cat([(v.T @ x.square() / len(x)).reshape(-1), v.mean(0)])


def test_the_hessian_of_a_problem_against_the_closed_form(problem):
    result = diagonal(problem, "exact")
    assert torch.allclose(result.values, softmax_diagonal(problem, problem.theta()))
    assert list(result.blocks) == ["weight", "bias"]
    assert result.block("weight")[0].shape == (3, 4)


def test_another_theta(problem):
    theta = problem.theta() * 0.3
    result = diagonal(problem, "exact", theta=theta)
    assert torch.allclose(result.values, softmax_diagonal(problem, theta))
    assert not torch.allclose(result.values, diagonal(problem, "exact").values)


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_a_problem_and_its_operator_give_the_same(problem, method):
    first = diagonal(problem, method, samples=8, seed=2)
    second = diagonal(Hessian(problem), method, 8, 2)
    assert first.method == method
    assert torch.allclose(first.values, second.values)
    assert torch.allclose(first.sem, second.sem)


@pytest.mark.parametrize(("size", "samples", "method"), [(40, 10, "exact"), (41, 10, "xdiag"), (256, 64, "exact")])
def test_auto_is_exact_where_that_is_cheap(size, samples, method):
    result = diagonal(operator(bulk(size)), samples=samples)
    assert result.method == method
    assert result.cost.matvecs == (size if method == "exact" else samples)


def test_max_seconds_reaches_the_exact_method():
    with pytest.raises(ComputationError, match="max_seconds"):
        diagonal(operator(SPECTRA["no outliers"]), "exact", max_seconds=0.0)


def test_the_global_generator_is_untouched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for method in ("hutchinson", "xdiag"):
        diagonal(MatrixOperator(matrix(bulk(30))), method, samples=8)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "xdaig"}, "unknown diagonal method 'xdaig': .*did you mean 'xdiag'"),
        ({"method": "probing"}, "needs a Problem, not an operator"),
        ({"theta": torch.zeros(7)}, "theta cannot be given together with an operator"),
        ({"samples": 0}, "samples must be an integer of at least 1"),
        ({"samples": 1, "method": "xdiag"}, "samples must be an integer of at least 2"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        diagonal(operator(SPECTRA["small indefinite"]), **arguments)


def test_what_is_neither_a_problem_nor_an_operator():
    with pytest.raises(InputError, match="diagonal of a Linear is unknown"):
        diagonal(nn.Linear(2, 2))
