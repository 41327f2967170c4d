import math

import pytest
from synthetic import run

import geomtraj as gt


def test_results_as_arrays_with_named_axes():
    results = run("adam", layers=1)
    made = results.to_xarray()
    assert set(made.data_vars) == set(results.statistics)
    checked = 0
    for m in results.measurements:
        found = made[m.statistic].sel(step=m.step)
        assert float(found.wall_time) == m.wall_time
        for label in results.labels(m.statistic):
            numbers = found.sel({f"{m.statistic}_label": label}).values.tolist()
            q = m.quantities.get(label)
            expected = [math.nan] * 3 if q is None else [q.value, q.low, q.high]
            assert numbers == pytest.approx(expected, nan_ok=True)
            checked += 1
    assert checked > 10


def test_without_xarray_there_is_a_sentence(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(gt.InputError, match="pip install xarray"):
        run("adam", layers=1).to_xarray()
