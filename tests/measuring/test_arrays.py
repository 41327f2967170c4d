from dataclasses import dataclass

import numpy as np
import pytest
from measured import files, numbers, problem, record

import geomtraj as gt
from geomtraj.errors import InputError, TrajectoryError
from geomtraj.measuring import checks
from geomtraj.measuring.arrays import Arrays
from geomtraj.statistics import Outcome, Quantity, Statistic


@dataclass(frozen=True)
class Bulk(Statistic):
    name = "bulk"
    title = "numbers in bulk"

    scale: float = 1.0

    def measure(self, point):
        theta = point.theta.numpy()
        arrays = {
            "theta": self.scale * theta,
            "count/of": np.arange(3),
            "empty": np.zeros((0, 2)),
            "one": np.float32(2),
        }
        return Outcome({"size": Quantity.exact(float(theta.size))}, arrays=arrays)


@pytest.fixture
def run(tmp_path):
    return record(tmp_path / "run")


def measured(run, **options):
    return gt.measure(run, problem(), [Bulk()], progress=False, **options)


def arrays(run):
    return sorted((run.path / "results" / "arrays").glob("*.npz"))


def test_arrays_are_stored_beside_the_numbers_and_read_when_asked_for(run):
    results = measured(run)
    for found in (results, gt.Results.load(run.path), measured(run)):
        for m in found.of("bulk"):
            assert dict(m.arrays).keys() == {"theta", "count/of", "empty", "one"} and not m.quantities["size"].value % 1
            assert np.array_equal(m.arrays["theta"], run.at_step(m.step).theta.numpy())
            assert m.arrays["theta"].dtype == np.float32 and m.arrays["empty"].shape == (0, 2)
            assert m.arrays["one"].shape == () and m.arrays["count/of"].tolist() == [0, 1, 2]
            with pytest.raises(KeyError):
                m.arrays["other"]
        assert not found.of("loss")[0].arrays
    with np.load(arrays(run)[0], allow_pickle=False) as file:  # NumPy's own reader
        assert np.array_equal(file["theta"], run[0].theta.numpy())
    lazy = gt.Results.load(run.path).of("bulk")[0].arrays
    assert not lazy._held and "theta" in repr(lazy)


def test_arrays_come_back_from_workers(run):
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1) as executor:
        results = measured(run, executor=executor)
    assert np.array_equal(results.of("bulk")[1].arrays["theta"], run[1].theta.numpy())


def test_a_result_that_is_measured_again_replaces_its_arrays(run):
    measured(run)
    before = arrays(run)
    measured(run, resume=False)
    assert arrays(run) == before  # equal arrays are equal files
    gt.measure(run, problem(), [Bulk(scale=2.0)], progress=False)
    assert len(arrays(run)) == 2 * len(before)


def test_missing_and_cut_arrays_are_measured_again_and_altered_ones_are_found(run):
    first = measured(run)
    gone, cut, altered = arrays(run)[:3]
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-10])
    content = bytearray(altered.read_bytes())
    content[content.index(run[2].theta.numpy().tobytes()) + 5] ^= 1
    altered.write_bytes(bytes(content))
    broken = gt.Results.load(run.path).of("bulk")[-2]
    with pytest.raises(TrajectoryError, match=r"does not hold the array 'theta'.*(checksum|CRC)"):
        broken.arrays["theta"]
    assert any("arrays" in name and "theta" in why for name, why in checks.check_results(run.path))
    assert any(altered.name in line for line in checks.repair_results(run.path))
    again = measured(run)
    assert numbers(again) == numbers(first)
    assert all(np.array_equal(m.arrays["theta"], run.at_step(m.step).theta.numpy()) for m in again.of("bulk"))
    assert checks.check_results(run.path) == []


def test_results_in_packs_find_their_arrays(run, monkeypatch):
    from geomtraj.measuring import folder

    monkeypatch.setattr(folder, "PACK_FROM", 2)
    measured(run)
    assert [f for f in files(run) if f.suffix == ".jsonl"] and not [f for f in files(run) if f.suffix == ".json"]
    loaded = gt.Results.load(run.path)
    assert np.array_equal(loaded.of("bulk")[1].arrays["theta"], run[1].theta.numpy())


def test_records_with_other_tables_are_damaged(run):
    from geomtraj.measuring.record import Measurement

    record = measured(run).of("bulk")[0].to_json()
    for table in ("x", {"file": "../../etc/passwd", "bytes": 3, "members": {}}, {"file": "a", "members": 3}):
        with pytest.raises(TrajectoryError, match="its 'arrays' is"):
            Measurement.from_json({**record, "arrays": table})


def test_only_arrays_of_numbers_are_kept():
    for array in (np.array([object()]), np.array(["text"])):
        with pytest.raises(InputError, match="a result keeps arrays of numbers"):
            Arrays({"a": array})
    with pytest.raises(InputError, match="must be a string"):
        Arrays({3: np.zeros(2)})
