import json
import math

import pytest

from geomtraj import tasks
from geomtraj.errors import ComputationError, InputError
from geomtraj.training import SweepRow, learning_rates, optimizers, sweep
from geomtraj.training.sweeps import _choose
from geomtraj.trajectory import Trajectory

TASK = tasks.make("digits-mlp", width=8, batch_size=8, eval_examples=32)
LINEAR = tasks.make("two-layer-linear", d=4, alpha=0.2)


def rows(table):
    return [SweepRow(lr, (loss,), loss) for lr, loss in table.items()]


def choose(table, beyond, extend):
    """`beyond` holds the losses of learning rates outside the grid."""
    tried = []

    def run(lr):
        tried.append(lr)
        return SweepRow(lr, (beyond[lr],), beyond[lr])

    return _choose("task", "adam", rows(table), run, extend), tried


def test_the_lowest_mean_loss_wins_and_the_grid_grows_only_at_its_edge():
    inner, tried = choose({0.1: 3.0, 1.0: 1.0, 10.0: 2.0}, {}, 2)
    assert (inner.lr, inner.at_edge, tried) == (1.0, False, [])
    grown, tried = choose({0.1: 3.0, 1.0: 2.0}, {10.0: 1.0, 100.0: 5.0}, 2)
    assert (grown.lr, grown.at_edge, tried) == (10.0, False, [10.0, 100.0])
    assert [row.lr for row in grown.rows] == [0.1, 1.0, 10.0, 100.0]
    flagged, tried = choose({0.1: 1.0, 1.0: 2.0}, {0.01: 0.5}, 1)
    assert (flagged.lr, flagged.at_edge, tried) == (0.01, True, [0.01])


def test_diverged_runs_never_win_and_bound_the_grid():
    result, tried = choose({0.1: 3.0, 1.0: 2.0, 10.0: None}, {}, 2)
    assert (result.lr, result.at_edge, tried) == (1.0, False, [])
    with pytest.raises(ComputationError, match=r"every run of adam on task diverged .learning rates 0.1, 1."):
        choose({0.1: None, 1.0: None}, {}, 2)


def test_a_sweep_trains_evaluates_and_stores_with_its_provenance(tmp_path):
    arguments = {"grid": [1e-4, 1e-2], "steps": 15, "seeds": [0, 1], "progress": False, "extend": 0}
    store = tmp_path / "rates.json"
    found = sweep(TASK, ["adam", "sgdm"], path=tmp_path / "runs", save=store, **arguments)
    assert [len(found[name].rows) for name in found] == [2, 2]
    for name, result in found.items():
        means = {row.lr: row.mean for row in result.rows}
        assert result.lr == min(means, key=means.get) != 1e-4
        for row in result.rows:
            assert row.mean == pytest.approx(sum(row.losses) / 2) and len(row.losses) == 2
        entry = learning_rates.swept("digits-mlp", name, store)
        assert entry["lr"] == result.lr and entry["sweep"]["steps"] == 15 and entry["sweep"]["date"]
        assert entry["sweep"]["rows"][0]["losses"] == list(result.rows[0].losses)
        assert entry["sweep"]["task_options"]["width"] == 8 and "torch" in entry["sweep"]["versions"]
    runs = list((tmp_path / "runs" / "digits-mlp").iterdir())
    assert len(runs) == 8
    times = [(run / "manifest.json").stat().st_mtime_ns for run in runs]
    assert sweep(TASK, ["adam", "sgdm"], path=tmp_path / "runs", **arguments) == found
    assert times == [(run / "manifest.json").stat().st_mtime_ns for run in runs]


def test_the_choice_may_be_by_training_loss(tmp_path):
    arguments = {"grid": [1e-4, 1e-2], "steps": 30, "seeds": [1], "progress": False, "extend": 0}
    found = sweep(TASK, ["adam"], path=tmp_path, by="training", full_batch=True, **arguments)["adam"]
    for row in found.rows:
        run = Trajectory(tmp_path / "digits-mlp" / f"adam-lr{row.lr:g}-seed1")
        assert run.meta["full_batch"]
        assert row.mean == pytest.approx(sum(r["loss"] for r in run.log[-4:]) / 4)  # of 31
    assert found.lr == 1e-2
    with pytest.raises(InputError, match="unknown loss to choose by 'test'"):
        sweep(TASK, ["adam"], path=tmp_path, by="test", **arguments)


def test_diverged_runs_are_kept_as_such(tmp_path):
    arguments = {"steps": 60, "path": tmp_path, "progress": False, "extend": 0}
    found = sweep(LINEAR, ["sgd"], grid={"sgd": [0.01, 1e6]}, **arguments)["sgd"]
    assert found.lr == 0.01 and found.rows[1].mean is None and found.rows[1].losses == (None,)
    with pytest.raises(ComputationError, match="smaller ones"):
        sweep(LINEAR, ["sgd"], grid=[1e6, 1e7], **arguments)


def test_bad_grids_and_names_are_told_before_anything_runs(tmp_path):
    for names, grid, match in (
        (["adam", "adan"], None, "unknown optimizer"),
        (["adam"], [], "at least one"),
        (["adam"], [0.1, -1], "positive"),
        (["adam"], ["x"], "list of learning rates"),
        (["adam"], {"sgd": [0.1]}, "grid of adam"),
    ):
        with pytest.raises(InputError, match=match):
            sweep(TASK, names, grid=grid, path=tmp_path, steps=2, progress=False)
    with pytest.raises(InputError, match="seed"):
        sweep(TASK, ["adam"], seeds=[], path=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_packages_own_table_is_whole():
    table = json.loads(learning_rates.PATH.read_text())
    assert {"adam", "sgdm"} <= set(table["pydoc-lm"])
    for task, entries in table.items():
        for name, entry in entries.items():
            assert name in optimizers._ENTRIES and task in tasks.names()
            good = {row["lr"]: row["mean"] for row in entry["sweep"]["rows"] if row["mean"] is not None}
            assert entry["lr"] == min(good, key=good.get) and math.isfinite(good[entry["lr"]])
    assert table["pydoc-lm"]["adam"]["sweep"]["task_options"] == tasks.make("pydoc-lm").options
