"""The primary answer, recomputed by hand: means of logarithms with NumPy, t-intervals with SciPy."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from synthetic import groups, results_of

import geomtraj as gt
from geomtraj.comparing import contrast
from geomtraj.comparing.matrices import choose, is_embedding
from geomtraj.comparing.primary import ABOVE, BELOW, UNDECIDED
from geomtraj.errors import InputError
from geomtraj.inference.interval import Z
from geomtraj.statistics.base import Quantity

STEPS = [0, 10, 20, 30]
SHAPES = {
    "embedding.weight": [50, 8], "blocks.0.qkv.weight": [24, 8], "blocks.0.qkv.bias": [24], "norm.weight": [8],
    "conv.weight": [4, 3, 3, 3], "head.weight": [50, 8],
}  # fmt: skip
MATRICES = ["blocks.0.qkv.weight", "conv.weight", "head.weight"]


def made(values, seed, shapes=SHAPES, losses=None, **manifest):
    """A run with these values by label; the same loss at the same step, so that no interpolation is needed."""
    r = results_of(STEPS, losses, {k: np.asarray(v, float) for k, v in values.items()}, seed=seed)
    r.manifest |= {"parameters": shapes, **manifest}
    return r


def random_runs(rng, n, labels=(*SHAPES, "all"), mean=0.0, losses=None):
    return [made({k: np.exp(mean + rng.normal(size=4)) for k in labels}, seed, losses=losses) for seed in range(n)]


def values(results, label):
    return np.array([q.value for _, q in results.series("r_med", label)])


def by_hand(first, other, labels):
    """Each pair's mean log ratio over blocks and the steps past the start's."""
    return [np.mean([np.log(values(b, k) / values(a, k)) for k in labels]) for a, b in zip(first, other, strict=True)]


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("mean", [-3.0, 0.0, 3.0])
def test_it_is_the_t_interval_over_runs_of_the_mean_over_matrices(n, mean):
    rng = np.random.default_rng(n)
    first, other = random_runs(rng, n), random_runs(rng, n, mean=mean)
    table = contrast({"adam": first, "sgdm": other}, at="step")
    logs = by_hand(first, other, MATRICES)
    low, high = stats.ttest_1samp(logs, 0.0).confidence_interval(0.95)
    row = table.primary
    assert (row.ratio, row.low, row.high) == pytest.approx(tuple(np.exp([np.mean(logs), low, high])), rel=1e-10)
    assert (row.n, row.above, row.status, row.numerator) == (n, sum(x > 0 for x in logs), "ok", "sgdm")
    assert row.t_test_p == pytest.approx(stats.ttest_1samp(logs, 0.0).pvalue)
    expected = "above" if low > 0 else "below" if high < 0 else "undecided"
    assert table.verdict.startswith(f"{expected}: ") and table.comparisons[0].side == expected
    assert table.comparisons[0].blocks == tuple(MATRICES)
    # It is the geometric mean of the matrices' own rows.
    single = {r.label: r.ratio for r in table.overall()}
    assert row.ratio == pytest.approx(stats.gmean([single[k] for k in MATRICES]))


def test_every_word_of_the_verdict_occurs():
    """Logs 0.1, 0.2, 0.3: mean 0.2, t-interval 0.2 +- 4.303 * 0.1 / sqrt(3) = [-0.048, 0.448]."""
    for shift, word in ((0.0, UNDECIDED), (0.1, ABOVE), (-0.5, BELOW)):
        first = [made({"head.weight": np.ones(4)}, s) for s in range(3)]
        logs = [0.1 + shift, 0.2 + shift, 0.3 + shift]
        other = [made({"head.weight": np.full(4, math.exp(x))}, s) for s, x in enumerate(logs)]
        table = contrast({"a": first, "b": other}, at="step")
        assert math.log(table.primary.low) == pytest.approx(shift - 0.0484, abs=1e-4)
        assert math.log(table.primary.high) == pytest.approx(shift + 0.4484, abs=1e-4)
        assert table.verdict.split(":")[0] == word


def test_one_pair_is_undecided():
    table = contrast(groups(seeds=1))
    assert table.primary.n == 1 and math.isnan(table.primary.low)
    assert table.verdict.startswith("undecided: ") and "one pair gives no interval" in table.verdict
    assert "no interval can be given with one pair" in table.primary.status


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_unusable_values_enter_no_mean_and_are_counted(bad):
    rng = np.random.default_rng(0)
    first, other = random_runs(rng, 3), random_runs(rng, 3)
    reference = contrast({"a": first, "b": other}, at="step").primary
    broken = values(other[1], "conv.weight")
    broken[2] = bad
    other[1] = made({k: values(other[1], k) for k in SHAPES} | {"conv.weight": broken}, 1)
    table = contrast({"a": first, "b": other}, at="step")
    logs = by_hand(first, other, MATRICES[::2])
    with np.errstate(all="ignore"):
        conv = [np.log(values(b, "conv.weight") / values(a, "conv.weight")) for a, b in zip(first, other, strict=True)]
    expected = [(2 * x + np.mean(c[np.isfinite(c)])) / 3 for x, c in zip(logs, conv, strict=True)]
    assert table.primary.ratio == pytest.approx(np.exp(np.mean(expected))) != reference.ratio
    assert table.primary.left_out == 1 and "1 of 36 ratios left out" in table.primary.status


def test_a_block_without_a_value_in_one_pair_is_left_out_of_all_and_named():
    rng = np.random.default_rng(0)
    first, other = random_runs(rng, 3), random_runs(rng, 3)
    other[1] = made({k: values(other[1], k) for k in SHAPES} | {"conv.weight": np.full(4, math.nan)}, 1)
    table = contrast({"a": first, "b": other}, at="step")
    assert table.comparisons[0].blocks == ("blocks.0.qkv.weight", "head.weight")
    assert table.primary.ratio == pytest.approx(np.exp(np.mean(by_hand(first, other, MATRICES[::2]))))
    assert table.comparisons[0].without == {"conv.weight": "no usable value in 1 of 3 pairs"}
    assert any("no usable value in 1 of 3 pairs: conv.weight" in text for text in table.comparisons[0].remarks)


def test_a_pair_without_any_value_is_left_out():
    rng = np.random.default_rng(0)
    first, other = random_runs(rng, 3), random_runs(rng, 3)
    other[0] = made(dict.fromkeys(SHAPES, np.full(4, math.inf)), 0)
    table = contrast({"a": first, "b": other}, at="step")
    assert table.primary.n == 2 and "1 of 3 pairs left out" in table.primary.status
    assert table.primary.ratio == pytest.approx(np.exp(np.mean(by_hand(first[1:], other[1:], MATRICES))))
    assert [math.isnan(p.log_ratio) for p in table.comparisons[0].pairs] == [True, False, False]


def test_nothing_usable_is_undecided_with_the_reason():
    first, other = ([made({"head.weight": np.full(4, x)}, s) for s in range(2)] for x in (1.0, math.inf))
    table = contrast({"a": first, "b": other}, at="step")
    assert table.primary is None and table.verdict.startswith("undecided: no block of the 1 has a usable value")
    assert "undecided" in str(table) and json.dumps(table.to_json()["primary"]) == "null"


def with_intervals(results, factor, open_labels=()):
    """Intervals of value / factor to value * factor, without upper end for some labels."""
    for m in results.of("r_med"):
        for k, q in m.quantities.items():
            m.quantities[k] = Quantity(q.value, q.value / factor, math.inf if k in open_labels else q.value * factor)
    return results


def test_measurement_errors_enter_by_hand():
    """Equal logs have no spread; 3 pairs x 3 matrices x 4 steps x 2 runs with errors of log(2) / 1.96 each."""
    same = {k: np.ones(4) for k in SHAPES}
    first = [with_intervals(made(same, s), 2.0) for s in range(3)]
    other = [with_intervals(made({k: np.full(4, 1.5) for k in SHAPES}, s), 2.0) for s in range(3)]
    table = contrast({"a": first, "b": other}, at="step")
    sem = math.log(2) / Z * math.sqrt(2 / (3 * 3 * 4))
    assert math.log(table.primary.high) == pytest.approx(math.log(1.5) + Z * sem)
    assert table.comparisons[0].seeds_alone.high == pytest.approx(1.5)
    assert table.primary.t_test_p == pytest.approx(2 * stats.norm.sf(math.log(1.5) / sem))
    assert any("spread over pairs alone" in text for text in table.comparisons[0].remarks)
    one = next(r for r in table if r.label == "conv.weight" and r.at == 10)
    assert math.log(one.high) == pytest.approx(math.log(1.5) + Z * math.log(2) / Z * math.sqrt(2 / 3))


def test_an_iterate_read_twice_counts_once_as_an_error():
    """Between two iterates both levels share both errors: weights add before they are squared."""
    losses = [8.0, 1.0]
    runs = [results_of([0, 1], losses, {"w": [1.0, 1.0]}, seed=s) for s in range(2)]
    noisy = [with_intervals(results_of([0, 1], losses, {"w": [2.0, 2.0]}, seed=s), 3.0) for s in range(2)]
    row = contrast({"a": runs, "b": noisy}, levels=2).primary  # at losses 4 and 2: weights 1/3 and 2/3
    sem = math.log(3) / Z * math.sqrt((0.5**2 + 0.5**2) / 2)
    assert math.log(row.high) == pytest.approx(math.log(2) + Z * sem)


def test_values_without_upper_end_are_told_and_left_out_for_the_sensitivity():
    rng = np.random.default_rng(1)
    first = [with_intervals(r, 1.01) for r in random_runs(rng, 3)]
    other = [with_intervals(r, 1.01, ["conv.weight"]) for r in random_runs(rng, 3)]
    table = contrast({"a": first, "b": other}, at="step")
    answer = table.comparisons[0]
    assert table.primary.status == "12 of 72 single values have no upper end"
    assert (table.primary.open_ended, table.primary.rests_on) == (12, 72)
    assert answer.sensitivity.ratio == pytest.approx(np.exp(np.mean(by_hand(first, other, MATRICES[::2]))))
    assert any("without them the ratio is" in text and "over 2 weight matrices" in text for text in answer.remarks)
    rows = {(r.label, r.at): r for r in table}
    assert rows["conv.weight", "all"].status == "12 of 24 single values have no upper end"
    assert rows["conv.weight", 10].status == "3 of 3 pairs rest on a value without upper end"
    assert rows["head.weight", "all"].status == rows["head.weight", 10].status == "ok"


def test_all_values_without_upper_end():
    first = [with_intervals(made({"head.weight": np.ones(4)}, s), 2.0, ["head.weight"]) for s in range(2)]
    answer = contrast({"a": first, "b": first}, at="step").comparisons[0]
    assert answer.sensitivity is None and any("without them no block has a value" in x for x in answer.remarks)


def test_overfitting_runs_are_paired_on_their_way_down():
    """The loss falls to 1 and rises again: what was measured behind the lowest loss must not matter."""
    losses = [4.0, 1.0, 2.5, 3.5]

    def runs(factor, behind):
        return [made({"head.weight": [factor, factor, behind, behind]}, s, losses=losses) for s in range(2)]

    table = contrast({"a": runs(1.0, 1e-6), "b": runs(2.0, 1e6)})
    assert all(r.ratio == pytest.approx(2.0) for r in table)
    (note,) = [n for n in table.notes if "lowest" in n]
    assert "in 4 of 4 runs" in note and "a seed 0 1 at step 10 and up to 3.5 behind it" in note
    at_step = contrast({"a": runs(1.0, 1e-6), "b": runs(2.0, 1e6)}, at="step")
    assert at_step.primary.ratio > 100 and not any("lowest" in n for n in at_step.notes)


def test_a_rise_at_the_start_is_not_paired_either():
    first = [made({"head.weight": [1e9, 1.0, 1.0, 1.0]}, s, losses=[3.0, 6.0, 2.0, 1.0]) for s in range(2)]
    other = [made({"head.weight": [1e-9, 2.0, 2.0, 2.0]}, s, losses=[3.0, 6.0, 2.0, 1.0]) for s in range(2)]
    assert all(r.ratio == pytest.approx(2.0) for r in contrast({"a": first, "b": other}))


def test_the_choice_can_be_set():
    rng = np.random.default_rng(2)
    data = {"a": random_runs(rng, 3), "b": random_runs(rng, 3)}
    for over, chosen in (
        ("all", ["all"]),
        (["norm.weight", "head.*"], ["norm.weight", "head.weight"]),
        ("blocks.*", ["blocks.0.qkv.weight", "blocks.0.qkv.bias"]),
    ):
        table = contrast(data, at="step", over=over)
        assert table.comparisons[0].blocks == tuple(chosen)
        assert table.primary.ratio == pytest.approx(np.exp(np.mean(by_hand(data["a"], data["b"], chosen))))
    for over, message in (("heads.*", "fits none of the labels"), ([], "must be a label"), ([3], "must be a label")):
        with pytest.raises(InputError, match=message):
            contrast(data, at="step", over=over)


def test_parts_of_a_split_matrix_are_matrices():
    labels = [f"blocks.0.qkv.weight[{x}]" for x in "qkv"] + ["embedding.weight[0]"]
    rng = np.random.default_rng(3)
    data = {"a": random_runs(rng, 2, labels), "b": random_runs(rng, 2, labels)}
    assert contrast(data, at="step").comparisons[0].blocks == tuple(labels[:3])


def test_shapes_of_blocks_come_from_the_measurements_where_they_stand_there():
    r = made({"joined": np.ones(4), "small": np.ones(4), "head.weight": np.ones(4)}, 0)
    for m in r.of("r_med"):
        m.made["blocks"] = {"joined": ["matrix", [4, 5]], "small": ["vector", [4]]}
    choice = choose([r], ["joined", "small", "head.weight", "all"])
    assert choice.labels == ("joined", "head.weight")
    assert choice.others == {"fewer than two dimensions": ("small",)}


def test_measurements_tell_kinds_of_blocks_whatever_their_names():
    names = ["conv[0].weight[q]", "conv[0].weight[k]", "lookup", "joined", "gain"]
    r = made({name: np.ones(4) for name in names}, 0)
    kinds = ["matrix", "matrix", "embedding", "matrix", "vector"]
    shapes = [[4, 8], [2, 8], [5, 8], [40], [1, 1, 8]]
    for m in r.of("r_med"):
        m.made["blocks"] = {n: [k, s] for n, k, s in zip(names, kinds, shapes, strict=True)}
    choice = choose([r], [*names, "all"])
    assert choice.labels == ("conv[0].weight[q]", "conv[0].weight[k]", "joined")
    assert choice.others == {"embeddings": ("lookup",), "fewer than two dimensions": ("gain",)}
    assert choose([r], names, "*[q]").labels == ("conv[0].weight[q]",)
    assert choose([r], names, "conv[0].*").labels == tuple(names[:2])


def test_without_shapes_all_blocks_are_taken_and_that_is_said():
    rng = np.random.default_rng(4)
    first, other = ([made({k: np.exp(rng.normal(size=4)) for k in "uv"}, s, {}) for s in range(2)] for _ in "ab")
    answer = contrast({"a": first, "b": other}, at="step").comparisons[0]
    assert answer.blocks == ("u", "v") and any("shapes of the blocks are not stored" in x for x in answer.remarks)


def test_a_statistic_that_is_not_of_blocks():
    table = contrast(groups(), "spectrum")
    assert table.primary is None and "name what to average with over" in table.verdict
    assert contrast(groups(), "spectrum", over="lambda_max").primary.n == 3
    assert contrast(groups(), "trace").primary.n == 3


@pytest.mark.parametrize(
    ("label", "kind", "expected"),
    [
        ("embedding.weight", None, True),
        ("transformer.wte.weight", None, True),
        ("model.embed_tokens.weight", "embedding", True),
        ("lookup.weight", "embedding", True),
        ("bert.embeddings.word_embeddings.weight", None, True),
        ("pos_embed", "VisionTransformer", True),
        ("position.weight", None, True),
        ("patch_embed.proj.weight", None, False),
        ("patch_embed.weight", "Conv2d", False),
        ("unembed.weight", None, False),
        ("blocks.0.attention.qkv.weight[q]", "Linear", False),
        ("head.weight", None, False),
        ("0.weight", None, False),
    ],
)
def test_what_is_an_embedding(label, kind, expected):
    assert is_embedding(label, {} if kind is None else {label: kind}) == expected


def test_several_groups_have_an_answer_each():
    table = contrast(groups(("adam", "sgdm", "muon")))
    assert [(c.numerator, c.denominator) for c in table.comparisons] == [("sgdm", "adam"), ("muon", "adam")]
    assert table.primary == table.comparisons[0].primary and table.verdict == table.comparisons[0].verdict
    assert all(c.verdict in str(table) for c in table.comparisons)


def test_the_table_begins_with_the_answer(tmp_path):
    table = contrast(groups())
    lines = str(table).splitlines()
    assert lines[0] == table.verdict
    first = next(i for i, line in enumerate(lines) if line.startswith("label"))
    assert lines[first + 1].startswith("weight matrices")
    overall = len(table.overall())
    assert all(" all " in line for line in lines[first + 1 : first + 2 + overall])
    assert len(repr(table)) < 300 and "\n" not in repr(table)
    stored = table.to_json(tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())["primary"]["ratio"] == stored["primary"]["ratio"]


def test_coverage_of_the_answer_with_noisy_values_of_unlike_quality():
    """200 data sets of three pairs each: seeds scatter, one group is measured ten times more noisily than the other."""
    rng, held, true = np.random.default_rng(7), [], 0.4
    for _ in range(200):
        data = {}
        for name, noise, mean in (("a", 0.05, 0.0), ("b", 0.5, true)):
            runs = []
            for seed in range(3):
                centre = mean + 0.2 * rng.normal()
                run = made({k: np.exp(centre + noise * rng.normal(size=4)) for k in MATRICES}, seed)
                runs.append(with_intervals(run, math.exp(Z * noise)))
            data[name] = runs
        row = contrast(data, at="step").primary
        held.append(row.low <= math.exp(true) <= row.high)
    assert 0.91 <= np.mean(held) <= 0.995


def test_measuring_stores_what_the_blocks_are(tmp_path):
    """From the model to the choice: an embedding and biases by what the model's modules are, not by their names."""
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    tokens, labels = torch.arange(5), torch.arange(5) % 3
    problem = gt.Problem(
        model, lambda m, b: torch.nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), [(tokens, labels)]
    )
    with gt.Recorder(tmp_path / "run", model, torch.optim.SGD(model.parameters(), 0.1)):
        pass
    results = gt.measure(tmp_path / "run", problem, ["r_med"], settings={"r_med": {"method": "exact"}}, progress=False)
    choice = choose([results], results.labels("r_med"))
    assert choice.labels == ("1.weight", "3.weight")
    assert choice.others == {"embeddings": ("0.weight",), "fewer than two dimensions": ("1.bias", "3.bias")}
    assert results.of("r_med")[0].made["blocks"]["3.weight"] == ["matrix", [3, 6]]
