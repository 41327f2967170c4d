import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import geomtraj as gt
from analyses.uniformity import __main__ as script
from analyses.uniformity import findings, page
from analyses.uniformity.data import CONTROL, NAMES, Point, Points, contrasts
from geomtraj import tasks
from geomtraj.reporting import Skipped
from geomtraj.statistics import Quantity

LANGUAGE = {
    "title": "language modelling",
    "task": "pydoc-lm",
    "options": {"layers": 1, "width": 8, "heads": 2, "context": 8, "eval_sequences": 4, "batch_size": 4},
    "steps": 24,
    "full_batch": False,
    "rates": {"adam": [0.01], "sgdm": [0.3]},
}
THEOREM = {
    "title": "two-layer linear network",
    "task": "two-layer-linear",
    "options": {"d": 12, "alpha": 1.5},
    "steps": 380,
    "full_batch": False,
    "rates": {"adam": [0.0006], "sgdm": [0.0009]},
}
TINY = {
    "tasks": ["language"],
    "seeds": [0, 1],
    "iterates": 2,
    "control_iterates": 8,
    "levels": 2,
    "r_med": {"samples": 2, "max_matvecs": 0},
    "units": {"samples": 3, "dead": 0.01},
    "recipes.language": LANGUAGE,
    "control": THEOREM,
}


def invoke(folder, **changed):
    settings = [x for key, value in {**TINY, **changed}.items() for x in ("--set", f"{key}={json.dumps(value)}")]
    return CliRunner().invoke(script.main, ["--out", str(folder / "uniformity"), *settings])


def table(folder, name):
    with (folder / "uniformity" / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    result = invoke(folder)
    assert result.exit_code == 0, result.output
    return folder, result


def test_the_numbers_are_those_of_the_stored_iterates(smoke):
    folder, _ = smoke
    rows = {(r["task"], r["optimizer"], r["seed"], r["step"], r["layer"]): r for r in table(folder, "points")}
    (key,) = [k for k in rows if k[:3] == ("language", "sgdm", "1") and k[3] == "24" and "mlp.up" in k[4]]
    row = rows[key]
    (run,) = (folder / "trajectories").glob("language-*/sgdm-lr0.3-iterates2/seed-1")
    task = tasks.make(LANGUAGE["task"], **LANGUAGE["options"])
    model = task.model(0)
    gt.Trajectory(run).load_into(model, 24)
    weight = model.blocks[0].mlp.up.weight.detach()
    left, values, _ = torch.linalg.svd(weight.double())
    squares = left[:, 0].square()
    assert float(row["left"]) == pytest.approx(float(squares.max() / squares.quantile(0.5)), rel=1e-6)
    assert float(row["first_share"]) == pytest.approx(float(values[0] ** 2 / weight.double().square().sum()), rel=1e-6)
    seen = []
    handle = model.blocks[0].mlp.up.register_forward_pre_hook(lambda _module, x: seen.append(x[0].detach()))
    for tokens, _following in task.evaluation():
        model(tokens)
    handle.remove()
    inputs = torch.cat([x.flatten(0, 1) for x in seen]).double().square().mean(0)
    assert float(row["input"]) == pytest.approx(float(inputs.max() / inputs.quantile(0.5)), rel=1e-4)
    counts = torch.cat([t.flatten() for t, _ in task.evaluation()]).bincount(minlength=len(task.vocabulary))
    frequency = float(rows[(*key[:4], "embedding.weight")]["frequency"])
    assert frequency == (
        math.inf if counts.double().quantile(0.5) == 0 else counts.max() / counts.double().quantile(0.5)
    )
    made = gt.r_med(task.problem(model), samples=2, max_matvecs=0)[key[4]]
    assert float(row["R_med value"]) == pytest.approx(made.value, rel=1e-6)


def test_factors_multiply_and_the_explained_share_is_that_of_the_table(smoke):
    folder, _ = smoke
    points = [r for r in table(folder, "points") if r["task"] == "language"]
    task = tasks.make(LANGUAGE["task"], **LANGUAGE["options"])
    matrices = [name for name, block in task.problem(task.model(0)).blocks.items() if block.kind != "vector"]
    assert "blocks.0.attention.qkv.weight[q]" in matrices
    assert len(points) == 2 * 2 * 2 * len(matrices) and {r["layer"] for r in points} == set(matrices)
    for r in points:
        product = float(r["input"]) * float(r["output"]) * float(r["combined"])
        assert product == pytest.approx(float(r["factorised"])) or not math.isfinite(product)
    y, x, layer = (np.array([r[k] for r in points]) for k in ("R_med value", "factorised", "layer"))
    good = np.isfinite(y.astype(float)) & np.isfinite(np.array([r["input"] for r in points], float))
    y, x, layer = np.log(y[good].astype(float)), np.log(x[good].astype(float)), layer[good]
    dummies = np.array([[a == b for b in np.unique(layer)] for a in layer], float)
    off = [v - dummies @ np.linalg.lstsq(dummies, v, rcond=None)[0] for v in (y, x)]
    (found,) = [
        r
        for r in table(folder, "explained")
        if r["task"] == "language modelling" and r["predictors"] == "factorised diagonal"
    ]
    assert float(found["within"]) == pytest.approx(np.corrcoef(*off)[0, 1] ** 2) and int(found["points"]) == good.sum()


def test_in_the_control_the_singular_vectors_are_r_med(smoke):
    folder, result = smoke
    rows = [r for r in table(folder, "points") if r["task"] == CONTROL]
    assert {r["optimizer"] for r in rows} == {"adam", "sgdm"}
    for r in rows:
        side = "left" if r["layer"] == "W1.weight" else "right"
        assert float(r["R_med value"]) == pytest.approx(float(r[side]), rel=0.15)
        # The Gauss-Newton diagonal is everything there, and R_med's comes from random vectors.
        assert float(r["factorised"]) == pytest.approx(float(r["R_med value"]), rel=1e-2)
    assert "The control" in result.output


def test_the_page_is_whole(smoke):
    folder, result = smoke
    text = (folder / "uniformity" / "index.html").read_text()
    assert (
        text.count("data:image/svg+xml") == 3
        and "near-dead" in text
        and "does the theorem explain R_med?" in result.output
    )
    assert json.loads((folder / "uniformity" / "provenance.json").read_text())["seeds"] == [0, 1]


def test_it_goes_on_where_it_was_and_gives_the_same_table(smoke, monkeypatch):
    folder, _ = smoke
    monkeypatch.setattr(page.figures, "draw_panels", lambda *_, **__: Skipped("No figure."))
    before = {p.name: p.read_bytes() for p in (folder / "uniformity" / "tables").iterdir()}
    kept = {p: p.stat().st_mtime_ns for p in (folder / "uniformity" / "parts").iterdir()}
    victim = sorted(kept)[2]
    victim.unlink()
    assert invoke(folder).exit_code == 0
    assert {p.name: p.read_bytes() for p in (folder / "uniformity" / "tables").iterdir()} == before
    assert {p for p in kept if p.stat().st_mtime_ns != kept[p]} == {victim}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"control": {**THEOREM, "rates": {"adam": [0.1]}}}, "one learning rate for sgdm"),
        ({"levels": 0}, "compare at one loss at least"),
        ({"optimizers": ["adam"]}, "two optimizers are compared"),
        ({"tasks": ["pictures"]}, "unknown recipe"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, changed, message):
    result = invoke(tmp_path, **changed)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_one_seed_decides_nothing_and_keeps_the_tables(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(page.figures, "draw_panels", lambda *_, **__: Skipped("No figure."))
    shutil.copytree(smoke[0] / "trajectories", tmp_path / "trajectories")
    result = invoke(tmp_path, seeds=[0])
    assert result.exit_code == 0 and "1 seed: what is explained has no interval" in result.stderr
    assert "accounts for" not in result.stdout and "does not explain" not in result.stdout
    assert {r["seed"] for r in table(tmp_path, "points")} == {"0"}


def test_learning_rates_that_all_diverge_are_told_in_a_sentence(tmp_path):
    wild = {**LANGUAGE, "rates": {"adam": [0.01], "sgdm": [1e12]}}
    result = invoke(tmp_path, **{"recipes.language": wild})
    assert result.exit_code == 2 and "every run of sgdm on pydoc-lm diverged" in result.stderr
    assert list((tmp_path / "uniformity" / "parts").glob("tune-*.json")), "what was tuned is kept"


CONFIG = {
    "tasks": ["language"],
    "optimizers": ["adam", "sgdm"],
    "levels": 3,
    "seeds": [0, 1, 2, 3, 4],
    "recipes": {"language": {"title": "language modelling"}},
    "control": {"title": "the control"},
}
PREDICTORS = ("left", "right", "input", "output", "factorised", "dead", "frequency")


def invented(task, made_of, seeds=5, gap=1.5, noise=0.05, losses=(2.0, 2.0)):
    """Points whose log R_med is a sum of log predictors (each with slope 1), SGDM's larger by `gap` in log R_med."""
    rng = np.random.default_rng(0)
    offsets = {layer: rng.normal(size=len(PREDICTORS)) for layer in "abcdefgh"}
    points = []
    for seed in range(seeds):
        for start, optimizer in zip(losses, ("adam", "sgdm"), strict=True):
            for step in range(6):
                for layer, offset in offsets.items():
                    x = dict(zip(PREDICTORS, 3 + offset + 0.5 * rng.normal(size=len(PREDICTORS)), strict=True))
                    for name in made_of:
                        x[name] += gap * (optimizer == "sgdm") / len(made_of)
                    log = sum(x[name] for name in made_of) + noise * rng.normal()
                    if not made_of:
                        log += 4 + rng.normal() + gap * (optimizer == "sgdm")
                    live = math.exp(-min(x["dead"], 8) / 10) if "dead" in made_of else 1.0
                    values = {k: math.exp(v) for k, v in x.items()} | {
                        "loss": start * 0.8**step, "vectors": math.exp(x["left"] + x["right"]), "first_share": 0.5,
                        "combined": 1.0, "rest": 1.0, "dead_inputs": 1 - live, "dead_outputs": 0.0, "live_share": live,
                    }  # fmt: skip
                    r_med = Quantity.exact(math.exp(log))
                    points.append(Point(optimizer, seed, step, values["loss"], layer, r_med, values))
    return Points(task, points)


def verdicts(points, config=CONFIG):
    control = invented(CONTROL, ("left", "right"))
    found = {"language": points, CONTROL: control}
    facing = {task: contrasts(p, config["optimizers"], 3) for task, p in found.items()}
    return [a.verdict for a in findings.answers(config, found, facing)]


MOST = "accounts for most of the variation of log R_med within layers"
NOTHING = "does not explain the variation of log R_med within layers"


def test_each_explanation_can_be_the_one_and_the_others_not():
    vectors, dead, frequency, factorised, control = verdicts(invented("language", ("left", "right")))
    assert MOST in vectors and "most of the contrast of the optimizers" in vectors
    assert NOTHING in frequency and NOTHING in factorised and "does not explain the contrast" in factorised
    assert "says nothing on" in dead and "see what they should" in control
    vectors, _, _, factorised, _ = verdicts(invented("language", ("factorised",)))
    assert MOST in factorised and "does not explain" in vectors
    _, dead, *_ = verdicts(invented("language", ("dead",)))
    assert MOST in dead
    _, _, frequency, *_ = verdicts(invented("language", ("frequency",)))
    assert MOST in frequency and "layers that have one" in frequency


def test_nothing_may_explain_it():
    for verdict in verdicts(invented("language", ()))[:4]:
        assert "accounts for most" not in verdict
        assert "does not explain" in verdict or "says nothing" in verdict


def test_with_two_seeds_nothing_is_decided():
    texts = verdicts(invented("language", ("factorised",), seeds=2))
    assert "may account for more or less than half of the variation" in texts[3] and MOST not in " ".join(texts)


def test_a_contrast_without_a_firm_layer_is_not_accounted_for():
    points = invented("language", ("factorised",), gap=0.0, noise=0.5)
    one = contrasts(points, CONFIG["optimizers"], 3)
    text = " ".join(findings._contrast(CONFIG, one, "factorised"))
    assert not one.firm() and "nothing to account for" in text


def test_the_share_of_the_contrast_by_hand():
    points = invented("language", ("factorised",), gap=2.0, noise=1e-6)
    one = contrasts(points, CONFIG["optimizers"], 3)
    assert len(one.firm()) == 8 and one.shares["factorised"].share == pytest.approx(1, abs=1e-4)
    assert one.alike("factorised") == (8, 0) and abs(one.shares["input"].share) < 0.2
    assert set(one.rows) == {"r_med", *NAMES}
    swapped = contrasts(points, ["sgdm", "adam"], 3)
    assert swapped.shares["factorised"].share == pytest.approx(1, abs=1e-4)
    assert swapped.rows["r_med"]["a"].ratio == pytest.approx(1 / one.rows["r_med"]["a"].ratio)


def test_runs_without_a_common_loss_are_told_with_what_each_covers():
    points = invented("language", ("factorised",), losses=(2.0, 0.1))
    with pytest.raises(gt.errors.InputError, match=r"adam seed 0 covers .* and sgdm seed 0 covers"):
        contrasts(points, CONFIG["optimizers"], 3)
    found = {"language": points, CONTROL: invented(CONTROL, ())}
    texts = findings.answers(CONFIG, found, {"language": None})
    assert "contrast of the optimizers" not in texts[0].verdict
    assert "There is no contrast" in " ".join(texts[0].numbers) or "there is no contrast" in " ".join(texts[0].numbers)
    with pytest.raises(gt.errors.InputError, match="no R_med of sgdm can be compared"):
        contrasts(points.where(optimizer="adam"), CONFIG["optimizers"], 3)
    assert "do not show there what is known to hold" in texts[-1].verdict or "cannot be decided" in texts[-1].verdict
