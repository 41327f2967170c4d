"""R_med where the Hessian is taken apart as G + R: the model of r, what products tell, and intervals on real models."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.statistics.r_med.block import BlockKnown, analyse, middle
from geomtraj.statistics.r_med.composition import Task, compose
from geomtraj.statistics.r_med.share import ShareModel, Shares, fit
from geomtraj.statistics.r_med.survey import Survey


def drawn_shares(rng: np.random.Generator, count: int, heavy: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, noisy shares whose centre and scale depend on x, and their noise."""
    x = rng.uniform(-2, 2, count)
    base = rng.standard_t(4, count) if heavy else rng.standard_normal(count)
    noise = rng.uniform(0.1, 0.5, count)
    return x, 2 - 0.5 * x + np.exp(-0.3 * x) * base + noise * rng.standard_normal(count), noise


def model_of(x: np.ndarray, y: np.ndarray, noise: np.ndarray) -> ShareModel:
    """The model of one block's shares."""
    return fit([Shares(x, y, noise, np.ones(x.size))])[0]


@pytest.mark.parametrize("heavy", [False, True])
def test_centre_and_scale_are_found_from_noisy_shares(heavy):
    x, y, noise = drawn_shares(np.random.default_rng(0), 2000, heavy)
    centre, scale = model_of(x, y, noise).location(np.array([-1.0, 0.0, 1.0]))
    assert centre == pytest.approx([2.5, 2.0, 1.5], abs=0.12)
    assert scale == pytest.approx(np.exp([0.3, 0.0, -0.3]), rel=0.1)


def test_draws_hold_what_was_measured_and_widen_where_nothing_was():
    rng = np.random.default_rng(1)
    x, y, noise = drawn_shares(rng, 300, False)
    model = model_of(x, y, noise)
    places = np.zeros(3)
    drawn = model.draw(places, np.array([3.0, 3.0, 0.0]), np.array([1e-3, 0.5, math.inf]), 4000, rng)
    assert drawn.mean(0) == pytest.approx([3.0, 2.8, 2.0], abs=0.15)
    assert drawn.std(0) == pytest.approx([1e-3, math.sqrt(0.2), 1.0], rel=0.2, abs=1e-3)


def test_the_weighted_median_counts_zeros_and_what_entries_stand_for():
    values = np.array([[1.0, 3.0, 2.0, 4.0]])
    assert middle(values, np.ones(4), 0)[0] == 2.5 and middle(values, np.ones(4), 1)[0] == 2.0
    assert middle(values, np.array([1.0, 1.0, 3.0, 1.0]), 0)[0] == 2.0
    assert middle(values, np.ones(4), 5)[0] == 0.0 and middle(values, np.ones(4), 4)[0] == 0.5


def test_models_of_several_blocks_are_those_of_each():
    data = [
        Shares(*drawn_shares(np.random.default_rng(k), 50 + 70 * k, heavy=k > 0), np.ones(50 + 70 * k)) for k in (0, 1)
    ]
    for alone, together in zip((fit([one])[0] for one in data), fit(data), strict=True):
        x = np.linspace(-2, 2, 5)
        assert np.allclose(alone.location(x), together.location(x)) and np.allclose(alone.root, together.root)


def matrix_of_shares(
    rng: np.random.Generator, rows: int, columns: int, beside: float
) -> tuple[BlockKnown, np.ndarray, np.ndarray]:
    """A block, its shares, and R (n, n), whose entries of a row disturb each other by `beside` and others by 0.05."""
    size, g = rows * columns, np.exp(rng.standard_normal(rows * columns))
    place = np.arange(size)
    off = rng.standard_normal((size, size)) * np.where(
        np.subtract.outer(place // columns, place // columns), 0.05, beside
    )
    share = 0.3 + 0.2 * rng.standard_normal(size)
    off = (off + off.T) / np.sqrt(2)
    np.fill_diagonal(off, share)
    known = BlockKnown(0, place, g, np.zeros(size), 0, place // columns, place % columns)
    return known, share, np.sqrt(g)[:, None] * off * np.sqrt(g)


@pytest.mark.parametrize(("rows", "columns", "beside"), [(200, 1, 0.05), (20, 10, 1.0), (20, 10, 0.1)])
def test_a_product_tells_of_its_entries_and_of_its_noise(rows, columns, beside):
    rng = np.random.default_rng(0)
    known, share, matrix = matrix_of_shares(rng, rows, columns, beside)
    survey = Survey({"w": known}, lambda v: matrix @ v, 0, rows * columns)
    survey.run(40, 0.0)
    y, noise = known.share
    measured = np.isfinite(noise)
    z = (y - share)[measured] / noise[measured]
    assert measured.sum() > 30 and 0.6 < np.mean(z**2) < 1.5
    if columns > 1:
        assert known.in_row == pytest.approx(beside**2 / (1.3**2 + 0.2**2), rel=0.5)  # entries are 1.3 G, spread 0.2
    draws, truth = analyse([known], 0)[0], np.abs(known.g * (1 + share))
    assert abs(np.log(np.median(draws.median) / np.median(truth))) < 0.1
    assert abs(np.log(np.median(draws.largest) / truth.max())) < 0.1


def test_what_other_blocks_add_to_a_product_is_in_the_noise_of_a_single_entry():
    z = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        size, g = 60, np.exp(rng.standard_normal(120))
        share = 0.3 + 0.2 * rng.standard_normal(120)
        of = np.arange(120) // size
        off = rng.standard_normal((120, 120)) * np.where(np.subtract.outer(of, of), 0.3, 0.02)
        off = (off + off.T) / np.sqrt(2)
        np.fill_diagonal(off, share)
        matrix, place = np.sqrt(g)[:, None] * off * np.sqrt(g), np.arange(size)
        known = {k: BlockKnown(k, k * size + place, g[of == k], np.zeros(size), 0, place, place) for k in (0, 1)}
        survey = Survey(known, lambda v, matrix=matrix: matrix @ v, seed, 120)
        survey._pass([{k: one.choose(12, np.ones(size), rng)} for k, one in known.items()])  # each alone, as at first
        single = np.setdiff1d(np.arange(size), np.flatnonzero(np.isfinite(known[0].share[1])))[:6]
        survey._pass([{0: np.array([k]), 1: known[1].choose(12, np.ones(size), rng)} for k in single])
        y, noise = known[0].share
        z.append((y - share[of == 0])[single] / noise[single])
    assert 0.3 < np.mean(np.square(z)) < 1.3


def test_entries_of_a_row_are_chosen_together_only_where_they_disturb_little():
    rng = np.random.default_rng(0)
    known, _, _ = matrix_of_shares(rng, 12, 30, 1.0)
    weights = np.ones(360)
    weights[:60] = 0.0
    for in_row, spread, most in ((np.inf, 1.0, 1), (1.0, 0.2, 1), (0.01, 0.02, 3)):
        known.in_row = in_row
        chosen = known.choose(40, weights, rng, spread)
        counts = np.bincount(chosen // 30, minlength=12)
        assert counts.max() == most and (counts > 0).sum() == 6 and chosen.min() >= 60
        assert np.unique(chosen).size == chosen.size
        if most == 1:
            assert np.unique(chosen % 30).size == 6


def test_blocks_that_disturb_each_other_are_not_measured_together():
    coupling = np.full((4, 4), 1e-3)
    coupling[0, 1] = coupling[1, 0] = 100.0
    tasks = [Task(block, 4, variance, 0.1) for block, variance in enumerate((0.5, 0.4, 0.1, 0.1))]
    chosen = compose(tasks, coupling)
    assert [task.block for task in chosen] == [0, 2, 3]
    assert tasks[0].variance < 0.1 and tasks[1].variance == 0.4
    assert compose(tasks, coupling)[0].block == 1


class Transformer(nn.Module):
    """Two layers of attention and perceptron on five positions, keys with a bias that changes nothing."""

    def __init__(self, width: int = 8, tokens: int = 40):
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 16, 0.0, F.gelu, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def transformer(steps: int, dtype: torch.dtype = torch.float64) -> gt.Problem:
    torch.manual_seed(4)
    model = Transformer()
    tokens = torch.randint(0, 40, (16, 6))
    tokens[:, 1::2] = (tokens[:, ::2] * 7 + 3) % 40

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        logits = model(batch[:, :-1])
        return F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")

    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, tokens).mean().backward()
        optimizer.step()
    return gt.Problem(model.to(dtype), loss, [tokens[:9], tokens[9:]])


@pytest.fixture(scope="module")
def trained() -> tuple[gt.Problem, dict[str, gt.RMed]]:
    problem = transformer(60)
    return problem, gt.r_med(problem, method="exact")


def test_intervals_hold_the_exact_value_and_values_are_near(trained):
    problem, exact = trained
    hits, logs = [], []
    for seed in range(3):
        for label, found in gt.r_med(problem, "probing", seed, samples=8, max_matvecs=8).items():
            truth = exact[label].value
            if math.isfinite(truth):
                hits.append(found.low * 0.999 <= truth <= found.high * 1.001)
                logs.append(math.log(found.value / truth))
    assert np.mean(hits) > 0.85 and np.sqrt(np.mean(np.square(logs))) < 0.3


def test_a_larger_budget_gives_smaller_errors_and_widths(trained):
    problem, exact = trained
    errors, widths = [], []
    for samples in (2, 32):
        found = gt.r_med(problem, "probing", samples=samples, max_matvecs=0)
        finite = [k for k in exact if math.isfinite(exact[k].value)]
        errors.append(np.sqrt(np.mean([math.log(found[k].value / exact[k].value) ** 2 for k in finite])))
        widths.append(np.median([math.log(found[k].high / found[k].low) for k in finite]))
    assert errors[1] < errors[0] and widths[1] < 0.7 * widths[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_keys_biases_are_zero_to_rounding_and_leave_the_rest(dtype):
    problem = transformer(20, dtype)
    keys = [name for name in problem.blocks if name.endswith("in_proj_bias[k]")]
    for method in ("probing", "exact"):
        found = gt.r_med(problem, method, samples=2, max_matvecs=4)
        zero = [name for name, r in found.items() if r.status.startswith("zero to rounding")]
        assert zero == keys and len(keys) == 2
        assert all(math.isnan(found[name].value) and math.isnan(found[name].high) for name in zero)
        assert math.isfinite(found["all"].value)


@pytest.mark.parametrize("method", ["probing", "exact"])
@pytest.mark.parametrize("size", [1e-3, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_block_that_is_truly_small_is_not_zero(method, size, dtype):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.small, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 40)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x) + size * self.small(x)))

    x, y = torch.randn(20, 4, dtype=dtype), torch.randint(0, 40, (20,))
    problem = gt.Problem(Net().to(dtype), lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), [(x, y)])
    found = gt.r_med(problem, method, samples=4)
    assert math.isfinite(found["small.weight"].value) and "zero" not in found["small.weight"].status
    assert found["small.weight"].max < 2 * size**2 * found["first.weight"].max


def test_entries_without_curvature_are_zeros_and_a_zero_median_is_infinite():
    """Most tokens do not occur."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 40)).double()
    tokens, y = torch.randint(0, 12, (10, 2)), torch.randint(0, 40, (10,))
    problem = gt.Problem(model, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), [(tokens, y)])
    found, exact = gt.r_med(problem, "probing", samples=4)["0.weight"], gt.r_med(problem, "exact")["0.weight"]
    assert found.zeros == exact.zeros > 100 and found.value == math.inf and "exactly zero" in found.status
    assert found.nonzero == pytest.approx(exact.nonzero, rel=0.6)


def test_the_same_seed_gives_the_same_bits_whatever_was_measured_before(trained):
    problem, _ = trained
    moved = problem.theta() * 1.01
    alone = gt.r_med(transformer(60), "probing", 3, samples=2, max_matvecs=4)
    gt.r_med(problem, "probing", 1, moved, samples=2, max_matvecs=4)
    again = gt.r_med(problem, "probing", 3, samples=2, max_matvecs=4)
    assert str(alone) == str(again) != str(gt.r_med(problem, "probing", 4, samples=2, max_matvecs=4))
