import copy
import json
import pickle

import pytest

from geomtraj.measuring.record import Measurement, from_text, to_text
from geomtraj.statistics.base import Quantity
from geomtraj.status import Code, Remark, Status

WIDE = Remark(Code.WIDE, "w: the interval is 40 % wide", "w")
ALONE = Remark(Code.UNCHECKED, "the derivatives were not checked")
NOTE = Remark(Code.NOTE, "b: probed in parameter space", "b")


def test_a_status_is_a_sentence_for_people_and_codes_for_programs():
    assert Status() == "ok" and Status().good and Status.read("ok") == Status()
    status = Status([WIDE, NOTE, ALONE, WIDE])
    assert status == "w: the interval is 40 % wide; b: probed in parameter space; the derivatives were not checked"
    assert status.has(Code.WIDE) and status.has(Code.WIDE, "w") and not status.has(Code.WIDE, "b")
    assert not status.good and Status([NOTE]).good and status.labels == ("w", "b")
    assert status.of("b").remarks == (NOTE, ALONE) and status.of("other").remarks == (ALONE,)
    assert Status([ALONE]).under("w").remarks == (Remark(Code.UNCHECKED, f"w: {ALONE.text}", "w"),)
    assert Status.read("my own words").remarks == (Remark(Code.OTHER, "my own words"),)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s)), Status.read])
def test_remarks_survive_copies(again):
    status = Status([WIDE, ALONE])
    assert again(status) == status and again(status).remarks == status.remarks


def test_every_code_has_words_and_a_value_that_is_stored():
    assert all(code.text and code.value == code.value.lower() and " " not in code.value for code in Code)
    assert len({code.value for code in Code}) == len(Code)
    assert Status.from_json([["of_a_later_version", "x", ""]]).remarks == (Remark(Code.OTHER, "x"),)


def measured(status, details=None):
    quantities = {"w": Quantity(1.0), "b": Quantity(2.0)}
    return Measurement(3, 0.0, "r_med", {}, quantities, details or {}, status, iterate="x")


def test_each_block_has_its_own_status_and_keeps_it_in_storage():
    m = from_text(to_text(measured(Status([WIDE, ALONE]))))
    assert m.status.remarks == (WIDE, ALONE) and m.status_of("b") == ALONE.text
    assert m.status_of("w") == f"{WIDE.text}; {ALONE.text}"
    own = measured("w: wide", {"w": {"status": "wide"}, "b": {"status": "ok"}})
    assert (own.status_of("w"), own.status_of("b")) == ("wide", "ok")


def test_results_without_codes_are_read_and_damaged_remarks_are_not():
    m = Measurement.from_json({k: v for k, v in measured("w: wide").to_json().items() if k != "remarks"})
    assert m.status == "w: wide" and m.status.has(Code.OTHER) and m.status_of("b") == "w: wide"
    assert "remarks" not in json.loads(to_text(measured("ok")))
    with pytest.raises(Exception, match="its 'remarks' are"):
        Measurement.from_json(measured("ok").to_json() | {"remarks": [["wide"]]})
