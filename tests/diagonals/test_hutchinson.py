import math

import pytest
import torch
from scipy.stats import t as student
from spectra import SPECTRA, both_dtypes, matrix, operator, tolerance

from geomtraj.diagonals.hutchinson import hutchinson
from geomtraj.errors import InputError
from geomtraj.operators.matrix import MatrixOperator


@both_dtypes
def test_the_spread_is_that_of_the_formula(dtype):
    a = matrix(SPECTRA["outliers at both ends"], dtype=dtype)
    samples = 1500
    result = hutchinson(MatrixOperator(a), samples)
    expected = ((a.square().sum(1) - a.diagonal().square()) / samples).sqrt()
    assert (result.sem / expected).mean() == pytest.approx(1, abs=0.02)
    assert ((result.sem / expected) - 1).abs().max() < 0.2
    assert (((result.values - a.diagonal()) / result.sem).abs() < 5).all()


@both_dtypes
def test_a_diagonal_matrix_comes_out_exactly(dtype):
    w = torch.tensor([3.0, -2, 0, 1e-3], dtype=dtype)
    result = hutchinson(MatrixOperator(torch.diag(w)), 33)
    assert (result.values - w).abs().max() <= tolerance(dtype)
    assert (result.sem <= tolerance(dtype)).all()
    assert result.cost.matvecs == 33


@pytest.mark.parametrize("samples", [2, 16, 17, 50])
def test_mean_and_standard_error_over_chunks_are_those_of_the_whole(samples, monkeypatch):
    H = operator(SPECTRA["small indefinite"])
    whole = hutchinson(H, samples)
    terms = []
    multiply = H._matmat
    monkeypatch.setattr(H, "_matmat", lambda v: terms.append(v * multiply(v)) or multiply(v))
    monkeypatch.setattr("geomtraj.linalg.chunks.CHUNK_COLUMNS", 5)
    chunked = hutchinson(H, samples)
    terms = torch.cat(terms, dim=1)
    assert terms.shape == (7, samples)
    for result in (whole, chunked):
        assert torch.allclose(result.values, terms.mean(1), atol=1e-12)
        assert torch.allclose(result.sem, terms.std(1) / samples**0.5, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["outliers at both ends", "no outliers"])
def test_standard_errors_are_right_over_many_seeds(name):
    a = matrix(SPECTRA[name])
    samples, seeds = 24, 150
    results = [hutchinson(MatrixOperator(a), samples, seed) for seed in range(seeds)]
    z = torch.stack([(r.values - a.diagonal()) / r.sem for r in results])
    freedom = samples - 1
    assert float(z.var()) == pytest.approx(freedom / (freedom - 2), rel=0.05)
    assert float((z.abs() < student.ppf(0.975, freedom)).double().mean()) == pytest.approx(0.95, abs=0.01)
    assert float(z.mean()) == pytest.approx(0, abs=0.03)


def test_one_sample_says_that_it_has_no_error_bars():
    result = hutchinson(operator(SPECTRA["small indefinite"]), 1)
    assert result.sem.isnan().all()
    assert "at least two" in result.status
    assert result.values.isfinite().all()


def test_non_finite_entries_are_named():
    a = torch.eye(5)
    a[4, 4] = math.nan
    result = hutchinson(MatrixOperator(a, {"w": (2, 2), "b": (1,)}), 4)
    assert result.status == "1 of 1 entries of b are not finite"
    assert result.values[:4].tolist() == [1, 1, 1, 1]


def test_seeds_decide_the_result():
    H = operator(SPECTRA["no outliers"])
    assert torch.equal(hutchinson(H, 8, 3).values, hutchinson(H, 8, 3).values)
    assert not torch.equal(hutchinson(H, 8, 3).values, hutchinson(H, 8, 4).values)


def test_bad_input():
    with pytest.raises(InputError, match="samples must be an integer of at least 1"):
        hutchinson(operator(SPECTRA["one"]), 0)
