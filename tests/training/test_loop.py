import math

import pytest
import torch
from torch import nn

from geomtraj import tasks
from geomtraj.errors import InputError
from geomtraj.training import learning_rate, optimizers, train
from geomtraj.training.loop import mean_loss
from geomtraj.trajectory import every
from geomtraj.trajectory.recorder import Recorder

TASK = tasks.make("digits-mlp", width=8, batch_size=8, eval_examples=32)


def losses(trajectory):
    return [(row["step"], row["loss"]) for row in trajectory.log]


def test_training_is_the_plain_loop(tmp_path):
    trajectory = train(TASK, "sgdm", lr=0.05, steps=20, seed=3, path=tmp_path, progress=False, momentum=0.8)
    model = TASK.model(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8)
    expected = []
    for step in range(21):
        loss = TASK.loss(model, TASK.batch(step, 3)).mean()
        expected.append((step, loss.item()))
        if step < 20:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses(trajectory) == expected
    assert torch.equal(trajectory[-1].theta, torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert trajectory.steps[0] == 0 and trajectory.steps[-1] == 20 and trajectory.status == "complete"
    assert trajectory[-1].logged == {"loss": expected[-1][1]}
    meta = trajectory.meta
    assert (meta["task"], meta["optimizer"], meta["lr"], meta["seed"], meta["steps"]) == (
        "digits-mlp", "sgdm", 0.05, 3, 20,
    )  # fmt: skip
    assert meta["hyper"] == {"momentum": 0.8} and meta["task_options"] == TASK.options


def test_full_batch_training_follows_the_measured_loss_without_noise(tmp_path):
    task = tasks.make("digits-mlp", width=8, eval_examples=200)  # two micro-batches of unlike sizes
    arguments = {"lr": 0.1, "steps": 4, "full_batch": True, "schedule": every(1), "progress": False}
    trajectory = train(task, "sgd", seed=3, path=tmp_path / "run", **arguments)
    model = task.model(3)
    assert len(task.evaluation()) == 2 and trajectory.meta["full_batch"] is True
    for k, (step, loss) in enumerate(losses(trajectory)):
        trajectory.load_into(model, step)
        problem = task.problem(model)
        assert loss == pytest.approx(float(problem.loss()), rel=1e-6)
        if k < 4:
            after = trajectory[k].theta - 0.1 * problem.gradient()
            assert torch.allclose(after, trajectory[k + 1].theta, atol=1e-6)
    with pytest.raises(InputError, match="full_batch True, not False"):
        train(task, "sgd", seed=3, path=tmp_path / "run", **{**arguments, "full_batch": False})


def test_the_default_schedule_has_eight_iterates(tmp_path):
    trajectory = train(TASK, "sgd", lr=0.01, steps=100, path=tmp_path, progress=False)
    assert len(trajectory) == 8 and trajectory.steps[:3] == [0, 3, 6] and trajectory.steps[-1] == 100


@pytest.mark.parametrize("optimizer", ["adam", "sgdm"])
def test_a_stopped_run_goes_on_bit_equal(tmp_path, monkeypatch, optimizer):
    def arguments(name):
        return {"lr": 0.01, "steps": 12, "path": tmp_path / name, "schedule": every(4), "progress": False}

    whole = train(TASK, optimizer, **arguments("whole"))
    real = Recorder.log

    def stop_at_ten(self, **scalars):
        if self.step == 10:
            raise KeyboardInterrupt
        real(self, **scalars)

    monkeypatch.setattr(Recorder, "log", stop_at_ten)
    with pytest.raises(KeyboardInterrupt):
        train(TASK, optimizer, **arguments("stopped"))
    monkeypatch.undo()
    resumed = train(TASK, optimizer, **arguments("stopped"))
    assert resumed.steps == whole.steps == [0, 4, 8, 12] and losses(resumed) == losses(whole)
    assert all(torch.equal(a.theta, b.theta) for a, b in zip(whole, resumed, strict=True))
    assert [s["from_step"] for s in resumed.manifest["sessions"]] == [0, 8]


def test_a_finished_run_is_returned_and_may_be_lengthened_but_not_changed(tmp_path, monkeypatch):
    arguments = {"path": tmp_path / "a", "progress": False, "schedule": every(5)}
    first = train(TASK, "adam", lr=0.01, steps=10, **arguments)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "a").rglob("*")}
    again = train(TASK, "adam", lr=0.01, steps=10, **arguments)
    assert again.steps == first.steps
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "a").rglob("*")}
    longer = train(TASK, "adam", lr=0.01, steps=15, **arguments)
    whole = train(TASK, "adam", lr=0.01, steps=15, path=tmp_path / "b", progress=False, schedule=every(5))
    assert losses(longer) == losses(whole) and longer.meta["steps"] == 15
    for change in ({"lr": 0.02}, {"steps": 5}, {"seed": 1}, {"eps": 1e-3}):
        with pytest.raises(
            InputError, match=f"{next(iter(change)) if 'eps' not in change else 'hyper'} .*another path"
        ):
            train(TASK, "adam", **{"lr": 0.01, "steps": 15, **arguments, **change})
    with pytest.raises(InputError, match="optimizer 'adam', not 'sgd'"):
        train(TASK, "sgd", lr=0.01, steps=15, **arguments)
    with pytest.raises(InputError, match="resume=True"):
        train(TASK, "adam", lr=0.01, steps=15, resume=False, **arguments)


def test_a_diverging_run_stops_early_and_is_marked(tmp_path):
    arguments = {"lr": 1e6, "steps": 200, "path": tmp_path, "progress": False, "schedule": every(1000)}
    trajectory = train(tasks.make("two-layer-linear", d=4), "sgd", **arguments)
    assert trajectory.status == "diverged" and 0 < trajectory.manifest["diverged_at"] < 200
    assert not math.isfinite(trajectory.log[-1]["loss"]) and trajectory.steps == [0]
    assert train(tasks.make("two-layer-linear", d=4), "sgd", **arguments).log == trajectory.log


def test_learning_rate_is_the_swept_one_or_the_fallback(tmp_path, monkeypatch):
    from geomtraj.training import learning_rates

    monkeypatch.setattr(learning_rates.swept, "__defaults__", (tmp_path / "rates.json",))
    assert learning_rate("digits-mlp", "adam") == optimizers.entry("adam").lr
    learning_rates.save("digits-mlp", {"adam": {"lr": 0.0625}}, tmp_path / "rates.json")
    learning_rates.save("digits-mlp", {"sgd": {"lr": 0.5}}, tmp_path / "rates.json")
    assert learning_rate("digits-mlp", "adam") == 0.0625
    assert learning_rate("pydoc-lm", "adam") == optimizers.entry("adam").lr
    assert train(TASK, "adam", steps=1, path=tmp_path / "run", progress=False).meta["lr"] == 0.0625
    with pytest.raises(InputError, match="unknown optimizer"):
        learning_rate("digits-mlp", "adan")


def test_weighted_losses_are_averaged_by_their_weights():
    class Weighted:
        @staticmethod
        def loss(model, batch):
            return model(batch), torch.tensor([[1.0], [0.0], [3.0]])

    model = nn.Identity()
    batch = torch.tensor([[1.0, 2.0], [5.0, 6.0], [3.0, 4.0]])
    assert mean_loss(Weighted, model, [batch]) == pytest.approx((1 + 2 + 3 * 3 + 3 * 4) / 8)
    assert mean_loss(Weighted, model, [batch, 3 * batch]) == pytest.approx(4 * (1 + 2 + 3 * 3 + 3 * 4) / 16)


def test_bad_arguments_and_a_shown_bar(tmp_path, capsys):
    with pytest.raises(InputError, match="steps"):
        train(TASK, "adam", steps=0, path=tmp_path)
    with pytest.raises(InputError, match="unknown task"):
        train("digits", "adam", path=tmp_path)
    assert not list(tmp_path.iterdir())
    train(TASK, "adam", lr=0.01, steps=12, path=tmp_path)
    out, err = capsys.readouterr()
    assert out == "" and "digits-mlp adam seed 0" in err and "12/12" in err and "loss=" in err
