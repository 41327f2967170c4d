import csv
import json
import math

import pytest
import torch
from click.testing import CliRunner

from analyses.two_layer_linear import __main__ as script
from analyses.two_layer_linear import figures, findings
from analyses.two_layer_linear.data import Runs, follow
from geomtraj import tasks
from geomtraj.reporting import Skipped
from geomtraj.tasks import two_layer_linear as theory
from geomtraj.training import train

QUICK = {
    "rates": {"sgdm": 0.02, "adam": 0.005},
    "curve_seeds": 1,
    "sweep_seeds": 2,
    "rate_grid": [0.005, 0.2],
    "alpha_grid": [0.25, 1.0],
    "small_step_dims": [16],
}
TINY = QUICK | {"dims": [8, 12], "seeds": [0, 1], "curve_dim": 8, "sweep_dim": 8, "engine_dims": [8]}


def invoke(folder, **changed):
    settings = [x for key, value in changed.items() for x in ("--set", f"{key}={json.dumps(value)}")]
    return CliRunner().invoke(script.main, ["--out", str(folder), *settings])


def table(folder, name):
    with (folder / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def without_figures(monkeypatch):
    """For tests of tables and sentences: the smoke test draws."""
    monkeypatch.setattr(figures, "draw_panels", lambda *_, **__: Skipped("No figure."))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    dims = {"dims": [16, 32, 64], "seeds": list(range(6)), "curve_dim": 32, "sweep_dim": 32, "engine_dims": [16]}
    result = invoke(folder, **QUICK, **dims)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_the_numbers_mean_what_they_should(smoke):
    folder, _ = smoke
    rows = [r for r in table(folder, "runs") if r["part"] == "dimensions" and r["level"] == "0.1"]
    assert len(rows) == 36
    inside = []
    for r in rows:
        law, r_1, r_2 = theory.gaussian_r_med(int(r["d"])), float(r["R_1"]), float(r["R_2"])
        if r["optimizer"] == "sgdm":
            inside.append(law.low <= r_1 <= law.high)
            assert r_2 == pytest.approx(r_1, rel=0.25)
        else:
            assert 1 < r_1 < 1.6 and 1 < r_2 < 1.6
    assert sum(inside) >= 16
    adam = {r["d"]: float(r["R_1"]) - 1 for r in table(folder, "by_dimension") if r["optimizer"] == "adam"}
    assert adam["64"] < adam["32"] < adam["16"] and adam["64"] < 0.1
    for r in table(folder, "by_dimension"):
        assert float(r["second / first singular value"]) < 0.1
    contrast = [r for r in table(folder, "contrast") if r["loss / start's"] == "0.1"]
    assert len(contrast) == 3 and all(float(r["ratio of R_1 low"]) > 1 for r in contrast)
    assert all(float(r["largest difference of an entry"]) < 1e-10 for r in table(folder, "engine"))


def test_the_page_says_so(smoke):
    folder, output = smoke
    text = (folder / "index.html").read_text()
    assert "They agree to 10⁻¹⁰" in output and "The claim holds here" in output
    assert text.count("data:image/svg+xml") == 4
    assert "window in which the theorem speaks" in text
    made = json.loads((folder / "provenance.json").read_text())
    assert made["seeds"] == list(range(6)) and len(made["config hash"]) == 12 and "torch" in made["versions"]


def test_the_same_seed_gives_the_same_table_and_what_is_computed_is_kept(tmp_path, without_figures):
    first, second = tmp_path / "a", tmp_path / "b"
    assert invoke(first, **TINY).exit_code == 0
    assert invoke(second, **TINY).exit_code == 0
    for file in (first / "tables").iterdir():
        assert file.read_bytes() == (second / "tables" / file.name).read_bytes()
    before = {p: p.stat().st_mtime_ns for p in (first / "parts").iterdir()}
    victim = sorted(before)[3]
    victim.unlink()
    assert invoke(first, **TINY).exit_code == 0
    assert {p for p, t in before.items() if p.stat().st_mtime_ns != t} == {victim}
    assert (first / "tables" / "runs.csv").read_bytes() == (second / "tables" / "runs.csv").read_bytes()
    other = invoke(second, **(TINY | {"seeds": [5, 6]}))
    assert other.exit_code == 0
    assert (first / "tables" / "runs.csv").read_bytes() != (second / "tables" / "runs.csv").read_bytes()


@pytest.mark.parametrize(("name", "rate", "hyper"), [("sgdm", 0.02, {}), ("adam", 0.005, {"betas": [0.9, 0.9]})])
def test_the_fast_training_is_that_of_the_package(tmp_path, name, rate, hyper):
    task = tasks.make("two-layer-linear", d=9)
    lr = rate * theory.learning_rate_unit(9)
    trajectory = train(task, name, lr, 40, seed=3, path=tmp_path / "run", progress=False, **hyper)
    theirs, mine, seen = task.model(3), task.model(3), []
    trajectory.load_into(theirs, 40)

    def visit(step, fraction, passed):
        if step == 40:
            seen.extend(p.detach().clone() for p in mine.parameters())

    job = {"c": rate, "d": 9, "optimizer": name, "hyper": hyper, "levels": [1e-9], "max_steps": 40}
    assert follow(job, task, mine, visit) == "level 1e-09 not reached within 40 steps"
    for a, b in zip(seen, theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-15)


def test_one_seed_is_said_to_be_too_few(tmp_path, without_figures):
    result = invoke(tmp_path, **(TINY | {"seeds": [0]}))
    assert result.exit_code == 0 and "There is one seed only" in result.stderr
    assert result.stdout.count("cannot be decided") >= 3 and "claim holds" not in result.stdout
    assert len(table(tmp_path, "by_dimension")) == 4


def test_runs_that_diverge_are_counted_and_the_rest_is_kept(tmp_path, without_figures):
    result = invoke(tmp_path, **(TINY | {"rates": {"sgdm": 50.0, "adam": 0.005}}))
    assert result.exit_code == 0
    assert "diverged (sgdm d=8" in result.stderr and "they are left out" in result.stderr
    adam = [r for r in table(tmp_path, "runs") if r["optimizer"] == "adam" and r["part"] == "dimensions"]
    assert len(adam) == 24 and {r["status"] for r in adam} == {"ok"}
    assert {r["status"] for r in table(tmp_path, "runs") if r["optimizer"] == "sgdm" and r["part"] == "dimensions"} == {
        "diverged"
    }
    assert "there are not two pairs of seeds" in result.stdout


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dims": [4, 16]}, "d = 4 is too small"),
        ({"levels": [0.5, 2.0]}, "between 0 and 1"),
        ({"reference": 0.2}, "must be one of the levels"),
        ({"seeds": [1, 1]}, "must differ"),
        ({"max_steps": 0}, "must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence_and_results_are_kept(tmp_path, changed, message):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "kept.json").write_text("{}")
    result = invoke(tmp_path, **(TINY | changed))
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert (tmp_path / "parts" / "kept.json").exists()


CONFIG = {"levels": [0.9, 0.1, 0.01], "reference": 0.1, "dims": [16, 64, 256], "seeds": [0, 1, 2, 3], "sweep_seeds": 4,
          "sweep_dim": 64, "rate_grid": [1.0], "alpha_grid": [1.0], "rates": {"sgdm": 0.02, "adam": 0.005},
          "small_steps": 0.5, "small_step_dims": [16, 64], "curve_dim": 64}  # fmt: skip


def invented(r_med, singular=0.01):
    """Runs whose R_1 and R_2 are r_med(optimizer, d), with a small scatter over seeds."""
    done = []
    for name in ("sgdm", "adam"):
        for d in CONFIG["dims"]:
            for seed in CONFIG["seeds"]:
                value = 1 + (r_med(name, d) - 1) * (1 + 0.01 * seed)
                read = {"step": 1, "r_1": value, "r_2": value, "singular": singular}
                start = {"r_1": value, "r_2": value, "sgdm": value, "adam": {}}
                job = {"optimizer": name, "d": d, "seed": seed, "c": 1.0, "alpha": 1.0}
                rows = [{"level": level, **read} for level in CONFIG["levels"]]
                done.append((job, {"status": "ok", "start": start, "rows": rows, "curve": []}))
    return Runs(done)


def verdicts(runs):
    laws = {d: theory.gaussian_r_med(d, 2000) for d in CONFIG["dims"]}
    engine = [({"d": 16}, {"rows": [{"entries": 1e-3, "r_med": 0.0}]})]
    return [a.verdict for a in findings.answers(CONFIG, engine, runs, runs.where(optimizer="adam"), runs, runs, laws)]


def test_the_findings_can_say_that_the_claims_do_not_hold():
    engine, sgdm, adam, contrast, rank_one, ends = verdicts(
        invented(lambda name, d: 100 / math.log(d) if name == "sgdm" else 2 * d, singular=0.5)
    )
    assert "do not agree" in engine
    assert "does not hold here: R_med falls with d" in sgdm
    assert "does not hold at every d" in adam and "does not hold here" in contrast
    assert "It is not always" in rank_one and "it is Adam that has the larger R_med" in ends


def test_the_findings_tell_growth_at_another_rate_from_the_predicted_one():
    right = verdicts(invented(lambda name, d: theory.gaussian_r_med(d).mean if name == "sgdm" else 1 + 1 / d))
    assert "at the predicted rate" in right[1] and "but not" not in right[1]
    assert "claim holds here" in right[2] and "claim holds here" in right[3] and "larger R_med at every" in right[5]
    flat = verdicts(invented(lambda name, d: theory.gaussian_r_med(d).mean if name == "sgdm" else 1 + 1 / min(d, 64)))
    assert "holds in part" in flat[2] and "no fall is seen over the upper half" in flat[2]
    faster = verdicts(invented(lambda name, d: d if name == "sgdm" else 1 + 1 / d))
    assert "but not at the predicted rate" in faster[1]
