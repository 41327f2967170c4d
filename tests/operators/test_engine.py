"""Choosing a strategy, memory that does not suffice, and models that cannot be differentiated."""

import gc
import math
import re
import subprocess
import sys
import weakref

import pytest
import torch
from models import CASES, cross_entropy, split
from strategy_cases import STRATEGY_CASES
from test_strategies import MATRICES
from torch import nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.errors import ComputationError, InputError
from geomtraj.failures import explained, is_out_of_memory
from geomtraj.operators.evaluation import autotune, timings
from geomtraj.operators.evaluation.engine import Engine
from geomtraj.operators.evaluation.timings import Timing
from geomtraj.operators.hvp import STRATEGIES
from geomtraj.operators.hvp.batch_loss import BatchLoss
from geomtraj.operators.hvp.double_backward import DoubleBackward
from geomtraj.operators.hvp.hessian import HESSIAN
from geomtraj.operators.hvp.linearized import LinearizedForwardOverReverse


def close(a, b):
    return float((a - b).abs().max()) <= 1e-10 * float(b.abs().max())


@pytest.fixture(autouse=True)
def nothing_learnt(monkeypatch):
    """A process that has measured nothing yet."""
    monkeypatch.setattr(timings, "STRUCTURES", {})


@pytest.fixture
def eager_trials(monkeypatch):
    """A trial after each call, whatever it costs."""
    monkeypatch.setattr(autotune, "SHARE", math.inf)


class Clock:
    """Seconds that strategies are pretended to take, in the place of the machine's."""

    def __init__(self, monkeypatch, setup=None, block=None, **product):
        self.setup, self.block = setup or {}, block or {}
        self.product = {name.replace("_", "-"): seconds for name, seconds in product.items()}
        self.now = 0.0
        self.tried = []
        monkeypatch.setattr(autotune, "clock", lambda device: self.now)
        for name, kind in list(STRATEGIES.items()):
            if name in self.product:
                monkeypatch.setitem(STRATEGIES, name, self.slowed(name, kind))

    def slowed(self, name, kind):
        clock = self

        class Slowed(kind):
            def __init__(self, loss, curvature):
                clock.now += clock.setup.get(name, 0.0)
                clock.tried += [name]
                super().__init__(loss, curvature)

            def products(self, rows):
                clock.now += clock.product[name] * len(rows)
                return super().products(rows)

            def block(self, rows):
                clock.now += clock.block.get(name, 10 * clock.product[name]) * len(rows)
                return super().block(rows)

        return Slowed


def single(case):
    """The case with all its data in one batch."""
    x, y = (torch.cat(parts) for parts in zip(*case.problem.batches, strict=True))
    return gt.Problem(case.problem.model, cross_entropy, [(x, y)])


def strategies(operator, vector, count):
    found = []
    for _ in range(count):
        operator @ vector
        found.append(operator.strategy)
    return found


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("name", STRATEGY_CASES)
def test_auto_gives_the_dense_matrix_before_and_after_its_choice(matrix, name, eager_trials):
    case = STRATEGY_CASES[name]()
    operator, _, oracle = MATRICES[matrix]
    dense = oracle(case)
    for _ in range(2):
        assert close(operator(case.problem).dense(chunk=2), dense)


@pytest.mark.parametrize("operator", [gt.Hessian, gt.GGN])
def test_auto_takes_the_quickest_strategy_and_remembers_it(monkeypatch, eager_trials, operator):
    clock = Clock(monkeypatch, double_backward=3.0, linearized_forward_over_reverse=1.0, linearized_double_backward=2.0)
    problem = single(CASES["mlp"]())
    vector = problem.theta()
    first = operator(problem)
    assert strategies(first, vector, 3) == [
        "linearized-double-backward", "linearized-forward-over-reverse", "linearized-forward-over-reverse"
    ]  # fmt: skip
    assert first.timings == {
        "double-backward": 3.0, "linearized-forward-over-reverse": 1.0, "linearized-double-backward": 2.0
    }  # fmt: skip
    clock.tried.clear()
    later = operator(problem, problem.theta() + 1)
    again = operator(single(CASES["mlp"]()))  # another problem of the same structure
    for each in (later, again):
        assert strategies(each, vector, 2) == ["linearized-forward-over-reverse"] * 2
    assert "linearized-double-backward" not in clock.tried


def test_trials_take_a_twentieth_of_the_time_of_products(monkeypatch):
    clock = Clock(
        monkeypatch, double_backward=1.0, linearized_double_backward=0.9, setup={"linearized-double-backward": 4}
    )
    problem = single(CASES["mlp"]())
    monkeypatch.setattr(autotune, "COMPILER", 0.0)
    gt.Hessian(problem).check()
    hessian, vector, spent, start = gt.Hessian(problem), problem.theta(), [], clock.now
    for n in range(1, 201):
        hessian @ vector
        spent.append((clock.now - start) / n)
        assert hessian._engine.known.learnt.in_trials <= autotune.SHARE * n + 1e-9
    assert "linearized-double-backward" not in clock.tried[:1] and hessian.strategy == "linearized-double-backward"
    assert max(spent) <= 1.05


def test_the_strategy_of_statistics_is_never_changed_nor_its_bits(monkeypatch, eager_trials):
    clock = Clock(monkeypatch, double_backward=3.0, linearized_double_backward=1.0, block={"double-backward": 0.1})
    problem = single(CASES["mlp"]())
    vectors = torch.randn(problem.size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = gt.Hessian(problem, strategy="double-backward") @ vectors
    auto = gt.Hessian(problem)
    for _ in range(4):
        auto @ vectors
    clock.tried.clear()
    fixed = gt.Hessian(problem, problem.theta(), strategy="double-backward")
    assert all(torch.equal(fixed @ vectors, before) for _ in range(3))
    assert set(clock.tried) == {"double-backward"}


def test_without_a_forward_derivative_auto_takes_the_other_recording(monkeypatch, eager_trials):
    Clock(monkeypatch, double_backward=3.0, linearized_double_backward=1.0)
    case = STRATEGY_CASES["silu"]()
    hessian = gt.Hessian(case.problem)
    hessian.dense(chunk=1)
    assert hessian.strategy == "linearized-double-backward"
    assert "silu_backward" in hessian.timings["linearized-forward-over-reverse"]


def test_a_long_preparation_waits_for_many_products(monkeypatch, eager_trials):
    monkeypatch.setattr(autotune, "KEEPING", ("linearized-double-backward",))
    Clock(monkeypatch, double_backward=1.0, linearized_double_backward=0.5, setup={"linearized-double-backward": 5.0})
    problem = CASES["mlp"]().problem  # of two batches, so that not all is prepared by the trial
    found = strategies(gt.Hessian(problem), problem.theta(), 20)
    changed = found.index("linearized-double-backward")
    assert found == ["double-backward"] * changed + ["linearized-double-backward"] * (20 - changed)
    assert 5 <= changed <= 12


def test_a_strategy_with_wrong_numbers_is_never_chosen(monkeypatch, eager_trials):
    right = LinearizedForwardOverReverse.pieces

    def pieces(self, v):
        return [torch.cat([p.flatten() for p in right(self, v)]) * (1 + 1e-5 * (v.cumsum(0) > 0))]

    monkeypatch.setattr(LinearizedForwardOverReverse, "pieces", pieces)
    Clock(monkeypatch, double_backward=3.0, linearized_forward_over_reverse=1.0, linearized_double_backward=2.0)
    case = CASES["gpt"]()
    hessian = gt.Hessian(case.problem)
    assert close(hessian.dense(chunk=1), case.hessian())
    assert hessian.strategy == "double-backward"  # the other recording runs its program by the same code
    assert "other numbers" in hessian.timings["linearized-forward-over-reverse"]
    with pytest.raises(
        ComputationError,
        match=r"strategy='linearized-forward-over-reverse' gives other numbers .* leave strategy='auto'",
    ):
        gt.Hessian(CASES["gpt"]().problem, strategy="linearized-forward-over-reverse") @ case.problem.theta()


def test_what_was_learnt_of_a_structure_is_no_promise(monkeypatch, eager_trials):
    monkeypatch.setattr(autotune, "KEEPING", ("linearized-double-backward",))
    Clock(monkeypatch, double_backward=3.0, linearized_double_backward=1.0)
    first, second = single(CASES["mlp"]()), single(CASES["mlp"]())
    assert strategies(gt.Hessian(first), first.theta(), 3)[-1] == "linearized-double-backward"
    expected = gt.Hessian(second, strategy="double-backward") @ second.theta()

    def broken(self, *args):
        raise NotImplementedError("not on this one")

    monkeypatch.setattr(STRATEGIES["linearized-double-backward"], "__init__", broken)
    hessian = gt.Hessian(second)
    assert close(hessian @ second.theta(), expected)
    assert hessian.strategy == "double-backward"
    assert hessian.timings["linearized-double-backward"] == "not on this one"


@pytest.mark.parametrize("vectors", [1, 3])
def test_what_fails_in_a_trial_loses_no_product(monkeypatch, eager_trials, vectors):
    if vectors > 1:
        monkeypatch.setattr(autotune, "KEEPING", ())
    problem = single(CASES["mlp"]())
    rows = torch.randn(vectors, problem.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = gt.Hessian(problem, strategy="double-backward") @ rows.T
    calls = []

    def broken(*_):
        calls.append(1)
        raise KeyError("a hole in the data")

    monkeypatch.setattr(Engine, "_trial", broken)
    hessian = gt.Hessian(problem)
    assert all(torch.equal(hessian @ rows.T, expected) for _ in range(4))
    assert len(calls) == max(1, len(autotune.KEEPING))  # each is tried once


def test_an_unknown_strategy_is_named():
    with pytest.raises(InputError, match=r"unknown strategy 'double-bakward'.*did you mean 'double-backward'"):
        gt.Hessian(CASES["mlp"]().problem, strategy="double-bakward")
    with pytest.raises(InputError, match="unknown strategy 'fast'"):
        gt.GGN(CASES["mlp"]().problem, strategy="fast")


def learnt(problem, curvature=HESSIAN):
    return timings.known(problem, curvature, problem.layout)


def test_several_vectors_go_in_one_pass_where_that_is_faster(monkeypatch):
    case = CASES["mlp"]()
    of = learnt(case.problem).learnt.timings
    of["double-backward"] = Timing(0.0, 1e-9, block=1e-10)
    widths = []
    right = DoubleBackward.block
    monkeypatch.setattr(DoubleBackward, "block", lambda self, rows: widths.append(len(rows)) or right(self, rows))
    vectors = torch.randn(case.problem.size, 5, dtype=torch.float64)
    assert close(gt.Hessian(case.problem) @ vectors, case.hessian() @ vectors)
    assert widths == [5, 5]  # two batches
    of["double-backward"] = Timing(0.0, 1e-9, block=1.0)
    gt.Hessian(case.problem) @ vectors
    assert widths == [5, 5]


def test_several_vectors_in_one_pass_are_tried_once(monkeypatch, eager_trials):
    monkeypatch.setattr(autotune, "KEEPING", ())
    clock = Clock(monkeypatch, double_backward=1.0, block={"double-backward": 0.25})
    problem = single(CASES["mlp"]())
    vectors = torch.randn(problem.size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = gt.Hessian(problem, strategy="double-backward").dense() @ vectors
    hessian, start = gt.Hessian(problem), clock.now
    steps = []
    for _ in range(3):
        assert close(hessian @ vectors, expected)
        steps.append(clock.now - start)
        start = clock.now
    assert steps == [5.0, 1.0, 1.0]  # four products and a trial, then one pass


# Memory


class Shortage:
    """Lets a strategy fail for lack of memory where more than `limit` examples or vectors come at once."""

    def __init__(self, monkeypatch, limit, device_error=True, counts=lambda loss: len(loss.batch[0])):
        self.failures = 0
        right = DoubleBackward.__init__

        def refuse(strategy, loss, curvature):
            if counts(loss) > limit:
                self.failures += 1
                if device_error:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")
            right(strategy, loss, curvature)

        monkeypatch.setattr(DoubleBackward, "__init__", refuse)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("device_error", [True, False])
def test_out_of_memory_cuts_the_batches_and_keeps_the_numbers(monkeypatch, device_error, matrix):
    case = CASES["mlp"]()  # batches of 8 and 2
    case.problem.check = False
    operator, _, oracle = MATRICES[matrix]
    shortage = Shortage(monkeypatch, 3, device_error)
    matrix = operator(case.problem)
    assert close(matrix.dense(), oracle(case))
    assert shortage.failures == 2  # 8 and 4 examples
    assert matrix.strategy == "double-backward-fresh"
    assert close(operator(case.problem).dense(), oracle(case))
    assert shortage.failures == 2  # the next iterate knows


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("name", ["gpt", "weighted_regression"])
def test_weights_masks_and_dicts_are_cut_too(monkeypatch, name, matrix):
    case = CASES[name]()
    operator, _, oracle = MATRICES[matrix]
    Shortage(monkeypatch, 2, counts=lambda loss: len(next(iter(loss.batch.values()))))
    assert close(operator(case.problem).dense(), oracle(case))


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


@pytest.mark.parametrize("operator", [gt.Hessian, gt.GGN])
def test_graphs_are_dropped_before_batches_are_cut(monkeypatch, operator):
    case = CASES["mlp"]()
    hessian = operator(case.problem)
    vector = case.problem.theta()
    expected = hessian @ vector
    right, calls = DoubleBackward.pieces, []

    def pieces(strategy, v):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return right(strategy, v)

    monkeypatch.setattr(DoubleBackward, "pieces", pieces)
    assert torch.equal(hessian @ vector, expected)
    assert hessian.strategy in ("double-backward-fresh", *autotune.PASSING)  # what keeps nothing
    assert hessian._engine.known.memory.largest is None


def test_fewer_vectors_in_one_pass_where_memory_is_short(monkeypatch):
    case = CASES["mlp"]()
    learnt(case.problem).learnt.timings["double-backward"] = Timing(0.0, 1e-9, block=1e-10)
    right, widths = DoubleBackward.block, []

    def block(strategy, rows):
        widths.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return right(strategy, rows)

    monkeypatch.setattr(DoubleBackward, "block", block)
    vectors = torch.randn(case.problem.size, 8, dtype=torch.float64)
    hessian = gt.Hessian(case.problem)
    assert close(hessian @ vectors, case.hessian() @ vectors)
    assert max(widths[3:]) <= 2
    assert hessian.strategy == "double-backward"


def test_what_was_learnt_is_shared_by_what_a_model_does_and_not_by_its_name():
    class Net(nn.Linear):
        def forward(self, x):
            return super().forward(x).tanh()

    tanh = Net

    class Net(nn.Linear):
        def forward(self, x):
            return super().forward(x).exp()

    def problem(kind):
        return gt.Problem(kind(3, 2).double(), lambda m, b: m(b).square().sum(1), [torch.randn(4, 3).double()])

    one, same, other = problem(tanh), problem(tanh), problem(Net)
    assert learnt(one).learnt is learnt(same).learnt
    assert learnt(one).learnt is not learnt(other).learnt


def test_several_vectors_in_one_pass_that_another_problem_could_do_are_done_one_by_one(monkeypatch):
    case = CASES["mlp"]()
    learnt(case.problem).learnt.timings["double-backward"] = Timing(0.0, 1e-9, block=1e-10)

    def block(strategy, rows):
        raise RuntimeError("Batching rule not implemented for aten::item.")

    monkeypatch.setattr(DoubleBackward, "block", block)
    vectors = torch.randn(case.problem.size, 5, dtype=torch.float64)
    assert close(gt.Hessian(case.problem) @ vectors, case.hessian() @ vectors)
    assert learnt(case.problem).learnt.timings["double-backward"].block == math.inf


def test_too_large_batches_are_foreseen(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 50), nn.Tanh(), nn.Linear(50, 3)).double()
    x, y = torch.randn(40, 5).double(), torch.randint(0, 3, (40,))
    problem = gt.Problem(model, cross_entropy, [(x, y)])
    expected = gt.Hessian(problem, strategy="double-backward-fresh") @ problem.theta()
    few = [gt.Problem(model, cross_entropy, [(x[:n], y[:n])], check=False) for n in (1, 2)]
    one, two = (HESSIAN.graph(BatchLoss(p, p.layout.unflatten(p.theta()), p.layout, p.batches[0])).held for p in few)
    fixed, each = 2 * one - two, two - one
    assert each > 50 * 8
    again = gt.Problem(model, cross_entropy, [(x, y)], check=False)
    monkeypatch.setattr("geomtraj.microbatches.available_bytes", lambda device: 2 * (fixed + 10.5 * each))
    sizes = []
    right = DoubleBackward.__init__
    monkeypatch.setattr(
        DoubleBackward, "__init__", lambda made, loss, of: sizes.append(len(loss.batch[0])) or right(made, loss, of)
    )
    assert close(gt.Hessian(again) @ again.theta(), expected)
    assert sizes == [10, 10, 10, 10]


@pytest.mark.parametrize("matrix", MATRICES)
def test_only_as_much_is_kept_as_fits(monkeypatch, matrix):
    case = CASES["cnn"]()  # batches of 3, 3 and 1
    operator, _, oracle = MATRICES[matrix]
    operator(case.problem) @ case.problem.theta()  # the check of derivatives is over
    held = []
    right = DoubleBackward.__init__
    monkeypatch.setattr(
        DoubleBackward, "__init__", lambda made, loss, of: right(made, loss, of) or held.append(made.held)
    )
    operator(case.problem) @ case.problem.theta()
    monkeypatch.setattr(
        "geomtraj.operators.evaluation.engine.available_bytes", lambda device: 4 * (held[0] + held[1] // 2)
    )
    found = operator(case.problem)
    assert close(found.dense(), oracle(case))
    assert found.strategy == "double-backward + double-backward-fresh"


def test_a_strategy_that_holds_more_than_fits_is_passed_over(monkeypatch):
    case = CASES["mlp"]()
    known = learnt(case.problem)
    known.learnt.timings = {
        "double-backward": Timing(0.0, 2e-9, 100), "linearized-forward-over-reverse": Timing(0.0, 1e-9, 300)
    }  # fmt: skip
    known.held_by_graphs = 10**6
    vector = case.problem.theta()
    monkeypatch.setattr("geomtraj.operators.evaluation.engine.available_bytes", lambda device: 4 * 2.9e6)
    hessian = gt.Hessian(case.problem)
    hessian @ vector
    assert hessian.strategy == "double-backward"
    known.held_by_graphs = 10**6
    monkeypatch.setattr("geomtraj.operators.evaluation.engine.available_bytes", lambda device: 4 * 3.1e6)
    hessian = gt.Hessian(case.problem)
    hessian @ vector
    assert hessian.strategy == "linearized-forward-over-reverse"


def test_what_is_remembered_goes_with_the_problem():
    case = CASES["mlp"]()
    gt.Hessian(case.problem) @ case.problem.theta()
    known = weakref.ref(learnt(case.problem))
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
expected = gt.Hessian(problem, strategy="double-backward-fresh") @ vector
again = gt.Problem(model, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), [batch])
limit = psutil.Process().memory_info().vms + 80 * 2**20  # a graph of the whole batch holds about 160 MiB
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
hessian = gt.Hessian(again)
error = (hessian @ vector - expected).norm() / expected.norm()
largest = hessian._engine.known.memory.largest
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
    with pytest.raises(ComputationError, match=r"Once, which is marked once_diff.*strategy='finite-differences'"):
        gt.Hessian(problem) @ problem.theta()
    plain = gt.Problem(model, lambda m, b: m(b).exp().sum(1), [x])
    vector = torch.randn(8, dtype=torch.float64)
    expected = gt.Hessian(plain) @ vector
    found = gt.Hessian(problem, strategy="finite-differences") @ vector
    assert float((found - expected).norm()) < 1e-8 * float(expected.norm())


def test_an_operation_without_a_second_derivative_names_the_way_out():
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    model = nn.Linear(3, 3).double()
    problem = gt.Problem(model, lambda m, b: torch.cdist(m(b), b).square().sum((1, 2)), [x])
    with pytest.raises(
        ComputationError, match=r"without a second derivative .*strategy='finite-differences'"
    ) as caught:
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


@pytest.mark.parametrize("strategy", [strategy for strategy in STRATEGIES if strategy != "compiled"])
def test_model_and_generators_are_as_before(strategy):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(6, 4).double(), torch.randint(0, 2, (6,))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
    state = torch.get_rng_state()
    problem = gt.Problem(model, cross_entropy, split([4, 2], x, y))
    gt.Hessian(problem, problem.theta() + 1, strategy=strategy) @ problem.theta()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.training and model[1].training
    assert all(p.grad is None and p.requires_grad for p in parameters)
    assert torch.equal(state, torch.get_rng_state())


def test_kept_recordings_are_freed_with_the_operator():
    x, y = torch.randn(50, 20), torch.zeros(50, dtype=torch.long)
    problem = gt.Problem(nn.Linear(20, 2), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), [(x, y)])
    hessian = gt.Hessian(problem, strategy="linearized-forward-over-reverse")
    hessian @ problem.theta()
    kept = weakref.ref(next(iter(hessian._engine._kept.values())))
    del hessian
    gc.collect()
    assert kept() is None
