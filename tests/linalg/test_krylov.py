import torch
from spectra import SPECTRA, both_dtypes, matrix, operator, tolerance

from geomtraj.linalg.krylov import KrylovSpace


@both_dtypes
def test_a_space_absorbs_nearly_dependent_vectors(dtype):
    w = SPECTRA["outliers at both ends"]
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(6, len(w), generator=rng, dtype=torch.float64)
    distances = torch.tensor([[1e-4], [1e-5], [5e-2]])
    vectors = torch.cat([vectors[:3], vectors[:3] + distances * vectors[3:]])
    vectors = torch.nn.functional.normalize(vectors, dim=1).to(dtype)
    H = operator(w, dtype=dtype)
    space = KrylovSpace(H, 20)
    space.absorb(vectors, vectors @ matrix(w, dtype=dtype))
    assert len(space.expanded) == 4
    assert H.matvecs == 0
    rows = space.rows[: space.used].double()
    assert (rows @ rows.T - torch.eye(space.used)).abs().max() < tolerance(dtype)
    left = rows[space.expanded] @ matrix(w)
    right = space.M[space.expanded][:, : space.used] @ rows
    assert (left - right).abs().max() < tolerance(dtype) * w.abs().max()
