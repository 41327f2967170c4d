"""The page of two_layer_linear: tables, figures and findings from the stored runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.common.run import Analysis, finish
from analyses.two_layer_linear import figures, findings
from analyses.two_layer_linear.data import LAYERS, NAMES, Done, Runs, adam_limit
from geomtraj.reporting import Content, Sheet
from geomtraj.tasks import two_layer_linear as theory


def write(
    analysis: Analysis, engine: Sequence[Done], by_dimension: Sequence[Done], slowly: Sequence[Done],
    swept: Sequence[Done], started: Sequence[Done],
) -> Path:  # fmt: skip
    """The page, its figures and tables."""
    config = analysis.config
    runs, slow, rates, starts = Runs(by_dimension), Runs(slowly), Runs(swept), Runs(started)
    analysis.problems += findings.remarks([*by_dimension, *slowly, *swept, *started], len(config["seeds"]))
    laws = {d: theory.gaussian_r_med(d) for d in {*config["dims"], config["sweep_dim"]}}
    content = Content(
        "The theorem on the two-layer linear network, put to the test",
        _question(config),
        findings.answers(config, engine, runs, slow, rates, starts, laws),
        [
            lambda: figures.dimensions(config, runs, laws),
            lambda: figures.along(config, runs),
            lambda: figures.excess(config, runs, slow),
            lambda: figures.conditions(config, rates, starts),
        ],
        _sheets(config, engine, runs, slow, rates, starts, laws),
    )
    return finish(analysis, content, main_figure="dimensions")


def _question(config: dict[str, Any]) -> str:
    rates = " and ".join(f"{c:g} for {NAMES[name]}" for name, c in config["rates"].items())
    return (
        "From a small Gaussian start, does SGD with momentum run through R_med of order log d in both layers, and "
        "Adam through R_med near 1? L = 1/2 ||W2 W1 - A||² with W1 of d x d and W2 of 1 x d has its Hessian diagonal "
        "in closed form. Runs are read where the loss has fallen to the same fraction of the start's. The theorem is "
        f"about small learning rates: here they are c/√d with c = {rates}; c is swept, and Adam is run with steps "
        "below the start's standard deviation too."
    )


def _sheets(
    config: dict[str, Any],
    engine: Sequence[Done],
    runs: Runs,
    slow: Runs,
    rates: Runs,
    starts: Runs,
    laws: dict[int, Any],
) -> list[Sheet]:
    level = config["reference"]
    by_dimension, contrast = [], []
    for d in config["dims"]:
        law = laws[d]
        for name in config["rates"]:
            here = runs.where(d=d, optimizer=name)
            one, two, singular = (here.mean(level, key) for key in (*LAYERS, "singular"))
            predicted = [theory.predicted_r_med(d), law.mean, law.low, law.high] if name == "sgdm" else [None] * 4
            layers = [x for m in (one, two) for x in (m.mean, m.std, m.low, m.high)]
            by_dimension.append([d, name, one.n, *layers, *predicted, singular.mean])
        for at in sorted(config["levels"], reverse=True):
            one, two = (runs.where(d=d).ratio(at, key) for key in LAYERS)
            contrast.append([d, at, one.n, one.ratio, one.low, one.high, two.ratio, two.low, two.high, one.sign_test_p])
    means = [f"{layer}{what}" for layer in ("R_1", "R_2") for what in ("", " std", " low", " high")]
    columns = ["d", "optimizer", "seeds", *means, "formula", "law's mean", "law 2.5 %", "law 97.5 %"]
    columns.append("second / first singular value")
    return [
        Sheet(
            "by_dimension", f"R_1 and R_2 where the loss is {level:g} of the start's", columns, by_dimension,
            "Mean over seeds with standard deviation and 95 % t-interval. Formula: (2 ln d - ln ln d - ln π + 1.154) "
            "/ 0.4549; law: max u²/median u² of d Gaussian u at this d.",
        ),
        Sheet(
            "contrast", "R_med of SGD with momentum over R_med of Adam, at equal loss",
            ["d", "loss / start's", "seeds", *_with_ends("ratio of R_1", "ratio of R_2"), "sign p of R_1"], contrast,
            "Geometric mean over pairs of the same start, with 95 % t-interval.",
        ),
        _swept("learning_rates", "Learning rates", "c", config["rate_grid"], rates, level),
        _swept("starts", "Size of the start", "alpha", config["alpha_grid"], starts, level),
        Sheet(
            "adam_excess", "How far Adam's R_med is above 1",
            ["d", "steps", "seeds", *_with_ends("R_1 - 1", "R_2 - 1"), "R_1 - 1 for steps of size 0"],
            _excess(config, runs, slow),
            "Geometric mean over seeds with 95 % t-interval where the loss is 0.5 of the start's.",
        ),
        Sheet(
            "engine", "The engine's exact diagonal beside the closed form",
            ["d", "optimizer", "step", "loss / start's", "largest difference of an entry", "of R_med"],
            [[j["d"], j["optimizer"], r["step"], r["fraction"], r["entries"], r["r_med"]]
             for j, done in engine for r in done["rows"]],
            "Relative differences, float64.",
        ),
        Sheet(
            "runs", "Every run",
            ["part", "optimizer", "d", "alpha", "c", "seed", "status", "level", "step", "R_1", "R_2", "singular"],
            [[part, j["optimizer"], j["d"], j["alpha"], j["c"], j["seed"], r["status"], row["level"], row["step"],
              row["r_1"], row["r_2"], row["singular"]]
             for part, group in (("dimensions", runs), ("small steps", slow), ("rates", rates), ("starts", starts))
             for j, r in group.done for row in r["rows"] or [dict.fromkeys(("level", "step", *LAYERS, "singular"))]],
            shown=False,
        ),
    ]  # fmt: skip


def _excess(config: dict[str, Any], runs: Runs, slow: Runs) -> list[list[Any]]:
    rows = []
    for name, group, dims in (
        ("c/√d", runs.where(optimizer="adam"), config["dims"]),
        (f"{config['small_steps']:g} of the start's std", slow, config["small_step_dims"]),
    ):
        for d in dims:
            here = group.where(d=d)
            one, two = (here.excess(0.5, key) for key in LAYERS)
            limit = adam_limit(here.done, 0.5)
            rows.append([d, name, one.n, one.ratio, one.low, one.high, two.ratio, two.low, two.high, limit])
    return rows


def _swept(name: str, title: str, field: str, grid: Sequence[float], runs: Runs, level: float) -> Sheet:
    rows = []
    for value in grid:
        here = runs.where(**{field: value})
        ratios = [here.ratio(level, key) for key in LAYERS]
        means = [here.where(optimizer=o).mean(level, key) for o in ("sgdm", "adam") for key in LAYERS]
        ends = [x for r in ratios for x in (r.ratio, r.low, r.high)]
        rows.append([value, ratios[0].n, *(m.mean for m in means), *ends])
    columns = [field, "seeds", "SGDM R_1", "SGDM R_2", "Adam R_1", "Adam R_2"]
    columns += _with_ends("ratio of R_1", "ratio of R_2")
    what = {"c": "The learning rate is c/√d", "alpha": "The start's standard deviation is d^(-2 alpha)"}[field]
    where = f"d = {', '.join(str(d) for d in sorted({j['d'] for j, _ in runs.done}))}, loss {level:g} of the start's"
    return Sheet(name, title, columns, rows, f"{what}; {where}. Means over seeds; ratios as above.")


def _with_ends(*names: str) -> list[str]:
    return [f"{name}{end}" for name in names for end in ("", " low", " high")]
