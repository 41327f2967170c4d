import math

import numpy as np
import pytest
import torch
from spectra import SPECTRA, both_dtypes, bulk, matrix, operator, tolerance

from geomtraj.errors import InputError
from geomtraj.linalg.eigen import eigsh
from geomtraj.operators.matrix import MatrixOperator

TOL = 1e-4


def reference(w, k, which):
    """The eigenvalues that `which` asks for, in eigsh's order."""
    down = w.sort(descending=True).values
    k = min(k, len(w))
    if which == "LA":
        return down[:k]
    if which == "SA":
        return down.flip(0)[:k]
    if which == "LM":
        return w[w.abs().argsort(descending=True)][:k]
    return torch.cat([down[: k - k // 2], down[len(w) - k // 2 :]])


def check(H, w, k, which, dtype, result):
    norm = float(w.abs().max())
    k = min(k, len(w))
    assert result.status == "ok"
    assert result.converged.dtype == torch.bool
    assert result.converged.shape == result.residuals.shape == result.values.shape == (k,)
    assert result.converged.all()
    assert result.matvecs == H.matvecs
    expected = reference(w, k, which)
    got = result.values
    if which == "LM":
        got, expected = got.abs(), expected.abs()
    # The error of a Ritz value is at most its residual; among eigenvalues without a gap no more is promised.
    assert (got - expected).abs().max() <= 2 * TOL * norm + tolerance(dtype) * norm
    V = result.vectors
    assert V.dtype == dtype
    assert V.shape == (len(w), k)
    assert (V.T @ V - torch.eye(k, dtype=dtype)).abs().max() < tolerance(dtype)
    A = H.dense().double()
    direct = (A @ V.double() - V.double() * result.values).norm(dim=0)
    assert (direct - result.residuals).abs().max() <= tolerance(dtype) * norm
    assert (direct <= result.residuals + tolerance(dtype) * norm).all()


@both_dtypes
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("name", SPECTRA)
def test_values_vectors_and_residuals_against_the_prescribed_spectrum(name, which, dtype):
    H = operator(SPECTRA[name], dtype=dtype)
    check(H, SPECTRA[name], 7, which, dtype, eigsh(H, 7, which, tol=TOL))


@both_dtypes
@pytest.mark.parametrize("which", ["LA", "BE"])
def test_restarts_in_a_small_basis(which, dtype):
    w = SPECTRA["no outliers"]
    H = operator(w, dtype=dtype)
    result = eigsh(H, 6, which, tol=TOL, basis=14)
    check(H, w, 6, which, dtype, result)
    assert result.matvecs > 14


@pytest.mark.parametrize("seed", range(4))
def test_restarts_while_looking_for_multiplicities(seed):
    w = torch.cat([torch.tensor([1.4] * 3 + [1.2] * 2).double(), bulk(300, 1.0)])
    H = operator(w, seed)
    result = eigsh(H, 5, "LA", tol=1e-2, basis=9, seed=seed)
    assert torch.allclose(result.values, w[:5], atol=1e-3)
    direct = (H @ result.vectors - result.vectors * result.values).norm(dim=0)
    assert torch.allclose(direct, result.residuals, rtol=1e-6)


@both_dtypes
@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_multiplicities_are_counted(k, dtype):
    w = torch.cat([torch.tensor([5.0] * 3 + [4.0] * 4 + [-7.0]).double(), bulk(292)])
    result = eigsh(operator(w, dtype=dtype), k, "LA")
    expected = w.sort(descending=True).values[:k]
    assert torch.allclose(result.values, expected, atol=1e-4)


@pytest.mark.slow
def test_multiplicities_over_many_random_spectra():
    for seed in range(80):
        rng = np.random.default_rng(seed)
        outliers = np.repeat(np.round(rng.uniform(-10, 10, 6), 1), rng.integers(1, 5, 6))
        w = torch.as_tensor(np.r_[outliers, rng.choice([0, 0.01, 0.3, 1]) * rng.normal(size=220)])
        which, k = ("LA", "SA", "LM", "BE")[seed % 4], int(rng.integers(1, 14))
        H = operator(w, seed)
        check(H, w, k, which, torch.float64, eigsh(H, k, which, seed=seed))


@both_dtypes
@pytest.mark.parametrize("size", [1, 5, 120])
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_all_pairs_when_k_is_not_less_than_the_size(size, which, dtype):
    w = bulk(size, 3.0)
    H = operator(w, dtype=dtype)
    check(H, w, size + 2, which, dtype, eigsh(H, size + 2, which))
    assert H.matvecs == 2 * size  # those of `check` included


def test_many_pairs_of_an_operator_larger_than_the_basis():
    w = torch.cat([bulk(250, 1.0), torch.zeros(50).double()])
    H = operator(w)
    check(H, w, 80, "LM", torch.float64, eigsh(H, 80, "LM"))


def test_the_order_of_each_end():
    w = torch.tensor([-9.0, -3, -1, 0, 2, 4, 8]).double()
    assert eigsh(operator(w), 3, "LA").values.tolist() == pytest.approx([8, 4, 2])
    assert eigsh(operator(w), 3, "SA").values.tolist() == pytest.approx([-9, -3, -1])
    assert eigsh(operator(w), 3, "LM").values.tolist() == pytest.approx([-9, 8, 4])
    assert eigsh(operator(w), 3, "BE").values.tolist() == pytest.approx([8, 4, -9])


def test_it_needs_few_products_and_the_seed_decides_the_result():
    w = torch.cat([bulk(380, 0.3), torch.linspace(1, 20, 20).double()])
    first, again = (eigsh(operator(w), 10, seed=4) for _ in range(2))
    assert first.matvecs <= 60
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, eigsh(operator(w), 10, seed=5).vectors)


def test_a_tiny_or_huge_scale_changes_nothing():
    w = SPECTRA["outliers at both ends"]
    plain = eigsh(operator(w), 4)
    for scale in (1e-9, 1e9):
        scaled = eigsh(operator(w * scale), 4)
        assert scaled.matvecs == plain.matvecs
        assert torch.allclose(scaled.values / scale, plain.values, rtol=1e-9)


@pytest.mark.parametrize("size", [20, 300])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_products_give_a_status(size, bad):
    a = matrix(bulk(size))
    a[1, 1] = bad
    result = eigsh(MatrixOperator(a), 3)
    assert "not finite" in result.status
    assert not result.converged.any()
    assert result.values.isnan().all()
    assert result.vectors.shape == (size, 3)


def test_too_few_products_are_said():
    H = operator(SPECTRA["no outliers"])
    result = eigsh(H, 5, tol=1e-10, max_matvecs=40)
    assert H.matvecs == 40
    assert "raise max_matvecs" in result.status
    assert not result.converged.all()
    V = result.vectors
    direct = (H @ V - V * result.values).norm(dim=0)
    assert torch.allclose(direct, result.residuals, atol=1e-12)


def test_unchecked_multiplicities_are_said():
    w = torch.cat([bulk(380, 0.3), torch.linspace(1, 20, 20).double()])
    full = eigsh(operator(w), 5)
    result = eigsh(operator(w), 5, max_matvecs=full.matvecs - 2)
    assert result.converged.all()
    assert "multiplicities" in result.status


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"which": "LR"}, "unknown end of the spectrum 'LR'"),
        ({"k": 0}, "k must be an integer of at least 1"),
        ({"tol": -1.0}, "tol must not be negative"),
        ({"tol": math.nan}, "tol must not be negative"),
        ({"k": 5, "basis": 6}, "basis must be an integer of at least 8"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        eigsh(operator(SPECTRA["no outliers"]), **arguments)


@both_dtypes
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("name", ["outliers at both ends", "multiplicities", "nearly multiple", "low rank"])
def test_warm_and_cold_starts_agree(name, which, dtype):
    w = SPECTRA[name]
    near = matrix(w) + 1e-2 * matrix(bulk(len(w), 1.0, seed=1), seed=1)
    start = eigsh(MatrixOperator(near.to(dtype)), 7, which).vectors
    H = operator(w, dtype=dtype)
    check(H, w, 7, which, dtype, eigsh(H, 7, which, tol=TOL, start=start))


def test_a_warm_start_saves_products():
    w = torch.cat([bulk(380, 0.3), torch.linspace(1, 20, 20).double()])
    near = matrix(w) + 1e-3 * matrix(bulk(400, 1.0, seed=1), seed=1)
    start = eigsh(MatrixOperator(near), 5).vectors
    assert eigsh(operator(w), 5, start=start).matvecs < eigsh(operator(w), 5).matvecs


def test_a_useless_warm_start_is_still_a_start():
    w = SPECTRA["multiplicities"]
    H = operator(w)
    worst = torch.linalg.eigh(matrix(w)).eigenvectors[:, 100:103]
    check(H, w, 6, "LA", torch.float64, eigsh(H, 6, "LA", start=worst))


@pytest.mark.parametrize("start", [torch.ones(5, 2), torch.ones(400), torch.zeros(400, 2)])
def test_bad_starts_are_refused(start):
    with pytest.raises(InputError, match="start"):
        eigsh(operator(SPECTRA["no outliers"]), 3, start=start.double())
