import copy
import random

import numpy as np
import pytest
import torch
from models import CASES, TinyGPT, split
from problems import PROBLEMS
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import geomtraj as gt
from geomtraj.errors import ComputationError, InputError

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1, 0])


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def net(*extra):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), *extra, nn.Tanh(), nn.Linear(4, 2))


def test_layout_theta_and_sizes():
    problem = gt.Problem(net(), losses, split([4, 2], X, Y))
    assert list(problem.layout) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert problem.layout["2.weight"] == (slice(16, 24), (2, 4))
    assert problem.size == 26 and problem.examples == 6 and problem.total_weight == 6
    theta = problem.theta()
    assert torch.equal(theta, torch.cat([p.flatten() for p in problem.model.parameters()]))
    theta.zero_()
    assert problem.theta().abs().sum() > 0  # a copy


def test_globs_select_parameters_and_near_names_are_listed():
    problem = gt.Problem(net(), losses, [(X, Y)], params="*.weight")
    assert list(problem.layout) == ["0.weight", "2.weight"]
    assert list(gt.Problem(net(), losses, [(X, Y)], params=["2.*"]).layout) == ["2.weight", "2.bias"]
    whole = gt.Problem(net(), losses, [(X, Y)])
    rows = whole.layout.indices(["2.weight", "2.bias"])
    part = gt.Problem(net(), losses, [(X, Y)], params="2.*")
    assert torch.allclose(part.gradient(), whole.gradient()[rows])
    assert torch.allclose(gt.Hessian(part).dense(), gt.Hessian(whole).dense()[rows][:, rows], atol=1e-7)
    with pytest.raises(InputError, match=r"'0\.weigth'.*did you mean '0\.weight'"):
        gt.Problem(net(), losses, [(X, Y)], params="0.weigth")


def test_tied_weights_count_once_and_answer_to_both_names():
    case = CASES["gpt"]()
    assert "head.weight" not in list(case.problem.layout) and case.problem.size == 136
    tied = gt.Problem(case.problem.model, case.problem.objective.loss, list(case.problem.batches), params="head.weight")
    assert list(tied.layout) == ["embedding.weight"]


def test_frozen_parameters_are_left_out_and_unused_ones_are_reported():
    model = net()
    model[0].weight.requires_grad_(False)
    model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    problem = gt.Problem(model, losses, [(X, Y)])
    assert list(problem.layout) == ["spare", "0.bias", "2.weight", "2.bias"]
    assert problem.unused == ("spare",)
    assert torch.equal(gt.Hessian(problem).dense()[:2], torch.zeros(2, problem.size))
    with pytest.raises(InputError, match=r"only frozen parameters \(0\.weight\)"):
        gt.Problem(model, losses, [(X, Y)], params="0.weight")


def test_everything_is_left_as_it_was_also_after_an_error():
    model = net(nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[1].eval()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, generator=torch.Generator().manual_seed(3))

    def noisy(model, batch):
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(1)
        if fail:
            raise RuntimeError("the user's own error")
        return losses(model, batch)

    def state():
        rng = (random.getstate()[1], tuple(np.random.get_state()[1]), torch.get_rng_state().tolist())  # noqa: NPY002
        values = [t.clone() for t in (*model.state_dict().values(), *(p.grad for p in model.parameters()))]
        flags = [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]
        return (*rng, loader.generator.get_state().tolist(), flags, torch.is_grad_enabled()), values

    fail = False
    before, values = state()
    problem = gt.Problem(model, noisy, loader)
    problem.loss(), problem.gradient(), gt.Hessian(problem) @ problem.theta(), gt.GGN(problem) @ problem.theta()
    fail = True
    with pytest.raises(RuntimeError, match="own error"):
        problem.gradient()
    with pytest.raises(RuntimeError, match="own error"):
        gt.Hessian(problem) @ problem.theta()
    after, values_after = state()
    assert before == after
    assert all(torch.equal(a, b) for a, b in zip(values, values_after, strict=True))


def test_training_mode_leaves_batch_statistics_as_they_were():
    model = net(nn.BatchNorm1d(4)).double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    problem = gt.Problem(model, losses, [(X.double(), Y)], mode="train")
    hessian = gt.Hessian(problem)
    dense = hessian.dense()
    assert torch.allclose(hessian @ problem.theta(), dense @ problem.theta())  # the kept graph is still whole
    assert problem.batch_statistics == ["1"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    reference = torch.func.jacrev(
        torch.func.grad(
            lambda t: F.cross_entropy(
                torch.func.functional_call(
                    model.train(),
                    problem.layout.unflatten(t) | {k: v.clone() for k, v in model.named_buffers()},
                    (X.double(),),
                ),
                Y,
            )
        )
    )(problem.theta())
    assert torch.allclose(dense, reference, atol=1e-10)


def complex_net():
    model = net()
    model[0].weight = nn.Parameter(torch.ones(4, 3, dtype=torch.complex64))
    return model


def sharded_net():
    model = net()
    model[0].weight.full_tensor = None  # as a DTensor has it
    return model


class FullyShardedDataParallel(nn.Sequential):
    """Has the name of torch's own, which needs several processes."""


class Once:
    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([(X, Y)] * self.passes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gt.Problem(net(nn.Dropout(0.5)), losses, [(X, Y)], mode="train"), "dropout is active in '1'"),
        (lambda: gt.Problem(net(), lambda m, b: F.dropout(losses(m, b)), [(X, Y)]), "draws random numbers"),
        (lambda: gt.Problem(net(), losses, DataLoader(TensorDataset(X, Y), batch_size=2, shuffle=True)), "shuffling"),
        (lambda: gt.Problem(net(), losses, Once()), "1 batches, then 2"),
        (lambda: gt.Problem(net(), lambda m, b: losses(m, b).mean(), [(X, Y)]), "reduction='none'"),
        (lambda: gt.Problem(net(), lambda m, b: losses(m, b).tolist(), [(X, Y)]), "returned list"),
        (lambda: gt.Problem(net(), lambda m, b: (losses(m, b), torch.ones(4)), [(X, Y)]), r"weights have shape \(4,\)"),
        (lambda: gt.Problem(net(), lambda m, b: (losses(m, b), m(b[0])[:, 0]), [(X, Y)]), "depend on the parameters"),
        (lambda: gt.Problem(net(), lambda m, b: (losses(m, b), torch.zeros(6)), [(X, Y)]), "sum to 0"),
        (lambda: gt.Problem(net(), losses, []), "batches is empty"),
        (lambda: gt.Problem(net(), losses, DataLoader(TensorDataset(X[:0], Y[:0]))), "batches is empty"),
        (lambda: gt.Problem(net(), losses, iter([(X, Y)])), "one-shot iterator"),
        (lambda: gt.Problem(net(), losses, {"x": X}), r"\[batch\] if there is only one"),
        (lambda: gt.Problem(net().half(), losses, [(X, Y)]), "is torch.float16"),
        (lambda: gt.Problem(complex_net(), losses, [(X, Y)]), "is torch.complex64"),
        (lambda: gt.Problem(nn.Tanh(), losses, [(X, Y)]), "has no parameters"),
        (lambda: gt.Problem(sharded_net(), losses, [(X, Y)]), "are sharded over processes"),
        (lambda: gt.Problem(FullyShardedDataParallel(net()), losses, [(X, Y)]), "are sharded over processes"),
        (lambda: gt.Problem(losses, losses, [(X, Y)]), "must be a torch.nn.Module"),
        (lambda: gt.Problem(net(), None, [(X, Y)]), "must be a function"),
        (lambda: gt.Problem(net(), losses, [(X, Y)], mode="test"), "choose 'eval' or 'train'"),
        (lambda: gt.Problem(net(), losses, [(X, Y)]).loss(torch.ones(3)), r"shape \(26,\)"),
        (lambda: gt.Problem(net(), losses, [(X, Y)]).loss(torch.ones(26).double()), "torch.float64"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_shuffling_is_named_also_when_the_sum_does_not_change():
    loader = DataLoader(TensorDataset(X, Y), batch_size=1, shuffle=True)
    with pytest.raises(InputError, match="shuffling"):
        gt.Problem(net(), losses, loader)


def test_a_loss_that_no_parameter_reaches():
    problem = gt.Problem(net(), lambda m, b: losses(m, b).detach(), [(X, Y)])
    assert problem.unused == tuple(problem.layout)
    with pytest.raises(ComputationError, match="no selected parameter reaches the loss"):
        problem.gradient()


def test_a_diverged_model_has_a_loss_that_is_nan_not_a_crash():
    model = net()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    assert torch.isnan(gt.Problem(model, losses, [(X, Y)]).loss())


def test_a_compiled_model_is_unwrapped():
    problem = gt.Problem(torch.compile(net(), backend="eager"), losses, [(X, Y)])
    assert next(iter(problem.layout)) == "0.weight"


def test_the_fingerprint_tells_data_losses_and_selections_apart():
    def prints(loss=losses, batches=None, **options):
        return gt.Problem(net(), loss, batches or [(X, Y)], **options).fingerprint()

    assert prints() == prints()
    others = [
        prints(batches=[(X + 1, Y)]),
        prints(params="0.*"),
        prints(loss=lambda m, b: 2 * losses(m, b)),
        prints(loss=lambda m, b: 3 * losses(m, b)),
    ]
    assert len({prints(), *others}) == 5


def test_transformer_encoder_layers_can_be_measured():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True, activation="gelu").double()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    problem = gt.Problem(layer, lambda m, b: m(b).square().mean((1, 2)), [x[:2], x[2:]])
    vector = torch.randn(problem.size, dtype=torch.float64)
    step = 1e-5
    slope = (problem.gradient(problem.theta() + step * vector) - problem.gradient(problem.theta() - step * vector)) / (
        2 * step
    )
    assert torch.allclose(gt.Hessian(problem) @ vector, slope, atol=1e-7)


def test_tiny_gpt_in_float32_is_close_to_float64():
    torch.manual_seed(5)
    model, tokens = TinyGPT(), torch.randint(0, 7, (4, 6))

    def token_losses(model, tokens):
        return F.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")

    single = gt.Problem(model, token_losses, [tokens])
    vector = torch.randn(single.size)
    product = gt.Hessian(single) @ vector
    double = gt.Problem(model.double(), token_losses, [tokens])
    assert torch.allclose(product.double(), gt.Hessian(double) @ vector.double(), rtol=1e-3, atol=1e-4)


def test_a_checkpointed_model_has_the_gradient_of_the_theta_asked_for():
    """Its blocks are computed once more in the backward pass, when the model holds other parameters again."""
    torch.manual_seed(0)
    problem = PROBLEMS["checkpointed_and_compiled"]()
    theta = problem.theta() + 0.1
    step = 1e-6 * torch.randn(problem.size).double()
    change = (problem.loss(theta + step) - problem.loss(theta - step)) / 2
    assert torch.isclose(problem.gradient(theta) @ step, change, rtol=1e-6)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        y = (x * self.weight).exp()
        y += 1
        return y


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (InPlace(), torch.ones(2, 3), "changes a tensor in place that its derivative needs .*: write x = x \\+ y"),
        (nn.Linear(3, 3), torch.ones(2, 3).double(), "different number types .*: convert the batches to the model's"),
        (nn.Linear(3, 3).to("meta"), torch.ones(2, 3), "different devices .*: move the batches to the model's device"),
    ],
    ids=["in place", "dtype", "device"],
)
def test_what_torch_refuses_is_said_in_one_sentence(model, x, message):
    with pytest.raises(gt.errors.InputError, match=message) as raised:
        gt.Problem(model, lambda m, b: m(b).square().sum(1), [x])
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_a_module_that_is_held_twice_keeps_its_own_parameters():
    model = nn.Module()
    model.first = model.second = nn.Linear(3, 3)
    model.forward = lambda x: model.second(model.first(x).tanh())
    weight = model.first.weight
    problem = gt.Problem(model, losses, [(X, Y)])
    gt.Hessian(problem) @ problem.theta()
    assert model.first.weight is weight and weight.is_leaf


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_caches_gradients_and_lists_of_the_model_are_left_as_they_were():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.seen, self.table = nn.Linear(3, 2), [], {"kept": 1}

        def forward(self, x):
            self.table.setdefault(len(x), torch.ones(2, dtype=x.dtype))
            z = self.layer(x) * self.table[len(x)]
            self.seen.append(z)
            return z

    model = Caching()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    gradients = [p.grad for p in model.parameters()]

    def clearing(model, batch):
        model.zero_grad()
        return losses(model, batch)

    problem = gt.Problem(model, clearing, [(X, Y)])
    gt.r_med(problem), problem.fingerprint(), problem.gradient()
    assert model.seen == [] and model.table == {"kept": 1}
    assert all(p.grad is g and (g == 7).all() for p, g in zip(model.parameters(), gradients, strict=True))


def test_batches_that_are_appended_later_do_not_belong_to_the_problem():
    batches = [(X, Y)]
    problem = gt.Problem(net(), losses, batches)
    before = problem.loss(), problem.gradient()
    batches.append((X + 1, Y))
    assert torch.equal(problem.loss(), before[0]) and torch.equal(problem.gradient(), before[1])


def test_a_compiled_part_has_one_name_for_problem_and_trajectory(tmp_path):
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inside = nn.Sequential(torch.compile(copy.deepcopy(plain[0]), backend="eager"), *copy.deepcopy(plain)[1:])
    x, y = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 2, (5,))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    here, there = (gt.Problem(model, loss, [(x, y)]) for model in (inside, plain))
    with gt.Recorder(tmp_path / "run", inside, torch.optim.SGD(inside.parameters(), 0.1)):
        pass
    assert list(here.layout) == list(there.layout) == list(gt.Trajectory(tmp_path / "run")[0].parameters)
    assert list(here.blocks) == list(there.blocks) and here.fingerprint() == there.fingerprint()
    vector = torch.randn(here.size, dtype=torch.float64)
    assert torch.equal(here.gradient(), there.gradient())
    assert torch.allclose(gt.Hessian(here) @ vector, gt.Hessian(there) @ vector, atol=1e-12)
    assert torch.allclose(gt.diagonal(here, "exact").values, gt.diagonal(there, "exact").values, atol=1e-12)
    assert {n for n, _ in inside.named_parameters()} > {"0._orig_mod.weight"}, "the model is as it was"
