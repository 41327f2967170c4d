import math
import time

import pytest
import torch
from spectra import SPECTRA, both_dtypes, bulk, matrix, operator, tolerance

from geomtraj.diagonals import entries
from geomtraj.diagonals.exact import exact
from geomtraj.errors import ComputationError, InputError
from geomtraj.operators.base import SymmetricOperator
from geomtraj.operators.matrix import MatrixOperator

BLOCKS = {"weight": (6, 10), "bias": (7,)}


@both_dtypes
@pytest.mark.parametrize("name", SPECTRA)
def test_against_the_matrix(name, dtype):
    a = matrix(SPECTRA[name], dtype=dtype)
    H = MatrixOperator(a)
    result = exact(H)
    assert (result.values - a.diagonal()).abs().max() <= tolerance(dtype) * a.abs().max()
    assert result.values.dtype == dtype
    assert torch.equal(result.sem, torch.zeros_like(result.values))
    assert result.cost.matvecs == H.matvecs == len(a)
    assert result.cost.seconds > 0
    assert (result.method, result.status) == ("exact", "ok")


def test_blocks_have_their_names_and_shapes():
    a = matrix(bulk(67))
    result = exact(MatrixOperator(a, BLOCKS))
    values, sem = result.block("weight")
    assert torch.allclose(values, a.diagonal()[:60].reshape(6, 10))
    assert sem.shape == (6, 10)
    assert torch.allclose(result.block("bias")[0], a.diagonal()[60:])
    assert list(result.blocks) == ["weight", "bias"]
    with pytest.raises(InputError, match="'wieght'"):
        result.block("wieght")


def test_entries_that_are_not_finite_stay_and_are_counted_per_block():
    a = torch.diag(torch.arange(67.0))
    a[64, 64], a[65, 65] = math.nan, math.inf
    # One-hot products of a matrix meet 0 * nan in every column, so the operator here multiplies entry by entry.
    result = exact(Scaling(a.diagonal().clone(), BLOCKS))
    assert result.status == "2 of 7 entries of bias are not finite"
    assert result.values[:64].tolist() == list(range(64))
    assert math.isnan(result.values[64])
    assert math.isinf(result.values[65])


class Scaling(SymmetricOperator):
    """A diagonal matrix that leaves zeros alone; each product may take a while."""

    def __init__(self, scale, blocks=None, pauses=()):
        super().__init__(MatrixOperator(torch.zeros(len(scale), len(scale)), blocks).layout, scale.dtype, "cpu")
        self.scale, self.pauses = scale, list(pauses)

    def _matmat(self, vectors):
        if self.pauses:
            time.sleep(self.pauses.pop(0))
        return torch.where(vectors == 0, 0.0, self.scale[:, None] * vectors)


def test_a_diagonal_that_would_take_too_long_is_refused_early():
    H = Scaling(torch.ones(2000), pauses=[0.05] * 9)
    with pytest.raises(ComputationError, match="2000 entries would take about .* seconds, .*'xdiag' or 'hutchinson'"):
        exact(H, max_seconds=1.0)
    assert H.matvecs <= 100


def test_a_slow_first_product_alone_is_no_reason_to_refuse():
    H = Scaling(torch.ones(200), pauses=[0.2])
    assert torch.equal(exact(H, max_seconds=2.0).values, torch.ones(200))


@both_dtypes
def test_chosen_entries(dtype):
    a = matrix(SPECTRA["outliers at both ends"], dtype=dtype)
    indices = torch.tensor([5, 0, 319, 5, *range(100, 130)])
    H = MatrixOperator(a)
    assert (entries(H, indices) - a.diagonal()[indices]).abs().max() <= tolerance(dtype)
    assert H.matvecs == len(indices)
    assert entries(H, torch.empty(0, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize(
    ("indices", "message"), [([0, 7], "between 0 and 6"), ([-1], "between 0 and 6"), ([0.5], "must be integers")]
)
def test_indices_out_of_range(indices, message):
    with pytest.raises(InputError, match=message):
        entries(operator(SPECTRA["small indefinite"]), torch.tensor(indices))
