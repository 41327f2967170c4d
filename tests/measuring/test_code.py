"""The code that a user's statistic runs, as its stored results name it."""

import importlib
import sys

import pytest

import geomtraj as gt
from geomtraj.measuring import code

SOURCE = """
from dataclasses import dataclass
import helper
from geomtraj.statistics import Outcome, Quantity, Statistic
SCALE = 2.0
def twice(x):
    return inner(x) * SCALE
def inner(x):
    return x
def unrelated():
    return 3
class Base(Statistic):
    def offset(self):
        return 1
@dataclass(frozen=True)
class Mine(Base):
    name = "mine"
    title = "mine"
    def measure(self, point):
        return Outcome({"mine": Quantity.exact(twice(point.loss) + self.offset() + helper.value())})
"""


@pytest.fixture
def digest(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = iter(f"mine_{n}" for n in range(10))

    def of(source, helped=0):
        for name in ("helper", "statistic_of_a_user"):
            sys.modules.pop(name, None)
        (tmp_path / "helper.py").write_text(f"def value():\n    return {helped}\n")
        folder = tmp_path / next(names)
        folder.mkdir()
        (folder / "statistic_of_a_user.py").write_text(source)
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        found = code.code_of(importlib.import_module("statistic_of_a_user").Mine())
        sys.modules.pop("statistic_of_a_user")
        return found

    return of


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("return 3", "return 4", True),
        ("twice(point.loss)", "3 * twice(point.loss)", False),
        ("inner(x) * SCALE", "inner(x) * SCALE * 2", False),
        ("return x\n", "return x + 1\n", False),
        ("SCALE = 2.0", "SCALE = 3.0", False),
        ("return 1", "return 2", False),
    ],
)
def test_what_a_statistic_uses_is_part_of_its_code(digest, old, new, same):
    assert old in SOURCE
    assert (digest(SOURCE) == digest(SOURCE.replace(old, new))) is same


def test_a_helper_in_another_file_is_part_of_it(digest):
    assert digest(SOURCE) != digest(SOURCE, helped=1)


def test_our_own_statistics_have_a_version(monkeypatch):
    trace = gt.STATISTICS["trace"]()
    assert code.code_of(trace) == ""
    before = code.failure_code(trace)
    for name in ("TORCH", "__version__"):
        with monkeypatch.context() as patch:
            patch.setattr(code, name, "99")
            assert code.failure_code(trace) != before


def test_code_that_was_typed_in_has_no_source():
    space = {"__name__": "__main__"}
    exec("class Typed:\n    def measure(self):\n        return 1\n", space)
    other = {"__name__": "__main__"}
    exec("class Typed:\n    def measure(self):\n        return 2\n", other)
    assert code._text(space["Typed"]) != code._text(other["Typed"])
