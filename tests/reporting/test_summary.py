import math

import pytest
from synthetic import groups, results_of, run

from geomtraj.comparing import contrast
from geomtraj.reporting import summary
from geomtraj.reporting.data import gather
from geomtraj.statistics.base import Quantity


@pytest.mark.parametrize(
    ("side", "direction", "message"),
    [
        ("above", 1, "The claim that sgdm runs through larger R_med than adam holds here."),
        ("below", 1, "than adam does not hold here: it is the other way round."),
        ("undecided", 1, "is neither borne out nor refuted here."),
        ("below", -1, "The claim that adam runs through larger R_med than sgdm holds here."),
        ("above", -1, "The claim that adam runs through larger R_med than sgdm does not hold here"),
    ],
)
def test_what_the_answer_means_for_the_claim(side, direction, message):
    (text,) = summary.claim(side, direction, "sgdm", "adam")
    assert message in text
    assert summary.claim(side, 0, "sgdm", "adam") == []


def test_the_claim_has_a_direction_only_between_the_two_families():
    data = gather(groups(("adam", "sgdm", "muon"), seeds=1), 2)
    assert summary.family(data, "sgdm", "adam") == 1
    assert summary.family(data, "adam", "sgdm") == -1
    assert summary.family(data, "muon", "adam") == 0
    # The optimizer recorded in the run counts, not the group's name.
    renamed = gather({"sgdm": [run("adam")], "adam": [run("sgdm")]}, 2)
    assert summary.family(renamed, "sgdm", "adam") == -1


@pytest.mark.parametrize(
    ("terrain", "word", "message"), [(1.0, "above", "holds here"), (0.2, "below", "the other way round")]
)
def test_the_headline_is_the_verdict_of_the_contrast(terrain, word, message):
    data = {
        "adam": [run("adam", s, terrain=0.5) for s in range(3)],
        "sgdm": [run("sgdm", s, terrain=terrain) for s in range(3)],
    }
    (answer,) = summary.answers(gather(data, 5))
    assert answer.verdict == contrast(data).verdict and answer.verdict.startswith(word + ": ")
    assert message in answer.numbers[0] and "n = 3" in answer.verdict
    assert any("values behind the answer have no upper end" in text for text in answer.numbers)
    assert not any("because" in text or "caus" in text for text in [answer.verdict, *answer.numbers])


def test_counts_leave_the_whole_model_out():
    (answer,) = summary.answers(gather(groups(), 5))
    table = gather(groups(), 5).tables["r_med", "loss"]
    blocks = [r for r in table.overall() if r.label != "all"]
    above = sum(r.low > 1 for r in blocks)
    assert any(f"has an interval above 1 in {above} of {len(blocks)}," in t for t in answer.numbers)


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
