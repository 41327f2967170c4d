"""Checkpoints that somebody made to do harm, or that were cut short: a sentence, and nothing executed."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn

import geomtraj as gt

STATE = {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2)}


class Bomb:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def opened(path):
    trajectory = gt.Trajectory.from_checkpoints(path)
    for step in trajectory.steps:
        trajectory.load_into(nn.Sequential(nn.Linear(3, 2)), step)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_nothing_in_a_checkpoint_is_executed(suffix, zipped, tmp_path):
    for number, content in enumerate((Bomb(tmp_path / "hit"), {"model": STATE, "args": Bomb(tmp_path / "hit")})):
        path = tmp_path / f"{number}-step1{suffix}"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(gt.TrajectoryError, match=r"holds posix.mkdir, which is not read"):
            opened(path)
    with open(tmp_path / f"raw-step1{suffix}", "wb") as file:
        pickle.dump(Bomb(tmp_path / "hit"), file)
    with pytest.raises(gt.TrajectoryError):
        opened(tmp_path / f"raw-step1{suffix}")
    assert not (tmp_path / "hit").exists()


def test_nor_in_an_optimizer_beside_a_model(tmp_path):
    from safetensors.torch import save_file

    own = tmp_path / "checkpoint-5"
    own.mkdir()
    save_file(STATE, own / "model.safetensors")
    torch.save(Bomb(tmp_path / "hit"), own / "optimizer.pt")
    with pytest.raises(gt.TrajectoryError, match="holds posix.mkdir"):
        opened(tmp_path)
    assert not (tmp_path / "hit").exists()


def test_classes_of_the_users_own_are_named_with_the_way_out(tmp_path):
    import argparse

    torch.save({"model": STATE, "args": argparse.Namespace(lr=1), "step": 3}, tmp_path / "x.pt")
    with pytest.raises(gt.TrajectoryError, match=r"argparse.Namespace.*add_safe_globals\(\[Namespace\]\).*load="):
        opened(tmp_path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        opened(tmp_path)


def rewritten(source, target, change, compression=zipfile.ZIP_STORED):
    """A copy of a torch file with other bytes in its entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))


def test_compressed_archives_are_refused_before_they_are_unpacked(tmp_path):
    torch.save({"w": torch.zeros(2**20)}, tmp_path / "plain.pt")
    rewritten(tmp_path / "plain.pt", tmp_path / "step1.pt", lambda name, b: b, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "step1.pt").stat().st_size < 2**16
    with pytest.raises(gt.TrajectoryError, match="compressed, which torch.save never does"):
        opened(tmp_path / "step1.pt")


def test_entries_that_overlap_are_refused(tmp_path):
    torch.save({"w": torch.zeros(2**16)}, tmp_path / "plain.pt")
    content = bytearray((tmp_path / "plain.pt").read_bytes())
    for start in [i for i in range(len(content)) if content[i : i + 4] == b"PK\x01\x02"]:
        content[start + 20 : start + 28] = (2**19).to_bytes(4, "little") * 2
    (tmp_path / "step1.pt").write_bytes(content)
    with pytest.raises(gt.TrajectoryError, match="larger than the file"):
        opened(tmp_path / "step1.pt")


def test_a_tensor_is_no_larger_than_what_is_stored_for_it(tmp_path):
    torch.save({"w": torch.zeros(1).expand(10**12), "v": torch.ones(3)}, tmp_path / "step1.pt")
    with pytest.raises(gt.TrajectoryError, match="its tensors have 4000000000000 bytes up to w"):
        opened(tmp_path / "step1.pt")
    torch.save({"0.weight": torch.ones(1).expand(2, 3), "0.bias": torch.ones(2)}, tmp_path / "step1.pt")
    opened(tmp_path / "step1.pt")


def test_a_shape_without_numbers_is_refused(tmp_path):
    torch.save({"w": torch.zeros(3, device="meta")}, tmp_path / "step1.pt")
    with pytest.raises(gt.TrajectoryError, match="no numbers|no whole checkpoint"):
        opened(tmp_path / "step1.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds a list, not a state_dict"),
        (torch.ones(3), "holds a Tensor, not a state_dict"),
        ({}, "no state_dict of a model"),
        ({"step": 1, "loss": 0.5}, "no state_dict of a model among its entries 'step', 'loss'"),
        ({"model": {"w": [1.0, 2.0]}, "step": 1}, "'w' of its model is a list, not a tensor"),
        ({"model": {"w": torch.ones(2), 3: torch.ones(2)}, "step": 1}, "3 of its model is no name"),
        ({"model": {"w": "text"}, "step": 1}, "'w' of its model is a str"),
        ({"model": STATE, "step": float("nan")}, "step = nan, which is no count of steps: pass steps="),
        ({"model": STATE, "step": torch.tensor(float("nan"))}, "step = nan"),
        ({"model": STATE, "global_step": -1}, "global_step = -1"),
        ({"model": STATE, "step": 0.5}, "step = 0.5"),
        ({"model": STATE, "step": 1e300}, r"step = 1e\+300"),
        ({"model": STATE, "step": 2**70}, "no count of steps"),
        ({"model": STATE}, "does not say its step, nor does its name"),
        ({"model": STATE | {"0.weight": torch.ones(2, 3, dtype=torch.int8)}, "step": 1}, "torch.int8 and is torch.fl"),
        ({"model": STATE | {"0.weight": torch.ones(2, 3, dtype=torch.complex64)}, "step": 1}, "torch.complex64 and is"),
    ],
)
def test_what_is_no_checkpoint_is_named(content, said, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(gt.TrajectoryError, match=said):
        opened(tmp_path)


def test_two_of_one_step_are_named_and_a_copy_called_last_is_left_out(tmp_path):
    torch.save({"model": STATE, "step": 7}, tmp_path / "a1.pt")
    torch.save({"model": STATE, "step": 7}, tmp_path / "last.pt")
    assert gt.Trajectory.from_checkpoints(tmp_path)._source.name(7).name == "a1.pt"
    torch.save({"model": STATE, "step": 7}, tmp_path / "b2.pt")
    with pytest.raises(gt.TrajectoryError, match=r"a1.pt and .*b2.pt are both of step 7"):
        gt.Trajectory.from_checkpoints(tmp_path)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_files_cut_short_at_any_length_give_a_sentence(form, tmp_path):
    from safetensors.torch import save

    buffer = io.BytesIO()
    torch.save({"model": STATE, "step": 1}, buffer, _use_new_zipfile_serialization=form == "zip")
    content = save(STATE) if form == "safetensors" else buffer.getvalue()
    path = tmp_path / ("step1.safetensors" if form == "safetensors" else "step1.pt")
    for length in {*range(0, len(content), max(len(content) // 40, 1)), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(gt.TrajectoryError):
            opened(tmp_path)
    path.write_bytes(content)
    opened(tmp_path)


def test_altered_numbers_of_a_torch_file_are_noticed(tmp_path):
    state = {"0.weight": torch.randn(2, 3), "0.bias": torch.ones(2)}
    path = tmp_path / "step1.pt"
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[content.find(state["0.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(gt.TrajectoryError, match="no whole checkpoint .*CRC"):
        opened(path)


def test_a_file_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "step1.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    opened(tmp_path)


def test_a_damaged_checkpoint_costs_its_own_results_alone(tmp_path):
    for step in (1, 2, 3):
        torch.save(STATE, tmp_path / f"{step}.pt")
    (tmp_path / "2.pt").write_bytes((tmp_path / "2.pt").read_bytes()[:-30])
    model = nn.Sequential(nn.Linear(3, 2))
    problem = gt.Problem(model, nn.MSELoss(), [(torch.ones(4, 3), torch.ones(4, 2))])
    results = gt.measure(gt.Trajectory.from_checkpoints(tmp_path), problem, ["trace"], progress=False)
    assert [m.status == "ok" for m in results.of("trace")] == [True, False, True]
    assert "2.pt is no whole checkpoint" in results.of("trace")[1].status


def test_pipes_devices_links_and_folders_that_are_not_there(tmp_path):
    os.mkfifo(tmp_path / "step1.pt")
    (tmp_path / "step2.pt").symlink_to("/dev/zero")
    (tmp_path / "step3.pt").symlink_to(tmp_path / "nowhere")
    for name in ("step1.pt", "step2.pt", "step3.pt"):
        with pytest.raises(gt.TrajectoryError, match="cannot read the checkpoint"):
            opened(tmp_path / name)
    with pytest.raises(gt.TrajectoryError, match="no file or folder"):
        opened(tmp_path / "none")
    with pytest.raises(gt.TrajectoryError, match="no checkpoint matches"):
        opened(tmp_path / "*.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(gt.TrajectoryError, match="holds no checkpoints"):
        opened(tmp_path / "empty")
    with pytest.raises(gt.TrajectoryError, match="paths is empty"):
        gt.Trajectory.from_checkpoints([])
    for wrong in (None, 3, [None], {"a": 1}.values()):
        with pytest.raises(gt.InputError, match="give a folder, a glob"):
            gt.Trajectory.from_checkpoints(wrong)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"w": "../../etc/passwd"}}, "which is not beside it"),
        ({"weight_map": {"w": "/etc/passwd"}}, "which is not beside it"),
        ({"weight_map": {"w": "gone-1.safetensors"}}, "gone-1.safetensors"),
        ({"weight_map": {"w": "here-1.safetensors"}}, "lacks w, which model.safetensors.index.json says"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": {"w": 3}}, "no weight_map"),
        ({"weight_map": "x"}, "no weight_map"),
        ([], "no JSON object"),
    ],
)
def test_an_index_leads_nowhere_else(index, said, tmp_path):
    from safetensors.torch import save_file

    own = tmp_path / "checkpoint-1"
    own.mkdir()
    save_file(STATE, own / "here-1.safetensors")
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(gt.TrajectoryError, match=said):
        opened(tmp_path)


@pytest.mark.parametrize("state", ["{", "[]", '{"global_step": NaN}', '{"global_step": "x"}', "[" * 10**5])
def test_a_trainers_state_that_says_nothing_usable(state, tmp_path):
    from safetensors.torch import save_file

    own = tmp_path / "checkpoint-1"
    own.mkdir()
    save_file(STATE, own / "model.safetensors")
    (own / "trainer_state.json").write_text(state)
    with pytest.raises(gt.TrajectoryError):
        opened(tmp_path)


def test_forms_that_cannot_be_read_say_how_they_can(tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Sequential(nn.Linear(3, 2))).save(tmp_path / "step1.pt")
    with pytest.raises(gt.TrajectoryError, match=r"TorchScript archive.*state_dict"):
        opened(tmp_path / "step1.pt")
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(gt.TrajectoryError, match="dcp_to_torch_save"):
        opened(tmp_path / "dcp")
    with zipfile.ZipFile(tmp_path / "step2.pt", "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(gt.TrajectoryError, match="torch.save did not write"):
        opened(tmp_path / "step2.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "step3.pt")
    with pytest.raises(gt.TrajectoryError, match=r"holds torch.nn.modules.linear.Linear, which is not read"):
        opened(tmp_path / "step3.pt")


MUTATE = """
import io, random, sys, warnings, torch, geomtraj as gt
from pathlib import Path
from safetensors.torch import save
warnings.simplefilter("ignore")
folder, rng, state = Path(sys.argv[1]), random.Random(0), {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2)}
for form in ("zip", "legacy", "safetensors"):
    buffer = io.BytesIO()
    torch.save({"model": state, "step": 1}, buffer, _use_new_zipfile_serialization=form == "zip")
    whole = save(state) if form == "safetensors" else buffer.getvalue()
    path = folder / ("step1.safetensors" if form == "safetensors" else "step1.pt")
    for _ in range(int(sys.argv[2])):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3, 20))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            trajectory = gt.Trajectory.from_checkpoints(path)
            found = trajectory[0].parameters
        except gt.GeomtrajError:
            continue
        if form == "zip":
            assert all(torch.equal(found[name], state[name]) for name in found), "altered numbers"
print("done")
"""


def test_files_with_altered_bytes_give_a_sentence_or_their_own_numbers(tmp_path):
    command = [sys.executable, "-c", MUTATE, str(tmp_path), "150"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "done\n"
