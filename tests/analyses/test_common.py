import json
import os
import shutil
import subprocess

import click
import machinery
import pytest
from click.testing import CliRunner

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
    return machinery.Analysis("test", "small", {"seeds": [0]}, tmp_path)


def test_what_is_computed_is_kept(analysis):
    jobs = [{"x": 2}, {"x": 3}, {"x": 2}]
    assert [r["square"] for _, r in machinery.compute(analysis, square, jobs, "squares")] == [4, 9, 4]
    machinery.compute(analysis, square, [*jobs, {"x": 4}], "squares")
    assert CALLS == [2, 3, 4]


def test_a_stopped_analysis_goes_on(analysis):
    with pytest.raises(KeyboardInterrupt):
        machinery.compute(analysis, square, [{"x": 2}, {"x": 99}, {"x": 3}], "squares")
    machinery.compute(analysis, square, [{"x": 2}, {"x": 3}], "squares")
    assert CALLS == [2, 99, 3]


def test_a_job_that_fails_is_told_and_the_others_are_kept(analysis):
    done = machinery.compute(analysis, square, [{"x": -1}, {"x": 3}], "squares")
    assert [job["x"] for job, _ in done] == [3] and analysis.problems == ["squares, x=-1: x is -1: give 0 or more."]
    with pytest.raises(ComputationError, match="not one job has a result; the first: x is -1"):
        machinery.compute(analysis, square, [{"x": -1}], "squares")


@pytest.mark.slow
def test_several_processes_give_the_same(analysis):
    import two_layer_linear as script

    job = {"d": 8, "alpha": 1.0, "target_seed": 0, "device": "cpu", "optimizer": "sgdm", "hyper": {"momentum": 0.9}}
    job |= {"c": 0.02, "levels": [0.5], "max_steps": 500, "curve": False}
    jobs = [{**job, "seed": seed} for seed in range(3)]
    analysis.workers = 2
    assert [r for _, r in machinery.compute(analysis, script.train_one, jobs, "runs")] == [
        script.train_one(job) for job in jobs
    ]
    with pytest.raises(ComputationError, match="a process was killed"):
        machinery.compute(analysis, leave, jobs, "runs")


@click.command("two_layer_linear", cls=machinery.Command)
@machinery.options
def show(**options):
    click.echo(json.dumps(machinery.start("two_layer_linear", **options).config))


@click.command("two_layer_linear", cls=machinery.Command)
@machinery.options
def show_with_base(**options):
    click.echo(json.dumps(machinery.start("two_layer_linear", **options, base="trajectories").config))


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
    root = machinery.HERE.parent
    command = ["make", "-n", "-C", str(root), "VENV=/nowhere", "SCALE=paper", "DEVICE=cuda"]
    for script in (root / "analyses").glob("configs/*.json"):
        target = script.stem.replace("_", "-")
        plan = subprocess.run([*command, target], capture_output=True, text=True, check=True).stdout
        assert f"analyses/{script.stem}.py --scale paper --device cuda" in plan
