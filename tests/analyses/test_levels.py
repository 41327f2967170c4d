import math

import pytest

from analyses.common.levels import common_level, covered
from geomtraj.errors import InputError


def test_the_common_level_lies_between_what_all_start_from_and_what_all_reach():
    curves = {"a": [8.0, 1.0, 2.0], "b": [9.0, 4.0, math.nan], "c": [16.0, 0.5]}
    assert common_level(curves, 0.5) == pytest.approx(math.sqrt(8 * 4))
    assert common_level(curves, 0.25) == pytest.approx(8**0.75 * 4**0.25)
    with pytest.raises(InputError, match=r"a covers 1 to 8, b covers 9 to 9, c covers 0.5 to 16\): train longer"):
        common_level({**curves, "b": [9.0, math.inf]}, 0.5)
    with pytest.raises(InputError, match="b covers none"):
        common_level({**curves, "b": [math.nan]}, 0.5)
    assert covered([3.0, math.nan, 1.0]) == "1 to 3"
