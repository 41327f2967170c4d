import pytest
import torch
from models import TinyGPT
from torch import nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj import updates
from geomtraj.errors import InputError, NotRecorded, TrajectoryError
from geomtraj.trajectory.log import read_log

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def batch_of(step):
    rows = torch.arange(step, step + 6)
    return X[rows], Y[rows]


def matrices(model):
    return [p for p in model.parameters() if p.dim() == 2]


def vectors(model):
    return [p for p in model.parameters() if p.dim() < 2]


def simple(name, **settings):
    return lambda model: getattr(torch.optim, name)(model.parameters(), **settings)


OPTIMIZERS = {
    "sgd": simple("SGD", lr=0.1, weight_decay=0.1),
    "momentum": simple("SGD", lr=0.1, momentum=0.9, dampening=0.1),
    "nesterov": simple("SGD", lr=0.1, momentum=0.9, nesterov=True),
    "adam": simple("Adam", lr=0.01, weight_decay=0.1),
    "adamw": simple("AdamW", lr=0.01, weight_decay=0.1),
    "amsgrad": simple("Adam", lr=0.01, amsgrad=True, maximize=True),
    "rmsprop": simple("RMSprop", lr=0.01, momentum=0.5, centered=True),
    "adagrad": simple("Adagrad", lr=0.05, lr_decay=0.1),
    "adadelta": simple("Adadelta", lr=0.5),
    "nadam": simple("NAdam", lr=0.01),
    "radam": simple("RAdam", lr=0.01),
    "adamax": simple("Adamax", lr=0.01),
    "asgd": simple("ASGD", lr=0.05, t0=2),
    "rprop": simple("Rprop", lr=0.01),
    "lbfgs": simple("LBFGS", lr=0.5, max_iter=3),
    "groups": lambda model: torch.optim.AdamW(
        [{"params": vectors(model), "lr": 0.1}, {"params": matrices(model), "betas": (0.5, 0.9)}], lr=0.01
    ),
    "several": lambda model: [torch.optim.SGD(matrices(model), lr=0.1, momentum=0.9), torch.optim.Adam(vectors(model))],
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["muon"] = lambda model: [torch.optim.Muon(matrices(model), lr=0.01), torch.optim.AdamW(vectors(model))]


def record(path, make, steps=5, frozen=(), scheduled=False, model=None, **settings):
    model = net() if model is None else model
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    made = make(model)
    several = made if isinstance(made, list) else [made]
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=8) for o in several] if scheduled else []
    with gt.Recorder(path, model, made, schedule=gt.every(1), **settings):
        for step in range(steps):

            def closure(step=step):
                for optimizer in several:
                    optimizer.zero_grad()
                value = losses(model, batch_of(step)).mean()
                value.backward()
                return value

            closure()
            for optimizer in several:
                optimizer.step(closure) if isinstance(optimizer, (torch.optim.LBFGS, Ascent)) else optimizer.step()
            for schedule in schedules:
                schedule.step()
    return gt.Trajectory(path)


def problem(model=None, **options):
    return gt.Problem(model or net(), losses, [(X, Y)], **options)


SCHEDULED = ("momentum", "adamw", "groups", "several")


@pytest.mark.parametrize(("name", "scheduled"), [*((n, False) for n in OPTIMIZERS), *((n, True) for n in SCHEDULED)])
def test_the_next_update_is_bit_equal_to_the_step_of_training(tmp_path, name, scheduled):
    run = record(tmp_path / "run", OPTIMIZERS[name], scheduled=scheduled)
    measured = problem(net(3))
    for step in range(5):
        update = gt.next_update(measured, run[step], batches=[batch_of(step)])
        assert torch.equal(update, run[step + 1].theta - run[step].theta)
        assert update.shape == (measured.size,) and update.any()


def test_frozen_and_unselected_parameters_and_those_that_no_optimizer_holds(tmp_path):
    run = record(tmp_path / "run", lambda m: torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=0.01),
                 frozen=("0.weight",))  # fmt: skip
    model = net()
    model[0].weight.requires_grad_(False)
    update = gt.next_update(problem(model), run[2], batches=[batch_of(2)])
    assert torch.equal(update, run[3].theta - run[2].theta)
    whole = gt.next_update(problem(), run[2], batches=[batch_of(2)])
    slots = problem().layout
    assert not whole[slots["0.weight"].slice].any() and torch.equal(whole[slots["0.bias"].slice], update[:5])
    part = gt.next_update(problem(params="2.*"), run[2], batches=[batch_of(2)])
    assert torch.equal(part, whole[20 + 5 :])
    with pytest.warns(UserWarning, match="holds only a part"):
        held = record(tmp_path / "held", lambda m: torch.optim.SGD(matrices(m), lr=0.1, momentum=0.9))
    update = gt.next_update(problem(), held[1], batches=[batch_of(1)])
    assert torch.equal(update, held[2].theta - held[1].theta)


def test_weights_ragged_batches_and_the_problems_own_batches(tmp_path):
    run = record(tmp_path / "run", simple("SGD", lr=0.1))
    weights = torch.linspace(0, 1, 12)

    def weighted(model, batch):
        return losses(model, batch), batch[2]

    parts = [(X[:7], Y[:7], weights[:7]), (X[7:], Y[7:], weights[7:])]
    measured = gt.Problem(net(), weighted, parts)
    theta = run[3].theta
    expected = -0.1 * measured.gradient(theta)
    torch.testing.assert_close(gt.next_update(measured, run[3]), expected, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(gt.next_update(measured, run[3], batches=parts), expected, rtol=1e-3, atol=1e-7)
    whole = gt.next_update(measured, run[3], batches=[(X, Y, weights)])
    torch.testing.assert_close(whole, expected, rtol=1e-3, atol=1e-7)


def test_batch_norm_is_measured_in_the_problems_mode_with_the_iterates_buffers(tmp_path):
    def build():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.0), nn.Linear(5, 3))

    run = record(tmp_path / "run", simple("Adam", lr=0.01), model=build())
    other = build()
    training = gt.Problem(other, losses, [(X, Y)], mode="train")
    update = gt.next_update(training, run[4], batches=[batch_of(4)])
    assert torch.equal(update, run[5].theta - run[4].theta)
    in_eval = gt.next_update(gt.Problem(other, losses, [(X, Y)]), run[4], batches=[batch_of(4)])
    assert not torch.equal(in_eval, update)


def test_fused_attention_and_tied_weights_are_computed_as_training_does(tmp_path):
    def build():
        torch.manual_seed(2)
        return TinyGPT()

    ids = torch.randint(0, 7, (6, 6), generator=torch.Generator().manual_seed(3))
    batch = (ids[:, :-1], ids[:, 1:])

    def tokens(model, b):
        return F.cross_entropy(model(b[0]).transpose(1, 2), b[1], reduction="none")

    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with gt.Recorder(tmp_path / "run", model, optimizer, schedule=gt.every(1)):
        for _ in range(4):
            optimizer.zero_grad()
            tokens(model, batch).mean().backward()
            optimizer.step()
    run, measured = gt.Trajectory(tmp_path / "run"), gt.Problem(build(), tokens, [batch])
    for step in range(4):
        assert torch.equal(gt.next_update(measured, run[step]), run[step + 1].theta - run[step].theta)


def test_everything_is_left_as_it_was(tmp_path):
    run = record(tmp_path / "run", simple("Adam", lr=0.01))
    model = net(5)
    measured = problem(model)
    model.train()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    before, rng = run[2], torch.random.get_rng_state()
    stored = {k: v.clone() for k, v in before.optimizer_state["state"][0].items()}
    first = gt.next_update(measured, before)
    assert torch.equal(gt.next_update(measured, before), first)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and model.training
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert all(torch.equal(v, stored[k]) for k, v in before.optimizer_state["state"][0].items())
    assert torch.equal(torch.random.get_rng_state(), rng)


@pytest.mark.parametrize("name", ["momentum", "adamw", "amsgrad", "adagrad", "several", "lbfgs"])
def test_a_problem_in_double_precision_steps_from_a_run_in_single_precision(tmp_path, name):
    run = record(tmp_path / "run", OPTIMIZERS[name])
    double = gt.Problem(net().double(), losses, [(X.double(), Y)])
    x, y = batch_of(3)
    update = gt.next_update(double, run[3], batches=[(x.double(), y)])
    torch.testing.assert_close(update, (run[4].theta - run[3].theta).double(), rtol=1e-3, atol=1e-5)


class Signs(torch.optim.Optimizer):
    """Keeps a setting outside of its groups."""

    def __init__(self, params, lr=0.1, scale=1.0):
        super().__init__(params, {"lr": lr})
        self.scale = scale

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    count = self.state[p].setdefault("count", torch.zeros(()))
                    count += 1
                    p.sub_(p.grad.sign() * self.scale * group["lr"] / count)


class Ascent(torch.optim.Optimizer):
    """As SAM: the closure is called from inside step(), at other parameters."""

    def __init__(self, params, base=None):
        super().__init__(params, {"lr": 0.1})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.9)
        self.param_groups = self.base.param_groups

    def step(self, closure=None):
        assert closure is not None, "this optimizer requires a closure"
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        moves = [0.05 * p.grad for p in params]
        with torch.no_grad():
            for p, move in zip(params, moves, strict=True):
                p.add_(move)
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for p, move in zip(params, moves, strict=True):
                p.sub_(move)
        self.base.step()


def test_other_classes_need_a_factory(tmp_path):
    run = record(tmp_path / "run", lambda m: Signs(m.parameters(), scale=3.0))
    measured = problem()
    with pytest.raises(NotRecorded, match=r"trained with Signs of .*pass optimizer=lambda params: Signs"):
        gt.next_update(measured, run[2])
    update = gt.next_update(measured, run[2], lambda params: Signs(params, scale=3.0), [batch_of(2)])
    assert torch.equal(update, run[3].theta - run[2].theta)
    with pytest.raises(InputError, match="the factory gave a list"):
        gt.next_update(measured, run[2], lambda params: [])
    with pytest.raises(InputError, match="2 factories for 1 recorded"):
        gt.next_update(measured, run[2], [Signs, Signs])
    with pytest.raises(TrajectoryError, match="does not fit this Adam"):
        gt.next_update(measured, run[2], lambda params: torch.optim.Adam(params))
    updates.register_optimizer("Signs", lambda params: Signs(params, scale=3.0))
    try:
        assert torch.equal(gt.next_update(measured, run[2], batches=[batch_of(2)]), update)
    finally:
        del updates.FACTORIES["Signs"]


def test_an_optimizer_that_asks_for_a_closure_gets_one(tmp_path):
    run = record(tmp_path / "run", lambda m: Ascent(m.parameters()))
    for step in (0, 3):
        update = gt.next_update(problem(), run[step], Ascent, [batch_of(step)])
        assert torch.equal(update, run[step + 1].theta - run[step].theta)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer_state": False}, "no optimizer state"),
        ({"subset": "2.*"}, r"only the parameters 2\.\*"),
        ({"dtype": torch.bfloat16}, "rounded to bfloat16"),
    ],
)
def test_what_is_missing_is_named(tmp_path, settings, sentence):
    run = record(tmp_path / "run", simple("SGD", lr=0.1), **settings)
    with pytest.raises(NotRecorded, match=sentence) as caught:
        gt.next_update(problem(), run[1])
    assert isinstance(caught.value, InputError) and isinstance(caught.value, TrajectoryError)


def test_wrong_arguments_and_other_models(tmp_path):
    run = record(tmp_path / "run", simple("SGD", lr=0.1))
    with pytest.raises(InputError, match=r"needs a gt\.Problem, not Linear"):
        gt.next_update(nn.Linear(2, 2), run[0])
    with pytest.raises(InputError, match="needs an Iterate, not int"):
        gt.next_update(problem(), 3)
    with pytest.raises(InputError, match="batches is a tuple"):
        gt.next_update(problem(), run[0], batches=(X, Y))
    other = gt.Problem(nn.Linear(4, 3), losses, [(X, Y)])
    with pytest.raises(TrajectoryError, match="another model"):
        gt.next_update(other, run[0])


def test_the_learning_rate_is_that_of_the_step_from_here(tmp_path):
    run = record(tmp_path / "run", simple("SGD", lr=0.1, momentum=0.9), scheduled=True)
    optimizer = simple("SGD", lr=0.1, momentum=0.9)(net())
    expected = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=8)
    for step in range(5):
        assert run[step].learning_rate == expected.get_last_lr()[0]
        optimizer.step()
        expected.step()
    assert run[0].logged == {} and run.log == [] and read_log(run.path) == []
    plain = record(tmp_path / "plain", simple("SGD", lr=0.1))
    assert plain[1].learning_rates == (0.1,) and not plain[1].changed
    without = record(tmp_path / "without", simple("SGD", lr=0.1), optimizer_state=False)
    assert without[1].learning_rate is None and without[1].learning_rates == ()
