"""Files altered at random: what is read is what was written, or one sentence that names the file."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from attack_helpers import record

from geomtraj.errors import TrajectoryError
from geomtraj.trajectory import Trajectory, repair, store, verify
from geomtraj.trajectory.log import inspect_log
from geomtraj.trajectory.manifest import read_manifest

FROZEN = Path(__file__).parent.parent / "trajectory" / "frozen" / "format1" / "iterates" / "00000004.h5"


def mutated(content, rng):
    """The bytes with a few of them changed, cut off, doubled, exchanged, inserted or set to zero."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at, length = rng.randrange(len(content) or 1), rng.choice([1, 2, 4, 8, 64, 700])
        kind = rng.randrange(8)
        if kind <= 2:
            for place in range(at, min(at + (1 if kind else length), len(content))):
                content[place] ^= rng.randrange(1, 256)
        elif kind == 3:
            del content[at:]
        elif kind == 4:
            content[at : at + length] = bytes(len(content[at : at + length]))
        elif kind == 5:
            content[at:at] = rng.randbytes(length)
        elif kind == 6:
            other = rng.randrange(len(content) or 1)
            content[at : at + length] = content[other : other + length]
        else:
            del content[at : at + length]
    return bytes(content)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("kind", ["format 1", "format 2", "compressed"])
def test_no_mutated_iterate_gives_a_wrong_number_or_a_foreign_error(tmp_path, attacks, kind):
    path = store.iterate_path(tmp_path, 4)
    if kind == "format 1":
        path.parent.mkdir()
        shutil.copy(FROZEN, path)
    else:
        record(tmp_path, compress=kind == "compressed")
    whole, truth = path.read_bytes(), store.read_iterate(tmp_path, 4)
    refused = 0
    for number in range(attacks):
        path.write_bytes(mutated(whole, random.Random(f"{kind} {number}")))
        try:
            assert equal(store.read_iterate(tmp_path, 4), truth), number
        except TrajectoryError as error:
            assert str(path) in str(error) and len(str(error)) < 1000, number
            refused += 1
    assert refused > attacks / 2


def test_no_mutated_log_gives_a_wrong_row_and_every_lost_one_is_counted(tmp_path, attacks):
    record(tmp_path, 40)
    path = tmp_path / "log.jsonl"
    whole, truth = path.read_bytes(), inspect_log(tmp_path).rows
    for number in range(attacks):
        path.write_bytes(mutated(whole, random.Random(f"log {number}")))
        reading = inspect_log(tmp_path)
        assert all(row in truth for row in reading.rows), number
        at_end = truth.index(reading.rows[-1]) + 1 if reading.rows else 0
        lost = sum(row not in reading.rows for row in truth[:at_end])
        assert reading.passed_over >= lost, number
        found = verify(tmp_path)
        assert len(reading.rows) == len(truth) or not found.whole or found.notes, number


def test_no_mutated_manifest_gives_a_wrong_entry(tmp_path, attacks):
    record(tmp_path)
    path = tmp_path / "manifest.json"
    whole, truth = path.read_bytes(), read_manifest(tmp_path)
    for number in range(attacks):
        path.write_bytes(mutated(whole, random.Random(f"manifest {number}")))
        try:
            assert read_manifest(tmp_path) == truth, number
        except TrajectoryError as error:
            assert str(path) in str(error), number


def test_a_damaged_run_is_repaired_to_what_is_whole(tmp_path, attacks):
    record(tmp_path / "whole", 12)
    truth = {i.step: i.theta for i in Trajectory(tmp_path / "whole")}
    for number in range(max(attacks // 20, 3)):
        rng = random.Random(f"repair {number}")
        run = tmp_path / f"run{number}"
        shutil.copytree(tmp_path / "whole", run)
        files = [f for f in run.rglob("*") if f.is_file() and not f.name.startswith(".")]
        for file in rng.sample(files, 3):
            file.write_bytes(mutated(file.read_bytes(), rng))
        repair(run)
        assert verify(run).whole, number
        for iterate in Trajectory(run):
            assert torch.equal(iterate.theta, truth[iterate.step]), number
