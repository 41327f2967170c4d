"""What two_layer_linear found, in words computed from the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from analyses.two_layer_linear.data import adam_limit, decay, upper, window
from geomtraj.inference import OverSeeds, Trend, Verdict, trend
from geomtraj.reporting import Answer, listed, number
from geomtraj.tasks import two_layer_linear as theory

AGREEMENT = 1e-10  # relative, of the engine with the closed form
NEAR_ONE = 1.5  # "near 1" for Adam's mean R_med, against about 10 to 23 for SGD with momentum
RANK_ONE = 0.1  # second over first singular value, below which W1 is called close to rank one
LAYERS = {"r_1": "R_1", "r_2": "R_2"}


def answers(
    config: dict[str, Any], engine: Any, runs: Any, slow: Any, rates: Any, starts: Any, laws: Any
) -> list[Answer]:
    """The findings, in the order of the page."""
    return [
        _engine(engine),
        _sgdm(config, runs.where(optimizer="sgdm"), laws),
        _adam(config, runs.where(optimizer="adam"), slow),
        _contrast(config, runs),
        _rank_one(config, runs),
        _conditions(config, rates, starts, laws),
    ]


def remarks(done: Sequence[Any], seeds: int) -> list[str]:
    """Runs that diverged or stopped early, and what one seed cannot say."""
    texts = []
    for kind in dict.fromkeys(r["status"] for _, r in done if r["status"] != "ok"):
        jobs = [j for j, r in done if r["status"] == kind]
        names = [f"{j['optimizer']} d={j['d']} alpha={j['alpha']:g} c={j['c']:g} seed {j['seed']}" for j in jobs]
        left = "they are left out" if kind == "diverged" else "what they passed before is used"
        texts.append(f"{len(jobs)} of {len(done)} runs: {kind} ({listed(names, 4)}); {left}.")
    if seeds < 2:
        texts.append("There is one seed only: means have no interval, and nothing can be decided; give at least two.")
    return texts


def _engine(engine: Sequence[Any]) -> Answer:
    rows = [row for _, r in engine for row in r["rows"]]
    worst = max((max(row["entries"], row["r_med"]) for row in rows), default=math.nan)
    verdict = (
        f"They {'agree' if worst <= AGREEMENT else 'do not agree'} to {number(AGREEMENT)}, relative to each entry."
    )
    dims = listed(str(d) for d in sorted({j["d"] for j, _ in engine}))
    text = f"Largest difference over {len(rows)} iterates of both optimizers at d = {dims}: {number(worst)}."
    return Answer("The engine's exact diagonal and the closed form", verdict, [text])


def _sgdm(config: dict[str, Any], mine: Any, laws: Any) -> Answer:
    level, dims = config["reference"], config["dims"]
    points = {key: [(d, v) for d in dims for v in mine.where(d=d).values(level, key).values()] for key in LAYERS}
    slopes = {key: trend([laws[d].mean for d, _ in p], [v for _, v in p]) for key, p in points.items()}
    title = "SGD with momentum: R_1 and R_2 of order log d"
    if not all(math.isfinite(t.low) for t in slopes.values()):
        return Answer(
            title,
            "It cannot be decided: that takes several seeds at several dimensions.",
            [],
            outcome=Verdict.UNDECIDED,
        )
    if all(t.low > 0 for t in slopes.values()):
        agrees = all(t.low <= 1 <= t.high for t in slopes.values())
        rate = "at the predicted rate, within its interval" if agrees else "but not at the predicted rate"
        verdict = f"The claim holds here: both grow with d, {rate}."
    elif any(t.high < 0 for t in slopes.values()):
        verdict = "The claim does not hold here: R_med falls with d."
    else:
        verdict = "It cannot be decided here: the interval of the growth with d contains 0."
    bottom, top = min(dims), max(dims)
    formula = {d: theory.predicted_r_med(d) for d in dims}
    means = {d: mine.where(d=d).mean(level, "r_1") for d in dims}
    hits = [sum(means[d].low <= at[d] <= means[d].high for d in dims) for at in (formula, _means(laws))]
    below = [f"{number(100 * (1 - formula[d] / laws[d].mean), 2)} % below that mean at d = {d}" for d in (bottom, top)]
    singles = [laws[d].low <= v <= laws[d].high for d, v in points["r_1"]]
    factors = [f"{number(laws[d].high / laws[d].low, 2)} at d = {d}" for d in (bottom, top)]
    texts = [
        f"Growth of the mean over the predicted growth between d = {bottom} and {top}: {_slopes(slopes)}.",
        f"The 95 % interval of R_1's mean contains the formula at {hits[0]} of {len(dims)} dimensions, and the mean "
        f"of max u²/median u² at that very d at {hits[1]}. The formula is the limit for large d: it lies "
        f"{' and '.join(below)}.",
        f"{sum(singles)} of {len(singles)} single values of R_1 lie in the predicted 95 % band, which is wide (its "
        f"ends are apart by a factor of {' and '.join(factors)}): one run says little about log d.",
        *_from_the_start(config, mine, top),
    ]
    return Answer(title, verdict, texts)


def _from_the_start(config: dict[str, Any], mine: Any, top: int) -> list[str]:
    """How well each run's own start predicts its R_1 and R_2, how constant R_1 is, and where it comes from."""
    off: dict[str, list[float]] = {key: [] for key in LAYERS}
    for _, r in mine.done:
        for row in r["rows"]:
            if row["level"] == config["reference"]:
                for key in LAYERS:
                    off[key].append(abs(row[key] / r["start"]["sgdm"] - 1))
    changes = [x for _, r in mine.done if math.isfinite(x := _spread(config, r, "r_1"))]
    texts = []
    if changes and off["r_1"]:
        texts.append(
            "Without any fitted number, max u²/median u² of each run's own start says what its R_med will be: "
            f"largest relative difference {number(max(off['r_1']), 2)} in R_1 and {number(max(off['r_2']), 2)} in "
            f"R_2. Through the window R_1 changes by at most {number(100 * max(changes), 2)} % in any run."
        )
    before = [r["start"] for _, r in mine.where(d=top).done]
    if before:
        one, two = (sum(s[key] for s in before) / len(before) for key in LAYERS)
        texts.append(
            f"The optimizer does not make this spread: before the first step R_1 is already {number(one)} on average "
            f"at d = {top}, since W2 starts Gaussian, and R_2 is {number(two)}; SGD with momentum keeps the spread of "
            "the start and hands it on to W1, Adam removes it."
        )
    return texts


def _adam(config: dict[str, Any], mine: Any, slow: Any) -> Answer:
    level, dims = config["reference"], config["dims"]
    slopes = {key: decay(mine, dims, level, key) for key in LAYERS}
    title = "Adam: R_1 and R_2 are 1 + small, and smaller with d"
    if not all(math.isfinite(t.low) for t in slopes.values()):
        return Answer(
            title,
            "It cannot be decided: that takes several seeds at several dimensions.",
            [],
            outcome=Verdict.UNDECIDED,
        )
    means = [mine.where(d=d).mean(at, key).mean for d in dims for at in window(config) for key in LAYERS]
    worst = max(means, default=math.nan)
    verdict = _adam_verdict(config, mine, slow, worst)
    excess = {(d, key): number(mine.where(d=d).excess(level, key).ratio, 2) for d in dims for key in LAYERS}
    by_d = "; ".join(f"{excess[d, 'r_1']} and {excess[d, 'r_2']} at d = {d}" for d in dims)
    texts = [
        f"R_1 - 1 and R_2 - 1 in the geometric mean where the loss is {level:g} of the start's: {by_d}.",
        f"Power of d in that decay: {_slopes(slopes)}; over the upper half of the dimensions alone: "
        f"{_slopes({key: decay(mine, upper(dims), level, key) for key in LAYERS})}.",
        *_small_steps(config, mine, slow),
    ]
    peaks = [max(row["r_1"] for row in r["curve"]) for _, r in mine.done if r["curve"]]
    if peaks:
        texts.append(
            f"Before the window R_1 is no such thing: at d = {config['curve_dim']} it passes through "
            f"{number(min(peaks))} to {number(max(peaks))} ({len(peaks)} seeds)."
        )
    return Answer(title, verdict, texts)


def _adam_verdict(config: dict[str, Any], mine: Any, slow: Any, worst: float) -> str:
    level, small = config["reference"], f"{config['small_steps']:g} of the start's standard deviation"
    if not worst < NEAR_ONE:
        return f"The claim does not hold at every d: the mean of R_1 or R_2 reaches {number(worst)} in the window."
    near = f"the means in the window are at most {number(worst)}"
    if _falls(mine, config["dims"], level):
        return f"The claim holds here: {near} and fall towards 1 with d."
    if _falls(slow, config["small_step_dims"], level):
        return (
            f"The claim holds in part: {near}, but with learning rates c/√d no fall is seen over the upper half of d; "
            f"they fall towards 1 with d to the end where the learning rate is {small}."
        )
    return f"The claim holds in part: {near}, but R_med - 1 is not seen to fall with d to the end."


def _falls(group: Any, dims: Sequence[int], level: float) -> bool:
    """Whether R - 1 falls with d in both layers, over all dimensions and over the upper half of them."""
    return all(decay(group, part, level, key).high < 0 for part in (dims, upper(dims)) for key in LAYERS)


def _small_steps(config: dict[str, Any], mine: Any, slow: Any) -> list[str]:
    """How Adam's distance from 1 at half the loss compares with that of infinitely small sign steps."""
    texts = []
    for name, group, dims in (
        ("c/√d", mine, config["dims"]),
        (f"{config['small_steps']:g} of the start's standard deviation", slow, config["small_step_dims"]),
    ):
        shares = {d: group.where(d=d).excess(0.5, "r_1").ratio / adam_limit(group.where(d=d).done, 0.5) for d in dims}
        shares = {d: x for d, x in shares.items() if math.isfinite(x)}
        powers = {key: decay(group, dims, 0.5, key) for key in LAYERS}
        if shares:
            bottom, top = min(shares), max(shares)
            texts.append(
                f"Learning rate {name}: at half the loss R_1 - 1 is {number(shares[bottom], 2)} times what sign steps "
                f"of size 0 leave of the same starts at d = {bottom} and {number(shares[top], 2)} times at d = {top}; "
                f"powers of d {_slopes(powers)}."
            )
    if texts:
        texts.append("How fast Adam's R_med goes to 1 with d thus depends on how the learning rate goes to 0 with d.")
    return texts


def _contrast(config: dict[str, Any], runs: Any) -> Answer:
    cases = [(d, at, key) for d in config["dims"] for at in window(config) for key in LAYERS]
    found = {(d, at, key): runs.where(d=d).ratio(at, key) for d, at, key in cases}
    known = [r for r in found.values() if r.n > 1]
    title = "Adam against SGD with momentum at equal loss, from the same starts"
    if not known:
        return Answer(
            title, "It cannot be decided: there are not two pairs of seeds at any loss.", [], outcome=Verdict.UNDECIDED
        )
    above, below = sum(r.low > 1 for r in known), sum(r.high < 1 for r in known)
    total, what = len(known), "cases (d, loss in the window, layer)"
    if above == total:
        verdict = f"The claim holds here: R_med of SGD with momentum is larger in all {total} {what}."
    elif above > total / 2:
        verdict = f"The claim holds here for most {what}: larger in {above} of {total}, smaller in {below}."
    else:
        verdict = f"The claim does not hold here: of {total} {what} R_med is larger in {above} and smaller in {below}."
    at = config["reference"]
    ratios = ", ".join(f"{_ratio(r)} at d = {d}" for (d, x, key), r in found.items() if (x, key) == (at, "r_1"))
    return Answer(
        title,
        verdict,
        [
            f"R_1 of SGD with momentum over that of Adam where the loss is {at:g} of the start's, geometric mean with "
            f"95 % interval: {ratios}; at least {min(r.n for r in known)} pairs of seeds. The cases share their runs "
            "and are not independent."
        ],
    )


def _rank_one(config: dict[str, Any], runs: Any) -> Answer:
    levels, top = window(config), max(config["dims"])
    title = "W1 is close to rank one in the window"
    texts, most = [], 0.0
    for name in config["rates"]:
        mine = runs.where(optimizer=name)
        largest = {}
        for at in levels:
            values = [v for d in config["dims"] for v in mine.where(d=d).values(at, "singular").values()]
            largest[at] = max(values, default=math.nan)
        if not largest or not all(math.isfinite(v) for v in largest.values()):
            return Answer(
                title, f"It cannot be decided: no run of {name} passed the whole window.", [], outcome=Verdict.UNDECIDED
            )
        most = max(most, *largest.values())
        means = {at: mine.where(d=top).mean(at, "singular").mean for at in levels}
        texts.append(
            f"{name}: at most "
            + ", ".join(f"{number(v, 2)} at {at:g}" for at, v in largest.items())
            + f" of the start's loss; means at d = {top}: "
            + ", ".join(number(v, 2) for v in means.values())
            + "."
        )
    found = Verdict.HOLDS if most < RANK_ONE else Verdict.FAILS
    lead = "It is" if found is Verdict.HOLDS else "It is not always"
    text = f"{lead}: the second singular value is at most {number(most, 2)} times the first."
    return Answer(title, text, texts, outcome=found)


def _conditions(config: dict[str, Any], rates: Any, starts: Any, laws: Any) -> Answer:
    level, d = config["reference"], config["sweep_dim"]
    texts, turned, undecided = [], [], []
    for group, field, grid, what in (
        (rates, "c", config["rate_grid"], "learning rates c/√d"),
        (starts, "alpha", config["alpha_grid"], "starts of standard deviation d^(-2 alpha)"),
    ):
        for key, layer in LAYERS.items():
            row = {x: group.where(**{field: x}).ratio(level, key) for x in grid}
            turned += [f"{layer} at {field} = {x:g}" for x, r in row.items() if r.high < 1]
            undecided += [f"{layer} at {field} = {x:g}" for x, r in row.items() if not (r.low > 1 or r.high < 1)]
            known = sorted((x for x in row if row[x].n), key=lambda x: row[x].ratio)
            if known:
                ends = " to ".join(f"{_ratio(row[x])} at {field} = {x:g}" for x in (known[0], known[-1]))
                texts.append(f"{layer} of SGD with momentum over that of Adam, over {len(grid)} {what}: from {ends}.")
    title = f"Where the claim ends, at d = {d}"
    if min(config["sweep_seeds"], len(config["seeds"])) < 2:
        return Answer(title, "It cannot be decided with one seed.", texts, outcome=Verdict.UNDECIDED)
    parts = [f"it is Adam that has the larger R_med for {listed(turned, 12)}"] if turned else []
    if undecided:
        parts.append(f"the 95 % interval contains 1, or there is none, for {listed(undecided, 12)}")
    means = {x: starts.where(alpha=x, optimizer="sgdm").mean(level, "r_2") for x in config["alpha_grid"]}
    lower = {x: m for x, m in means.items() if m.high < laws[d].mean}
    if lower:
        values = listed(f"{number(m.mean)} at alpha = {x:g}" for x, m in lower.items())
        texts.append(
            f"From a start that is not small, SGD with momentum itself has no R_2 of the predicted size: {values}, "
            f"where the prediction is {number(laws[d].mean)}."
        )
    if not parts:
        return Answer(title, "SGD with momentum had the larger R_med at every learning rate and start tried.", texts)
    lead = "The claim that SGD with momentum has the larger R_med does not hold at every setting"
    return Answer(title, f"{lead}: {'; '.join(parts)}.", texts)


def _slopes(slopes: dict[str, Trend]) -> str:
    return ", ".join(
        f"{LAYERS[key]} {number(t.slope)} [{number(t.low)}, {number(t.high)}]" for key, t in slopes.items()
    )


def _ratio(r: OverSeeds) -> str:
    return f"{number(r.ratio)} [{number(r.low, 2)}, {number(r.high, 2)}]" if r.n > 1 else number(r.ratio)


def _means(laws: Any) -> dict[int, float]:
    return {d: law.mean for d, law in laws.items()}


def _spread(config: dict[str, Any], result: Any, key: str) -> float:
    """Largest over smallest value in the window, less 1."""
    values = [row[key] for row in result["rows"] if row["level"] in window(config)]
    return max(values) / min(values) - 1 if len(values) > 1 else math.nan
