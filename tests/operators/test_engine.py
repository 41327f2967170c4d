"""Choosing a way, memory that does not suffice, and models that cannot be differentiated."""

import gc
import re
import subprocess
import sys
import weakref

import pytest
import torch
from models import CASES, cross_entropy, split
from strategy_cases import WAY_CASES
from torch import nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.errors import ComputationError, InputError
from geomtraj.failures import explained, is_out_of_memory
from geomtraj.operators.evaluation import autotune
from geomtraj.operators.evaluation.autotune import Timing
from geomtraj.operators.hvp import WAYS
from geomtraj.operators.hvp.double_backward import Kept
from geomtraj.operators.hvp.linearized import LinearizedForward


def close(a, b):
    return float((a - b).abs().max()) <= 1e-10 * float(b.abs().max())


@pytest.fixture
def eager_trials(monkeypatch):
    """A trial before the third product."""
    monkeypatch.setattr(autotune, "TRIAL_PRODUCTS", 2)
    for gates in (autotune.KEEPING, autotune.PASSING):
        for way in gates:
            monkeypatch.setitem(gates, way, 0.0)


def pretend(monkeypatch, **seconds):
    """Timings as if each way took so long, whatever the machine does."""
    real = autotune.try_ways

    def try_ways(names, loss, width, room, learnt):
        real(names, loss, width, room, learnt)
        for name in learnt.timings:
            learnt.timings[name] = Timing(0.0, seconds[name.replace("-", "_")])

    monkeypatch.setattr(autotune, "try_ways", try_ways)


@pytest.mark.parametrize("name", WAY_CASES)
def test_auto_gives_the_dense_hessian_before_and_after_its_choice(name, eager_trials):
    case = WAY_CASES[name]()
    dense = case.hessian()
    for _ in range(2):
        assert close(gt.Hessian(case.problem).dense(chunk=2), dense)


def test_auto_takes_the_quickest_way_and_remembers_it(monkeypatch, eager_trials):
    pretend(monkeypatch, kept=3.0, linearized_forward=1.0, linearized_reverse=2.0)
    case = CASES["mlp"]()
    vector = case.problem.theta()
    first = gt.Hessian(case.problem)
    ways = []
    for _ in range(3):
        first @ vector
        ways.append(first.strategy)
    assert ways == ["kept", "kept", "linearized-forward"]
    assert first.timings == {"kept": 3.0, "linearized-forward": 1.0, "linearized-reverse": 2.0}
    monkeypatch.setattr(autotune, "try_ways", None)  # another trial would fail
    later = gt.Hessian(case.problem, case.problem.theta() + 1)
    later @ vector
    assert later.strategy == "linearized-forward"


def test_without_a_forward_derivative_auto_takes_the_other_recording(monkeypatch, eager_trials):
    pretend(monkeypatch, kept=3.0, linearized_reverse=1.0)
    case = WAY_CASES["silu"]()
    hessian = gt.Hessian(case.problem)
    hessian.dense(chunk=1)
    assert hessian.strategy == "linearized-reverse"
    assert "silu_backward" in hessian.timings["linearized-forward"]


def test_a_long_preparation_waits_for_many_products(monkeypatch, eager_trials):
    real = autotune.try_ways

    def try_ways(names, loss, width, room, learnt):
        real(names, loss, width, room, learnt)
        learnt.timings = {"kept": Timing(0.0, 1.0), "linearized-forward": Timing(5.0, 0.5)}

    monkeypatch.setattr(autotune, "try_ways", try_ways)
    case = CASES["mlp"]()
    hessian = gt.Hessian(case.problem)
    ways = []
    for _ in range(13):
        hessian @ case.problem.theta()
        ways.append(hessian.strategy)
    assert ways == ["kept"] * 11 + ["linearized-forward"] * 2


def test_a_way_with_wrong_numbers_is_never_chosen(monkeypatch, eager_trials):
    pretend(monkeypatch, kept=3.0, linearized_forward=1.0, linearized_reverse=2.0)
    right = LinearizedForward.pieces

    def pieces(self, v):
        return [torch.cat([p.flatten() for p in right(self, v)]) * (1 + 1e-5 * (v.cumsum(0) > 0))]

    monkeypatch.setattr(LinearizedForward, "pieces", pieces)
    case = CASES["gpt"]()
    hessian = gt.Hessian(case.problem)
    assert close(hessian.dense(chunk=1), case.hessian())
    assert hessian.strategy == "kept"  # the reverse way runs its program by the same code
    assert "other numbers" in hessian.timings["linearized-forward"]
    with pytest.raises(
        ComputationError, match=r"strategy='linearized-forward' gives other numbers .* leave strategy='auto'"
    ):
        gt.Hessian(CASES["gpt"]().problem, strategy="linearized-forward") @ case.problem.theta()


def test_an_unknown_way_is_named():
    with pytest.raises(InputError, match=r"unknown strategy 'kep'.*did you mean 'kept'"):
        gt.Hessian(CASES["mlp"]().problem, strategy="kep")


def test_several_vectors_go_in_one_pass_where_that_is_faster(monkeypatch):
    case = CASES["mlp"]()
    known = autotune.history(case.problem, case.problem.layout)
    known.timings = {"kept": Timing(0.0, 1.0, block=0.5)}
    widths = []
    right = Kept.block
    monkeypatch.setattr(Kept, "block", lambda self, rows: widths.append(len(rows)) or right(self, rows))
    vectors = torch.randn(case.problem.size, 5, dtype=torch.float64)
    assert close(gt.Hessian(case.problem) @ vectors, case.hessian() @ vectors)
    assert widths == [5, 5]  # two batches
    known.timings = {"kept": Timing(0.0, 0.5, block=1.0)}
    gt.Hessian(case.problem) @ vectors
    assert widths == [5, 5]


# Memory


class Shortage:
    """Lets a way fail for lack of memory where more than `limit` examples or vectors come at once."""

    def __init__(self, monkeypatch, limit, device_error=True, counts=lambda loss: len(loss.batch[0])):
        self.failures = 0
        right = Kept.__init__

        def refuse(way, loss):
            if counts(loss) > limit:
                self.failures += 1
                if device_error:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")
            right(way, loss)

        monkeypatch.setattr(Kept, "__init__", refuse)


@pytest.mark.parametrize("device_error", [True, False])
def test_out_of_memory_cuts_the_batches_and_keeps_the_numbers(monkeypatch, device_error):
    case = CASES["mlp"]()  # batches of 8 and 2
    case.problem.check = False
    shortage = Shortage(monkeypatch, 3, device_error)
    hessian = gt.Hessian(case.problem)
    assert close(hessian.dense(), case.hessian())
    assert shortage.failures == 2  # 8 and 4 examples
    assert hessian.strategy == "fresh"
    assert close(gt.Hessian(case.problem).dense(), case.hessian())
    assert shortage.failures == 2  # the next iterate knows


def test_weights_masks_and_dicts_are_cut_too(monkeypatch):
    for name in ("gpt", "weighted_regression"):
        case = CASES[name]()
        Shortage(monkeypatch, 2, counts=lambda loss: len(next(iter(loss.batch.values()))))
        assert close(gt.Hessian(case.problem).dense(), case.hessian())
        monkeypatch.undo()


def test_a_single_example_that_does_not_fit_is_told(monkeypatch):
    case = CASES["mlp"]()
    Shortage(monkeypatch, 0)
    with pytest.raises(ComputationError, match=r"single example of batch 0 needs more memory .*GiB free on cpu"):
        gt.Hessian(case.problem) @ case.problem.theta()


def test_batches_that_cannot_be_cut_are_told(monkeypatch):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    mixing = lambda m, b: (m(b) - m(b).mean(0)).square().sum(1)  # noqa: E731
    problem = gt.Problem(model, mixing, [torch.randn(6, 3)])
    Shortage(monkeypatch, 3, counts=lambda loss: len(loss.batch))
    with pytest.raises(ComputationError, match=r"batch 0 with 6 examples .* pass smaller batches"):
        gt.Hessian(problem) @ problem.theta()


def test_graphs_are_dropped_before_batches_are_cut(monkeypatch):
    case = CASES["mlp"]()
    hessian = gt.Hessian(case.problem)
    vector = case.problem.theta()
    expected = hessian @ vector
    right, calls = Kept.pieces, []

    def pieces(way, v):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return right(way, v)

    monkeypatch.setattr(Kept, "pieces", pieces)
    assert torch.equal(hessian @ vector, expected)
    assert hessian.strategy == "fresh"
    assert autotune.history(case.problem, case.problem.layout).largest is None


def test_fewer_vectors_in_one_pass_where_memory_is_short(monkeypatch):
    case = CASES["mlp"]()
    autotune.history(case.problem, case.problem.layout).timings = {"kept": Timing(0.0, 1.0, block=0.5)}
    right, widths = Kept.block, []

    def block(way, rows):
        widths.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return right(way, rows)

    monkeypatch.setattr(Kept, "block", block)
    vectors = torch.randn(case.problem.size, 8, dtype=torch.float64)
    hessian = gt.Hessian(case.problem)
    assert close(hessian @ vectors, case.hessian() @ vectors)
    assert max(widths[3:]) <= 2
    assert hessian.strategy == "kept"


def test_too_large_batches_are_foreseen(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 50), nn.Tanh(), nn.Linear(50, 3)).double()
    x, y = torch.randn(40, 5).double(), torch.randint(0, 3, (40,))
    problem = gt.Problem(model, cross_entropy, [(x, y)])
    expected = gt.Hessian(problem, strategy="fresh") @ problem.theta()
    fixed, each = autotune.history(problem, problem.layout).bytes_per_example
    assert each > 50 * 8
    again = gt.Problem(model, cross_entropy, [(x, y)], check=False)
    monkeypatch.setattr("geomtraj.microbatches.available_bytes", lambda device: 2 * (fixed + 10.5 * each))
    sizes = []
    right = Kept.__init__
    monkeypatch.setattr(Kept, "__init__", lambda way, loss: sizes.append(len(loss.batch[0])) or right(way, loss))
    assert close(gt.Hessian(again) @ again.theta(), expected)
    assert sizes == [10, 10, 10, 10]


def test_only_as_much_is_kept_as_fits(monkeypatch):
    case = CASES["cnn"]()  # batches of 3, 3 and 1
    held = []
    right = Kept.__init__
    monkeypatch.setattr(Kept, "__init__", lambda way, loss: right(way, loss) or held.append(way.held))
    gt.Hessian(case.problem) @ case.problem.theta()
    monkeypatch.setattr(
        "geomtraj.operators.evaluation.engine.available_bytes", lambda device: 4 * (held[0] + held[1] // 2)
    )
    hessian = gt.Hessian(case.problem)
    assert close(hessian.dense(), case.hessian())
    assert hessian.strategy == "kept + fresh"


def test_a_way_that_holds_more_than_fits_is_passed_over(monkeypatch):
    case = CASES["mlp"]()
    known = autotune.history(case.problem, case.problem.layout)
    known.timings = {"kept": Timing(0.0, 2.0, 100), "linearized-forward": Timing(0.0, 1.0, 300)}
    known.kept = 10**6
    vector = case.problem.theta()
    monkeypatch.setattr("geomtraj.operators.evaluation.engine.available_bytes", lambda device: 4 * 2.9e6)
    hessian = gt.Hessian(case.problem)
    hessian @ vector
    assert hessian.strategy == "kept"
    known.kept = 10**6
    monkeypatch.setattr("geomtraj.operators.evaluation.engine.available_bytes", lambda device: 4 * 3.1e6)
    hessian = gt.Hessian(case.problem)
    hessian @ vector
    assert hessian.strategy == "linearized-forward"


def test_what_is_remembered_goes_with_the_problem():
    case = CASES["mlp"]()
    gt.Hessian(case.problem) @ case.problem.theta()
    known = weakref.ref(autotune.history(case.problem, case.problem.layout))
    del case
    gc.collect()
    assert known() is None


LIMITED = """
import resource
import psutil
import torch
import geomtraj as gt
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(100, 500), nn.Tanh(), nn.Linear(500, 500), nn.Tanh(), nn.Linear(500, 10))
batch = torch.randn(10000, 100), torch.randint(0, 10, (10000,))
problem = gt.Problem(model, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), [batch])
vector = torch.randn(problem.size)
expected = gt.Hessian(problem, strategy="fresh") @ vector
again = gt.Problem(model, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), [batch])
limit = psutil.Process().memory_info().vms + 80 * 2**20  # a graph of the whole batch holds about 160 MiB
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
hessian = gt.Hessian(again)
error = (hessian @ vector - expected).norm() / expected.norm()
largest = hessian._engine.history.largest
assert error < 1e-5 and largest is not None and largest < 10000, (error, largest)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its own address space as Linux does")
def test_a_process_that_may_not_allocate_more_gets_through():
    subprocess.run([sys.executable, "-c", LIMITED], check=True, timeout=100)


def test_memory_errors_are_told_from_others():
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


# Models that cannot be differentiated


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].exp()


def test_a_function_without_a_second_derivative_names_the_way_out():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2).double(), torch.randn(5, 3).double()
    problem = gt.Problem(model, lambda m, b: Once.apply(m(b)).sum(1), [x])
    with pytest.raises(ComputationError, match=r"Once, which is marked once_diff.*strategy='differences'"):
        gt.Hessian(problem) @ problem.theta()
    plain = gt.Problem(model, lambda m, b: m(b).exp().sum(1), [x])
    vector = torch.randn(8, dtype=torch.float64)
    expected = gt.Hessian(plain) @ vector
    found = gt.Hessian(problem, strategy="differences") @ vector
    assert float((found - expected).norm()) < 1e-8 * float(expected.norm())


def test_an_operation_without_a_second_derivative_names_the_way_out():
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    model = nn.Linear(3, 3).double()
    problem = gt.Problem(model, lambda m, b: torch.cdist(m(b), b).square().sum((1, 2)), [x])
    with pytest.raises(ComputationError, match=r"without a second derivative .*strategy='differences'") as caught:
        gt.Hessian(problem) @ problem.theta()
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_loss_that_no_parameter_reaches_is_refused():
    model = nn.Linear(3, 2)
    problem = gt.Problem(model, lambda m, b: m(b).detach().sum(1), [torch.randn(5, 3)])
    with pytest.raises(ComputationError, match="no selected parameter reaches the loss"):
        gt.Hessian(problem)


class Overwriting(torch.autograd.Function):
    """Writes in its backward pass into what the derivative of that pass needs."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.pow(3) / 3

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0] * 1
        found = grad * x.square()
        x.mul_(0)
        return found


def test_an_in_place_trick_names_the_way_out():
    torch.manual_seed(0)
    problem = gt.Problem(nn.Linear(3, 2), lambda m, b: Overwriting.apply(m(b)).sum(1), [torch.randn(5, 3)])
    with pytest.raises(InputError, match=r"in place .*write x = x \+ y") as caught:
        gt.Hessian(problem) @ problem.theta()
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (lambda: torch.ones(2, 2) @ torch.ones(2, 2).double(), "different number types .* convert the batches"),
        (lambda: nn.Linear(2, 2)(torch.ones(2, 2, device="meta")), "different devices .* move the batches"),
        (lambda: torch.ones(2, requires_grad=True).mul_(2), "in place"),
    ],
)
def test_raw_errors_are_explained(raw, sentence):
    with pytest.raises(RuntimeError) as caught:
        raw()
    assert re.search(sentence, str(explained(caught.value)))
    assert explained(RuntimeError("something else")) is None


# Nothing is left behind


@pytest.mark.parametrize("way", [way for way in WAYS if way != "compiled"])
def test_model_and_generators_are_as_before(way):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(6, 4).double(), torch.randint(0, 2, (6,))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
    state = torch.get_rng_state()
    problem = gt.Problem(model, cross_entropy, split([4, 2], x, y))
    gt.Hessian(problem, problem.theta() + 1, strategy=way) @ problem.theta()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.training and model[1].training
    assert all(p.grad is None and p.requires_grad for p in parameters)
    assert torch.equal(state, torch.get_rng_state())


def test_kept_recordings_are_freed_with_the_operator():
    x, y = torch.randn(50, 20), torch.zeros(50, dtype=torch.long)
    problem = gt.Problem(nn.Linear(20, 2), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), [(x, y)])
    hessian = gt.Hessian(problem, strategy="linearized-forward")
    hessian @ problem.theta()
    kept = weakref.ref(next(iter(hessian._engine._kept.values())))
    del hessian
    gc.collect()
    assert kept() is None
