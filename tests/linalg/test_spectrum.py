import math

import pytest
import torch
from spectra import SPECTRA, both_dtypes, bulk, matrix, operator, tolerance

from geomtraj.errors import InputError
from geomtraj.linalg.density import spectral_density
from geomtraj.linalg.eigen import eigsh
from geomtraj.linalg.ends import certain
from geomtraj.linalg.spectrum import independent, spectrum
from geomtraj.operators.matrix import MatrixOperator


@both_dtypes
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("name", SPECTRA)
def test_fused_equals_separate(name, which, dtype):
    w = SPECTRA[name]
    norm = float(w.abs().max())
    H = operator(w, dtype=dtype)
    found = spectrum(H, k=7, which=which, tol=1e-4)
    assert found.matvecs == H.matvecs
    assert found.status == "ok"
    pairs = found.eigenpairs
    assert pairs.converged.all()
    apart = eigsh(operator(w, dtype=dtype), 7, which, tol=1e-4)
    got, expected = (x.values.abs() if which == "LM" else x.values for x in (pairs, apart))
    assert (got - expected).abs().max() <= 2e-4 * norm + tolerance(dtype) * norm
    V = pairs.vectors.double()
    assert (V.T @ V - torch.eye(V.shape[1])).abs().max() < tolerance(dtype)
    direct = (matrix(w) @ V - V * pairs.values).norm(dim=0)
    assert (direct <= pairs.residuals + tolerance(dtype) * norm).all()
    density = spectral_density(operator(w, dtype=dtype))
    assert torch.equal(density.nodes, found.density.nodes)
    assert torch.equal(density.weights, found.density.weights)


def test_the_density_s_products_give_the_eigenpairs_without_further_ones():
    w = torch.cat([bulk(980, 0.3), torch.linspace(1, 20, 20).double()])
    found = spectrum(operator(w), k=10, which="LA", tol=1e-3)
    assert found.matvecs == 256
    assert found.eigenpairs.matvecs == 0
    assert found.eigenpairs.values.tolist() == pytest.approx(list(range(20, 10, -1)), abs=1e-6)


def test_copies_beyond_the_number_of_probes_are_found():
    w = torch.cat([torch.tensor([5.0] * 4 + [4.0] * 2).double(), bulk(294)])
    for probes in (1, 2, 3):
        found = spectrum(operator(w), steps=30, probes=probes, k=6, which="LA")
        assert found.eigenpairs.values.tolist() == pytest.approx([5, 5, 5, 5, 4, 4], abs=1e-5)


def test_near_copies_are_left_out_and_the_farthest_taken_first():
    def kept(*vectors, order=None):
        V = torch.nn.functional.normalize(torch.tensor(vectors).double(), dim=1)
        return independent(V @ V.T, order or list(range(len(vectors))))

    assert kept([1.0, 0, 0], [1, 1e-3, 0], [0, 1, 0]) == [0, 2]
    assert kept([1.0, 0, 0], [1, 1e-3, 0], [0, 1, 0], order=[1, 0, 2]) == [1, 2]
    assert kept([1.0, 0, 0], [1, 0.05, 0], [0, 1, 0], [0, 0, 1]) == [0, 2, 3]
    assert kept([1.0, 0], [1, 0.05]) == [0, 1]


def test_short_runs_are_refined():
    w = SPECTRA["outliers at both ends"]
    found = spectrum(operator(w), steps=4, probes=2, k=5, which="BE", tol=1e-6)
    assert found.status == "ok"
    assert 0 < found.eigenpairs.matvecs == found.matvecs - 8
    assert found.eigenpairs.values.tolist() == pytest.approx([20, 9, 4, -3, -6], abs=1e-6)


def test_no_refinement_is_said():
    found = spectrum(operator(SPECTRA["no outliers"]), steps=10, probes=2, k=4, tol=1e-6, refine=0)
    assert found.matvecs == 20
    assert "0 of 4 pairs converged after 0 products: raise refine or tol" in found.status
    assert not found.eigenpairs.converged.any()


@pytest.mark.parametrize("name", SPECTRA)
def test_the_trace_is_unbiased_and_knows_its_error(name):
    w = SPECTRA[name]
    H = operator(w)
    seeds = 24
    estimates = [spectrum(H, steps=25, k=7, seed=s).trace for s in range(seeds)]
    values, sems = (torch.tensor([getattr(e, x) for e in estimates]).double() for x in ("value", "sem"))
    slack = 1e-9 * float(w.abs().sum())
    assert abs(float(values.mean() - w.sum())) <= 4 * float(values.std()) / math.sqrt(seeds) + slack
    assert float(sems.square().mean().sqrt()) <= 2 * float(values.std()) + slack
    assert float(values.std()) <= 2 * float(sems.square().mean().sqrt()) + slack


def test_outliers_are_taken_out_of_the_error_of_the_trace():
    H = operator(SPECTRA["nearly multiple"])
    assert spectrum(H).trace.sem < 0.2 * 155 * spectral_density(H).moment(1).sem


def test_non_finite_products_give_a_status():
    a = matrix(bulk(30))
    a[0, 0] = math.nan
    found = spectrum(MatrixOperator(a), steps=5, probes=2, k=3)
    assert "2 of 2 probes met a non-finite product" in found.status
    assert found.eigenpairs.values.isnan().all()
    assert math.isnan(found.trace.value)
    assert "non-finite" in found.trace.status


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"which": "LR"}, "unknown end of the spectrum 'LR'"),
        ({"k": 0}, "k must be an integer"),
        ({"tol": -1.0}, "tol must not be negative"),
        ({"steps": 0}, "steps must be an integer"),
        ({"refine": -1}, "refine must be an integer"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        spectrum(operator(SPECTRA["no outliers"]), **arguments)


def test_few_short_runs_are_not_certain_to_miss_nothing():
    # log(1.648 sqrt(1e6) / 1e-3) = 14.3 against runs * (2 steps - 1) * sqrt(0.02).
    assert certain(10**6, 64, 1)
    assert certain(10**6, 27, 2)
    assert not certain(10**6, 25, 2)
    assert not certain(10**6, 64, 0)
