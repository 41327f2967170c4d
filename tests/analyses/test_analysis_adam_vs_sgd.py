import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from analyses.adam_vs_sgd import __main__ as script
from analyses.adam_vs_sgd import figures, findings
from analyses.adam_vs_sgd.data import FIRM, MEAN, adjusted, compare, lookups, notes
from analyses.common import run, trajectories
from geomtraj import tasks
from geomtraj.inference import Verdict
from geomtraj.measuring import Measurement, Results
from geomtraj.measuring.record import read_measurement
from geomtraj.reporting import Skipped
from geomtraj.statistics import Quantity

RATES = {"adam": [0.003, 0.01], "sgdm": [0.05, 0.1]}
COMMON = {"full_batch": False, "rates": RATES}
RECIPES = {
    "language": {"title": "language modelling", "task": "pydoc-lm", "steps": 20, **COMMON,
                 "options": {"layers": 1, "width": 4, "heads": 1, "context": 4, "eval_sequences": 8, "batch_size": 8}},
    "classification": {"title": "text classification", "task": "text-classification", "steps": 3, **COMMON,
                       "options": {"layers": 1, "width": 4, "heads": 1, "context": 4, "vocabulary": 16}},
    "translation": {"title": "translation", "task": "translation", "steps": 3, **COMMON,
                    "options": {"layers": 1, "width": 4, "heads": 1, "context": 6, "vocabulary": 16}},
    "images": {"title": "digits", "task": "digits-cnn", "steps": 20, **COMMON,
               "options": {"width": 4, "batch_size": 8, "eval_examples": 64}},
}  # fmt: skip  # so small that 450 samples make diagonals exact
TINY = {"tasks": ["images"], "seeds": [0, 1], "iterates": 2, "r_med": {"samples": 450, "max_matvecs": 0}}


def invoke(folder, recipes=RECIPES, **changed):
    values = {f"recipes.{name}": recipe for name, recipe in recipes.items()} | TINY | changed
    settings = [x for key, value in values.items() for x in ("--set", f"{key}={json.dumps(value)}")]
    return CliRunner().invoke(script.main, ["--out", str(folder / "adam_vs_sgd"), *settings])


def table(folder, name):
    with (folder / "adam_vs_sgd" / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def without_figures(monkeypatch):
    """For tests of tables and sentences: the smoke test draws."""
    for name in ("draw_panels", "draw_forests"):
        monkeypatch.setattr(figures, name, lambda *_, **__: Skipped("No figure."))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    full = {"language": {"steps": 10}}
    result = invoke(folder, tasks=["language", "images"], full_batch=full)
    assert result.exit_code == 0, result.output
    return folder, result.output


def stored(folder, optimizer, seed):
    """R_med of the digits' layers and the loss, by step, straight from the trajectory's own result files."""
    run = next((folder / "trajectories").glob(f"images-*/{optimizer}-lr*/seed-{seed}"))
    found = [read_measurement(path) for path in run.glob("results/*.json")]
    r_med = {m.step: {k: q.value for k, q in m.quantities.items()} for m in found if m.statistic == "r_med"}
    return r_med, {m.step: m.quantities["loss"].value for m in found if m.statistic == "loss"}


def test_the_ratios_are_those_of_the_stored_trajectories(smoke):
    folder, _ = smoke
    values = {(o, s): stored(folder, o, s) for o in ("adam", "sgdm") for s in (0, 1)}
    steps = sorted(values["adam", 0][0])
    rows = {(r["label"], int(r["step"])): r for r in table(folder, "equal_step") if r["task"] == "images"}
    layers = [r["weight matrix"] for r in table(folder, "equal_loss") if r["task"] == "digits"]
    assert {r["in the mean"] for r in table(folder, "equal_loss") if r["task"] == "digits"} == {"True"}
    assert len(steps) == 2 and len(layers) == 3 and all(k.endswith("weight") for k in layers)
    for step in steps:
        for label in [*layers, MEAN]:
            ratios = []
            for seed in (0, 1):
                own = [values[o, seed][0][step] for o in ("sgdm", "adam")]
                chosen = layers if label == MEAN else [label]
                ratios.append(np.prod([own[0][k] / own[1][k] for k in chosen]) ** (1 / len(chosen)))
            row = rows[label, step]
            assert float(row["mean ratio"]) == pytest.approx(np.mean(ratios))
            assert float(row["std"]) == pytest.approx(np.std(ratios, ddof=1))
        below = np.mean([values["adam", s][1][step] for s in (0, 1)])
        assert float(rows[layers[0], step]["loss below the line"]) == pytest.approx(below)
    summary = [
        r for r in table(folder, "summary") if (r["task"], r["variant"], r["at equal"]) == ("digits", "R_med", "step")
    ]
    logs = [
        np.mean([math.log(values["sgdm", seed][0][step][k] / values["adam", seed][0][step][k])
                 for step in steps for k in layers])
        for seed in (0, 1)
    ]  # fmt: skip
    assert math.log(float(summary[0]["ratio"])) == pytest.approx(np.mean(logs))
    half = 12.706 * np.std(logs, ddof=1) / math.sqrt(2)
    assert math.log(float(summary[0]["high"])) == pytest.approx(np.mean(logs) + half, rel=1e-3)


def test_the_page_holds_what_was_asked(smoke):
    folder, output = smoke
    text = (folder / "adam_vs_sgd" / "index.html").read_text()
    assert text.count("data:image/svg+xml") == 4
    for title in ("does SGDM run through larger R_med", "is the gap absent", "without gradient noise",
                  "steadier variants", "paired by step", "Which optimizer is faster", "be trusted"):  # fmt: skip
        assert title in text and title in output
    assert {r["task"] for r in table(folder, "learning_rates")} == {"language", "images", "language_full_batch"}
    assert len(table(folder, "learning_rates")) == 12
    speed = [r for r in table(folder, "speed") if r["task"] == "digits"]
    assert [r["step"] for r in speed[-2:]] == ["20", "all"] and len(speed) == 3
    paper = table(folder, "steps_images")
    assert paper[0]["layer"] == "loss of SGDM" and paper[-1]["layer"] == MEAN
    assert "(" in paper[2]["step 20"] and "[" in paper[2]["at equal loss"]
    labels = {r["label"] for r in table(folder, "contrasts") if r["task"] == "images" and r["group"] == "others"}
    assert "all" in labels and any(label.endswith("bias") for label in labels)
    full = {r["layer"] for r in table(folder, "full_batch")}
    assert MEAN in full and "head.weight" in full
    assert {r["task"] for r in table(folder, "full_batch")} == {"language modelling"}


def test_the_same_seed_gives_the_same_table_and_what_is_computed_is_kept(smoke, tmp_path, without_figures):
    folder, _ = smoke
    assert invoke(tmp_path).exit_code == 0
    here = [r for r in table(folder, "iterates") if r["task"] == "images"]
    assert table(tmp_path, "iterates") == here and len(here) > 20
    parts = sorted((tmp_path / "adam_vs_sgd" / "parts").iterdir())
    before = {p: p.stat().st_mtime_ns for p in parts} | {
        p: p.stat().st_mtime_ns for p in (tmp_path / "trajectories").rglob("*.h5")
    }
    parts[0].unlink()
    assert invoke(tmp_path).exit_code == 0
    assert {p for p, t in before.items() if p.stat().st_mtime_ns != t} == {parts[0]}
    assert table(tmp_path, "iterates") == here


def test_one_seed_is_said_to_be_too_few(tmp_path, without_figures):
    result = invoke(tmp_path, seeds=[0])
    assert result.exit_code == 0 and "There is one seed only" in result.stderr
    assert "cannot be decided with n = 1" in result.stdout and "No two pairs" not in result.stdout
    assert "It is," not in result.stdout and float(table(tmp_path, "summary")[0]["ratio"]) > 0


def test_a_sweep_that_diverged_everywhere_and_bad_files_leave_the_rest(tmp_path, without_figures):
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "narrow.tsv").write_text("one column\n" * 20)
    (tmp_path / "narrow.csv").write_text("text,topic\n" + "a,b\n" * 20)

    def with_options(name, **options):
        return {**RECIPES[name], "options": {**RECIPES[name]["options"], **options}}

    recipes = RECIPES | {
        "language": with_options("language", text=str(tmp_path / "short.txt")),
        "translation": with_options("translation", path=str(tmp_path / "narrow.tsv")),
        "classification": with_options("classification", path=str(tmp_path / "narrow.csv")),
        "wild": {"title": "wild", "task": "two-layer-linear", "steps": 20, "full_batch": False, "options": {"d": 4},
                 "rates": {"adam": [0.1, 0.2], "sgdm": [1e6, 1e7]}},
    }  # fmt: skip
    result = invoke(tmp_path, recipes, tasks=["language", "translation", "classification", "wild", "images"])
    assert result.exit_code == 0 and "is the gap absent" in result.stdout
    page = (tmp_path / "adam_vs_sgd" / "index.html").read_text()
    for sentence in ("has 9 characters", "narrow.tsv", "narrow.csv has no column", "every run of sgdm"):
        assert sentence in result.stderr, sentence
        assert sentence in page, sentence
    alone = invoke(tmp_path, recipes, tasks=["language"])
    assert alone.exit_code == 2 and "has 9 characters" in alone.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_optimizers_that_never_reach_a_common_loss_keep_the_comparison_by_step(tmp_path, without_figures):
    still = {**RECIPES["images"], "steps": 300, "rates": {"adam": [0.02], "sgdm": [1e-7]}}
    result = invoke(tmp_path, {"images": still})
    assert result.exit_code == 0 and "It cannot be decided: nothing can be compared at equal loss" in result.stdout
    assert result.stderr.count("digits: nothing can be compared at equal loss") == 1
    assert "adam seed 1 covers" in result.stderr and "sgdm seed 1 covers" in result.stderr
    summary = table(tmp_path, "summary")
    assert {r["at equal"] for r in summary} == {"step"} and all(float(r["ratio"]) > 0 for r in summary)
    assert [r["at equal loss"] for r in table(tmp_path, "steps_images")] == [""] * 6


def test_own_texts_and_tables_are_read(tmp_path):
    words = [f"{'abcde'[i % 5]}{'fghij'[i // 8]}{'klmn'[i % 4]}" for i in range(40)]
    (tmp_path / "own.txt").write_text("abcdefgh ijkl\n" * 40)
    (tmp_path / "own.csv").write_text("text,label\n" + "".join(f"{w},{'AB'[i % 2]}\n" for i, w in enumerate(words)))
    (tmp_path / "own.tsv").write_text("".join(f"{w}\t{w[::-1]}\n" for w in words))
    files = {"language.options.text": "own.txt", "classification.options.path": "own.csv",
             "translation.options.path": "own.tsv"}  # fmt: skip
    settings = [f"recipes.{key}={json.dumps(str(tmp_path / file))}" for key, file in files.items()]
    settings.append('full_batch={"language": {"steps": 5}}')
    analysis = run.start(script.NAME, run.Options(settings=settings, out=tmp_path), base="trajectories")
    script.check(analysis.config)
    script.add_full_batch(analysis.config)
    assert analysis.config["tasks"] == ["language", "classification", "translation", "images", "language_full_batch"]
    made = {
        name: trajectories.task_of({"recipe": analysis.config["recipes"][name], "device": "cpu"})
        for name in analysis.config["tasks"]
    }
    assert made["language"].vocabulary == made["language_full_batch"].vocabulary == "\n abcdefghijkl"
    assert analysis.config["recipes"]["language_full_batch"]["full_batch"] is True
    assert made["classification"].classes == ("A", "B")
    source, target = made["translation"].vocabularies
    assert (
        "".join(sorted(set("".join(words)))) == "abcdefghijklmn" and source.decode(source.encode(words[3])) == words[3]
    )
    assert target.decode(target.encode(words[3][::-1])) == words[3][::-1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizers": ["sgdm", "adam"]}, "give an adaptive one first"),
        ({"controls": ["image"]}, "unknown recipe in controls 'image'"),
        ({"full_batch": {"russian": {"steps": 3}}}, "unknown recipe in full_batch"),
        ({"full_batch": {"language": {"step": 3}}}, "give its number of steps"),
        ({"margin": 0.5}, "give a factor above 1"),
        ({"levels": 0}, "at least 1"),
        ({"tasks": ["image"]}, "did you mean 'images'"),
    ],
)
def test_bad_settings_are_one_sentence(tmp_path, changed, message):
    result = invoke(tmp_path, **changed)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "trajectories").exists()


STEPS = [10, 20, 40, 80]
SHAPES = {"embedding.weight": [64, 8], "a.weight": [8, 8], "head.weight": [64, 8], "head.bias": [64]}


def invented(gap, seeds=(0, 1, 2, 3, 4), scatter=0.02, fast=1.0, offset=0.0, variant_gap=None, name="t"):
    """A task whose SGDM lies `gap` above Adam at equal loss, up to a scatter over seeds."""
    runs = {"adam": [], "sgdm": []}
    for optimizer, results in runs.items():
        for seed in seeds:
            rng = np.random.default_rng([seed, optimizer == "sgdm"])
            speed = fast if optimizer == "adam" else 1.0
            losses = offset * (optimizer == "sgdm") + 4 * np.exp(-np.array(STEPS) * 0.01 * speed) * (1 + 0.01 * seed)
            ahead, other = (gap, variant_gap or gap) if optimizer == "sgdm" else (1.0, 1.0)
            rows = []
            for step, loss in zip(STEPS, losses, strict=True):
                value = 10 / loss * math.exp(scatter * rng.normal())
                quantities = {k: Quantity(value * ahead, value * ahead * 0.95, value * ahead * 1.05) for k in SHAPES}
                details = {k: {"tenth": value * other / 2, "q99": value * other / 3, "size": 64, "method": "exact",
                               "status": "ok"} for k in SHAPES}  # fmt: skip
                rows.append(Measurement(step, 0.1 * step, "r_med", {}, quantities, details))
                rows.append(Measurement(step, 0.1 * step, "loss", {}, {"loss": Quantity.exact(float(loss))}))
            meta = {"seed": seed, "optimizer": optimizer}
            manifest = {"meta": meta, "status": "complete", "parameters": SHAPES}
            results.append(Results(Path("run"), manifest, rows))
    return compare(name, name, runs, 3)


def verdicts(claimed, controls=(), pairs=(), margin=1.25):
    found = findings.answers(claimed, controls, pairs, margin)
    return [a.verdict for a in found], [" ".join(a.numbers) for a in found]


def test_layers_are_weight_matrices_and_the_gap_is_read_at_equal_loss():
    task = invented(3.0, fast=2.0, scatter=0.0)
    assert task.layers == task.averaged == ["embedding.weight", "a.weight", "head.weight"]
    assert task.others == ["head.bias"]
    for variant in ("r_med", "tenth", "q99"):
        assert task.means[variant, "loss"].ratio == pytest.approx(3.0, rel=1e-6)
    assert task.means["r_med", "step"].ratio < 2.5  # progress differs
    assert task.by_seed() == pytest.approx(dict.fromkeys(range(5), math.log(3.0)))


def test_embeddings_are_compared_but_not_averaged():
    task = invented(2.0)
    for m in task.runs["sgdm"][0].of("r_med"):
        m.quantities["embedding.weight"] = Quantity(math.inf, 1.0, math.inf)
    task = compare("t", "t", task.runs, 3, {"embedding.weight"})
    assert task.averaged == ["a.weight", "head.weight"] and task.lookups == ["embedding.weight"]
    assert "embedding.weight" not in " ".join(t for t in notes(task) if "not in the mean" in t)
    assert "2 weight matrices (1 left out, of them 1 embeddings)" in verdicts([task])[1][0]
    assert task.row("r_med", "loss", "embedding.weight").n == 4
    options = {"layers": 1, "width": 4, "heads": 1, "context": 4}
    assert lookups(tasks.make("pydoc-lm", **options).model(0)) == {"embedding.weight", "position.weight"}
    assert lookups(tasks.make("pydoc-lm", **options, tied=True).model(0)) == {"position.weight"}
    assert lookups(tasks.make("digits-cnn").model(0)) == set()


@pytest.mark.parametrize(
    ("task", "verdict"),
    [
        (invented(2.0), "The claim holds here"),
        (invented(0.5), "does not hold here, the gap is reversed"),
        (invented(1.0), "does not hold here: a gap, if there is one, is smaller"),
        (invented(1.3, scatter=1.5), "cannot be decided: the interval contains 1"),
        (invented(2.0, seeds=(0,)), "cannot be decided with n = 1"),
        (invented(2.0, offset=9.0), "cannot be decided: nothing can be compared at equal loss"),
    ],
)
def test_each_verdict_on_the_claim(task, verdict):
    assert verdict in verdicts([task])[0][0]


@pytest.mark.parametrize(
    ("ratio", "scatter", "claim", "absent"),
    [
        (2.0, 0.1, Verdict.HOLDS, Verdict.FAILS),
        (0.5, 0.1, Verdict.FAILS, Verdict.FAILS),
        (1.0, 0.1, Verdict.FAILS, Verdict.HOLDS),
        (1.3, 1.5, Verdict.UNDECIDED, Verdict.UNDECIDED),
    ],
)
def test_the_outcome_is_a_function_of_numbers(ratio, scatter, claim, absent):
    task = invented(ratio, scatter=scatter)
    assert findings.answers([task], [], [], 1.25)[0].outcome is claim
    assert findings.answers([], [task], [], 1.25)[0].outcome is absent


def test_holm_over_tasks_can_take_a_verdict_away():
    doubtful = invented(1.8, scatter=0.3, name="doubtful")
    row = doubtful.means["r_med", "loss"]
    assert row.low > 1 and 0.5 * 0.05 < row.t_test_p < 0.05, "choose another scatter"
    nothing = invented(1.0, scatter=0.3, name="nothing")
    assert "The claim holds here" in verdicts([doubtful])[0][0]
    together, _ = verdicts([doubtful, nothing])
    assert "but not after correction for 2 tasks" in together[0]
    assert adjusted([doubtful, nothing])["doubtful"] == pytest.approx(2 * row.t_test_p)


def test_runs_without_a_common_loss_say_which_losses_they_cover_and_keep_the_steps():
    task = invented(2.0, offset=9.0)
    text = " ".join(notes(task))
    assert "adam seed 0 covers" in text and "sgdm seed 0 covers" in text
    assert task.means["r_med", "step"].ratio > 0 and ("r_med", "loss") not in task.means


@pytest.mark.parametrize(
    ("task", "verdict"),
    [
        (invented(1.0), "It is, within a factor of 1.25: "),
        (invented(1.1), "It is, within a factor of 1.25, though the interval leaves out 1"),
        (invented(2.0), "It is not: SGDM has the larger R_med here, too"),
        (invented(0.5), "It is reversed: Adam"),
        (invented(1.0, scatter=1.5), "cannot be decided: the interval contains 1 but reaches beyond"),
        (invented(1.0, seeds=(0,)), "cannot be decided with n = 1"),
    ],
)
def test_absence_on_images_takes_an_interval_within_the_margin(task, verdict):
    assert verdict in verdicts([], [task])[0][0]


@pytest.mark.parametrize(
    ("noisy", "full", "verdict"),
    [
        (2.0, 2.0, "gradient noise is not needed"),
        (2.0, 0.5, "reversed without gradient noise"),
        (1.0, 2.0, "It cannot be asked"),
        (2.0, None, "without noise the interval contains 1"),
        (3.0, 1.0, "smaller without gradient noise"),
    ],
)
def test_each_verdict_on_the_full_batch(noisy, full, verdict):
    scatter = 0.02 if full else 2.0
    pair = (invented(noisy, scatter=0.05), invented(full or 1.0, scatter=scatter, name="full"))
    found, texts = verdicts([pair[0]], pairs=[pair])
    assert verdict in found[1]
    if full:
        assert f"paired by seed: {full / noisy:.1g}"[:18] in texts[1]


def test_a_verdict_that_hangs_on_the_variant_or_the_pairing_is_told():
    found, _ = verdicts([invented(2.0)])
    assert "No: all 3 are on the same side" in found[1]
    found, _ = verdicts([invented(2.0, variant_gap=0.5)])
    assert "Yes, in 2 of 3 cases" in found[1] and "above 1 becomes below 1" in found[1]
    found, _ = verdicts([invented(1.2, fast=4.0)])
    assert "The claim holds" in found[0] and "above 1 becomes below 1" in found[2]


@pytest.mark.parametrize(
    ("fast", "verdict", "scope"),
    [
        (2.0, "Adam on t", "as the claim supposes"),
        (0.5, "SGDM on t", "outside what the claim is made for"),
        (1.0, "neither is seen to be faster on t", "neither is seen to be faster"),
    ],
)
def test_which_optimizer_is_faster(fast, verdict, scope):
    found, texts = verdicts([invented(2.0, fast=fast)])
    assert verdict in found[3] and scope in texts[0]


def test_values_without_an_upper_end_are_counted_and_unusable_layers_left_out():
    task = invented(2.0)
    first, second = (run.of("r_med") for run in task.runs["sgdm"][:2])
    for m in [*first, *second]:
        m.quantities["a.weight"] = Quantity(5.0, 1.0, math.inf)
    first[0].quantities["head.weight"] = Quantity(math.inf, 1.0, math.inf)
    task = compare("t", "t", task.runs, 3)
    assert task.averaged == ["embedding.weight", "a.weight"] and task.firm == ["embedding.weight"]
    assert (FIRM, "loss") in task.means
    assert "head.weight is not in the mean" in " ".join(notes(task))
    found, texts = verdicts([task])
    assert "8 of 80 have no upper end" in found[-1] and "SGDM 1.11 (8 of 40" in texts[-1]


def test_a_loss_that_rises_is_told():
    task = invented(2.0)
    task.runs["adam"][0].of("loss")[-1].quantities["loss"] = Quantity.exact(9.0)
    assert "in 1 of 5 runs of Adam the evaluation loss rises" in " ".join(notes(compare("t", "t", task.runs, 3)))
