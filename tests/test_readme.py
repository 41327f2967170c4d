import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    scope = {}
    exec(example, scope)
    assert capsys.readouterr().out.count("R_med") == 5
    others = scope["results"]
    table = scope["gt"].contrast({"adam": [others], "sgdm": [others]}, at="step")
    assert all(row.ratio == 1 for row in table)
