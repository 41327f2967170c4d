import pickle

import pytest
import torch
from torch import nn

from geomtraj import tasks
from geomtraj.errors import InputError
from geomtraj.training import optimizers
from geomtraj.training.muon import split_parameters
from geomtraj.trajectory import Recorder, Trajectory, every

EVERY = pytest.mark.parametrize("name", optimizers.names())
TASK = tasks.make("pydoc-lm", layers=1, width=8, heads=2, context=8, batch_size=4, eval_sequences=8)


def take_steps(model, optimizer, start, stop):
    for step in range(start, stop):
        optimizer.zero_grad()
        TASK.loss(model, TASK.batch(step, 0)).mean().backward()
        optimizer.step()


def same_parameters(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_all_ten_are_there_in_a_new_torch():
    wanted = ["sgd", "sgdm", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad", "adafactor", "muon"]
    assert optimizers.names() == [n for n in wanted if hasattr(torch.optim, optimizers._ENTRIES[n].kind)]
    assert len(optimizers.names()) >= 9


@EVERY
def test_the_fallback_learning_rate_lowers_the_evaluation_loss(name):
    model = TASK.model(0)
    before = TASK.problem(model).loss()
    take_steps(model, optimizers.make(name, model, optimizers.entry(name).lr), 0, 60)
    assert TASK.problem(model).loss() < before - 0.1


@EVERY
def test_training_goes_on_bit_equal_after_recording(name, tmp_path):
    whole = TASK.model(0)
    take_steps(whole, optimizers.make(name, whole, 1e-3), 0, 6)
    model = TASK.model(0)
    optimizer = optimizers.make(name, model, 1e-3)
    with Recorder(tmp_path, model, optimizer, every(3)) as rec:
        take_steps(model, optimizer, 0, 6)
    assert rec.step == 6 and same_parameters(whole, model)
    again = TASK.model(1)
    optimizer = optimizers.make(name, again, 1.0)
    Trajectory(tmp_path).load_into(again, 3, optimizer)
    take_steps(again, optimizer, 3, 6)
    assert same_parameters(whole, again)


@EVERY
def test_learning_rate_and_hyperparameters_reach_every_group(name):
    optimizer = optimizers.make(name, TASK.model(0), 0.0123, weight_decay=0.05)
    assert all(group["lr"] == 0.0123 and group["weight_decay"] == 0.05 for group in optimizer.param_groups)
    frozen = TASK.model(0)
    frozen.embedding.weight.requires_grad_(False)
    held = [p for group in optimizers.make(name, frozen, 0.1).param_groups for p in group["params"]]
    assert len(held) == len(list(frozen.parameters())) - 1


@pytest.mark.skipif("muon" not in optimizers.names(), reason="this torch has no Muon")
def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    model = TASK.model(0)
    optimizer = optimizers.make("muon", model, 0.01, weight_decay=0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]
    assert groups[0] == {f"blocks.0.{n}.weight" for n in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")}
    assert groups[0] | groups[1] == set(names.values()) and "head.weight" in groups[1]

    # Against torch's two optimizers, stepped side by side.
    twin = TASK.model(0)
    matrices, rest = split_parameters(twin)
    parts = [
        torch.optim.Muon(matrices, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    take_steps(model, optimizer, 0, 3)
    for step in range(3):
        twin.zero_grad()
        TASK.loss(twin, TASK.batch(step, 0)).mean().backward()
        for part in parts:
            part.step()
    assert same_parameters(model, twin)

    pickle.loads(pickle.dumps(optimizer.state_dict()))
    with pytest.raises(InputError, match="use adamw"):
        optimizers.make("muon", nn.Linear(3, 1), 0.1)


@pytest.mark.parametrize(
    "name, lr, hyper, match",
    [
        ("adan", 0.1, {}, "unknown optimizer 'adan'.*did you mean 'adam'"),
        ("adam", 0.1, {"beta": 0.9}, "unknown hyperparameter of adam 'beta'.*'betas'"),
        ("adam", 0.1, {"params": []}, "unknown hyperparameter"),
        ("sgdm", 0.1, {"momentum": -1.0}, "cannot be built .*momentum"),
        ("adam", 0.1, {"betas": 0.9}, "cannot be built"),
        ("sgd", 0.0, {}, "positive number, not 0.0"),
        ("sgd", float("nan"), {}, "positive number"),
        ("sgd", "0.1", {}, "positive number, not '0.1'"),
    ],
)
def test_bad_names_and_values_are_told(name, lr, hyper, match):
    with pytest.raises(InputError, match=match):
        optimizers.make(name, nn.Linear(2, 2), lr, **hyper)


def test_an_optimizer_of_a_newer_torch_is_told(monkeypatch):
    monkeypatch.delitem(optimizers.REGISTRY, "adam")
    with pytest.raises(InputError, match="needs a newer torch"):
        optimizers.make("adam", nn.Linear(2, 2), 0.1)
