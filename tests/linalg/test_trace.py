import math

import pytest
import torch
from scipy.stats import t as student
from spectra import SPECTRA, both_dtypes, bulk, matrix, operator

from geomtraj.errors import InputError
from geomtraj.linalg.trace import trace
from geomtraj.operators.matrix import MatrixOperator


@both_dtypes
@pytest.mark.parametrize("name", SPECTRA)
def test_against_the_sum_of_the_eigenvalues(name, dtype):
    w = SPECTRA[name]
    H = operator(w, dtype=dtype)
    estimate = trace(H, probes=40)
    assert abs(estimate.value - float(w.sum())) <= 4 * estimate.sem + 1e-4 * float(w.abs().sum())
    assert estimate.matvecs == H.matvecs == 40
    assert estimate.status == "ok"


def test_a_diagonal_matrix_comes_out_exactly():
    estimate = trace(MatrixOperator(torch.diag(torch.arange(5.0))), probes=3)
    assert estimate.value == 10
    assert estimate.sem == 0


def test_the_standard_error_is_that_of_hutchinson():
    a = matrix(SPECTRA["outliers at both ends"])
    off = a - torch.diag(a.diagonal())
    probes = 2000
    assert trace(MatrixOperator(a), probes).sem == pytest.approx(math.sqrt(2 / probes) * float(off.norm()), rel=0.1)


@pytest.mark.slow
def test_coverage_of_the_95_percent_interval():
    H = operator(bulk(60, 1.0))
    true = float(torch.trace(H.dense()))
    seeds, probes = 2000, 12
    estimates = [trace(H, probes, seed) for seed in range(seeds)]
    z = torch.tensor([(e.value - true) / e.sem for e in estimates])
    held = float((z.abs() < student.ppf(0.975, probes - 1)).double().mean())
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / seeds) + 0.005
    assert abs(float(z.mean())) < 4 * float(z.std()) / math.sqrt(seeds)


def test_one_probe_says_that_it_has_no_error_bar():
    estimate = trace(operator(SPECTRA["no outliers"]), probes=1)
    assert math.isnan(estimate.sem)
    assert "at least two" in estimate.status
    assert math.isfinite(estimate.value)


def test_non_finite_products_give_a_status():
    a = torch.eye(4)
    a[0, 0] = math.nan
    estimate = trace(MatrixOperator(a), probes=4)
    assert math.isnan(estimate.value)
    assert "4 of 4 probes" in estimate.status


def test_the_probes_do_not_depend_on_how_many_are_multiplied_at_once(monkeypatch):
    w = SPECTRA["no outliers"]
    whole = trace(operator(w), probes=20, seed=1)
    monkeypatch.setattr("geomtraj.linalg.chunks.CHUNK_COLUMNS", 3)
    assert trace(operator(w), probes=20, seed=1).value == pytest.approx(whole.value, rel=1e-12)


def test_bad_input():
    with pytest.raises(InputError, match="probes must be an integer of at least 1, not 0"):
        trace(operator(SPECTRA["one"]), probes=0)


def test_the_global_generator_is_untouched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    trace(operator(SPECTRA["no outliers"]), probes=3)
    assert torch.equal(before, torch.get_rng_state())
