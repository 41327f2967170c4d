import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from geomtraj.cli import main

ROOT = Path(__file__).parent.parent
TINY = ["--task", "two-layer-linear", "--option", "d=6", "--steps", "8", "--iterates", "3"]


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for optimizer in ("adam", "sgdm"):
        for seed in (0, 1):
            path = folder / optimizer / f"seed-{seed}"
            assert run("train", *TINY, "--optimizer", optimizer, "--seed", seed, "--out", path).exit_code == 0
    done = run("measure", *folder.glob("*/seed-*"), "--statistics", "r_med,trace", "--set", "trace.probes=3")
    assert done.exit_code == 0, done.output
    return sorted(folder.glob("*/seed-*"))


def test_the_whole_way(runs, tmp_path):
    contrasted = run("contrast", *runs, "--out", tmp_path / "table.csv")
    assert contrasted.exit_code == 0 and "sgdm / adam" in contrasted.output
    assert contrasted.output.startswith(
        ("above: r_med of sgdm", "below: r_med of sgdm", "undecided: the 95 % interval")
    )
    assert "over 1 chosen block," in run("contrast", *runs, "--over", "W1*").output
    assert (tmp_path / "table.csv").read_text().count("\n") > 2
    assert run("report", *runs, "--out", tmp_path / "page.html").exit_code == 0
    assert "sgdm" in (tmp_path / "page.html").read_text()


def test_a_second_train_and_measure_find_everything_done(runs):
    before = {p: p.stat().st_mtime_ns for p in runs[0].rglob("*.h5")}
    assert run("train", *TINY, "--optimizer", "adam", "--out", runs[0]).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in runs[0].rglob("*.h5")} == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--task", "pydoc", "--optimizer", "adam", "--out", "x"], "unknown task 'pydoc'"),
        (["train", *TINY, "--optimizer", "admm", "--out", "x"], "did you mean 'adam"),
        (["train", *TINY, "--optimizer", "adam", "--option", "depth=3", "--out", "x"], "unknown option"),
        (["train", *TINY, "--optimizer", "adam", "--option", "depth", "--out", "x"], "write NAME=VALUE"),
        (["train", *TINY, "--optimizer", "adam", "--device", "cuda", "--out", "x"], "cuda"),
        (["train", "--optimizer", "adam", "--text", "missing.txt", "--out", "x"], "missing.txt"),
        (["train", *TINY, "--optimizer", "adam", "--steps", "0", "--out", "x"], "at least 1"),
        (["measure", "nowhere"], "there is no folder nowhere"),
        (["measure", "nowhere", "--statistics", "r_mde"], "did you mean 'r_med'"),
        (["measure", "nowhere", "--set", "r_med.sample=3"], "did you mean 'samples'"),
        (["measure", "nowhere", "--set", "trace.probes=3"], "not among the statistics to measure"),
        (["contrast", "nowhere"], "measure the trajectory first"),
        (["report", "nowhere"], "measure the trajectory first"),
        (["sweep", "--seeds", "one", "--runs", "x"], "whole numbers with commas"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr and result.stderr.startswith("geomtraj: ") and result.stderr.count("\n") == 1


def test_a_cuda_device_that_is_absent_is_said_to_be(tmp_path):
    import torch

    if not torch.cuda.is_available():
        assert "cuda" in run("train", *TINY, "--optimizer", "adam", "--device", "cuda", "--out", tmp_path).stderr


def test_list_names_everything():
    output = run("list").output
    assert all(name in output for name in ("pydoc-lm", "adafactor", "r_med", "samples=64"))


def make(out, *arguments, venv):
    command = ["make", "-C", ROOT, f"VENV={venv}", f"GEOMTRAJ={sys.executable} -m geomtraj", f"OUT={out}"]
    command += ["TASK=two-layer-linear", "STEPS=6", "SEEDS=0", "WORKERS=1", "STATISTICS=r_med", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | {"MAKEFLAGS": ""})


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_tells_of_a_misspelt_variable(tmp_path):
    told = make(tmp_path, "-n", "report", "OPTIMISERS=adam sgdm", venv=tmp_path / "venv")
    assert told.returncode == 2
    assert "unknown variable OPTIMISERS: there are TASK OPTIMIZERS" in told.stderr
    assert list(tmp_path.iterdir()) == []
    known = make(tmp_path, "help", "SETTINGS=r_med.samples=4 spectrum.probes=1", "SEEDS=0 1", venv=tmp_path / "venv")
    assert known.returncode == 0, known.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_report_does_only_what_is_missing(tmp_path):
    venv, out = tmp_path / "venv", tmp_path / "out"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / ".installed").touch()
    first = make(out, "report", venv=venv)
    assert first.returncode == 0, first.stderr
    assert (out / "report.html").exists()
    assert make(out, "-q", out / "report.html", venv=venv).returncode == 0

    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.suffix in (".json", ".h5")}
    victim = sorted((out / "sgdm" / "seed-0" / "results").glob("*r_med*"))[2]
    victim.unlink()
    assert make(out, "-q", out / "report.html", venv=venv).returncode == 1
    again = make(out, "report", venv=venv)
    assert again.returncode == 0 and "geomtraj train" not in again.stdout
    changed = {p.name for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp}
    assert changed == {victim.name, "measured.json"}
    assert again.stdout.count("geomtraj measure") == 1

    assert make(out, "contrast", venv=venv).returncode == 0 and (out / "contrast.csv").exists()
    shorter = make(out, "report", "STEPS=4", venv=venv)
    assert shorter.returncode != 0 and "holds a run with steps 6, not 4" in shorter.stderr
    assert make(out, "report", "OPTIMIZERS=adam", venv=venv).stdout.count("geomtraj report") == 1


def test_make_help_names_every_target_and_variable():
    text = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    for word in (
        "report",
        "train",
        "measure",
        "contrast",
        "sweep",
        "test",
        "lint",
        "TASK",
        "OPTIMIZERS",
        "SEEDS",
        "DEVICE",
    ):
        assert word in text
