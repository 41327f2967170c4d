import math

import pytest
import torch
from spectra import SPECTRA, both_dtypes, bulk, matrix, operator, tolerance

from geomtraj.errors import InputError
from geomtraj.linalg.density import spectral_density
from geomtraj.operators.matrix import MatrixOperator


@both_dtypes
@pytest.mark.parametrize("name", SPECTRA)
def test_shapes_masses_and_grid(name, dtype):
    w = SPECTRA[name]
    H = operator(w, dtype=dtype)
    result = spectral_density(H, steps=30, probes=3)
    assert result.nodes.shape == result.weights.shape == result.residuals.shape == (3, 30)
    assert result.weights.sum() == pytest.approx(1, abs=1e-10)
    assert result.weights.sum(1).tolist() == pytest.approx([1 / 3] * 3)
    assert result.matvecs == H.matvecs
    assert result.size == len(w)
    assert result.status == "ok"
    slack = tolerance(dtype) * max(1.0, float(w.abs().max()))
    assert result.top <= w.max() + slack
    assert result.bottom >= w.min() - slack
    x, density = result.on_grid(500)
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-9)
    assert density.min() >= 0
    assert x[0] < result.bottom
    assert x[-1] > result.top


def test_each_probe_is_the_gauss_quadrature_of_its_own_start():
    # One step's node is the Rayleigh quotient of the start, whose mean over starts is the mean eigenvalue.
    w = SPECTRA["outliers at both ends"]
    one = spectral_density(operator(w), steps=1, probes=50, seed=2)
    many = spectral_density(operator(w), steps=20, probes=50, seed=2)
    assert torch.allclose(one.nodes[:, 0], 50 * (many.nodes * many.weights).sum(1), atol=1e-12)


@both_dtypes
@pytest.mark.parametrize("name", ["outliers at both ends", "multiplicities", "no outliers", "small indefinite"])
@pytest.mark.parametrize("p", [1, 2, 4])
def test_moments_against_the_spectrum(name, p, dtype):
    w = SPECTRA[name]
    moment = spectral_density(operator(w, dtype=dtype), steps=12, probes=60).moment(p)
    assert abs(moment.value - float((w**p).mean())) < 4 * moment.sem
    assert moment.sem < 0.5 * float((w.abs() ** p).mean())


def test_the_zeroth_moment_is_one():
    moment = spectral_density(operator(SPECTRA["no outliers"]), steps=9).moment(0)
    assert moment.value == pytest.approx(1)
    assert moment.sem < 1e-12


def test_the_distribution_function_is_near_the_true_one():
    w = bulk(400, 1.0)
    result = spectral_density(operator(w), steps=40, probes=30)
    nodes, order = result.nodes.reshape(-1).sort()
    cumulated = result.weights.reshape(-1)[order].cumsum(0)
    grid = torch.linspace(-1, 1, 200).double()
    estimated = torch.cat([torch.zeros(1), cumulated])[torch.searchsorted(nodes, grid, right=True)]
    true = (w[None] <= grid[:, None]).double().mean(1)
    wasserstein = (estimated - true).abs().mean() * 2
    assert wasserstein < 0.02
    x, density = result.on_grid(400, width=0.05)
    smooth = torch.exp(-(((x[:, None] - w) / 0.05) ** 2) / 2).mean(1) / (0.05 * math.sqrt(2 * math.pi))
    assert torch.trapezoid((density - smooth).abs(), x) < 0.1


def test_an_outlier_narrower_than_a_grid_cell_keeps_its_mass():
    w = torch.cat([torch.zeros(9), torch.tensor([100.0])]).double()
    x, density = spectral_density(operator(w), steps=10, probes=200).on_grid(101, width=1e-3)
    assert float(torch.trapezoid(density * x, x)) == pytest.approx(10, rel=0.2)


def test_the_same_runs_serve_the_eigenvalues_at_both_ends():
    w = SPECTRA["outliers at both ends"]
    ends = spectral_density(operator(w), steps=40, probes=2).eigenvalues(4)
    down = w.sort(descending=True).values
    assert ends.top.tolist() == pytest.approx(down[:4].tolist(), rel=1e-6)
    assert ends.bottom[:3].tolist() == pytest.approx(down.flip(0)[:3].tolist(), rel=1e-6)
    distance = (down[:, None] - torch.cat([ends.top, ends.bottom])).abs().min(0).values
    assert (distance <= torch.cat([ends.top_residuals, ends.bottom_residuals]) + 1e-12).all()


def test_short_runs_are_padded_and_give_no_copies():
    result = spectral_density(operator(SPECTRA["two clusters"]), steps=8, probes=2)
    assert (result.weights > 0).sum(1).tolist() == [2, 2]
    assert torch.equal(result.nodes[:, 2:], result.nodes[:, 1:2].expand(2, 6))
    ends = result.eigenvalues(3)
    assert ends.top.tolist() == pytest.approx([1, -2])
    assert ends.bottom.tolist() == pytest.approx([-2, 1])


def test_one_row():
    result = spectral_density(operator(SPECTRA["one"]), steps=5, probes=2)
    assert result.matvecs == 2
    assert torch.allclose(result.nodes, torch.full((2, 5), -2.0).double())
    assert result.moment(1).value == pytest.approx(-2)


def test_one_probe_has_no_standard_error():
    moment = spectral_density(operator(SPECTRA["no outliers"]), steps=5, probes=1).moment(2)
    assert math.isnan(moment.sem)
    assert "one probe" in moment.status


def test_non_finite_products_give_a_status():
    a = matrix(bulk(30))
    a[0, 0] = math.nan
    result = spectral_density(MatrixOperator(a), steps=5, probes=2)
    assert "non-finite" in result.status
    assert result.nodes.isnan().all()
    assert math.isnan(result.moment(1).value)
    assert "non-finite" in result.moment(1).status
    assert result.on_grid(10)[1].isnan().all()
    assert result.eigenvalues(2).top.isnan().all()


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("probes", 0), ("probes", 1.5)])
def test_bad_input(name, value):
    with pytest.raises(InputError, match=f"{name} must be an integer"):
        spectral_density(operator(SPECTRA["one"]), **{name: value})


def test_a_width_must_be_positive():
    with pytest.raises(InputError, match="width"):
        spectral_density(operator(SPECTRA["no outliers"]), steps=5).on_grid(10, width=-1.0)


def free(monkeypatch, vectors):
    monkeypatch.setattr("geomtraj.linalg.memory.available_bytes", lambda device: 2 * vectors * 400 * 8)


def test_probes_go_in_turn_where_their_bases_do_not_fit_together(monkeypatch):
    H = operator(SPECTRA["no outliers"])
    whole = spectral_density(H, steps=20, probes=3)
    free(monkeypatch, 25)
    parts = spectral_density(H, steps=20, probes=3)
    assert parts.status == "ok"
    assert torch.allclose(parts.nodes, whole.nodes, atol=1e-12)


def test_fewer_steps_where_no_basis_fits_are_said(monkeypatch):
    free(monkeypatch, 10)
    H = operator(SPECTRA["no outliers"])
    result = spectral_density(H, steps=20, probes=2)
    assert "only 8 of 20 Lanczos steps" in result.status
    assert result.nodes.shape == (2, 8)
    assert H.matvecs == 16
