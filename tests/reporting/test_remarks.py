import csv
import math

from synthetic import groups, results_of

from geomtraj.reporting import runs
from geomtraj.reporting.data import gather
from geomtraj.reporting.remarks import remarks, said


def remarked(seed=0, group=1.0):
    """Two blocks at three iterates: one with a remark that differs in its numbers, one that is zero to rounding."""
    r = results_of([0, 1, 2], [3.0, 2.0, 1.0], {"w": [group, 2.0, 3.0], "key.bias": [math.nan] * 3}, seed=seed)
    for i, m in enumerate(r.of("r_med")):
        object.__setattr__(m, "status", "w: wide; key.bias: zero")
        m.details.update(
            {
                "w": {"status": f"the interval is {10 + i} % wide" if i else "ok; w: probed in parameter space"},
                "key.bias": {"status": "zero to rounding: 1e-16 of the largest"},
            }
        )
    return r


def test_each_remark_stands_once_with_its_count_and_blocks():
    found = remarks(gather({"a": [remarked(0), remarked(1)], "b": [remarked(0)]}, 2))
    zero, wide = found
    assert (zero.count, zero.total, zero.labels) == (9, 9, {"key.bias": 9})
    assert (wide.count, wide.total, wide.labels) == (6, 9, {"w": 6})
    assert wide.text == "the interval is 11 % wide" and wide.first == "a seed 0, step 1"
    assert zero.groups == {"a": 6, "b": 3} and "6 of 9" in wide.row()


def test_a_measurement_whose_blocks_say_nothing_speaks_for_itself():
    (remark,) = remarks(gather(groups(seeds=2, layers=1), 2))
    assert (remark.statistic, remark.count, remark.total) == ("spectrum", 4, 48)
    assert remark.labels == {"lambda_min": 4}
    m = groups(seeds=1)["adam"][0].of("spectrum")[0]
    assert said(m) == [("lambda_min", "lambda_min has not converged: residual 0.5 at -7")]


def test_the_csv_holds_each_blocks_own_remark():
    text = runs.measurements_csv(gather({"a": [remarked()]}, 2))
    rows = {(r["label"], r["step"]): r["status"] for r in csv.DictReader(text.splitlines())}
    assert rows["w", "0"].startswith("ok") and rows["w", "2"] == "the interval is 12 % wide"
    assert rows["key.bias", "1"].startswith("zero to rounding") and rows["loss", "1"] == "ok"
