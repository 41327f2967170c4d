import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from analyses.spectra import __main__ as script
from analyses.spectra import figures, findings
from analyses.spectra.data import ALL, Point, Task
from geomtraj import tasks
from geomtraj.inference import Match, RankCorrelation, Verdict
from geomtraj.operators import Hessian
from geomtraj.reporting import Skipped
from geomtraj.trajectory import Trajectory

RECIPE = {
    "title": "digits",
    "task": "digits-mlp",
    "options": {"width": 5, "batch_size": 8, "eval_examples": 48},
    "steps": 16,
    "full_batch": False,
    "rates": {"adam": [0.01], "sgdm": [0.05]},
}
TINY = {
    "tasks": ["digits"],
    "seeds": [0, 1],
    "iterates": 4,
    "r_med": {"samples": 4, "max_matvecs": 100},
    "condition": {"steps": 60, "max_steps": 60, "probes": 1},
    "recipes": {"digits": RECIPE},
}


def invoke(folder, **changed):
    settings = [x for key, value in (TINY | changed).items() for x in ("--set", f"{key}={json.dumps(value)}")]
    return CliRunner().invoke(script.main, ["--out", str(folder), *settings])


def table(folder, name):
    with (folder / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def without_figures(monkeypatch):
    """For tests of tables and sentences: the smoke test draws."""
    for name in ("draw_panels", "draw_forests"):
        monkeypatch.setattr(figures, name, lambda *_, **__: Skipped("No figure."))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke") / "spectra"
    result = invoke(folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_points_against_dense_hessians_of_the_stored_iterates(smoke):
    folder, _ = smoke
    rows = table(folder, "points")
    assert len(rows) == 2 * 2 * 2 * 4 and {r["layer"] for r in rows} >= {"hidden.0.weight", "head.weight", "all"}
    runs = {(t.meta["optimizer"], t.meta["seed"]): t for t in
            (Trajectory(p) for p in (folder.parent / "trajectories").glob("digits-*/*-iterates4/seed-*"))}  # fmt: skip
    task = tasks.make(RECIPE["task"], **RECIPE["options"], dtype="float64")
    model = task.model(0)
    held = []
    for r in rows:
        if r["layer"] == "all" or r["seed"] != "1":
            continue
        runs[r["optimizer"], int(r["seed"])].load_into(model, int(r["step"]))
        problem = task.problem(model)
        assert float(problem.loss()) == pytest.approx(float(r["loss"]), rel=1e-5)
        dense = Hessian(problem).block(r["layer"]).dense()
        sizes = torch.linalg.eigvalsh(dense).abs().numpy()
        diagonal = dense.diagonal().abs().numpy()
        assert float(r["lambda_max"]) == pytest.approx(sizes.max(), rel=1e-3)
        assert float(r["largest_entry"]) <= sizes.max() * 1.001
        if np.median(diagonal) > 0:  # dark pixels and dead units make it zero
            assert float(r["r_med"]) == pytest.approx(diagonal.max() / np.median(diagonal), rel=0.15)
        else:
            assert float(r["r_med"]) > 1e6
        median = np.median(sizes)
        if r["kind"] == "zero":
            assert median < 1e-6 * sizes.max()
        else:
            held.append(float(r["low"]) * 0.999 <= sizes.max() / median <= float(r["high"]) * 1.001)
    assert len(held) >= 4 and np.mean(held) >= 0.8


def test_tables_are_made_of_these_points(smoke):
    folder, output = smoke
    rows = [r for r in table(folder, "points") if r["layer"] != "all"]
    own = []
    for seed in "01":
        mine = [r for r in rows if r["seed"] == seed]
        own.append(stats.spearmanr(*([float(r[k]) for r in mine] for k in ("r_med", "ninth"))).statistic)
    told = next(r for r in table(folder, "rank_correlation") if r["with"].startswith("λmax / 0.9")
                and r["coefficient"] == "Spearman" and r["over"] == "pooled")  # fmt: skip
    assert float(told["value"]) == pytest.approx(np.mean(own)) and told["seeds"] == "2"
    value = {(r["optimizer"], r["seed"], r["pair"]): math.log(float(r["ninth"])) for r in rows
             if r["layer"] == "head.weight"}  # fmt: skip
    logs = [np.mean([value["sgdm", s, p] - value["adam", s, p] for p in "01"]) for s in "01"]
    told = {r["statistic"]: r for r in table(folder, "contrast") if r["layer"] == "head.weight"}
    assert float(told["λmax / 0.9 quantile of |λ|"]["ratio"]) == pytest.approx(math.exp(np.mean(logs)))
    assert told["λmax / 0.9 quantile of |λ|"]["seeds"] == "2"
    for r in table(folder, "iterates"):
        assert float(r["log ratio of the losses"]) == pytest.approx(
            math.log(float(r["sgdm loss"]) / float(r["adam loss"]))
        )
        assert abs(float(r["log ratio of the losses"])) <= math.log(1.3)
    assert "which must hold, does hold in all 32" in output
    text = (folder / "index.html").read_text()
    assert text.count("data:image/svg+xml") == 3 and "Spectral densities at nearly equal loss" in text


def test_the_same_seed_gives_the_same_table_and_what_is_computed_is_kept(smoke, tmp_path, without_figures):
    folder, _ = smoke
    assert invoke(tmp_path / "spectra").exit_code == 0
    for file in (folder / "tables").iterdir():
        assert file.read_bytes() == (tmp_path / "spectra" / "tables" / file.name).read_bytes()
    parts = {p: p.stat().st_mtime_ns for p in (tmp_path / "spectra" / "parts").iterdir()}
    victim = next(p for p in sorted(parts) if p.name.startswith("spectrum_at"))
    victim.unlink()
    assert invoke(tmp_path / "spectra").exit_code == 0
    assert {p for p, t in parts.items() if p.stat().st_mtime_ns != t} == {victim}


def test_one_seed_is_said_to_be_too_few(smoke, without_figures):
    folder = smoke[0].parent / "one"
    result = invoke(folder, seeds=[0])
    assert result.exit_code == 0 and "there is one seed only" in result.stderr
    assert result.stdout.count("cannot be decided") >= 3 and len(table(folder, "points")) == 16


def test_losses_that_never_meet_are_told_with_what_each_run_has(smoke, without_figures):
    result = invoke(smoke[0].parent / "apart", loss_difference=1e-9)
    assert result.exit_code == 2 and result.stderr.splitlines()[-1].startswith("spectra: no two iterates")
    assert "adam has 2" in result.stderr and "sgdm has 2" in result.stderr
    assert list((smoke[0].parent / "apart" / "parts").glob("travel-*"))


def test_learning_rates_that_all_diverge_are_one_sentence(tmp_path):
    recipe = RECIPE | {"rates": {"adam": [0.01], "sgdm": [1e30]}}
    result = invoke(tmp_path / "spectra", recipes={"digits": recipe})
    assert result.exit_code == 2 and "no task has learning rates for both optimizers" in result.stderr
    assert "diverged" in result.stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pairs": 0}, "pairs is 0"),
        ({"latest": 1}, "at most as many as latest, 1"),
        ({"loss_difference": 1.5}, "loss_difference is 1.5"),
        ({"fair": 0.0}, "fair is 0"),
        ({"condition": {"steps": 60, "max_steps": 30, "probes": 1}}, "max_steps must not be below"),
        ({"tasks": ["digit"]}, "unknown recipe"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, changed, message):
    result = invoke(tmp_path / "spectra", **changed)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


CONFIG = {"fair": 0.5, "optimizers": ["adam", "sgdm"]}
LAYERS = [f"layer {k}" for k in range(6)]


def invented(condition, r_med=None, kind="resolved", seeds=5, largest_entry=1.0):
    """Points whose statistics are functions of (is SGDM, layer number, pair), with a little scatter over seeds."""
    r_med = r_med or condition
    points = []
    for seed in range(seeds):
        for pair in range(3):
            for sgdm, optimizer in enumerate(("adam", "sgdm")):
                for k, layer in enumerate([*LAYERS, ALL]):
                    scatter = 1 + 0.002 * math.sin(1 + seed * 7 + k * 3 + pair + 2 * sgdm)
                    value = condition(sgdm, k, pair) * scatter
                    shown = math.inf if kind == "zero" else value
                    points.append(
                        Point(optimizer, seed, 10 * pair + sgdm, pair, 2.0, layer, r_med(sgdm, k, pair) * scatter,
                              largest_entry, shown, value, value if kind == "resolved" else math.inf, value, 2.0, 2.0,
                              5.0, 0.1, kind, {"nodes": [], "weights": []})
                    )  # fmt: skip
    matches = {seed: [Match(10 * p, 10 * p + 1, 0.01) for p in range(3)] for seed in range(seeds)}
    return Task("made up", "made up", ["adam", "sgdm"], points, matches)


def larger(sgdm, k, pair):
    return (2 + sgdm) * 3.0**k * 1.3**pair


def verdicts(task):
    return [a.verdict for a in findings.answers(CONFIG, [task])]


def test_the_findings_say_what_the_numbers_allow():
    rank, signs, sizes, densities, resolution = verdicts(invented(larger))
    assert rank.startswith("Yes: R_med is a fair stand-in") and "in 6 of 6 layers" in signs and "Yes where" in signs
    assert "does hold in all 210" in sizes and "λmax / 0.9 quantile of |λ| larger for sgdm" in densities
    assert resolution.startswith("In 210 of 210")


def test_the_findings_can_say_that_it_does_not_hold():
    upside_down = invented(larger, lambda sgdm, k, pair: 1e3 / larger(sgdm, k, pair), largest_entry=3.0)
    rank, signs, sizes, *_ = verdicts(upside_down)
    assert rank == (
        "Within layers it ranks the other way (rank correlation below 0); "
        "between layers it ranks the other way (rank correlation below 0)."
    )
    assert signs == "Not always: in 6 of 6 layers they point in opposite directions."
    assert "is broken in 210 of 210" in sizes


def test_the_findings_know_when_nothing_can_be_decided():
    for task in (invented(larger, seeds=1), invented(larger, kind="unresolved")):
        rank, signs, _, densities, _ = verdicts(task)
        assert "cannot be decided" in rank and "cannot be decided" in signs
        assert "larger for sgdm: " not in densities
    zero = verdicts(invented(larger, kind="zero"))
    assert "cannot be decided" in zero[0] and "in 210 it is below rounding" in zero[-1]
    same = invented(lambda sgdm, k, pair: 3.0**k * 1.3**pair)
    assert "none of 6 layers are both contrasts decided" in verdicts(same)[1]
    assert "No difference between the two is seen" in verdicts(same)[3]


def test_medians_that_are_not_resolved_can_leave_the_answer_open():
    task = invented(larger)
    points = [
        replace(p, kind="unresolved", condition=1 / p.condition) if p.layer in LAYERS[2:] else p for p in task.points
    ]
    answer = findings.answers(CONFIG, [replace(task, points=points)])[0]
    assert "with the estimates of medians that are not resolved" in answer.verdict
    assert "120 of 180 medians are not resolved" in " ".join(answer.numbers)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.6, 0.9, "fair"), (0.1, 0.9, "positive"), (0.1, 0.4, "poor"), (-0.2, 0.4, "poor"), (-0.6, -0.2, "opposite"),
     (-0.2, 0.8, "undecided"), (math.nan, math.nan, "none")],
)  # fmt: skip
def test_every_interval_of_a_rank_correlation_has_its_word(low, high, word):
    assert findings.judged(RankCorrelation(0.3, low, high, 5, points=60), 0.5) == word and word in findings._WORDS


def test_a_stand_in_is_fair_if_it_is_everywhere_and_not_if_it_is_poor_anywhere():
    assert findings.together(["fair", "fair"]) is Verdict.HOLDS
    assert findings.together(["fair", "poor"]) is Verdict.FAILS
    assert findings.together(["fair", "mixed"]) is findings.together(["positive", "none"]) is Verdict.UNDECIDED
