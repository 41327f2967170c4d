import copy

import pytest
import torch
from checkpoint_files import FORMS, STEPS, WITH_OPTIMIZER, Net, batch, hugging_face, in_a_dict, plain, trained, written
from torch import nn

import geomtraj as gt
from geomtraj.trajectory.log import read_log


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_every_form_is_found_read_and_loaded(form, tmp_path):
    stored = written(tmp_path / "run", form)
    trajectory = gt.Trajectory.from_checkpoints(tmp_path / "run")
    assert trajectory.steps == list(STEPS)
    assert len(trajectory) == 3
    for (step, model, optimizer), iterate in zip(stored, trajectory, strict=True):
        assert iterate.step == step
        mine = Net()
        moving = torch.optim.Adam(mine.parameters()) if form in WITH_OPTIMIZER else None
        trajectory.load_into(mine, step, moving)
        assert same_state(mine.state_dict(), model)
        assert mine.again.weight is mine.head.weight
        if moving is not None:
            assert moving.state_dict()["param_groups"][0]["lr"] == 0.05
            assert iterate.optimizer_state["state"].keys() == optimizer["state"].keys()
            for number, state in optimizer["state"].items():
                assert same_state(moving.state_dict()["state"][number], state)
        else:
            assert iterate.optimizer_state is None
    last = trajectory[-1]
    if form.__name__ not in ("lightning_with_more",):
        assert {"inner.0.weight", "head.bias"} <= last.parameters.keys()
        assert last.theta.numel() == sum(p.numel() for p in Net().parameters())
        assert last.buffers.keys() == {f"inner.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}


def test_it_has_a_trajectorys_interface(tmp_path):
    stored = written(tmp_path, in_a_dict)
    trajectory = gt.Trajectory.from_checkpoints(tmp_path)
    assert "3 iterates, steps 0 to 20" in repr(trajectory)
    assert [i.step for i in trajectory[1:]] == [10, 20]
    assert trajectory[1].step == 10
    assert trajectory.meta == {}
    assert trajectory.status == "complete"
    assert trajectory.manifest["optimizer"]["groups"][0]["betas"] == [0.9, 0.999]
    assert trajectory.log == []
    assert len({trajectory.digest(step) for step in trajectory.steps}) == 3
    assert torch.equal(trajectory.parameters(10, "inner.0.*")["inner.0.bias"], stored[1][1]["inner.0.bias"])
    with pytest.raises(gt.TrajectoryError, match="no iterate of step 11"):
        trajectory.at_step(11)
    with pytest.raises(gt.TrajectoryError, match="from_checkpoints"):
        gt.Trajectory(tmp_path)
    assert not (tmp_path / "geomtraj").exists(), "nothing is written until something is measured"


def problem():
    torch.manual_seed(3)
    return gt.Problem(Net(), nn.CrossEntropyLoss(), [batch()])


def test_measure_contrast_and_report_work_on_it_as_on_a_recorded_run(tmp_path):
    groups = {}
    for name, optimizer in (("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
        stored = trained(optimizer)
        own = tmp_path / name
        own.mkdir()
        for content in stored:
            plain(own, *content)
        trajectory = gt.Trajectory.from_checkpoints(own, out=tmp_path / "results" / name)
        results = gt.measure(trajectory, problem(), ["trace"], progress=False)
        for step, model, _ in stored:
            there = problem()
            there.model.load_state_dict(model)
            assert results.losses()[step] == pytest.approx(float(there.loss()), rel=1e-6)
        assert all(m.status == "ok" for m in results.measurements)
        again = gt.measure(
            gt.Trajectory.from_checkpoints(own, out=tmp_path / "results" / name), problem(), ["trace"], progress=False
        )
        assert again.remarks == []
        assert [m.seconds for m in again.of("trace")] == [m.seconds for m in results.of("trace")]
        loaded = gt.Results.load(tmp_path / "results" / name)
        assert loaded.losses() == results.losses()
        assert loaded.manifest["kinds"]["inner.0.weight"] == "Linear"
        assert sorted(p.name for p in own.iterdir()) == sorted(f"model_{step}.pt" for step in STEPS)
        groups[name] = [results]
    table = gt.contrast(groups, statistic="trace", at="step")
    assert {row.label for row in table.rows} == {"trace"}
    page = gt.report(groups, path=tmp_path / "report.html")
    assert page.stat().st_size > 10_000


def test_results_of_an_altered_checkpoint_are_not_believed(tmp_path):
    written(tmp_path, plain)
    gt.measure(gt.Trajectory.from_checkpoints(tmp_path), problem(), ["trace"], progress=False)
    other = torch.load(tmp_path / "model_10.pt", weights_only=True)
    other["head.bias"] += 1
    torch.save(other, tmp_path / "model_10.pt")
    results = gt.measure(gt.Trajectory.from_checkpoints(tmp_path), problem(), ["trace"], progress=False)
    assert any("2 stored results of other iterates" in r for r in results.remarks)


def test_results_go_beside_the_checkpoints_or_where_out_says(tmp_path):
    written(tmp_path / "run", plain)
    trajectory = gt.Trajectory.from_checkpoints(tmp_path / "run")
    gt.measure(trajectory, problem(), [], progress=False)
    assert (tmp_path / "run" / "geomtraj" / "measured.json").exists()
    gt.measure(trajectory, problem(), [], out=tmp_path / "elsewhere", progress=False)
    assert len(gt.Results.load(tmp_path / "elsewhere")) == 3
    assert trajectory.steps == gt.Trajectory.from_checkpoints(tmp_path / "run").steps, "results are no checkpoints"


def test_a_folder_of_something_else_is_not_written_over(tmp_path):
    written(tmp_path / "run", plain)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_text('{"precious": 1}')
    trajectory = gt.Trajectory.from_checkpoints(tmp_path / "run", out=tmp_path / "mine")
    with pytest.raises(gt.TrajectoryError):
        gt.measure(trajectory, problem(), [], progress=False)
    assert (tmp_path / "mine" / "manifest.json").read_text() == '{"precious": 1}'


def test_the_trainers_log_comes_along(tmp_path):
    written(tmp_path, hugging_face)
    trajectory = gt.Trajectory.from_checkpoints(tmp_path)
    assert [row["step"] for row in trajectory.log] == [0, 5, 10, 15, 20]
    assert trajectory[1].logged == {"loss": 1 / 11, "learning_rate": 0.05, "epoch": 0.1}
    results = gt.measure(trajectory, problem(), [], progress=False)
    for log in (results.log, read_log(trajectory.path)):
        assert [(r["step"], r["loss"]) for r in log] == [(r["step"], r["loss"]) for r in trajectory.log]


def test_steps_come_from_content_names_or_the_caller(tmp_path):
    written(tmp_path, in_a_dict)
    assert gt.Trajectory.from_checkpoints(str(tmp_path / "*.pth")).steps == [0, 10, 20]
    assert gt.Trajectory.from_checkpoints(tmp_path, steps=[5, 3, 4]).steps == [3, 4, 5]
    by_name = gt.Trajectory.from_checkpoints(tmp_path, steps=lambda path: ord(path.stem))
    assert by_name.steps == [97, 98, 99]
    files = [tmp_path / "c.pth", tmp_path / "a.pth"]
    assert gt.Trajectory.from_checkpoints(files, steps=torch.tensor([7, 8])).steps == [7, 8]
    one = gt.Trajectory.from_checkpoints(files[0])
    assert one.steps == [20]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model_5.pt", "model_10.pt", "model_100.pt"], [5, 10, 100]),
        (["seed0_lr1_step7.pt", "seed0_lr1_step12.pt"], [7, 12]),
        (["a_step3_seed1.pt", "a_step4_seed2.pt"], [3, 4]),
        (["step000100.pt", "final_step_200.pth"], [100, 200]),
        (["checkpoint-7/w.pt", "checkpoint-8/w.pt"], [7, 8]),
    ],
)
def test_numbers_in_names(names, expected, tmp_path):
    state = Net().state_dict()
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch.save(state, tmp_path / name)
    assert gt.Trajectory.from_checkpoints([tmp_path / name for name in names]).steps == expected


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([1, 2], "2 numbers for 3 checkpoints, which are in order .*a.pth"),
        ([1, 2, 2], "2 more than once"),
        ([1, 2, float("nan")], "no count of steps"),
        ([1, 2, -1], "no count of steps"),
        ([1, 2, True], "no count of steps"),
        ([1, 2, "three"], "no count of steps"),
        ("123", "give whole numbers"),
        (5, "give whole numbers"),
        (lambda path: None, "no count of steps"),
    ],
)
def test_steps_that_are_none_are_refused(steps, said, tmp_path):
    written(tmp_path, in_a_dict)
    with pytest.raises(gt.InputError, match=said):
        gt.Trajectory.from_checkpoints(tmp_path, steps=steps)


def test_what_does_not_fit_the_model_is_named(tmp_path):
    _, state, _ = trained()[0]
    other = {name: t for name, t in state.items() if name != "inner.0.bias"}
    other |= {"head.bias": torch.zeros(7), "head.scale": torch.zeros(2)}
    torch.save(other, tmp_path / "step0.pt")
    trajectory = gt.Trajectory.from_checkpoints(tmp_path)
    model = Net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(gt.TrajectoryError) as error:
        trajectory.load_into(model, 0)
    for said in ("inner.0.bias (4,)", "head.scale (2,)", "head.bias is (7,) there and (2,) in the model"):
        assert said in str(error.value)
    assert same_state(before, model.state_dict())


def test_two_models_in_one_checkpoint_are_not_guessed_between(tmp_path):
    state = Net().state_dict()
    both = {f"{part}.{name}": t for part in ("model", "ema_model") for name, t in state.items()}
    torch.save({"state_dict": both, "global_step": 3}, tmp_path / "x.ckpt")
    with pytest.raises(gt.TrajectoryError, match="several models of this kind, under 'ema_model.' and 'model.'"):
        gt.Trajectory.from_checkpoints(tmp_path).load_into(Net(), 3)
    torch.save({"nets": {"a": state, "b": state}, "gen": state, "disc": state, "step": 3}, tmp_path / "x.ckpt")
    with pytest.raises(gt.TrajectoryError, match="several that may be one .'gen', 'disc'."):
        gt.Trajectory.from_checkpoints(tmp_path)

    def load(path):
        return {"model": torch.load(path, weights_only=True)["gen"], "step": 3}

    model = Net()
    gt.Trajectory.from_checkpoints(tmp_path, load=load).load_into(model, 3)
    assert same_state(model.state_dict(), state)


def test_a_lightning_module_itself_may_be_the_model(tmp_path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

    from checkpoint_files import lightning

    stored = written(tmp_path, lightning)
    whole = Whole()
    gt.Trajectory.from_checkpoints(tmp_path).load_into(whole, 20)
    assert same_state(whole.net.state_dict(), stored[-1][1])


def test_load_reads_any_other_form_and_what_is_no_file(tmp_path):
    import numpy as np

    stored = trained()
    for step, state, _ in stored:
        np.savez(tmp_path / f"{step}.npz", **{name: t.numpy() for name, t in state.items()})

    def load(path):
        arrays = np.load(path)
        return {"model": {name: torch.from_numpy(np.array(arrays[name])) for name in arrays}, "step": int(path.stem)}

    trajectory = gt.Trajectory.from_checkpoints(tmp_path, load=load)
    results = gt.measure(trajectory, problem(), [], progress=False)
    assert results.steps == list(STEPS)

    by_name = {f"rev{step}": state for step, state, _ in stored}
    opened = []

    def fetched(revision):
        opened.append(revision)
        return {"model": by_name[revision], "optimizer": None, "step": int(revision[3:])}

    trajectory = gt.Trajectory.from_checkpoints(
        list(by_name), load=fetched, steps=[0, 10, 20], out=tmp_path / "results"
    )
    assert len(opened) <= 1, "read lazily"
    model = Net()
    trajectory.load_into(model, 10)
    assert same_state(model.state_dict(), stored[1][1])
    with pytest.raises(gt.InputError, match="out=FOLDER"):
        gt.Trajectory.from_checkpoints(list(by_name), load=fetched)


@pytest.mark.parametrize(
    ("returned", "kind", "said"),
    [
        (None, gt.InputError, "returned a NoneType: return"),
        ({"weights": {}}, gt.InputError, "a dict with 'weights': return"),
        ({"model": {"w": [1.0]}, "step": 1}, gt.TrajectoryError, "'w' of its model is a list"),
        ({"model": {}, "step": 1}, gt.TrajectoryError, "no tensors"),
        ({"model": {"w": torch.ones(2)}, "step": float("nan")}, gt.TrajectoryError, "no count of steps"),
        ({"model": {"w": torch.ones(2)}, "step": 1, "optimizer": [3]}, gt.InputError, "'optimizer' that is no state"),
    ],
)
def test_what_load_returns_is_looked_at(returned, kind, said, tmp_path):
    (tmp_path / "x").write_text("x")
    with pytest.raises(kind, match=said):
        gt.Trajectory.from_checkpoints([tmp_path / "x"], load=lambda path: returned)


def test_workers_read_checkpoints_too(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    written(tmp_path, plain)
    with ThreadPoolExecutor(2) as pool:
        results = gt.measure(gt.Trajectory.from_checkpoints(tmp_path), problem(), ["trace"], pool, progress=False)
    assert results.steps == list(STEPS)


def test_checkpoints_in_half_precision_measure_a_model_in_full(tmp_path):
    for step, state, _ in trained():
        half = {name: t.bfloat16() if t.is_floating_point() else t for name, t in state.items()}
        torch.save(half, tmp_path / f"{step}.pt")
    model = Net()
    gt.Trajectory.from_checkpoints(tmp_path).load_into(model, 20)
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, half["head.weight"].float())
