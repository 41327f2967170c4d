"""Files made to harm: refused in one sentence, in bounded time and memory, and no other file is opened."""

import hashlib
import json
import os
import random
import zlib

import h5py
import numpy as np
import pytest
import torch
from attack_helpers import record, small

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.trajectory import Recorder, Trajectory, container, repair, store, verify

pytestmark = pytest.mark.timeout(60)


def refused(path, why=""):
    with pytest.raises(TrajectoryError, match=why) as caught:
        Trajectory(path).at_step(2)
    assert "00000002.h5" in str(caught.value) and len(str(caught.value)) < 1000


def first_format(path, build, header=b"{}"):
    """A file of format 1 whose `data` group is built by hand, with a checksum that holds for no array."""
    with h5py.File(path, "w") as file:
        file.attrs["format_version"] = 1
        file.attrs["sha256"] = hashlib.sha256(header).hexdigest()
        file["header"] = np.frombuffer(header, np.uint8)
        build(file.create_group("data"), file)


def virtual(data, file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    data.create_virtual_dataset("x", layout)


def external(data, file):
    data.create_dataset("x", (8,), "u1", external=[("/etc/passwd", 0, 8)])


def huge(data, file):
    data.create_dataset("x", (2**40,), "f4", fillvalue=1.0)


def huge_header(data, file):
    del file["header"]
    file.create_dataset("header", (2**36,), "u1", fillvalue=49)


def bomb(data, file):
    data.create_dataset("x", data=np.zeros(2**24, "u1"), chunks=(2**24,), compression="gzip")


def nested(data, file):
    for _ in range(3000):
        data = data.create_group("a")


def many(data, file):
    for i in range(20_000):
        data.create_group(f"g{i}")


def circle(data, file):
    data["again"] = data


HOSTILE = [
    virtual, external, huge, huge_header, bomb, nested, many, circle,
    lambda data, file: data.__setitem__("x", h5py.SoftLink("/header")),
    lambda data, file: data.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")),
    lambda data, file: data.__setitem__("x", "text of any length"),
    lambda data, file: data.create_dataset("x", (2,), h5py.ref_dtype),
    lambda data, file: data.__setitem__("x", np.dtype("f4")),
    lambda data, file: file.pop("header"),
    lambda data, file: file.attrs.__delitem__("sha256"),
    lambda data, file: file.attrs.__setitem__("format_version", "one"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hdf5_that_asks_for_more_than_its_own_plain_bytes_is_refused(tmp_path, number):
    record(tmp_path)
    first_format(store.iterate_path(tmp_path, 2), HOSTILE[number])
    refused(tmp_path, "is damaged")


@pytest.mark.parametrize("kind", ["pipe", "folder", "zero", "null", "loop", "text", "empty"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, kind):
    record(tmp_path)
    for name in ("iterates/00000002.h5", "manifest.json", "log.jsonl"):
        path = tmp_path / name
        whole = path.read_bytes()
        path.unlink()
        make = {
            "pipe": lambda path=path: os.mkfifo(path),
            "folder": lambda path=path: path.mkdir(),
            "zero": lambda path=path: path.symlink_to("/dev/zero"),
            "null": lambda path=path: path.symlink_to("/dev/null"),
            "loop": lambda path=path: path.symlink_to(path),
            "text": lambda path=path: path.write_bytes(b"\xff\xfe nothing of ours \n" * 100),
            "empty": lambda path=path: path.write_bytes(b""),
        }
        make[kind]()
        if name.startswith("log"):
            if kind in ("text", "empty"):
                continue
            with pytest.raises(TrajectoryError, match="log.jsonl cannot be read"):
                Trajectory(tmp_path).log  # noqa: B018
            continue
        with pytest.raises(TrajectoryError, match=path.name):
            Trajectory(tmp_path).at_step(2)
        path.rmdir() if kind == "folder" else path.unlink()
        path.write_bytes(whole)


def test_a_pipe_in_the_way_of_a_resume_is_kept_and_passed_over(tmp_path):
    record(tmp_path)
    path = store.iterate_path(tmp_path, 6)
    path.unlink()
    os.mkfifo(path)
    model, optimizer = small()
    with pytest.warns(UserWarning, match="damaged"), Recorder(tmp_path, model, optimizer, resume=True) as rec:
        assert rec.step == 4


def sealed(path, change, size=None):
    """Change the header of a file of format 2, and make every checksum hold again."""
    whole = path.read_bytes()
    outline = json.loads(whole.split(b"\n")[1])
    offset, stored, _ = outline["header"]
    header = json.loads(zlib.decompress(whole[offset : offset + stored]))
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    raw = zlib.compress(text)
    content = bytearray(whole) + raw
    path.write_bytes(content)
    extents = [(len(whole), len(raw))]
    blocks = header.get("blocks")
    for block in blocks.values() if isinstance(blocks, dict) else []:
        extents += [tuple(e) for e in (block["extents"] if isinstance(block, dict) else []) if sum(e) <= len(content)]
    with path.open("rb") as file:
        rest = container._rest(file.fileno(), len(content), extents)
    outline |= {
        "size": len(content), "header": [len(whole), len(raw), len(text)],
        "sha256": hashlib.sha256(text).hexdigest(), "rest": rest,
    }  # fmt: skip
    line = b"geomtraj iterate, format 2\n" + json.dumps(outline).encode() + b"\n"
    content[:512] = line.ljust(512, b"\0")
    path.write_bytes(content)


def test_the_seal_itself_is_right(tmp_path):
    record(tmp_path)
    theta = Trajectory(tmp_path).at_step(2).theta
    sealed(store.iterate_path(tmp_path, 2), lambda header: None)
    assert torch.equal(Trajectory(tmp_path).at_step(2).theta, theta)


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(header):
        here = header
        for key in path:
            here = here[key]
        here[last] = value

    return change


HEADERS = [
    put("tensors", 0, 2, [2**40]), put("tensors", 0, 2, [-3]), put("tensors", 0, 2, [2] * 5000),
    put("tensors", 0, 3, 2**61), put("tensors", 0, 3, -1), put("tensors", 0, 1, "Tensor"),
    put("tensors", 0, 1, "__class__"),
    put("tensors", 0, 1, "float64"), put("tensors", 0, 4, "0"), put("tensors", 0, 4, 7), put("tensors", 0, []),
    put("tensors", {}),
    put("blocks", "float32", "extents", [[0, 2**50]]), put("blocks", "float32", "extents", []),
    put("blocks", "float32", "length", 2**50), put("blocks", "float32", "chunk", 1), put("blocks", "float32", 3),
    put("blocks", []), put("content", []), put("content", "parameters", {"tensor": 99}), put("content", "step", 4),
    put("content", "step", "2"), put("content", "wall_time", None), put("content", "trainable", ["absent"]),
    put("content", "trainable", 3), put("content", "parameters", {"dict": [[1, 2]]}),
    put("content", "parameters", {"dict": 7}), put("content", "parameters", {"unknown": 1}),
    put("content", "buffers", {"dict": [["a", "no tensor"]]}), put("content", "run", "another"),
    put("content", "parameters", {"tensor": True}), put("content", "buffers", {"float": []}),
    lambda header: header["tensors"].extend(header["tensors"] * 50),
    lambda header: header.pop("content"), lambda header: header.pop("blocks"), lambda header: b"[" * 10**6,
    lambda header: b"[" * 50_000 + b"]" * 50_000, lambda header: b"3", lambda header: b"\xff\xfe",
    lambda header: b'{"content": ' + b'{"tuple": [' * 5000 + b"]}" * 5000 + b"}",
    lambda header: b" " * 2**30,
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_right_syntax_and_checksums_with_wrong_content_are_refused(tmp_path, number):
    record(tmp_path)
    sealed(store.iterate_path(tmp_path, 2), HEADERS[number])
    refused(tmp_path, "is damaged|of another run")


def test_a_file_of_endless_holes_is_refused_without_reading_them(tmp_path):
    record(tmp_path)
    path = store.iterate_path(tmp_path, 2)
    outline = json.loads(path.read_bytes().split(b"\n")[1])
    with path.open("r+b") as file:
        file.write(b"geomtraj iterate, format 2\n" + json.dumps(outline | {"size": 2**43}).encode() + b"\n")
        file.truncate(2**43)
    refused(tmp_path, "is damaged")


def test_manifests_and_logs_with_strange_content_are_sentences(tmp_path, attacks):
    record(tmp_path)
    manifest, log = (tmp_path / "manifest.json").read_text(), (tmp_path / "log.jsonl").read_text()
    strange = [None, True, 3, -1, 10**400, 1e308, "text", "", [], {}, [[[]]], {"a": None}, float("nan")]
    rng = random.Random(0)
    for _ in range(attacks):
        content = json.loads(manifest)
        del content["sha256"]
        content = {**content, "format_version": 1, rng.choice(list(content)): rng.choice(strange)}
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        row = {
            **json.loads(log.split("\n")[0]),
            rng.choice(["step", "wall_time", "loss", "_row", "_crc"]): rng.choice(strange),
        }
        (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n" + "[" * 2000 + "\n")
        try:
            trajectory = Trajectory(tmp_path)
            repr(trajectory), trajectory.meta, trajectory.status
            with pytest.warns(UserWarning, match="passed over"):
                trajectory.log  # noqa: B018
            assert len(trajectory[1].logged) == 0
        except TrajectoryError as error:
            assert "manifest" in str(error)
    for depth in (10**5, 10**6):
        (tmp_path / "manifest.json").write_text("[" * depth)
        with pytest.raises(TrajectoryError, match="manifest.json"):
            Trajectory(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
@pytest.mark.parametrize("name", ["manifest.json", "log.jsonl"])
def test_what_stands_in_the_place_of_a_file_is_named_and_set_aside(tmp_path, name, kind):
    record(tmp_path)
    path = tmp_path / name
    path.unlink()
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "loop": lambda: path.symlink_to(name)}[kind]()
    with pytest.raises(TrajectoryError, match=name):
        Recorder(tmp_path, *small(), resume=True).start()
    assert [file for file, _ in verify(tmp_path).findings] == [name]
    assert any(name in sentence for sentence in repair(tmp_path))
    assert verify(tmp_path).whole and len(Trajectory(tmp_path)) == 4
    with Recorder(tmp_path, *small(), resume=True) as rec:
        assert rec.step == 6


def test_names_that_are_not_those_of_iterates_do_not_count(tmp_path):
    """Digits of other scripts, zeros too many: each step has one name."""
    record(tmp_path)
    for name in ("\u0660" * 7 + "\u0668.h5", "000000006.h5", "9" * 200 + ".h5", "00000008.H5", "00000008.h5.part"):
        (tmp_path / "iterates" / name).write_bytes(store.iterate_path(tmp_path, 6).read_bytes())
    (tmp_path / "iterates" / ".00000002.h5.abc.tmp").mkdir()
    assert store.stored_steps(tmp_path) == [0, 2, 4, 6] and verify(tmp_path).whole
    with Recorder(tmp_path, *small(), resume=True) as rec:
        assert rec.step == 6


@pytest.mark.parametrize("place", ["iterates", "run", ".recording.lock"])
def test_what_stands_in_the_way_of_a_recording_is_told(tmp_path, place):
    run = tmp_path / "run"
    if place != "run":
        run.mkdir()
    (run if place == "run" else run / place).symlink_to(run if place == "run" else place)
    with pytest.raises((InputError, TrajectoryError), match="stands in the way|no usable path"):
        record(run)


def test_a_refused_writer_does_not_wait_for_a_pipe_that_names_the_first(tmp_path):
    with Recorder(tmp_path, *small()):
        (tmp_path / ".recording.json").unlink()
        os.mkfifo(tmp_path / ".recording.json")
        with pytest.raises(TrajectoryError, match="recorded by another process"):
            Recorder(tmp_path, *small(), resume=True).start()
