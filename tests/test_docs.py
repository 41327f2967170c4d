"""The code on every page of the docs runs, and the site is built without a warning."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if "```python" in p.read_text())
ELSEWHERE = {"distributed.md": "tests/test_distributed.py runs it on several processes"}


@pytest.fixture(autouse=True)
def a_quiet_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT / "docs")))
def test_the_code_of_a_page_runs(page, monkeypatch):
    if page.name in ELSEWHERE:
        runner = (ROOT / ELSEWHERE[page.name].split()[0]).read_text()
        assert page.name in runner
        return
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, page.name, "exec"), module.__dict__)


def test_what_a_page_says_is_printed(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/blocks.md").read_text(), flags=re.DOTALL)
    exec(compile(example, "docs/blocks.md", "exec"), {})
    assert "['rnn.weight_ih_l0[input]', 'rnn.weight_ih_l0[forget]'] (10, 10)" in capsys.readouterr().out


def test_the_site_is_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for page in ("index.html", "api/statistics/index.html", "api/command-line/index.html"):
        assert (tmp_path / "site" / page).exists()
    statistics = (tmp_path / "site/api/statistics/index.html").read_text()
    commands = (tmp_path / "site/api/command-line/index.html").read_text()
    assert "median condition ratio" in statistics.lower() and "geomtraj doctor" in commands
    assert "fonts.googleapis" not in statistics, "the site must not need a network"
