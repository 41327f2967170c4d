import pickle

import pytest

from geomtraj.errors import InputError
from geomtraj.trajectory import at, either, every, log_spaced


@pytest.mark.parametrize(
    "schedule, due, text",
    [
        (every(3), [0, 3, 6, 9, 12], "every(3)"),
        (at([7, 2, 2]), [2, 7], "at([2, 7])"),
        (log_spaced(3, 9), [0, 1, 3, 9], "log_spaced(3, 9)"),
        (log_spaced(1, 9), [0, 9], "log_spaced(1, 9)"),
        (either(every(10), at([3])), [0, 3, 10], "either(every(10), at([3]))"),
    ],
)
def test_schedule_is_true_at_its_steps_and_survives_pickling(schedule, due, text):
    again = pickle.loads(pickle.dumps(schedule))
    assert [step for step in range(13) if schedule(step)] == due
    assert [step for step in range(13) if again(step)] == due
    assert repr(schedule) == repr(again) == text


@pytest.mark.parametrize("n, total", [(12, 300), (30, 300), (5, 3), (300, 300), (2, 10_000)])
def test_log_spaced_gives_n_steps_where_there_are_enough_and_always_both_ends(n, total):
    steps = log_spaced(n, total).steps
    assert steps[0] == 0 and steps[1] == 1 and steps[-1] == total
    assert list(steps) == sorted(set(steps))
    assert min(n, total) <= len(steps) - 1 <= 1.2 * n


@pytest.mark.parametrize(
    "make",
    [
        lambda: every(0),
        lambda: every(2.5),
        lambda: every("x"),
        lambda: every(True),
        lambda: at([]),
        lambda: at([-1]),
        lambda: at(3),
        lambda: at("12"),
        lambda: log_spaced(0, 10),
        lambda: log_spaced(3, 0),
        lambda: either(),
        lambda: either(3),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(InputError):
        make()
