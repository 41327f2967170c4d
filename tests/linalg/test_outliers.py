import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

import geomtraj as gt
from geomtraj.linalg.outliers import with_known_outliers


def spectrum_of(values, seed, steps=40, probes=1, k=16):
    rng = torch.Generator().manual_seed(100 + seed)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=rng).double()).Q
    found = gt.spectrum(gt.MatrixOperator(Q @ torch.diag(values) @ Q.T), steps, probes, k, refine=0, seed=seed)
    pairs, half = found.eigenpairs, -(-k // 2)
    top = pairs.values[:half].numpy(), pairs.residuals[:half].numpy()
    bottom = pairs.values[half:].flip(0).numpy(), pairs.residuals[half:].flip(0).numpy()
    return found.density, top, bottom


def outliers(size=400, n=8):
    rng = torch.Generator().manual_seed(0)
    bulk = 0.02 * torch.randn(size - n, generator=rng).double()
    return torch.cat([bulk, torch.linspace(0.4, 1, n).double()]).sort().values


def error(values, nodes, masses):
    keep = masses > 0
    return wasserstein_distance(values.numpy(), nodes[keep], None, masses[keep])


def test_known_masses_cut_the_error_on_a_spectrum_with_outliers():
    values = outliers()
    before, after = [], []
    for seed in range(6):
        density, top, bottom = spectrum_of(values, seed)
        nodes, masses = with_known_outliers(density.nodes, density.weights, len(values), top=top, bottom=bottom)
        assert masses.sum() == pytest.approx(1) and (masses >= 0).all()
        assert np.sort(nodes[masses == 1 / len(values)])[-8:] == pytest.approx(values[-8:].numpy(), rel=1e-3)
        before.append(error(values, density.nodes.ravel().numpy(), density.weights.ravel().numpy()))
        after.append(error(values, nodes, masses))
    assert np.mean(after) < 0.6 * np.mean(before)


def test_copies_count_once_each_and_a_spectrum_without_outliers_is_left():
    values = torch.cat([0.02 * torch.linspace(-1, 1, 297).double(), torch.tensor([1.0, 1.0, 1.0]).double()])
    density, *_ = spectrum_of(values, 0)
    top = np.array([1.0, 1.0, 1.0, 0.02]), np.array([0.0, 0.0, 0.0, 1.0])
    nodes, masses = with_known_outliers(density.nodes, density.weights, 300, top=top, bottom=(np.empty(0), np.empty(0)))
    assert masses[np.isclose(nodes, 1.0)].sum() == pytest.approx(3 / 300)
    rough = np.array([0.9, 0.5]), np.array([0.5, 0.5])
    nodes, masses = with_known_outliers(density.nodes, density.weights, 300, top=rough, bottom=rough)
    assert nodes.tolist() == density.nodes.ravel().tolist() and masses.tolist() == density.weights.ravel().tolist()


def test_both_ends_and_several_probes():
    values = outliers().clone()
    values[:2] = torch.tensor([-0.9, -0.7]).double()
    density, top, bottom = spectrum_of(values, 1, probes=3)
    nodes, masses = with_known_outliers(density.nodes, density.weights, len(values), top=top, bottom=bottom)
    assert masses.sum() == pytest.approx(1)
    assert masses[np.isclose(nodes, -0.9, rtol=1e-3)].sum() == pytest.approx(1 / len(values))
