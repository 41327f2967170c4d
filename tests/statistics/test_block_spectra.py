import math

import numpy as np
import pytest
import torch
from models import CASES
from torch import nn

import geomtraj as gt
from geomtraj.errors import InputError
from geomtraj.statistics import REGISTRY, Point
from geomtraj.statistics.block_spectra import divergences


def block_spectra(**settings):
    return REGISTRY["block_spectra"](**settings)


def layers(*scales, size=30, examples=90, seed=0):
    """Linear layers of their own inputs: each block of the Hessian is X'X / N of its scale."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, size, generator=rng).double()
    model = nn.ModuleList(nn.Linear(size, 1, bias=False) for _ in scales).double()

    def loss(m, b):
        return sum(0.5 * (m[i](s * b)[:, 0]).square() for i, s in enumerate(scales))

    return gt.Problem(model, loss, [x])


def test_equal_blocks_have_no_divergence_and_blocks_apart_have_ln_2():
    same = block_spectra().measure(Point(layers(1.0, 1.0, 1.0)))
    assert same.quantities["heterogeneity"].value == pytest.approx(0, abs=1e-9)
    apart = block_spectra(width=1e-4).measure(Point(layers(1.0, 30.0)))
    assert apart.quantities["heterogeneity"].value == pytest.approx(math.log(2), rel=1e-3)
    some = block_spectra().measure(Point(layers(1.0, 1.0, 30.0)))
    value = some.quantities["heterogeneity"]
    assert value.low == value.value == value.high and 0 < value.value < math.log(2)
    table = some.arrays["divergences"]
    assert value.value == pytest.approx(np.mean([table[0, 1], table[0, 2], table[1, 2]])) and (table == table.T).all()
    assert some.arrays["densities"].sum(1).tolist() == pytest.approx([1, 1, 1])
    assert some.details["blocks"] == ["0.weight", "1.weight", "2.weight"]


def test_divergences_of_known_distributions():
    p = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    found = divergences(p)
    assert found[0, 1] == pytest.approx(math.log(2)) and found[0, 2] == 0
    m = np.array([0.75, 0.25])
    by_hand = 0.5 * (0.5 * np.log(0.5 / m) + 0).sum() + 0.5 * np.log(1 / 0.75)
    assert found[0, 3] == pytest.approx(by_hand)
    assert (found >= 0).all() and (found <= math.log(2) + 1e-12).all()


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_lanczos_quadrature_agrees_with_all_eigenvalues_within_its_interval(scale):
    problem = layers(1.0, 2.0, 4.0, size=60, examples=100)
    exact = block_spectra(scale=scale, width=0.03).measure(Point(problem)).quantities["heterogeneity"]
    held, values = [], []
    for seed in range(12):
        settings = {"dense": 0, "steps": 25, "probes": 8, "seed": seed, "scale": scale, "width": 0.03}
        found = block_spectra(**settings).measure(Point(problem)).quantities["heterogeneity"]
        values.append(found.value)
        held.append(found.low <= exact.value <= found.high)
    assert sum(held) >= 9 and np.mean(values) == pytest.approx(exact.value, rel=0.05)


def test_bounds_on_a_network_and_vectors_are_a_choice():
    case = CASES["gpt"]()
    for vectors in (False, True):
        outcome = block_spectra(vectors=vectors, dense=8, steps=10).measure(Point(case.problem))
        q = outcome.quantities["heterogeneity"]
        assert 0 <= q.low <= q.value <= q.high <= math.log(2)
        kinds = {case.problem.blocks[name].kind for name in outcome.details["blocks"]}
        assert ("vector" in kinds) == vectors


def test_reasons():
    one = block_spectra().measure(Point(layers(1.0)))
    assert not one.quantities and "no pair to compare" in one.status
    with pytest.raises(InputError, match="scale 'linear' or 'log'"):
        block_spectra(scale="cubic").measure(Point(layers(1.0, 2.0)))
