import math

import pytest
from synthetic import groups, results_of, run

from geomtraj.contrast import Row
from geomtraj.report import summary
from geomtraj.report.material import gather
from geomtraj.statistics.base import Quantity


def row(ratio, low, high, n=3, holm_p=0.5, label="w", above=0):
    return Row(label, "sgdm", "adam", "all", ratio, low, high, n, above, 0.25, 0.1, holm_p, 1.0, "ok")


UP, DOWN, OPEN = row(2.0, 1.5, 2.5), row(0.5, 0.4, 0.6), row(1.1, 0.8, 1.5)
FIRM_UP, FIRM_DOWN = row(2.0, 1.5, 2.5, holm_p=0.01), row(0.5, 0.4, 0.6, holm_p=0.01)


@pytest.mark.parametrize(
    ("rows", "direction", "message"),
    [
        ([UP] * 8 + [OPEN] * 2, 1, "The claim that sgdm runs through larger R_med than adam holds here for most"),
        ([DOWN] * 8 + [OPEN] * 2, 1, "does not hold here: at equal loss 0 of 10 blocks agree with it and 8"),
        ([OPEN] * 10, 1, "does not hold here: at equal loss no block's interval leaves out 1"),
        ([OPEN] * 10, 0, "No difference is seen here"),
        ([UP] + [OPEN] * 9, 1, "cannot be decided here: the intervals of 1 of 10 blocks leave out 1, none after Holm"),
        ([FIRM_UP] + [OPEN] * 9, 1, "does not hold here for most blocks: at equal loss 1 of 10 agree"),
        ([FIRM_UP, FIRM_DOWN, OPEN], 1, "does not hold here: at equal loss 1 of 3 blocks agree with it and 1"),
        (
            [UP] * 8 + [DOWN] * 2,
            0,
            "different terrain at equal loss: R_med is larger on sgdm's path in 8 and smaller in 2",
        ),
        ([DOWN] * 8 + [OPEN] * 2, -1, "The claim that adam runs through larger R_med than sgdm holds here for most"),
        ([UP] * 8 + [OPEN] * 2, -1, "The claim that adam runs through larger R_med than sgdm does not hold here"),
        ([row(2.0, math.nan, math.nan, n=1, holm_p=math.nan)] * 9, 1, "cannot be decided with n = 1"),
        ([row(2.0, math.nan, math.nan, n=1, holm_p=math.nan)] * 9, 0, "Whether the two travelled"),
    ],
)
def test_the_verdict_follows_the_intervals(rows, direction, message):
    assert message in summary.verdict(rows, "sgdm", "adam", direction)


def test_the_claim_has_a_direction_only_between_the_two_families():
    material = gather(groups(("adam", "sgdm", "muon"), seeds=1), 2)
    assert summary.family(material, "sgdm", "adam") == 1
    assert summary.family(material, "adam", "sgdm") == -1
    assert summary.family(material, "muon", "adam") == 0
    # The optimizer recorded in the run counts, not the group's name.
    renamed = gather({"sgdm": [run("adam")], "adam": [run("sgdm")]}, 2)
    assert summary.family(renamed, "sgdm", "adam") == -1


@pytest.mark.parametrize(("terrain", "message"), [(1.0, "holds here for most blocks"), (0.2, "does not hold here")])
def test_the_answer_follows_the_data(terrain, message):
    data = {
        "adam": [run("adam", s, terrain=0.5) for s in range(3)],
        "sgdm": [run("sgdm", s, terrain=terrain) for s in range(3)],
    }
    (answer,) = summary.answers(gather(data, 5))
    assert message in answer.verdict and "n = 3" in answer.verdict
    assert any("of 18 blocks the 95 % interval lies above 1 in" in text for text in answer.numbers)
    assert not any("because" in text or "caus" in text for text in [answer.verdict, *answer.numbers])


def test_counts_leave_the_whole_model_out():
    (answer,) = summary.answers(gather(groups(), 5))
    table = gather(groups(), 5).tables["r_med", "loss"]
    blocks = [r for r in table.overall() if r.label != "all"]
    above = sum(r.low > 1 for r in blocks)
    assert any(f"of {len(blocks)} blocks the 95 % interval lies above 1 in {above}," in t for t in answer.numbers)


def measured(low, high):
    r = results_of([0, 1], [2.0, 1.0], {"w": [2.0, 2.0]})
    for m in r.of("r_med"):
        m.quantities["w"] = Quantity(2.0, low, high)
    return gather({"a": [r]}, 2)


@pytest.mark.parametrize(
    ("low", "high", "message", "warned"),
    [
        (2.0, 2.0, "exact diagonals", False),
        (1.9, 2.1, "spans a factor of 1.11", False),
        (1.0, 4.0, "spans a factor of 4", True),
        (1.0, math.inf, "is unbounded in the median; 2 of 2 have no upper end", True),
        (math.nan, math.nan, "For 2 of 2 R_med values no interval is known", False),
    ],
)
def test_wide_intervals_are_warned_of(low, high, message, warned):
    texts = summary.precision(measured(low, high))
    assert any(message in text for text in texts)
    assert any(text.startswith("Warning") for text in texts) == warned
