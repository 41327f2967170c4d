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
from geomtraj.trajectory import files, store

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


def test_a_full_disk_inside_hdf5_is_told_too(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.h5py, "File", full)
    with pytest.raises(TrajectoryError, match="disk is full"):
        store.write_iterate(tmp_path, 2, {"step": 2})


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
