import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import geomtraj as gt
from geomtraj.integrations.lightning import RecorderCallback

STEPS = 9


class Lit(pl.LightningModule):
    def __init__(self, stop=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 2))
        self.stop = stop

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        if self.trainer.global_step == self.stop:
            raise RuntimeError("the power went out")
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.1)


class TwoOptimizers(Lit):
    automatic_optimization = False

    def training_step(self, batch, index):
        x, y = batch
        both = self.optimizers()
        loss = nn.functional.cross_entropy(self.net(x), y)
        for optimizer in both:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in both:
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.net[0].parameters(), lr=0.1),
            torch.optim.AdamW([*self.net[1].parameters(), *self.net[4].parameters()], lr=0.01),
        ]


def loader():
    rng = torch.Generator().manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(24, 3, generator=rng), torch.randint(2, (24,), generator=rng))
    return torch.utils.data.DataLoader(data, batch_size=4)


def fit(folder, lit, callbacks=(), ckpt_path=None, **options):
    options = {"accumulate_grad_batches": 2} | options
    trainer = pl.Trainer(
        default_root_dir=folder, max_epochs=3, callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", log_every_n_steps=2,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks), **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        trainer.fit(lit, loader(), ckpt_path=ckpt_path)
    return lit


def parameters(lit):
    return [p.detach().clone() for p in lit.parameters()]


def test_a_run_is_recorded_and_is_the_same_as_without(tmp_path):
    bare = parameters(fit(tmp_path, Lit()))
    lit = fit(tmp_path, Lit(), [RecorderCallback(tmp_path / "run", gt.every(4), meta={"seed": 0})])
    assert all(map(torch.equal, parameters(lit), bare))
    trajectory = gt.Trajectory(tmp_path / "run")
    assert trajectory.steps == [0, 4, 8, STEPS]
    assert trajectory.status == "complete"
    assert trajectory.manifest["optimizer"]["class"] == "AdamW"
    assert trajectory.manifest["optimizer"]["groups"][0]["weight_decay"] == 0.1
    assert [(row["step"], row["lr"]) for row in trajectory.log] == [(s, 0.05) for s in (2, 4, 6, 8)]
    assert all(0.1 < row["loss"] < 2 for row in trajectory.log)
    other = Lit()
    trajectory.load_into(other, STEPS)
    assert all(map(torch.equal, other.parameters(), bare))


def saving(folder, every=3):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1, save_last=True)


def test_an_interrupted_run_goes_on_at_lightnings_checkpoint(tmp_path):
    once = fit(tmp_path, Lit(), [RecorderCallback(tmp_path / "once", gt.every(1)), saving(tmp_path / "c0")])
    with pytest.raises(RuntimeError, match="power"):
        fit(tmp_path, Lit(stop=5), [RecorderCallback(tmp_path / "run", gt.every(1)), saving(tmp_path / "c")])
    assert gt.Trajectory(tmp_path / "run").status == "interrupted"
    assert gt.Trajectory(tmp_path / "run").steps == list(range(6))
    with pytest.raises(gt.InputError, match="already holds a trajectory"):
        fit(tmp_path, Lit(), [RecorderCallback(tmp_path / "run", gt.every(1))])
    lit = fit(
        tmp_path, Lit(), [RecorderCallback(tmp_path / "run", gt.every(1)), saving(tmp_path / "c")],
        tmp_path / "c" / "step=3.ckpt",
    )  # fmt: skip
    trajectory, whole = gt.Trajectory(tmp_path / "run"), gt.Trajectory(tmp_path / "once")
    assert trajectory.steps == list(range(STEPS + 1))
    assert [s["from_step"] for s in trajectory.manifest["sessions"]] == [0, 3]
    dropped_out = [not torch.equal(a.theta, b.theta) for a, b in zip(trajectory, whole, strict=True)]
    assert not any(dropped_out[:4]), (
        "up to the checkpoint they are the same; Lightning does not restore dropout's draws"
    )
    assert all(torch.equal(p, q) for p, q in zip(parameters(lit), trajectory[-1].parameters.values(), strict=True))
    assert parameters(once)


def test_a_checkpoint_says_its_step_where_the_optimizer_cannot(tmp_path):
    class Plain(Lit):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    fit(tmp_path, Plain(), [RecorderCallback(tmp_path / "run", gt.every(2)), saving(tmp_path / "c")])
    fit(
        tmp_path, Plain(), [RecorderCallback(tmp_path / "run", gt.every(2)), saving(tmp_path / "c")],
        tmp_path / "c" / "step=3.ckpt",
    )  # fmt: skip
    trajectory = gt.Trajectory(tmp_path / "run")
    assert trajectory.steps == [0, 2, 4, 6, 8, STEPS]
    assert [s["from_step"] for s in trajectory.manifest["sessions"]] == [0, 3]


def test_several_optimizers_are_recorded_after_the_last_of_them(tmp_path):
    callbacks = [RecorderCallback(tmp_path / "run", gt.every(5)), saving(tmp_path / "c", every=8)]
    bare = parameters(fit(tmp_path, TwoOptimizers(), accumulate_grad_batches=1))
    lit = fit(tmp_path, TwoOptimizers(), callbacks, accumulate_grad_batches=1)
    assert all(map(torch.equal, parameters(lit), bare))
    trajectory = gt.Trajectory(tmp_path / "run")
    assert trajectory.steps == [0, 5, 10, 15, 18]
    assert trajectory.manifest["optimizer"]["class"] == "SGD + AdamW"
    assert {"lr", "lr_1"} <= trajectory.log[0].keys()
    fit(
        tmp_path, TwoOptimizers(), [RecorderCallback(tmp_path / "run", gt.every(5))],
        tmp_path / "c" / "step=8.ckpt", accumulate_grad_batches=1,
    )  # fmt: skip
    assert gt.Trajectory(tmp_path / "run").manifest["sessions"][1]["from_step"] == 4, "Lightning counts both"


def test_the_model_inside_is_recorded_by_its_name(tmp_path):
    fit(tmp_path, Lit(), [RecorderCallback(tmp_path / "run", module="net")])
    net = Lit().net
    gt.Trajectory(tmp_path / "run").load_into(net, STEPS)
    with pytest.raises(gt.InputError, match="no attribute module='body': it has net"):
        fit(tmp_path, Lit(), [RecorderCallback(tmp_path / "other", module="body")])


def test_nothing_is_recorded_in_a_fast_run(tmp_path):
    fit(tmp_path, Lit(), [RecorderCallback(tmp_path / "run")], fast_dev_run=True)
    assert not (tmp_path / "run").exists()


def test_lightnings_checkpoints_are_a_trajectory_too(tmp_path):
    lit = fit(tmp_path, Lit(), [saving(tmp_path / "c")])
    trajectory = gt.Trajectory.from_checkpoints(tmp_path / "c")
    assert trajectory.steps == [3, 6, 9]
    net, whole = Lit().net, Lit()
    trajectory.load_into(net, 9, torch.optim.AdamW(net.parameters()))
    trajectory.load_into(whole, 9)
    for model in (net, whole):
        assert all(map(torch.equal, model.parameters(), parameters(lit)))
    assert trajectory.manifest["optimizer"]["groups"][0]["lr"] == 0.05
