import pytest
import torch
from spectra import SPECTRA, both_dtypes, matrix, operator, tolerance

from geomtraj.errors import InputError
from geomtraj.linalg.lanczos import lanczos, tridiagonal
from geomtraj.operators.matrix import MatrixOperator


def one_run(H, start, steps):
    return lanczos(H, start[:, None], steps)[0]


def start_vector(size, dtype, seed=3):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@both_dtypes
@pytest.mark.parametrize("name", SPECTRA)
def test_the_lanczos_relation_and_orthonormality(name, dtype):
    w = SPECTRA[name]
    norm = max(float(w.abs().max()), 1.0)
    H = operator(w, dtype=dtype)
    run = one_run(H, start_vector(len(w), dtype), 60)
    m = run.ritz.numel()
    T = tridiagonal(run.alphas, run.betas)
    right = run.basis.double() @ T
    right[:, -1] += run.remainder.double()
    left = (matrix(w, dtype=dtype) @ run.basis).double()
    assert (left - right).abs().max() < tolerance(dtype) * norm
    assert (run.basis.T @ run.basis - torch.eye(m, dtype=dtype)).abs().max() < tolerance(dtype)
    assert H.matvecs == m
    assert run.betas[-1] == pytest.approx(float(run.remainder.norm()), rel=1e-5)


@both_dtypes
@pytest.mark.parametrize("name", SPECTRA)
def test_residuals_and_weights_of_the_ritz_pairs(name, dtype):
    w = SPECTRA[name]
    norm = max(float(w.abs().max()), 1.0)
    start = start_vector(len(w), dtype)
    run = one_run(operator(w, dtype=dtype), start, 25)
    _, S = torch.linalg.eigh(tridiagonal(run.alphas, run.betas))
    Y = run.basis.double() @ S
    direct = (matrix(w) @ Y - Y * run.ritz).norm(dim=0)
    assert (direct - run.residuals).abs().max() < tolerance(dtype) * norm
    weights = (Y.T @ start.double() / start.double().norm()).square()
    assert (weights - run.weights).abs().max() < tolerance(dtype)
    assert run.weights.sum() == pytest.approx(1, abs=1e-12)


@both_dtypes
@pytest.mark.parametrize(("name", "distinct"), [("zero", 1), ("identity", 1), ("two clusters", 2), ("low rank", 5)])
def test_an_invariant_subspace_ends_the_run_with_exact_eigenvalues(name, distinct, dtype):
    w = SPECTRA[name]
    run = one_run(operator(w, dtype=dtype), start_vector(len(w), dtype), 40)
    assert run.status == "invariant subspace"
    distance = (run.ritz[:, None] - w.unique()).abs()
    slack = tolerance(dtype) * max(1.0, float(w.abs().max()))
    assert distance.min(1).values.max() <= slack
    assert distance.min(0).values.max() <= slack
    # Noise in the remainder may show a further copy of an eigenvalue before the end is noticed.
    assert distinct <= run.ritz.numel() <= distinct + 2


def test_no_more_steps_than_rows():
    H = operator(torch.tensor([1.0, -2, 3]))
    run = one_run(H, start_vector(3, torch.float64), 50)
    assert H.matvecs == 3
    assert torch.allclose(run.ritz, torch.tensor([-2.0, 1, 3]).double())


def test_a_non_finite_product_ends_the_run():
    a = matrix(SPECTRA["small indefinite"])
    a[2, 2] = float("nan")
    run = one_run(MatrixOperator(a), start_vector(7, torch.float64), 5)
    assert run.status == "non-finite product"
    assert run.ritz.numel() == 0


@pytest.mark.parametrize("start", [torch.zeros(7), torch.full((7,), float("nan"))])
def test_a_useless_start_is_refused(start):
    with pytest.raises(InputError, match="start vector"):
        one_run(operator(SPECTRA["small indefinite"]), start.double(), 5)


@both_dtypes
def test_runs_side_by_side_are_the_runs_alone(dtype):
    w = SPECTRA["outliers at both ends"]
    starts = torch.stack([start_vector(len(w), dtype, seed) for seed in range(3)], dim=1)
    together = lanczos(operator(w, dtype=dtype), starts, 30)
    for i, run in enumerate(together):
        alone = one_run(operator(w, dtype=dtype), starts[:, i], 30)
        assert (alone.ritz - run.ritz).abs().max() < tolerance(dtype) * 20


@both_dtypes
def test_no_ghosts_after_many_steps(dtype):
    w = torch.cat([torch.tensor([100.0, 50, -40]).double(), 0.1 * torch.linspace(-1, 1, 400).double()])
    run = one_run(operator(w, dtype=dtype), start_vector(len(w), dtype), 150)
    assert (run.ritz > 1).sum() == 2
    assert (run.ritz < -1).sum() == 1


def test_a_run_that_ends_early_does_not_end_the_others():
    w = torch.arange(1.0, 41.0).double()
    eigenvector = torch.zeros(40, dtype=torch.float64)
    eigenvector[7] = 2.0
    short, long = lanczos(MatrixOperator(torch.diag(w)), torch.stack([eigenvector, torch.ones(40)], dim=1), 20)
    assert (short.status, short.ritz.tolist()) == ("invariant subspace", [8.0])
    assert (long.status, long.ritz.numel()) == ("ok", 20)


def test_rare_looks_change_no_result(monkeypatch):
    w = SPECTRA["low rank"]
    often = one_run(operator(w), start_vector(len(w), torch.float64), 40)
    monkeypatch.setattr("geomtraj.linalg.lanczos.looks", lambda device: 16)
    H = operator(w)
    rarely = one_run(H, start_vector(len(w), torch.float64), 40)
    assert H.matvecs == 16
    assert torch.equal(often.ritz, rarely.ritz)
    assert torch.allclose(often.remainder, rarely.remainder)
