import importlib
import json
import os
import shutil
import subprocess

import click
import pytest
from click.testing import CliRunner

from analyses.common import command, run
from analyses.common.jobs import compute
from analyses.two_layer_linear.data import train_one
from geomtraj.errors import ComputationError, InputError

CALLS = []


def square(job):
    CALLS.append(job["x"])
    if job["x"] < 0:
        raise InputError(f"x is {job['x']}: give 0 or more.")
    if job["x"] == 99:
        raise KeyboardInterrupt
    return {"square": job["x"] ** 2}


def leave(job):
    os._exit(9)


@pytest.fixture
def analysis(tmp_path):
    CALLS.clear()
    return run.Analysis("test", "small", {"seeds": [0]}, tmp_path)


def test_what_is_computed_is_kept(analysis):
    jobs = [{"x": 2}, {"x": 3}, {"x": 2}]
    assert [r["square"] for _, r in compute(analysis, square, jobs, "squares")] == [4, 9, 4]
    compute(analysis, square, [*jobs, {"x": 4}], "squares")
    assert CALLS == [2, 3, 4]


def test_a_stopped_analysis_goes_on(analysis):
    with pytest.raises(KeyboardInterrupt):
        compute(analysis, square, [{"x": 2}, {"x": 99}, {"x": 3}], "squares")
    compute(analysis, square, [{"x": 2}, {"x": 3}], "squares")
    assert CALLS == [2, 99, 3]


def test_a_job_that_fails_is_told_and_the_others_are_kept(analysis):
    done = compute(analysis, square, [{"x": -1}, {"x": 3}], "squares")
    assert [job["x"] for job, _ in done] == [3] and analysis.problems == ["squares, x=-1: x is -1: give 0 or more."]
    with pytest.raises(ComputationError, match="not one job has a result; the first: x is -1"):
        compute(analysis, square, [{"x": -1}], "squares")


@pytest.mark.slow
def test_several_processes_give_the_same(analysis):
    job = {"d": 8, "alpha": 1.0, "target_seed": 0, "device": "cpu", "optimizer": "sgdm", "hyper": {"momentum": 0.9}}
    job |= {"c": 0.02, "levels": [0.5], "max_steps": 500, "curve": False}
    jobs = [{**job, "seed": seed} for seed in range(3)]
    analysis.workers = 2
    assert [r for _, r in compute(analysis, train_one, jobs, "runs")] == [train_one(job) for job in jobs]
    with pytest.raises(ComputationError, match="a process was killed"):
        compute(analysis, leave, jobs, "runs")


@click.command("two_layer_linear", cls=command.Command)
@command.options
def show(**options):
    click.echo(json.dumps(run.start("two_layer_linear", run.Options(**options)).config))


@click.command("two_layer_linear", cls=command.Command)
@command.options
def show_with_base(**options):
    click.echo(json.dumps(run.start("two_layer_linear", run.Options(**options), base="trajectories").config))


def test_a_base_gives_further_values_and_a_dot_reaches_into_tables():
    def shown(*arguments):
        return CliRunner().invoke(show_with_base, ["--set", *" --set ".join(arguments).split()])

    config = json.loads(shown('recipes.language.options.text="my.txt"', "recipes.language.steps=7", "seeds=[3]").output)
    assert config["recipes"]["language"]["options"]["text"] == "my.txt" and config["recipes"]["language"]["steps"] == 7
    assert config["seeds"] == [3] and config["dims"] == config_of()["dims"] and len(config["recipes"]) > 2
    for wrong in ("recipes.russian.steps=7", "seeds.language=7"):
        result = shown(wrong)
        assert result.exit_code == 2 and f"has no table {wrong.rpartition('.')[0]}" in result.stderr


def config_of(*arguments):
    return json.loads(CliRunner().invoke(show, list(map(str, arguments)), catch_exceptions=False).output)


def test_configs_are_files_that_settings_and_scales_replace(tmp_path):
    assert config_of()["seeds"] == list(range(20)) and len(config_of("--scale", "paper")["seeds"]) == 40
    assert config_of("--scale", "paper")["levels"] == config_of()["levels"]
    (tmp_path / "mine.json").write_text('{"small": {"dims": [64]}}')
    mine = config_of("--config", tmp_path / "mine.json", "--set", "seeds=[7, 8]", "--set", "alpha=2")
    assert (mine["dims"], mine["seeds"], mine["alpha"]) == ([64], [7, 8], 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "seed=1"], "did you mean 'seeds'"),
        (["--set", "seeds"], "write NAME=VALUE"),
        (["--set", "seeds=[]"], "must be of the form"),
        (["--set", "seeds=3"], "must be of the form"),
        (["--set", "dims=[16.5]"], "must be of the form"),
        (["--config", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_bad_settings_are_one_sentence(arguments, message):
    result = CliRunner().invoke(show, arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_has_a_target_for_each_analysis():
    root = run.HERE.parent
    make = ["make", "-n", "-C", str(root), "VENV=/nowhere", "SCALE=paper", "DEVICE=cuda"]
    for script in (root / "analyses").glob("configs/*.json"):
        target = script.stem.replace("_", "-")
        plan = subprocess.run([*make, target], capture_output=True, text=True, check=True).stdout
        assert f"-m analyses.{script.stem} --scale paper --device cuda" in plan


KEYS = {
    "tune": "7a44d4544a0f983e",
    "travel": "519349481e42e610",
    "whole": "3515749bd09b51d0",
    "reach": "24e05f158ad5aa90",
    "retune": "033027137ea28d2f",
    "look": "b7cdd11a18d50c0d",
    "go": "1207947bb7d115e6",
    "spectrum_at": "82c5649e42d8a558",
    "train_one": "1e74081f3f23c901",
    "check_engine": "b45c892f2ffb07e7",
}


@pytest.mark.parametrize("name", KEYS)
def test_what_earlier_versions_computed_is_found(name, tmp_path):
    homes = ("common.trajectories", "region_switch.data", "spectra.data", "two_layer_linear.data")
    modules = [importlib.import_module(f"analyses.{home}") for home in homes]
    (function,) = (vars(m)[name] for m in modules if getattr(vars(m).get(name), "__module__", "") == m.__name__)
    job = {"name": "digits", "seed": 3, "lr": 0.01}
    analysis = run.Analysis("x", "small", {}, tmp_path)
    stored = tmp_path / "parts" / f"{name}-{KEYS[name]}.json"
    stored.parent.mkdir()
    stored.write_text(json.dumps({"job": job, "result": {"found": True}}))
    assert compute(analysis, function, [job], "jobs") == [(job, {"found": True})]


@pytest.mark.parametrize("name", sorted(path.stem for path in (run.HERE / "configs").glob("*.json")))
def test_each_analysis_has_the_same_five_modules(name):
    assert {path.stem for path in (run.HERE / name).glob("*.py")} == {
        "__init__", "__main__", "data", "findings", "figures", "page"
    }  # fmt: skip
