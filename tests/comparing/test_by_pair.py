import math

import numpy as np
import pytest
from synthetic import results_of

from geomtraj.comparing import contrast
from geomtraj.comparing.by_pair import pair_ratios
from geomtraj.errors import InputError

STEPS = [0, 10, 20, 30]
RNG = np.random.default_rng(3)


def runs(fast, seeds=(0, 1, 2)):
    made = []
    for seed in seeds:
        losses = 8.0 * np.exp(-np.array(STEPS) * (0.1 if fast else 0.05)) * (1 + 0.01 * seed)
        made.append(results_of(STEPS, losses, {"w": np.exp(RNG.normal(size=4)), "b": RNG.normal(size=4)}, seed=seed))
    return made


@pytest.mark.parametrize("at", ["loss", "step", "time"])
def test_the_pairs_are_those_of_the_contrast(at):
    slow, fast = runs(False), runs(True)
    table = contrast({"slow": slow, "fast": fast}, at=at)
    pairs = pair_ratios(fast, slow, at=at)
    rows = [r for r in table if r.label == "w" and r.at != "all"]
    assert len(rows) >= 3
    for row in rows:
        here = [p for p in pairs if (p.label, p.at) == ("w", row.at)]
        assert [p.seed for p in here] == [0, 1, 2]
        assert math.exp(np.log([p.ratio for p in here]).mean()) == pytest.approx(row.ratio)
        losses = [p.numerator_loss / p.denominator_loss for p in here]
        assert math.exp(np.log(losses).mean()) == pytest.approx(row.loss_ratio)


def test_at_a_step_the_ratio_is_that_of_the_stored_values():
    slow, fast = runs(False), runs(True)
    found = {(p.label, p.at, p.seed): p for p in pair_ratios(fast, slow)}
    above, below = (dict((m.step, q.value) for m, q in r[1].series("r_med", "w")) for r in (fast, slow))
    entry = found["w", 20, 1]
    assert entry.ratio == above[20] / below[20]
    assert (entry.numerator_loss, entry.denominator_loss) == (fast[1].losses()[20], slow[1].losses()[20])
    # Values of unlike signs have no ratio.
    signs = [np.sign(dict((m.step, q.value) for m, q in r[0].series("r_med", "b"))[20]) for r in (fast, slow)]
    assert np.isnan(found["b", 20, 0].ratio) == (signs[0] != signs[1])


def test_what_cannot_be_compared_is_told():
    high = results_of(STEPS, [9.0, 8.0, 7.0, 6.0], {"w": np.ones(4)}, seed=0)
    low = results_of(STEPS, [4.0, 3.0, 2.0, 1.0], {"w": np.ones(4)}, seed=0)
    with pytest.raises(InputError, match=r"covers 6 to 9.*|covers 1 to 4"):
        pair_ratios([high], [low], at="loss")
    assert len(pair_ratios([high], [low], at="step")) == 4
    with pytest.raises(InputError, match="unknown pairing"):
        pair_ratios([high], [low], at="lost")
