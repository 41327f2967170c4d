"""The tutorials run from the first cell to the last."""

import json
import sys
import types
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    content = json.loads(notebook.read_text())
    assert content["nbformat"] == 4 and all(not cell.get("outputs") for cell in content["cells"]), "store it cleared"
    module = types.ModuleType(f"tutorial_{notebook.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for number, cell in enumerate(content["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), module.__dict__)
    assert capsys.readouterr().out


def test_there_are_four():
    assert len(NOTEBOOKS) == 4
