"""`verify` lists what is damaged and what is left, `repair` rebuilds what the rest can tell."""

import json

import pytest
from click.testing import CliRunner
from trajectory_helpers import OPTIMIZERS, odd, train

from geomtraj.cli import main
from geomtraj.errors import TrajectoryError
from geomtraj.trajectory import Recorder, Trajectory, every, repair, verify
from geomtraj.trajectory.log import inspect_log


@pytest.fixture
def run(tmp_path):
    model = odd()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    with Recorder(tmp_path, model, optimizer, every(2), {"lr": 0.01}) as rec:
        train(model, optimizer, 0, 6, rec)
    return tmp_path


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x21
    path.write_bytes(content)


def test_a_whole_run_has_no_findings_and_nothing_to_repair(run):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    found = verify(run)
    assert found.whole and found.steps == [0, 2, 4, 6] and found.rows == 6 and not found.notes
    assert repair(run) == []
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_each_kind_of_damage_is_named_and_what_can_be_is_rebuilt(run):
    manifest = Trajectory(run).manifest
    damage(run / "iterates" / "00000004.h5")
    (run / "iterates" / "00000003.h5").write_bytes((run / "iterates" / "00000002.h5").read_bytes())
    damage(run / "manifest.json")
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace('"step": 2', '"step": 7')
    (run / "log.jsonl").write_text("".join(lines[:3] + lines[4:]) + '{"step": 9, "lo')
    (run / "iterates" / ".00000008.h5.0af.tmp").write_bytes(b"half")

    found = verify(run)
    assert [file for file, _ in found.findings] == [
        "manifest.json", "iterates/00000003.h5", "iterates/00000004.h5", "log.jsonl",
    ]  # fmt: skip
    assert "1 damaged rows were passed over (line 2) and 1 rows are gone" in str(found)
    assert len(found.notes) == 2 and found.steps == [0, 2, 6]
    result = CliRunner().invoke(main, ["verify", str(run)])
    assert result.exit_code == 1 and "damaged: iterates/00000004.h5" in result.output

    result = CliRunner().invoke(main, ["repair", str(run)])
    assert result.exit_code == 0 and "rebuilt manifest.json from 3 iterates" in result.output
    assert verify(run).whole
    trajectory = Trajectory(run)
    assert trajectory.steps == [0, 2, 6] and [row["step"] for row in trajectory.log] == [1, 3, 5, 6]
    for key in ("meta", "parameters", "trainable", "aliases", "optimizer", "run", "schedule", "dtype"):
        assert trajectory.manifest[key] == manifest[key], key
    assert sorted(p.name for p in run.rglob("*.damaged")) == [
        "00000003.h5.damaged", "00000004.h5.damaged", "log.jsonl.damaged", "manifest.json.damaged",
    ]  # fmt: skip
    model = odd()
    with Recorder(run, model, OPTIMIZERS["adam"](model.parameters()), resume=True) as rec:
        assert rec.step == 6


def test_damaged_results_are_listed_by_the_command(run):
    (run / "results").mkdir()
    (run / "results" / "00000002.loss.0123456789.json").write_text('{"step": 2}')
    result = CliRunner().invoke(main, ["verify", str(run)])
    assert result.exit_code == 1 and "damaged: results/00000002.loss.0123456789.json: its checksum" in result.output


def test_a_log_whose_end_is_gone_is_told(run):
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(lines[:4]))
    assert verify(run).findings == [("log.jsonl", "2 rows at its end are gone")]


def test_damaged_rows_are_counted_in_a_warning(run):
    text = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(text.replace('"loss": ', '"loss": 1', 2))
    with pytest.warns(UserWarning, match=r"2 damaged rows were passed over \(line 1, 2\)"):
        assert len(Trajectory(run).log) == 4


def test_an_iterate_of_another_run_is_noticed(run, tmp_path):
    model = odd()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    with Recorder(tmp_path / "other", model, optimizer, every(2)):
        train(model, optimizer, 0, 2)
    (run / "iterates" / "00000002.h5").write_bytes((tmp_path / "other" / "iterates" / "00000002.h5").read_bytes())
    with pytest.raises(TrajectoryError, match="an iterate of another run"):
        Trajectory(run).at_step(2)
    assert [file for file, _ in verify(run).findings] == ["iterates/00000002.h5"]


def test_what_is_recorded_or_is_no_run_is_not_repaired(run, tmp_path):
    model = odd()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    with (
        Recorder(tmp_path / "live", model, optimizer),
        pytest.raises(TrajectoryError, match="is being recorded"),
    ):
        repair(tmp_path / "live")
    for act in (verify, repair):
        with pytest.raises(TrajectoryError, match="no folder"):
            act(tmp_path / "absent")
    for path in (run / "iterates").iterdir():
        path.write_bytes(b"")
    with pytest.raises(TrajectoryError, match="no whole iterate"):
        repair(run)


@pytest.mark.parametrize(
    "field, value",
    [("status", 3), ("parameters", []), ("optimizer", "adam"), ("meta", [1]), ("sessions", {}), ("last_step", "6")],
)
def test_a_manifest_whose_fields_are_of_another_kind_is_refused_by_the_fields_name(run, field, value):
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["sha256"]
    (run / "manifest.json").write_text(json.dumps({**manifest, "format_version": 1, field: value}))
    with pytest.raises(TrajectoryError, match=rf"manifest.json is damaged \(its {field} is a"):
        Trajectory(run)
    del manifest["status"]
    (run / "manifest.json").write_text(json.dumps({**manifest, "format_version": 1}))
    with pytest.raises(TrajectoryError, match="it has no status"):
        Trajectory(run)


def test_a_line_cut_to_one_without_checksum_is_damaged(run):
    """Where the manifest says that lines have them, and only there."""
    path = run / "log.jsonl"
    path.write_text('{"step": 1, "wall_time": 0.0, "loss": 1}\n')
    reading = inspect_log(run)
    assert reading.rows == [] and reading.lines == (1,)
    (run / "manifest.json").unlink()  # as before format 2
    assert inspect_log(run).rows == [{"step": 1, "wall_time": 0.0, "loss": 1}]
