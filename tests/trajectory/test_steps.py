"""Whatever trains is recorded: several optimizers, wrappers, two phases, skipped steps, and what is never called."""

import json

import pytest
import torch
from torch import nn

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.trajectory import Recorder, Trajectory, every


class SAM(torch.optim.Optimizer):
    """Two phases: climb, then let the base optimizer descend from there; step() is never called."""

    def __init__(self, parameters, base, **settings):
        super().__init__(parameters, settings)
        self.base = base(self.param_groups, **settings)
        self.param_groups = self.base.param_groups

    def first_step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.detach().clone()
            with torch.no_grad():
                p.add_(p.grad, alpha=0.01)

    def second_step(self):
        for p in self.param_groups[0]["params"]:
            p.data.copy_(self.state[p]["old"])
        self.base.step()

    def step(self, closure=None):
        if closure is None:
            raise NotImplementedError
        self.first_step()
        closure()
        self.second_step()


class Lookahead(torch.optim.Optimizer):
    """Every second step goes half of the way back to where the slow weights are; Optimizer.__init__ is not called."""

    def __init__(self, base):
        self.optimizer, self.param_groups, self.defaults = base, base.param_groups, {}
        self.state, self.count = base.state, 0
        self.slow = [p.detach().clone() for g in base.param_groups for p in g["params"]]

    def step(self, closure=None):
        self.optimizer.step()
        self.count += 1
        if self.count % 2 == 0:
            fast = [p for g in self.param_groups for p in g["params"]]
            for p, slow in zip(fast, self.slow, strict=True):
                p.data.lerp_(slow, 0.5)
                slow.copy_(p.data)

    def state_dict(self):
        return self.optimizer.state_dict()


class AcceleratedOptimizer(torch.optim.Optimizer):
    """As Accelerate has it: no Optimizer.__init__, and step() does nothing between two updates."""

    def __init__(self, optimizer):
        self.optimizer, self.sync = optimizer, True

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def step(self, closure=None):
        if self.sync:
            self.optimizer.step(closure)

    def state_dict(self):
        return self.optimizer.state_dict()


class LightningOptimizer:
    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__class__ = type("Lightning" + type(optimizer).__name__, (LightningOptimizer, type(optimizer)), {})

    def __getattr__(self, name):
        return getattr(self._optimizer, name)

    def step(self, closure=None):
        self._optimizer.step(closure)


def model_and_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    return model, lambda: model(torch.ones(4, 2)).square().mean().backward()


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_holds(path, held):
    """That the trajectory's iterates are these, from step 0 on."""
    trajectory = Trajectory(path)
    assert trajectory.steps == list(range(len(held)))
    for iterate, expected in zip(trajectory, held, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(iterate.parameters.values(), expected, strict=True))
    return trajectory


def trained(path, model, loss, optimizer, update, steps=4):
    held = [parameters(model)]
    with Recorder(path, model, optimizer, every(1)) as rec:
        for _ in range(steps):
            model.zero_grad()
            loss()
            update()
            held.append(parameters(model))
        assert rec.step == steps
    return assert_holds(path, held)


@pytest.mark.parametrize("turned", [False, True])
def test_several_optimizers_are_recorded_after_the_last_of_them(tmp_path, turned):
    model, loss = model_and_loss()
    pair = [torch.optim.SGD(model[0].parameters(), 0.1, momentum=0.9), torch.optim.AdamW(model[1].parameters(), 0.1)]
    order = pair[::-1] if turned else pair
    trajectory = trained(tmp_path, model, loss, pair, lambda: [o.step() for o in order])
    assert trajectory.manifest["optimizer"]["class"] == "SGD + AdamW"
    assert trajectory.manifest["not_optimized"] == []
    assert len(trajectory[2].optimizer_state) == 2
    after = parameters(model)

    again, loss = model_and_loss()
    pair = [torch.optim.SGD(again[0].parameters(), 0.1, momentum=0.9), torch.optim.AdamW(again[1].parameters(), 0.1)]
    trajectory.load_into(again, 2, pair)
    for _ in range(2):
        again.zero_grad()
        loss()
        [o.step() for o in pair]
    assert all(map(torch.equal, after, parameters(again)))
    with pytest.raises(TrajectoryError, match="recorded with 2 optimizers, not 1"):
        trajectory.load_into(again, 2, pair[0])
    with (
        pytest.warns(UserWarning, match="only a part"),
        pytest.raises(TrajectoryError, match=r"recorded with SGD \+ AdamW, not SGD"),
        Recorder(tmp_path, again, pair[0], resume=True),
    ):
        pass


def test_a_step_that_amp_skips_of_one_of_two_optimizers_moves_no_iterate_between_the_two(tmp_path):
    model, loss = model_and_loss()
    first, second = (torch.optim.SGD(part.parameters(), 0.1) for part in model)
    held = [parameters(model)]
    with Recorder(tmp_path, model, [first, second], every(1)):
        for which in ([first, second], [second], [first, second]):
            model.zero_grad()
            loss()
            for optimizer in which:
                optimizer.step()
            held.append(parameters(model))
    assert_holds(tmp_path, held)


def test_one_optimizer_for_each_parameter_stepped_inside_backward(tmp_path):
    model, loss = model_and_loss()
    optimizers = {p: torch.optim.Adam([p], 0.1) for p in model.parameters()}

    def update(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(update)
    trained(tmp_path, model, loss, optimizers, lambda: None)


def test_a_dummy_that_holds_the_optimizers_fused_into_backward_counts_once(tmp_path):
    class LayerWiseDummy(torch.optim.Optimizer):
        def __init__(self, optimizer_dict):
            self.optimizer_dict = optimizer_dict
            super().__init__([torch.zeros(1)], {"lr": 0.1})

        def step(self, closure=None):
            pass

    model, loss = model_and_loss()
    optimizers = {p: torch.optim.Adam([p], 0.1) for p in model.parameters()}
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    dummy = LayerWiseDummy(optimizers)
    trained(tmp_path, model, loss, dummy, dummy.step)


def test_two_phases_are_recorded_through_the_base_and_go_on_bit_equal(tmp_path):
    def sam(model):
        return SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)

    model, loss = model_and_loss()
    optimizer = sam(model)

    def phases():
        optimizer.first_step()
        model.zero_grad()
        loss()
        optimizer.second_step()

    trajectory = trained(tmp_path / "phases", model, loss, optimizer, phases)
    assert trajectory.status == "complete"
    after = parameters(model)

    model, loss = model_and_loss()
    optimizer = sam(model)
    trajectory.load_into(model, 2, optimizer)
    for _ in range(2):
        model.zero_grad()
        loss()
        phases()
    assert all(map(torch.equal, after, parameters(model)))

    model, loss = model_and_loss()
    optimizer = sam(model)
    trained(tmp_path / "closure", model, loss, optimizer, lambda: optimizer.step(lambda: (model.zero_grad(), loss())))
    assert all(map(torch.equal, after, parameters(model)))


def test_wrappers_without_hooks_are_recorded_after_they_have_done_their_part(tmp_path):
    model, loss = model_and_loss()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), 0.1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer.optimizer, 1)
    trained(tmp_path, model, loss, optimizer, lambda: (optimizer.step(), scheduler.step()))
    assert "step" not in vars(optimizer)


@pytest.mark.parametrize("wrap", [AcceleratedOptimizer, LightningOptimizer, lambda o: AcceleratedOptimizer(o)])
def test_wrappers_that_hand_on_are_named_and_resumed_as_the_plain_optimizer(tmp_path, wrap):
    model, loss = model_and_loss()
    optimizer = wrap(torch.optim.Adam(model.parameters(), 0.1))
    trajectory = trained(tmp_path, model, loss, optimizer, lambda: optimizer.step())
    assert trajectory.manifest["optimizer"]["class"] == "Adam"
    again, _ = model_and_loss()
    with Recorder(tmp_path, again, torch.optim.Adam(again.parameters(), 0.1), resume=True) as rec:
        assert rec.step == 4
    assert all(map(torch.equal, parameters(model), parameters(again)))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["optimizer"]["class"] = "LightningAdam"  # as earlier versions wrote it
    manifest = {k: v for k, v in manifest.items() if k != "sha256"} | {"format_version": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with Recorder(tmp_path, again, wrap(torch.optim.Adam(again.parameters(), 0.1)), resume=True) as rec:
        assert rec.step == 4


def test_accumulation_inside_a_wrapper_is_no_step(tmp_path):
    model, loss = model_and_loss()
    optimizer = AcceleratedOptimizer(torch.optim.SGD(model.parameters(), 0.1))
    with Recorder(tmp_path, model, optimizer, every(1)) as rec:
        for step in range(4):
            optimizer.sync = step % 2 == 1
            loss()
            optimizer.step()
    assert rec.step == 2


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_grad_scaler_skips_is_none(tmp_path, fused):
    model, _ = model_and_loss()
    optimizer = torch.optim.Adam(model.parameters(), 0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    held = [parameters(model)]
    with Recorder(tmp_path, model, optimizer, every(1)):
        for factor in (float("inf"), 1.0, float("nan"), 1.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 2)).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            if factor == 1.0:
                held.append(parameters(model))
    assert_holds(tmp_path, held)


def test_steps_that_nothing_tells_of_are_told_by_tick_or_not_called_complete(tmp_path):
    model, loss = model_and_loss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def by_hand():
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad

    held = [parameters(model)]
    with Recorder(tmp_path / "told", model, optimizer, every(1)) as rec:
        for _ in range(3):
            model.zero_grad()
            loss()
            by_hand()
            rec.tick()
            held.append(parameters(model))
    assert assert_holds(tmp_path / "told", held).status == "complete"
    with pytest.raises(InputError, match="inside the block"):
        rec.tick()

    with (
        pytest.warns(UserWarning, match="no step of the optimizer was seen"),
        Recorder(tmp_path / "untold", model, optimizer, every(1)),
    ):
        by_hand()
    assert Trajectory(tmp_path / "untold").status == "unseen"
    with Recorder(tmp_path / "still", model, optimizer, every(1)):
        pass
    assert Trajectory(tmp_path / "still").status == "complete"


def test_a_tick_after_a_step_that_was_told_of_counts_nothing(tmp_path):
    model, loss = model_and_loss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(tmp_path, model, optimizer, every(1)) as rec:
        for _ in range(3):
            loss()
            optimizer.step()
            rec.tick()
    assert rec.step == 3


def test_an_optimizer_of_a_part_of_the_parameters_is_told(tmp_path):
    model, _ = model_and_loss()
    with (
        pytest.warns(UserWarning, match="only a part of the trainable parameters, not 1.weight, 1.bias"),
        Recorder(tmp_path, model, torch.optim.SGD(model[0].parameters(), 0.1)),
    ):
        pass
    assert Trajectory(tmp_path).manifest["not_optimized"] == ["1.weight", "1.bias"]
    model[1].requires_grad_(False)
    with Recorder(tmp_path / "frozen", model, torch.optim.SGD(model[0].parameters(), 0.1)):
        pass


def test_lists_of_anything_else_are_refused(tmp_path):
    model, _ = model_and_loss()
    for bad in ([], [model], "adam", [torch.optim.SGD(model.parameters(), 0.1), None]):
        with pytest.raises(InputError):
            Recorder(tmp_path, model, bad)


def test_start_and_stop_are_the_block_in_two_calls(tmp_path):
    model, loss = model_and_loss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rec = Recorder(tmp_path, model, optimizer, every(10))
    assert rec.start() is rec
    for _ in range(3):
        loss()
        optimizer.step()
    rec.stop()
    rec.stop()
    trajectory = Trajectory(tmp_path)
    assert trajectory.status == "complete" and trajectory.steps == [0, 3]
