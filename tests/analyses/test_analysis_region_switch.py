import csv
import json
import math

import pytest
import torch
from click.testing import CliRunner

from analyses.region_switch import __main__ as script
from analyses.region_switch import figures, findings
from analyses.region_switch.data import Compared
from geomtraj import tasks
from geomtraj.inference import over_seeds, two_way
from geomtraj.reporting import Skipped
from geomtraj.trajectory import Trajectory

OPTIONS = {"width": 8, "batch_size": 8, "eval_examples": 64}
RECIPE = {
    "title": "digits",
    "task": "digits-mlp",
    "options": OPTIONS,
    "steps": 60,
    "full_batch": False,
    "rates": {"adam": [0.01], "sgdm": [0.05]},
}
QUICK = {
    "recipes": {"digits": RECIPE},
    "tasks": ["digits"],
    "seeds": [0, 1],
    "retune_seeds": [100],
    "window": 20,
    "evaluate_every": 4,
    "r_med_at": [20],
    "r_med": {"samples": 4, "max_matvecs": 8},
    "factors": [0.02, 0.2, 1e17],
    "switch_share": 0.3,
}


def invoke(folder, out="region_switch", **changed):
    """Runs the script; calls in one folder share its trained runs."""
    settings = [x for key, value in (QUICK | changed).items() for x in ("--set", f"{key}={json.dumps(value)}")]
    return CliRunner().invoke(script.main, ["--out", str(folder / out), *settings])


def table(folder, name, out="region_switch"):
    with (folder / out / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def without_figures(monkeypatch):
    """For tests of tables and sentences: the smoke test draws."""
    monkeypatch.setattr(figures, "draw_panels", lambda *_, **__: Skipped("No figure."))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    result = invoke(folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def evaluation(run):
    rows = [row for row in run.log if "evaluation_loss" in row]
    return [row["step"] for row in rows], [row["evaluation_loss"] for row in rows]


def test_the_number_is_what_the_stored_runs_say(smoke):
    folder, _ = smoke
    arms = {(r["region"], r["optimizer"], r["state"], r["seed"]): r for r in table(folder, "arms")}
    assert len(arms) == 2 * 2 * 4
    logs, late, steps = [], [], []
    for seed in "01":
        falls, lates, curves = {}, {}, {}
        for region in ("adam", "sgdm"):
            places, losses = evaluation(Trajectory(arms[region, "sgd", "fresh", seed]["path"]))
            assert places == [0, 4, 8, 12, 16, 20]
            falls[region], lates[region], curves[region] = losses[0] - losses[-1], losses[1] - losses[-1], losses
        logs.append(math.log(falls["adam"] / falls["sgdm"]))
        late.append(math.log(lates["adam"] / lates["sgdm"]))
        level = max(min(x) for x in curves.values())
        passed = {}
        for region, x in curves.items():
            k = next(i for i in range(6) if x[i] <= level)
            passed[region] = 4 * (k - 1 + (x[k - 1] - level) / (x[k - 1] - x[k]))
        steps.append(math.log(passed["sgdm"] / passed["adam"]))
    rows = {
        r["measure"].split()[0] + r["measure"].split()[1]: r for r in table(folder, "speed") if r["optimizer"] == "sgd"
    }
    for key, mine in (("fallof", logs), ("fallafter", late), ("stepsto", steps)):
        assert float(rows[key]["ratio"]) == pytest.approx(math.exp(sum(mine) / 2)), key
    assert rows["fallof"]["seeds"] == "2" and float(rows["fallof"]["low"]) < float(rows["fallof"]["high"])


def test_arms_begin_at_equal_loss_on_the_same_batches(smoke):
    folder, _ = smoke
    task = tasks.make("digits-mlp", **OPTIONS)
    starts = {(r["region"], r["seed"]): r for r in table(folder, "starts")}
    assert len(starts) == 4
    model = task.model(0)
    for r in table(folder, "arms"):
        run, start = Trajectory(r["path"]), starts[r["region"], r["seed"]]
        run.load_into(model, 0)
        loss = task.problem(model).loss().item()
        assert loss == float(r["first loss"]) == float(start["loss"]) == evaluation(run)[1][0]
        assert float(start["norm of the parameters"]) == pytest.approx(run[0].theta.norm().item())
        assert run.meta["first_batch"] == 60 and run.meta["start"]["carry"] == (r["state"] == "carried")
        assert run.log[0]["loss"] == task.loss(model, task.batch(60, int(r["seed"]))).mean().item()
        assert bool(run[0].optimizer_state["state"]) == (r["state"] == "carried")
    for (_, seed), r in starts.items():
        level, own = float(r["switch loss"]), float(r["loss"])
        run = Trajectory(folder / "trajectories" / next(iter_names(folder, r["region"])) / f"seed-{seed}")
        assert evaluation(run)[1][int(r["step"])] == pytest.approx(own, rel=1e-6), "the iterate of that very step"
        first = next(x for x in evaluation(run)[1] if x <= level)
        assert abs(math.log(own / level)) <= abs(math.log(first / level)) + 1e-9


def iter_names(folder, region):
    for path in (folder / "trajectories").glob(f"*/{region}-lr*-switch"):
        yield path.relative_to(folder / "trajectories")


def test_learning_rates_are_chosen_by_training_loss_and_diverged_ones_are_kept(smoke):
    folder, _ = smoke
    rows = table(folder, "switch_learning_rates")
    assert len(rows) == 8 * 3
    assert sum(r["status"] == "diverged" for r in rows) == 8, "learning rates times 1e17"
    for key in {(r["region"], r["optimizer"], r["state"]) for r in rows}:
        mine = [r for r in rows if (r["region"], r["optimizer"], r["state"]) == key]
        best = min((r for r in mine if not r["status"]), key=lambda r: float(r["training loss at the end"]))
        assert best["taken"].startswith("taken") and sum(bool(r["taken"]) for r in mine) == 1
        runs = list((folder / "trajectories").glob(f"*/{key[0]}-to-{key[1]}-{key[2]}/lr{float(best['learning rate']):g}"
                                                   "-seed-100-*"))  # fmt: skip
        losses = [row["loss"] for row in Trajectory(runs[0]).log][-3:]
        assert float(best["training loss at the end"]) == pytest.approx(sum(losses) / 3)
        assert {r["learning rate"] for r in table(folder, "arms")
                if (r["region"], r["optimizer"], r["state"]) == key} == {best["learning rate"]}  # fmt: skip


def test_r_med_and_the_page(smoke):
    folder, output = smoke
    blocks = table(folder, "r_med_blocks")
    means = [r for r in table(folder, "r_med") if r["region"] == "adam" and r["seed"] == "1"]
    assert {(r["optimizer"], r["step"]) for r in means} == {("", "0"), ("adam", "20"), ("sgdm", "20"), ("sgd", "20")}
    everywhere = {b["block"] for b in blocks} - {"all"}
    everywhere -= {b["block"] for b in blocks if not 0 < float(b["R_med"]) < math.inf}
    for r in means:
        mine = [float(b["R_med"]) for b in blocks if b["block"] in everywhere
                and all(b[k] == r[k] for k in ("region", "optimizer", "seed", "step"))]  # fmt: skip
        assert float(r["R_med"]) == pytest.approx(math.exp(sum(map(math.log, mine)) / len(mine)))
    text = (folder / "region_switch" / "index.html").read_text()
    assert text.count("data:image/svg+xml") == 3 and "plain SGD from Adam&#39;s region" in text
    assert output.count("digits: ") >= 3 and "the learning rate" in output


def test_the_same_seed_gives_the_same_table_and_what_is_computed_is_kept(smoke, tmp_path, without_figures):
    names = ("speed", "effects", "switch_learning_rates", "starts", "r_med_blocks")
    assert invoke(tmp_path).exit_code == 0
    for name in names:
        assert table(tmp_path, name) == table(smoke[0], name)
    parts = tmp_path / "region_switch" / "parts"
    before = {p: p.stat().st_mtime_ns for p in parts.iterdir()}
    victims = {next(parts.glob("go-*")), next(parts.glob("reach-*")), next(parts.glob("retune-*"))}
    for victim in victims:
        victim.unlink()
    runs = {p: p.stat().st_mtime_ns for p in (tmp_path / "trajectories").rglob("*.h5")}
    assert invoke(tmp_path).exit_code == 0
    assert {p for p, t in before.items() if p.stat().st_mtime_ns != t} == victims
    assert runs == {p: p.stat().st_mtime_ns for p in (tmp_path / "trajectories").rglob("*.h5")}


def test_one_seed_decides_nothing(smoke, without_figures):
    result = invoke(smoke[0], "one", seeds=[0])
    assert result.exit_code == 0 and "There is one seed only" in result.stderr
    assert result.stdout.count("cannot be decided") == 3
    assert len(table(smoke[0], "arms", "one")) == 8


def test_an_optimizer_whose_every_learning_rate_diverged_is_left_out(smoke, without_figures):
    centres = {"adam": {"of": "adam", "times": 1.0}, "sgdm": {"of": "sgdm", "times": 1.0}}
    result = invoke(smoke[0], "wild", continue_with={**centres, "sgd": {"of": "sgdm", "times": 1e20}})
    assert result.exit_code == 0, result.output
    assert "every learning rate of sgd with fresh state from adam's region diverged (1e+17, 1e+18" in result.stderr
    assert "It cannot be decided by a ratio: for seeds 0, 1 an arm diverged" in result.stdout
    assert {r["optimizer"] for r in table(smoke[0], "arms", "wild")} == {"adam", "sgdm"}
    rows = [r for r in table(smoke[0], "effects", "wild") if r["optimizers"] == "adam / sgdm"]
    assert rows and all(r["seeds"] == "2" for r in rows)


def test_runs_without_a_common_loss_are_told_and_the_rest_is_kept(smoke, without_figures):
    flat = {**RECIPE, "rates": {"adam": [0.01], "sgdm": [1e-12]}}
    both = {"recipes": {"flat": flat, "digits": RECIPE}, "tasks": ["flat", "digits"]}
    result = invoke(smoke[0], "flat", **both)
    assert result.exit_code == 0, result.output
    assert "flat is left out: the runs have no common loss (adam seed 100 covers" in result.stderr
    assert {r["task"] for r in table(smoke[0], "speed", "flat")} == {"digits"}
    result = invoke(smoke[0], "flat_alone", recipes={"flat": flat}, tasks=["flat"])
    assert result.exit_code == 2 and "no task can be switched" in result.stderr


def test_a_seed_that_never_passes_the_switch_loss_is_told(smoke, without_figures, monkeypatch):
    monkeypatch.setattr(script, "reach", stopped_short)
    result = invoke(smoke[0], "short")
    assert result.exit_code == 0, result.output
    assert "digits, seed 1 is left out: its two runs do not both pass the switch loss" in result.stderr
    assert "adam covers losses 1.5 to 2.3 and sgdm covers losses" in result.stderr
    assert {r["seed"] for r in table(smoke[0], "arms", "short")} == {"0"}


def stopped_short(job, reach=script.reach):
    if (job["seed"], job["region"]) == (1, "adam"):
        return {"step": None, "covers": "1.5 to 2.3", "status": "complete"}
    return reach(job)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"retune_seeds": [0]}, "share a seed"),
        ({"switch_share": 1.0}, "between 0 and 1"),
        ({"r_med_at": [30]}, "beyond the window of 20"),
        ({"evaluate_every": 0}, "at least 1"),
        ({"factors": [-1.0]}, "must be positive"),
        ({"continue_with": {"adam": {"of": "adam", "times": 1.0}}}, "continue_with lacks sgdm"),
        ({"tasks": ["digit"]}, "did you mean 'digits'"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, changed, message):
    result = invoke(tmp_path, **changed)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_unknown_optimizers_are_told(tmp_path):
    centres = {"adam": {"of": "adam", "times": 1.0}, "sgdm": {"of": "sgdm", "times": 1.0}}
    for name, centre, message in (("sdg", "sgdm", "did you mean"), ("sgd", "sgd", "choose one of")):
        result = invoke(tmp_path, continue_with={**centres, name: {"of": centre, "times": 1.0}})
        assert result.exit_code == 2 and message in result.stderr


def ratio(value, n=5, scatter=0.02):
    shifts = torch.linspace(-1, 1, n).tolist() if n > 1 else [0.0]
    return over_seeds([math.log(value) + scatter * x for x in shifts])


@pytest.mark.parametrize(
    ("fall", "steps", "p", "says"),
    [
        (ratio(2), ratio(3), 0.01, "Plain SGD is faster from Adam's region: its loss falls 2 ["),
        (ratio(2), ratio(3), 0.01, "say the same"),
        (ratio(0.5), ratio(0.3), 0.01, "Plain SGD is slower from Adam's region"),
        (ratio(0.5), ratio(2), 0.01, "but steps to a common loss say the opposite"),
        (ratio(2), ratio(0.5), 0.01, "but steps to a common loss say the opposite"),
        (ratio(2), ratio(1), 0.01, "not confirmed by steps"),
        (ratio(2), ratio(2), 0.2, "It cannot be decided: the interval leaves out 1, but not after Holm's correction"),
        (ratio(1, scatter=1), ratio(2), 0.9, "No difference between the regions is seen"),
        (ratio(2, n=1), ratio(2, n=1), math.nan, "cannot be decided with 1 seed: there is no interval"),
    ],
)
def test_the_verdict_on_speed_follows_the_interval(fall, steps, p, says):
    given = Compared(steps, ()), p, "adam", "sgdm", "sgd"
    assert says in findings.speed_verdict(Compared(fall, ()), Compared(fall, ()), *given)
    left_out = findings.speed_verdict(Compared(fall, (3,)), Compared(fall, ()), *given)
    assert "cannot be decided by a ratio: for seed 3 an arm" in left_out


@pytest.mark.parametrize(("fall", "counted", "p"), [(ratio(2), ratio(1), 0.01), (ratio(1), ratio(1.2), 0.9),
                                                    (ratio(2), ratio(0.5), 0.01)])  # fmt: skip
def test_a_difference_that_hangs_on_unequal_starts_decides_nothing(fall, counted, p):
    text = findings.speed_verdict(
        Compared(fall, ()), Compared(counted, ()), Compared(fall, ()), p, "adam", "sgdm", "sgd"
    )
    assert text.startswith("It cannot be decided: ") and "counted from the switch loss rather than" in text


def made_up(region, optimizer, interaction, n=5, scatter=0.05):
    shifts = torch.linspace(-scatter, scatter, n).tolist() if n > 1 else [0.0]
    logs = [
        [[(0.5 - r) * (region + x) + (0.5 - c) * (optimizer - x) + (0.5 - r) * (0.5 - c) * interaction + x * x
          for c in range(2)] for r in range(2)]
        for x in shifts
    ]  # fmt: skip
    return two_way(logs)


@pytest.mark.parametrize(
    ("found", "seeds", "says"),
    [
        (made_up(0.1, 1.0, 0.0), 5, "The optimizer is the larger effect (n = 5)"),
        (made_up(0.1, -1.0, 0.0), 5, "The optimizer is the larger effect (n = 5)"),
        (made_up(1.0, 0.1, 0.0), 5, "The region is the larger effect (n = 5)"),
        (made_up(0.5, 0.5, 0.0), 5, "Which of the two is larger cannot be decided (n = 5)"),
        (made_up(0.1, 1.0, 0.0), 5, "No interaction of the two is seen"),
        (made_up(0.1, 1.0, 2.0), 5, "The two interact, so neither number holds alone: SIMPLE."),
        (made_up(0.0, 1.0, 0.0), 5, "by 1 [0.952, 1.05] (1 cannot be excluded), Adam in place of SGDM"),
        (made_up(0.1, 1.0, 0.0), 6, "It cannot be decided: in 1 of 6 seeds an arm diverged"),
        (made_up(0.1, 1.0, 0.0, n=1), 1, "It cannot be decided with 1 seed"),
    ],
)
def test_the_verdict_on_region_and_optimizer_follows_the_intervals(found, seeds, says):
    assert says in findings.larger_verdict(found, seeds, "adam", "sgdm", "SIMPLE")


@pytest.mark.parametrize(
    ("gap", "from_adam", "from_sgdm", "p", "says"),
    [
        (ratio(4), ratio(2), ratio(0.5), [0.01, 0.01, 0.01], "from Adam to SGDM it moves that way (2 ["),
        (ratio(4), ratio(2), ratio(0.5), [0.01, 0.01, 0.01], "from SGDM to Adam it moves that way (0.5 ["),
        (ratio(4), ratio(2), ratio(0.5), [0.01, 0.01, 0.01], "50 % of the gap"),
        (ratio(0.25), ratio(0.5), ratio(2), [0.01, 0.01, 0.01], "from Adam to SGDM it moves that way (0.5 ["),
        (ratio(4), ratio(0.5), ratio(2), [0.01, 0.01, 0.01], "from Adam to SGDM it moves the other way"),
        (ratio(4), ratio(2), ratio(2), [0.01, 0.01, 0.01], "from SGDM to Adam it moves the other way"),
        (ratio(4), ratio(2), ratio(0.5), [0.01, 0.3, 0.01], "from Adam to SGDM no change is seen"),
        (ratio(4), ratio(2), ratio(0.5), [0.2, 0.01, 0.01], "It cannot be asked here"),
        (ratio(4, n=1), ratio(2), ratio(0.5), [math.nan, 0.01, 0.01], "It cannot be decided"),
    ],
)
def test_the_verdict_on_r_med_follows_the_intervals(gap, from_adam, from_sgdm, p, says):
    changes = {"adam": from_adam, "sgdm": from_sgdm}
    assert says in findings.r_med_verdict(gap, changes, p, "adam", "sgdm")
