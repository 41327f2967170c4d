import math

import pytest
import torch
from scipy.stats import t as student
from spectra import SPECTRA, both_dtypes, bulk, matrix, operator, tolerance

from geomtraj.diagonals.xdiag import leave_one_out, xdiag
from geomtraj.errors import InputError
from geomtraj.operators.matrix import MatrixOperator


def signs(size, count, seed=0):
    bits = torch.randint(0, 2, (size, count), generator=torch.Generator().manual_seed(seed))
    return (2 * bits - 1).double()


def naive(a, omega):
    """The definition: one orthonormal basis for each column left out."""
    estimates = []
    for i in range(omega.shape[1]):
        others = [j for j in range(omega.shape[1]) if j != i]
        Q = torch.linalg.svd(a @ omega[:, others], full_matrices=False)[0] if others else a[:, :0]
        low_rank = Q @ (Q.T @ a)
        estimates.append(low_rank.diagonal() + omega[:, i] * ((a - low_rank) @ omega[:, i]))
    estimates = torch.stack(estimates, dim=1)
    return estimates.mean(1), estimates.std(1) / omega.shape[1] ** 0.5


@both_dtypes
@pytest.mark.parametrize("name", ["outliers at both ends", "multiplicities", "no outliers", "nearly multiple"])
@pytest.mark.parametrize("count", [2, 7, 24])
def test_leave_one_out_against_the_definition(name, count, dtype):
    a = matrix(SPECTRA[name])
    omega = signs(len(a), count)
    values, sem = leave_one_out(MatrixOperator(a.to(dtype)), omega.to(dtype), (a @ omega).to(dtype))
    expected_values, expected_sem = naive(a, omega)
    # Y's condition number multiplies the rounding; it stays below 100 on these spectra.
    slack = 100 * tolerance(dtype) * float(a.abs().max())
    assert (values - expected_values).abs().max() < slack
    assert (sem - expected_sem).abs().max() < slack


def test_it_is_unbiased():
    w = torch.tensor([4.0, -3, 1, 0.5, -0.2, 0.1, 0]).double()
    a = matrix(w)
    results = torch.stack([xdiag(MatrixOperator(a), 6, seed).values for seed in range(1500)])
    error = results.mean(0) - a.diagonal()
    assert (error.abs() < 4.5 * results.std(0) / len(results) ** 0.5).all()


@both_dtypes
@pytest.mark.parametrize("rank", [0, 1, 5, 15])
def test_low_rank_comes_out_exactly(rank, dtype):
    w = torch.cat([torch.linspace(-5, 8, rank), torch.zeros(120 - rank)]).double()
    a = matrix(w, dtype=dtype)
    result = xdiag(MatrixOperator(a), 32)
    assert result.cost.matvecs == 32
    assert (result.values - a.diagonal()).abs().max() <= 10 * tolerance(dtype)
    assert result.sem.max() <= 10 * tolerance(dtype)
    assert result.status == "ok"


def test_outliers_are_better_served_than_by_random_signs_alone():
    from geomtraj.diagonals.hutchinson import hutchinson

    H = operator(SPECTRA["outliers at both ends"])
    true = H.dense().diagonal()
    errors = [(f(H, 64).values - true).norm() for f in (xdiag, hutchinson)]
    assert errors[0] < 0.3 * errors[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["outliers at both ends", "no outliers"])
def test_standard_errors_are_right_over_many_seeds(name):
    a = matrix(SPECTRA[name])
    count, seeds = 24, 150
    results = [xdiag(MatrixOperator(a), 2 * count, seed) for seed in range(seeds)]
    z = torch.stack([(r.values - a.diagonal()) / r.sem for r in results])
    freedom = count - 1
    assert float(z.var()) == pytest.approx(freedom / (freedom - 2), rel=0.08)
    assert float((z.abs() < student.ppf(0.975, freedom)).double().mean()) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_an_operator_no_larger_than_half_the_samples_is_exact(size):
    w = bulk(size, 3.0)
    result = xdiag(operator(w), 17)
    assert result.method == "exact"
    assert result.cost.matvecs == size
    assert torch.allclose(result.values, matrix(w).diagonal())


def test_an_odd_number_of_samples_leaves_one_out():
    assert xdiag(operator(SPECTRA["no outliers"]), 17).cost.matvecs == 16


def test_two_samples_say_that_they_have_no_error_bars():
    result = xdiag(operator(SPECTRA["no outliers"]), 2)
    assert result.sem.isnan().all()
    assert "at least 4" in result.status
    assert result.values.isfinite().all()


def test_non_finite_entries_are_named_and_finite_ones_kept():
    a = torch.diag(torch.arange(1.0, 41))
    a[39, 39] = math.nan
    result = xdiag(MatrixOperator(a, {"w": (39,), "b": (1,)}), 8)
    assert result.status == "1 of 1 entries of b are not finite"
    assert torch.equal(result.values[:39], torch.arange(1.0, 40))


def test_bad_input():
    with pytest.raises(InputError, match="samples must be an integer of at least 2"):
        xdiag(operator(SPECTRA["one"]), 1)
