from click.testing import CliRunner

from geomtraj import demo as room
from geomtraj.cli import main


def test_the_demonstration_ends_in_a_page_and_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "STEPS", 12)
    monkeypatch.setattr(room, "SEEDS", (0,))
    monkeypatch.setattr(room, "ITERATES", 1)
    monkeypatch.setattr(room, "SETTINGS", {"r_med": {"samples": 2, "max_matvecs": 2}})
    monkeypatch.setattr(room, "OPTIONS", {**room.OPTIONS, "width": 8, "context": 8, "eval_sequences": 4})
    done = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "demo")])
    assert done.exit_code == 0, done.output
    page = tmp_path / "demo" / "report.html"
    verdict = ("above: r_med of sgdm over", "below: r_med of sgdm over", "undecided: ")
    assert done.stdout.startswith(verdict) and f"open {page}" in done.stdout and "R_med" in page.read_text()
    stored = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if "results" in p.parts or p.suffix == ".h5"}
    assert stored and CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "demo")]).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in stored} == stored
