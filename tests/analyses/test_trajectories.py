import json
from pathlib import Path

import pytest

from analyses.common import run, trajectories
from geomtraj.comparing import contrast
from geomtraj.errors import ComputationError, InputError
from geomtraj.trajectory import Trajectory

RECIPE = {
    "title": "digits",
    "task": "digits-mlp",
    "options": {"width": 8, "batch_size": 8, "eval_examples": 32},
    "steps": 20,
    "full_batch": False,
    "rates": {"adam": [1e-4, 1e-2], "sgdm": [1e-3, 0.05]},
}
CONFIG = {
    "tasks": ["digits"],
    "optimizers": ["adam", "sgdm"],
    "seeds": [0, 1],
    "sweep_seeds": [100],
    "iterates": 3,
    "recipes": {"digits": RECIPE},
}
R_MED = {"r_med": {"samples": 4, "max_matvecs": 8}}


def analysis_in(folder, **changed):
    return run.Analysis("test", "small", {**CONFIG, **changed}, folder / "test")


def test_runs_are_tuned_trained_and_measured(tmp_path):
    analysis = analysis_in(tmp_path)
    rates = trajectories.tuned(analysis)
    for found in rates["digits"].values():
        means = {row["lr"]: row["mean"] for row in found.rows}
        assert len(means) == 2 and found.lr == min(means, key=means.get) and found.at_edge
    assert len(trajectories.edge_remarks(rates)) == 2
    sheet = trajectories.rates_sheet(CONFIG, rates)
    assert [row[-1] for row in sheet.rows].count("taken, at the grid's end") == 2 and len(sheet.rows) == 4

    runs = trajectories.measured(analysis, rates, R_MED)["digits"]
    assert list(runs) == ["adam", "sgdm"] and [r.meta["seed"] for r in runs["adam"]] == [0, 1]
    stored = Trajectory(runs["sgdm"][1].path)
    assert stored.meta["lr"] == rates["digits"]["sgdm"].lr and stored.meta["task_options"]["width"] == 8
    assert runs["sgdm"][1].steps == stored.steps[1:] and stored.steps[-1] == 20 and len(stored) == 4
    assert runs["adam"][0].manifest["parameters"]["head.weight"] == [10, 8]
    table = contrast(runs, at="loss")
    assert {row.label for row in table} >= {"head.weight", "all"} and not table.notes
    tenth = trajectories.variant(runs["adam"][0], "tenth")
    for ours, theirs in zip(tenth.of("r_med"), runs["adam"][0].of("r_med"), strict=True):
        assert ours.quantities["head.weight"].value == theirs.details["head.weight"]["tenth"]
        assert ours.quantities["head.weight"].value < theirs.quantities["head.weight"].value


def test_another_analysis_trains_and_measures_nothing_again(tmp_path):
    first = analysis_in(tmp_path)
    rates = trajectories.tuned(first)
    runs = trajectories.measured(first, rates, R_MED)
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "trajectories").rglob("*.h5")}
    written |= {p: p.stat().st_mtime_ns for p in (tmp_path / "trajectories").glob("*/*/*/results/*.json")}
    assert len(written) > 20
    second = run.Analysis("other", "small", CONFIG, tmp_path / "other")
    assert trajectories.tuned(second) == rates
    again = trajectories.measured(second, rates, R_MED)
    assert again["digits"]["adam"][1].losses() == runs["digits"]["adam"][1].losses()
    assert {p: p.stat().st_mtime_ns for p in written} == written
    assert {p for p in (tmp_path / "trajectories").rglob("*.h5")} <= set(written)


def test_a_recipe_that_cannot_be_tuned_is_left_out(tmp_path):
    wild = {**RECIPE, "task": "two-layer-linear", "options": {"d": 4}, "rates": {"adam": [0.1], "sgdm": [1e6, 1e7]}}
    analysis = analysis_in(tmp_path, tasks=["wild", "digits"], recipes={"wild": wild, "digits": RECIPE})
    assert list(trajectories.tuned(analysis)) == ["digits"]
    assert "every run of sgdm on two-layer-linear diverged" in analysis.problems[0]
    with pytest.raises(ComputationError, match="no task has learning rates for both optimizers: .* diverged"):
        trajectories.tuned(analysis_in(tmp_path, tasks=["wild"], recipes={"wild": wild}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": ["digit"]}, "did you mean 'digits'"),
        ({"optimizers": ["adam", "sdgm"]}, "unknown optimizer"),
        ({"optimizers": ["adam", "sgd"]}, "no learning rates for sgd: add rates.sgd"),
        ({"optimizers": ["adam"]}, "two optimizers are compared, not 1"),
        ({"seeds": [0, 100]}, "share a seed"),
        ({"seeds": [0, 0]}, "must differ"),
    ],
)
def test_what_cannot_be_run_is_told_first(changed, message):
    with pytest.raises(InputError, match=message):
        trajectories.check({**CONFIG, **changed})


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_the_shipped_recipes_can_be_made(scale, tmp_path):
    config = json.loads((run.HERE / "configs" / "base" / "trajectories.json").read_text())
    config = {**config["small"], **(config[scale] if scale != "small" else {})}
    trajectories.check(config)
    for name in config["tasks"]:
        job = {"name": name, "recipe": config["recipes"][name], "device": "cpu", "store": str(tmp_path)}
        task = trajectories.task_of(job)
        assert sum(p.numel() for p in task.model(0).parameters()) > 5000
        grids = job["recipe"]["rates"]
        assert len(set(map(len, grids.values()))) == 1, "each optimizer gets the same number of learning rates"
    assert Path(trajectories.folder_of(job)).parent == tmp_path
