import errno
import json
import math
import warnings
import zlib

import h5py
import numpy as np
import pytest
import torch

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.trajectory import files, first_format, hdf5, payload, store

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
    torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip


def nested():
    return {
        "parameters": {f"layer.{i}/x": torch.arange(6).reshape(2, 3).to(dtype) for i, dtype in enumerate(DTYPES)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "none": None, "list": [1, 2.5, None, torch.ones(2)]}, "0": {}},
            "tuple": (0.9, 0.999),
            "special": [math.inf, -math.inf, math.nan, -0.0, True, False, 2**70, 1 + 2j, "text"],
            "numpy": np.float64(0.1),
            "array": np.arange(3),
            "empty": [{}, [], (), torch.empty(0, 3)],
            "transposed": torch.arange(6.0).reshape(2, 3).T,
        },
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.contiguous().numpy(force=True).tobytes() == b.numpy(force=True).tobytes() if _native(a) else True
        assert torch.equal(a.to(torch.complex64), b.to(torch.complex64))
    elif isinstance(a, dict):
        assert list(a) == list(b) and [type(k) for k in a] == [type(k) for k in b]
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert type(a) is type(b) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    else:
        assert repr(a) == repr(b) or float(a) == b


def _native(tensor):
    return tensor.dtype not in (torch.bfloat16, torch.float8_e4m3fn)


@pytest.mark.parametrize("compress", [False, True])
def test_every_nested_value_comes_back_bit_equal(tmp_path, compress):
    store.write_iterate(tmp_path, 7, nested(), compress=compress)
    store.check_iterate(tmp_path, 7)
    same(nested(), store.read_iterate(tmp_path, 7))
    assert store.stored_steps(tmp_path) == [7]


@pytest.mark.parametrize("compress", [False, True])
def test_h5py_alone_reads_a_file_by_its_table(tmp_path, compress):
    content = {"parameters": {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.eye(2)}}
    store.write_iterate(tmp_path, 0, content, compress=compress)
    with h5py.File(store.iterate_path(tmp_path, 0)) as file:
        header = json.loads(file["header"][()].tobytes())
        found = {}
        for name, kind, shape, offset, crc in header["tensors"]:
            bits = file[f"data/{kind}"][offset : offset + math.prod(shape)]
            assert zlib.crc32(bits.tobytes()) == crc
            found[name] = bits.reshape(shape).tolist()
    assert found == {"parameters/a": [0, 1, 2], "parameters/b": [0x3F80] * 2, "parameters/c": [[1, 0], [0, 1]]}


@pytest.mark.parametrize("compress", [False, True])
def test_h5py_reads_every_type_and_any_number_of_chunks(tmp_path, monkeypatch, compress):
    monkeypatch.setattr(payload, "GATHERED", 64)  # 5,000 chunks: three levels of their tree
    rng = np.random.default_rng(0)
    lengths = {np.dtype("f8"): 40_000, np.dtype("u1"): 64 * 64, np.dtype("f4"): 16 * 64 + 1, np.dtype("i2"): 0}
    parts = {}
    for dtype in hdf5.NUMBERS:
        if not (dtype.kind == "u" and dtype.itemsize > 1):
            parts[dtype.name] = rng.integers(0, 2, lengths.get(dtype, 7)).astype(dtype)
    store.write_iterate(
        tmp_path, 0, {"parameters": {k: torch.from_numpy(v) for k, v in parts.items()}}, compress=compress
    )
    store.check_iterate(tmp_path, 0)
    with h5py.File(store.iterate_path(tmp_path, 0)) as file:
        assert file.attrs["format_version"] == 2 and file.attrs["sha256"] == store.digest(tmp_path, 0)
        assert set(file) == {"data", "header"} and set(file["data"]) == set(parts)
        for name, array in parts.items():
            found = file["data"][name][()]
            assert found.dtype == array.dtype and np.array_equal(found, array)
    with h5py.File(store.iterate_path(tmp_path, 0), "a") as file:  # HDF5 changes and adds to it as to its own
        file["data/float64"][3] = 5.0
        file["data/more"] = np.arange(4)
    with h5py.File(store.iterate_path(tmp_path, 0)) as file:
        assert file["data/float64"][3] == 5 and file["data/more"][3] == 3 and file["data/bool"].shape == (7,)


def test_format_1_as_h5py_wrote_it(tmp_path):
    """Every type, shapes without entries or axes, texts beyond one block, and groups of 3,000 members."""
    arrays = {f"parameters/{dtype.name}": np.arange(6).reshape(2, 3).astype(dtype) for dtype in hdf5.NUMBERS}
    arrays |= {"scalar": np.array(2.5), "empty": np.empty((0, 3), "f4"), "deep" + "/a" * 30: np.ones(1)}
    arrays |= {f"many/{i}.w%C3%A4ight": np.full(2, i, "f4") for i in range(3000)}
    tree = {
        "step": 3,
        **{name: {"tensor": name, "dtype": a.dtype.name, "shape": a.shape} for name, a in arrays.items()},
    }
    header = json.dumps(tree).encode()
    path = store.iterate_path(tmp_path, 3)
    path.parent.mkdir()
    with h5py.File(path, "w", driver="core") as file:
        file.attrs["format_version"] = 1
        file.attrs["sha256"] = first_format._checksum(header, arrays)
        file["header"] = np.frombuffer(header, np.uint8)
        for name, array in arrays.items():
            file[f"data/{name}"] = array
    content = store.read_iterate(tmp_path, 3)
    assert content.pop("step") == 3 and content.keys() == arrays.keys()
    for name, array in arrays.items():
        assert content[name].numpy().dtype == array.dtype and np.array_equal(content[name].numpy(), array), name


def test_what_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(InputError, match="optimizer/state/0/odd holds a object"):
        store.write_iterate(tmp_path, 0, {"optimizer": {"state": {0: {"odd": object()}}}})
    with warnings.catch_warnings(), pytest.raises(InputError, match="nested"):
        warnings.simplefilter("ignore")
        store.write_iterate(tmp_path, 0, {"x": torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged)})
    assert store.stored_steps(tmp_path) == []


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_tensors_come_back_in_their_layout(tmp_path, layout):
    sparse = torch.tensor([[0, 2.0, 0], [0, 0, 3]]).to_sparse(layout=layout)
    store.write_iterate(tmp_path, 0, {"buffers": {"links": sparse}})
    found = store.read_iterate(tmp_path, 0)["buffers"]["links"]
    assert found.layout is layout and torch.equal(found.to_dense(), sparse.to_dense())


@pytest.mark.parametrize("compress", [False, True])
def test_any_damage_is_found_or_harmless(tmp_path, compress):
    content = {"parameters": {"weight": torch.arange(40.0)}, "step": 3}
    store.write_iterate(tmp_path, 3, content, compress=compress)
    path = store.iterate_path(tmp_path, 3)
    whole = path.read_bytes()
    place = whole.find(content["parameters"]["weight"].numpy().tobytes()) if not compress else 600
    refused = 0
    for position in [*range(0, len(whole), 37), place, place + 21]:
        damaged = bytearray(whole)
        damaged[position] ^= 0x41
        path.write_bytes(damaged)
        try:
            same(content, store.read_iterate(tmp_path, 3))  # a byte that nothing reads
            assert not place <= position < place + 160
        except TrajectoryError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 5
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(TrajectoryError, match="delete this file"):
            store.read_iterate(tmp_path, 3)


def test_a_newer_format_is_refused(tmp_path):
    store.write_iterate(tmp_path, 3, {"step": 3})
    with h5py.File(store.iterate_path(tmp_path, 3), "a") as file:
        file.attrs["format_version"] = store.FORMAT_VERSION + 1
    with pytest.raises(TrajectoryError, match="upgrade geomtraj"):
        store.read_iterate(tmp_path, 3)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_what_stands_and_leaves_no_temporary_file(tmp_path, monkeypatch, call):
    store.write_iterate(tmp_path, 1, {"step": 1})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(TrajectoryError, match="disk is full.*kept.*resume=True"):
        store.write_iterate(tmp_path, 2, {"step": 2})
    with pytest.raises(TrajectoryError, match="disk is full"):
        store.write_iterate(tmp_path, 1, {"step": 5})
    monkeypatch.undo()
    assert [file.name for file in (tmp_path / "iterates").iterdir()] == ["00000001.h5"]
    assert store.read_iterate(tmp_path, 1) == {"step": 1}


def test_json_files_are_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(TrajectoryError):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == files.read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
