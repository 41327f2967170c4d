import csv
import json
import math

import numpy as np
import pytest
from synthetic import groups, results_of, run

from geomtraj.comparing import Table, contrast
from geomtraj.errors import InputError

STEPS = [0, 10, 20, 30, 40]


def power_law(exponent, factor, seed=None, losses=(8.0, 4.0, 2.0, 1.0, 0.5), steps=STEPS, **options):
    """A run on which the statistic is factor * loss^exponent, which interpolation reads exactly."""
    losses = np.array(losses)
    return results_of(steps, losses, {"w": factor * losses**exponent, "all": losses**exponent}, seed=seed, **options)


def test_ratio_is_other_over_first_at_equal_loss():
    ratios = [2.0, 3.0, 4.0]
    first = [power_law(-1.0, 1.0, seed) for seed in range(3)]
    other = [power_law(-1.0, r, seed, losses=(8.0, 7.0, 3.0, 0.7, 0.4)) for seed, r in enumerate(ratios)]
    table = contrast({"adam": first, "sgdm": other}, levels=4)
    rows = [row for row in table if row.label == "w"]
    assert [row.at for row in rows][-1] == "all" and len(rows) == 5
    for row in rows:
        assert (row.numerator, row.denominator) == ("sgdm", "adam")
        assert row.ratio == pytest.approx(24 ** (1 / 3), rel=1e-9)
        assert row.low < row.ratio < row.high and row.n == 3 and row.above == 3
        assert row.loss_ratio == pytest.approx(1.0) and row.sign_test_p == 0.25 and row.status == "ok"
    assert all(row.ratio == pytest.approx(1.0) for row in table if row.label == "all")
    # Levels: log-spaced, strictly inside the common range (0.5, 8).
    levels = [row.at for row in rows[:-1]]
    assert np.allclose(np.diff(np.log(levels)), np.log(0.5 / 8) / 5)
    assert levels == sorted(levels, reverse=True) and max(levels) < 8 and min(levels) > 0.5


def test_equal_loss_is_not_equal_step():
    """The same terrain law, walked at different speeds: no contrast at equal loss, a large one at equal step."""
    slow = [power_law(-2.0, 1.0, 0), power_law(-2.0, 1.0, 1)]
    fast = [power_law(-2.0, 1.0, s, losses=(8.0, 2.0, 1.0, 0.5, 0.25)) for s in range(2)]
    at_loss = next(r for r in contrast({"a": slow, "b": fast}) if r.label == "w" and r.at == "all")
    assert at_loss.ratio == pytest.approx(1.0, rel=1e-9)
    at_step = {r.at: r for r in contrast({"a": slow, "b": fast}, at="step") if r.label == "w"}
    assert list(at_step) == [10, 20, 30, 40, "all"]  # step 0 is shared
    assert at_step[10].ratio == pytest.approx(4.0) and at_step[10].loss_ratio == pytest.approx(0.5)


def test_step_zero_stays_where_the_starts_differ():
    table = contrast({"a": [power_law(1, 1)], "b": [power_law(1, 1, losses=(9, 4, 2, 1, 0.5))]}, at="step")
    assert table.rows[0].at == 0


def test_at_time_reads_between_iterates():
    a = results_of(STEPS, None, {"w": np.exp(np.arange(5))}, times=[0, 1, 2, 3, 4])
    b = results_of(STEPS, None, {"w": np.exp(np.arange(5))}, times=[0, 2, 4, 6, 8])
    rows = list(contrast({"a": [a], "b": [b]}, at="time", levels=8))
    for row in rows[:-1]:
        assert row.ratio == pytest.approx(math.exp(-row.at / 2), rel=1e-9)
    assert [row.at for row in rows[:-1]] == pytest.approx(np.arange(1, 9) / 2)


def test_pairs_by_seed_not_by_order():
    first = [power_law(-1, 10.0, 0), power_law(-1, 1.0, 1)]
    other = [power_law(-1, 2.0, 1), power_law(-1, 20.0, 0), power_law(-1, 5.0, 7)]
    table = contrast({"a": first, "b": other})
    row = next(r for r in table.overall() if r.label == "w")
    assert row.n == 2 and row.ratio == pytest.approx(2.0) and row.high == pytest.approx(2.0)
    assert any("b seed 7" in note for note in table.notes)


def test_pairs_by_order_without_seeds():
    table = contrast({"a": [power_law(-1, 10), power_law(-1, 1)], "b": [power_law(-1, 20), power_law(-1, 2)]})
    assert next(r for r in table.overall() if r.label == "w").high == pytest.approx(2.0)
    apart = contrast({"a": [power_law(-1, 1, 0)], "b": [power_law(-1, 2, 5)]})
    assert any("no seed in common" in note for note in apart.notes)


def test_several_groups_each_against_the_first():
    table = contrast({"a": [power_law(-1, 1)], "b": [power_law(-1, 2)], "c": [power_law(-1, 4)]})
    found = {(r.numerator, r.denominator): r.ratio for r in table.overall() if r.label == "w"}
    assert found == {("b", "a"): pytest.approx(2.0), ("c", "a"): pytest.approx(4.0)}


def test_one_seed_gives_a_ratio_without_interval():
    row = contrast({"a": [power_law(-1, 1)], "b": [power_law(-1, 2)]}).rows[0]
    assert row.ratio == pytest.approx(2.0) and math.isnan(row.low) and math.isnan(row.high) and math.isnan(row.holm_p)
    assert "no interval can be given with one seed" in row.status


def test_unusable_values_are_left_out_and_counted():
    losses = np.array([8.0, 4.0, 2.0, 1.0, 0.5])
    first = [results_of(STEPS, losses, {"w": np.ones(5)}, seed=s) for s in range(3)]
    bad = [np.full(5, 2.0), np.full(5, np.inf), np.array([2, 2, 0, 2, -2.0])]
    other = [results_of(STEPS, losses, {"w": w}, seed=s) for s, w in enumerate(bad)]
    rows = {r.at: r for r in contrast({"a": first, "b": other}, at="step")}
    assert rows[10].n == 2 and rows[10].status.startswith("1 of 3 pairs left out")
    assert rows[20].n == 1 and rows[20].status.startswith("2 of 3 pairs left out") and "one seed" in rows[20].status
    assert rows["all"].n == 2 and rows["all"].ratio == pytest.approx(2.0)
    assert rows["all"].status.startswith("6 of 12 values left out")
    negative = contrast(
        {
            "a": [results_of(STEPS, losses, {"w": -np.ones(5)})],
            "b": [results_of(STEPS, losses, {"w": -np.full(5, 3.0)})],
        }
    )
    assert negative.rows[0].ratio == pytest.approx(3.0)
    none = contrast({"a": first[:1], "b": other[1:2]})
    assert none.rows[0].n == 0 and math.isnan(none.rows[0].ratio) and "no pair" in none.rows[0].status


def test_diverged_runs_are_left_out_and_named():
    bad = power_law(-1, 99, 1, status="diverged", path="runs/bad")
    table = contrast({"a": [power_law(-1, 1, 0), power_law(-1, 1, 1)], "b": [power_law(-1, 2, 0), bad]})
    assert table.rows[0].n == 1 and table.rows[0].ratio == pytest.approx(2.0)
    assert any("b seed 1 (bad)" in note and "diverged" in note for note in table.notes)
    with pytest.raises(InputError, match="b has no run left"):
        contrast({"a": [power_law(-1, 1, 1)], "b": [bad]})
    rest = contrast({"a": [power_law(-1, 1, 1)], "b": [bad], "c": [power_law(-1, 2, 1)]})
    assert {r.numerator for r in rest} == {"c"} and any("b cannot be compared" in n for n in rest.notes)


def test_no_common_loss():
    apart = power_law(-1, 1, 1, losses=(0.4, 0.3, 0.2, 0.1, 0.05))
    with pytest.raises(InputError, match=r"a seed 1 covers 0.5 to 8 and b seed 1 covers 0.05 to 0.4"):
        contrast({"a": [power_law(-1, 1, 1)], "b": [apart]})
    table = contrast({"a": [power_law(-1, 1, 1), power_law(-1, 1, 2)], "b": [apart, power_law(-1, 2, 2)]})
    assert table.rows[0].n == 1 and any("covers 0.05 to 0.4" in note for note in table.notes)


def test_pairs_without_a_loss_common_to_all_are_read_at_their_own():
    low = (0.4, 0.3, 0.2, 0.1, 0.05)
    first = [power_law(-1, 1, 0), power_law(-1, 1, 1, losses=low)]
    other = [power_law(-1, 2, 0), power_law(-1, 8, 1, losses=low)]
    table = contrast({"a": first, "b": other})
    assert {r.at for r in table} == {"all"} and table.rows[0].n == 2
    assert table.rows[0].ratio == pytest.approx(4.0) and any("each pair is read at its own" in n for n in table.notes)


def test_losses_below_zero_are_paired_linearly():
    losses = np.array([2.0, 1.0, 0.0, -1.0, -2.0])
    run_of = lambda factor: results_of(STEPS, losses, {"w": factor * np.exp(losses)})  # noqa: E731
    table = contrast({"a": [run_of(1.0)], "b": [run_of(3.0)]})
    assert all(r.ratio == pytest.approx(3.0) for r in table) and any("linear" in n for n in table.notes)
    assert [r.at for r in table.rows[:-1]] == pytest.approx([4 / 3, 2 / 3, 0, -2 / 3, -4 / 3])


def test_a_label_that_one_run_lacks_is_named():
    losses = np.array([2.0, 1.0])
    a = results_of([0, 1], losses, {"w": [1, 1], "v": [1, 1]})
    b = results_of([0, 1], losses, {"w": [2, 2]})
    table = contrast({"a": [a], "b": [b]})
    assert any(note.startswith("v: not measured") for note in table.notes)
    assert {r.label: r.n for r in table.overall()} == {"w": 1, "v": 0}


def test_holm_corrects_over_labels_only():
    table = contrast(groups())
    for place in {r.at for r in table}:
        rows = [r for r in table if r.at == place]
        smallest = min(rows, key=lambda r: r.t_test_p)
        assert smallest.holm_p == pytest.approx(min(1.0, len(rows) * smallest.t_test_p))
        assert len({r.label for r in rows}) == len(rows)


def test_other_statistics():
    everything = groups()
    table = contrast(everything, statistic="spectrum")
    assert {r.label for r in table} == {"lambda_max", "lambda_min"} and all(r.n == 3 for r in table)
    assert {r.label for r in contrast(everything, "trace", at="time")} == {"trace"}


def test_unlike_problems_are_noted():
    a, b = run("adam"), run("sgdm")
    for m in b.measurements:
        m.made["problem"] = "another"
    assert any("different losses" in n for n in contrast({"a": [a], "b": [b]}).notes)


GOOD = {"a": [power_law(-1, 1)], "b": [power_law(-1, 2)]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "must be a dict"),
        (({},), "is empty"),
        (({"a": [power_law(-1, 1)]},), "only 'a'"),
        (({"a": [], "b": []},), "groups\\['a'\\] is an empty list"),
        (({"a": power_law(-1, 1), "b": []},), "must be a list of Results"),
        (({"a": "runs/adam", "b": []},), "must be a list of Results, not str"),
        (({"a": ["runs/adam"], "b": []},), "holds a str: pass what gt.measure"),
        (({1: [power_law(-1, 1)]},), "key 1"),
        ((GOOD, "rmed"), "did you mean 'r_med'"),
        ((GOOD, None), "statistic must be a name"),
        ((GOOD, "r_med", "los"), "did you mean 'loss'"),
        ((GOOD, "r_med", None), "unknown pairing"),
        ((GOOD, "r_med", "loss", 0), "levels is 0"),
        ((GOOD, "r_med", "loss", 2.5), "levels is 2.5"),
        (({"a": [results_of([0], None, {"w": [1]})], "b": [results_of([0], None, {"w": [1]})]},), "'loss'"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        contrast(*arguments)
    assert "\n" not in str(caught.value)


def test_no_common_step():
    with pytest.raises(InputError, match="same schedule"):
        contrast({"a": [power_law(-1, 1)], "b": [power_law(-1, 1, steps=[0, 1, 2, 3, 4])]}, at="step")


def test_table_goes_to_csv_json_and_text(tmp_path):
    table = contrast(GOOD)
    assert isinstance(table, Table) and len(table) == len(list(table)) == len(table.rows)
    with table.to_csv(tmp_path / "sub" / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["ratio"]) for r in rows] == [r.ratio for r in table]
    assert rows[0]["numerator"] == "b" and rows[-1]["at"] == "all"
    content = table.to_json(tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())["rows"][0]["ratio"] == content["rows"][0]["ratio"]
    text = str(table)
    assert "b / a" in text and "no interval can be given" in text and "equal loss" in text
