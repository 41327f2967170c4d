import csv
import math
import sys

import numpy as np
import pytest
from synthetic import groups, results_of

from geomtraj.comparing import contrast
from geomtraj.errors import InputError
from geomtraj.measuring.results import COLUMNS
from geomtraj.reporting.analysis import Sheet
from geomtraj.reporting.data import gather
from geomtraj.reporting.runs import measurements_csv
from geomtraj.spreadsheets import csv_text, harmless


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"), ("+cmd", "'+cmd"), ("-x", "'-x"), ("\t=1", "'\t=1"),
        ("a=b", "a=b"),        ("", ""), ("-1.5e-3", "-1.5e-3"), ("+3", "+3"), ("-inf", "-inf"),
    ],
)  # fmt: skip
def test_texts_that_would_run_as_formulas_do_not(cell, shown):
    assert harmless(cell) == shown


def test_numbers_keep_all_their_digits():
    text = csv_text(["a", "b"], [[-1 / 3, "=x"], [np.float64(2.5), None]])
    assert text == f"a,b\n{-1 / 3!r},'=x\n2.5,\n"


def test_every_table_is_harmless():
    name = '=HYPERLINK("x")'
    data = {n: [results_of([0, 1], [2.0, 1.0], {name: [1.0, 2.0]}, path=name)] for n in ("@a", "+b")}
    sheet = Sheet("s", "t", ["a"], [[name]])
    for text in (contrast(data).csv_text(), measurements_csv(gather(data, 2)), sheet.csv()):
        cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
        assert any(name in cell for cell in cells)
        assert not any(cell.startswith(("=", "@", "+")) for cell in cells)


def test_results_as_a_dataframe():
    r = groups(seeds=1, layers=1)["adam"][0]
    frame = r.to_dataframe()
    assert list(frame.columns) == list(COLUMNS)
    one = frame[(frame.step == 40) & (frame.label == "head.weight")]
    q = next(m for m in r.of("r_med") if m.step == 40).quantities["head.weight"]
    assert one[["value", "low", "high"]].values.tolist() == [[q.value, q.low, q.high]]
    assert one.loss.item() == r.losses()[40]
    assert len(frame) == sum(len(m.quantities) for m in r.measurements)
    header = measurements_csv(gather({"adam": [r]}, 2)).splitlines()[0]
    assert header == ",".join(("group", "run", *COLUMNS))


def test_a_table_as_a_dataframe_and_as_latex():
    table = contrast(groups(layers=1))
    frame = table.to_dataframe()
    assert len(frame) == len(table) and frame.ratio.tolist() == [r.ratio for r in table]
    lines = table.to_latex().splitlines()
    assert lines[0] == r"\begin{tabular}{llrrrrr}" and lines[-1] == r"\end{tabular}"
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == 1 + len(table.overall())
    assert body[0].startswith("weight matrices & sgdm / adam & ") and all(line.count(" & ") == 6 for line in body)
    assert f"{table.primary.ratio:.3g}" in body[0] and r"r\_med" in lines[2]


def test_latex_of_strange_labels_and_numbers():
    labels = {r"a_b%\c{d}": [1.0, 1.0]}
    a, b = (results_of([0, 1], [2.0, 1.0], {k: np.array(v) * x for k, v in labels.items()}) for x in (1.0, 1e9))
    text = contrast({"a": [a], "b": [b]}).to_latex()
    assert r"a\_b\%\textbackslash{}c\{d\}" in text and r"$1\cdot 10^{9}$" in text and " -- " in text
    assert not math.isfinite(contrast({"a": [a], "b": [b]}).primary.low)


def test_without_pandas_it_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pip install pandas"):
        groups(seeds=1)["adam"][0].to_dataframe()
