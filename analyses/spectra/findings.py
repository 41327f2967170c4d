"""What spectra found, in words computed from the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from analyses.spectra.data import ALL, COMPARED, Task
from geomtraj.inference import OverSeeds, RankCorrelation, Verdict, holm, kendall, spearman
from geomtraj.reporting import Answer, listed, number

LEVEL = 0.05
ABOVE = 1.01  # max|H_ii| over λmax beyond which the bound counts as broken: single precision and estimated entries
FULL = {"lambda_max": "λmax", "ninth": "λmax / 0.9 quantile of |λ|", "outliers": "number of outliers",
        "negative": "share of negative eigenvalues"}  # fmt: skip


def answers(config: dict[str, Any], tasks: Sequence[Task]) -> list[Answer]:
    """The findings, in the order of the page."""
    confidence = 1 - LEVEL / (2 * len(tasks))
    return [
        *(_rank(config, task, confidence) for task in tasks),
        *(_signs(task) for task in tasks),
        _sizes(tasks),
        _densities(tasks),
        _resolution(tasks),
    ]


def remarks(tasks: Sequence[Task]) -> list[str]:
    """What one seed cannot say."""
    few = [task.title for task in tasks if len(task.seeds) < 2]
    return [f"{listed(few)}: there is one seed only, which gives no interval and no answer; give two or more."] if few \
        else []  # fmt: skip


def _rank(config: dict[str, Any], task: Task, confidence: float) -> Answer:
    title = f"{task.title}: does R_med rank iterates and layers as λmax / median |λ| does?"
    found = task.agreement("condition", spearman, confidence)
    estimated = task.agreement("estimate", spearman, confidence)
    parts = {
        "within layers": (found.within, estimated.within),
        "between layers": (found.between, estimated.between),
    }
    verdicts = {}
    for where, pair in parts.items():
        known, with_estimates = (judged(r, config["fair"]) for r in pair)
        verdicts[where] = known if known == with_estimates else "mixed"
    if all(v == "fair" for v in verdicts.values()):
        verdict = f"Yes: R_med is a fair stand-in here, within layers and between them (rank correlation above "\
                  f"{config['fair']:g})."  # fmt: skip
    else:
        verdict = "; ".join(f"{where} {_WORDS[v].format(config['fair'])}" for where, v in verdicts.items())
        verdict = f"{verdict[0].upper()}{verdict[1:]}."
    points = task.blocks()
    left = sum(p.kind == "unresolved" for p in points)
    zero = sum(p.kind == "zero" for p in points)
    texts = [
        f"Spearman's correlation with {number(100 * confidence, 4)} % interval over {len(task.seeds)} seeds (wide "
        f"enough for all {round(LEVEL / (1 - confidence))} of this page's correlations together): within layers "
        f"{_corr(found.within)}, between layers {_corr(found.between)}, all points pooled {_corr(found.pooled)}. "
        "Pooled, layers of different size and kind decide. Within a layer, both optimizers and the compared losses "
        "make the points, so that a trend that both statistics have along training counts as agreement.",
        "Kendall's: " + _three(task, "condition", kendall, confidence) + ".",
        "With λmax over the 0.9 quantile of |λ| in place of the median: "
        + _three(task, "ninth", spearman, confidence)
        + ".",
    ]
    if left:
        middle = _middle([p.condition for p in points if p.kind == "resolved"])
        high = sum(p.condition > middle for p in points if p.kind == "unresolved")
        texts.append(
            f"{left} of {len(points)} medians are not resolved and left out, which is no chance: by their estimates "
            f"{high} of these ratios are above the middle of the others. With the estimates: "
            + _three(task, "estimate", spearman, confidence)
            + "."
        )
    if zero:
        texts.append(
            f"{zero} of {len(points)} medians are below the rounding of λmax: there λmax / median |λ| is infinite and "
            "ranks highest, and a layer in which that is always so tells nothing about ranks within it."
        )
    return Answer(title, verdict, texts, outcome=together(verdicts.values()))


_WORDS = {
    "fair": "it does (rank correlation above {:g})",
    "positive": "it does in part (rank correlation above 0, but it may lie below {:g})",
    "poor": "it does not (rank correlation below {:g})",
    "opposite": "it ranks the other way (rank correlation below 0)",
    "undecided": "it cannot be decided (the rank correlation's interval contains 0 and {:g})",
    "mixed": "it cannot be decided (the answer is another with the estimates of medians that are not resolved)",
    "none": "it cannot be decided, for want of two seeds with four points to rank",
}


def together(kinds: Iterable[str]) -> Verdict:
    """What the keys of the words say of a fair stand-in: it is one if it is within layers and between them."""
    said = {Verdict.HOLDS if k == "fair" else Verdict.FAILS if k in ("poor", "opposite") else Verdict.UNDECIDED
            for k in kinds}  # fmt: skip
    return next((v for v in (Verdict.FAILS, Verdict.UNDECIDED) if v in said), Verdict.HOLDS)


def judged(r: RankCorrelation, fair: float) -> str:
    """What an interval of a rank correlation allows to say: a key of the words."""
    if not (math.isfinite(r.low) and math.isfinite(r.high)):
        return "none"
    if r.low > fair:
        return "fair"
    if r.high < 0:
        return "opposite"
    if r.high < fair:
        return "poor"
    return "positive" if r.low > 0 else "undecided"


def _signs(task: Task) -> Answer:
    title = f"{task.title}: do both statistics tell the same of the two optimizers, layer by layer?"
    rows = contrasts(task)
    decided = {
        key: {layer: math.copysign(1, math.log(r.ratio)) for layer, (r, p) in found.items() if p < LEVEL}
        for key, found in rows.items()
    }
    a, b = decided["r_med"], decided["condition"]
    both = [layer for layer in task.layers if layer in a and layer in b]
    opposite = [layer for layer in both if a[layer] != b[layer]]
    total = len(task.layers)
    known = [layer for layer in task.layers if all(found[layer][0].n > 1 for found in
             (rows["r_med"], rows["condition"]))]  # fmt: skip
    if not known:
        verdict = "It cannot be decided: no layer has both contrasts with two seeds."
    elif opposite:
        verdict = f"Not always: in {len(opposite)} of {total} layers they point in opposite directions."
    elif both:
        verdict = f"Yes where both are decided, in {len(both)} of {total} layers; of the others nothing is known."
    else:
        verdict = f"It cannot be decided: in none of {total} layers are both contrasts decided after Holm's correction."
    texts = []
    for key in COMPARED:
        up = sum(s > 0 for s in decided[key].values())
        down = len(decided[key]) - up
        counts = (
            f"{COMPARED[key]} is decidedly larger for {task.optimizers[1]} in {up} and smaller in {down} of {total}"
        )
        texts.append(f"{counts} layers (Holm-corrected t-tests over {_seeds(rows[key])}).")
    if opposite:
        texts.append(f"Opposite: {listed(opposite, 6)}.")
    usable = task.usable()
    if len(usable) > 1:
        means = {key: task.mean_contrast(key, usable) for key in ("r_med", "condition")}
        texts.append(
            f"Geometric mean of {task.ratio} over the {len(usable)} layers known in every pair, 95 % interval: "
            + ", ".join(f"{COMPARED[key]} {_ratio(r)}" for key, r in means.items())
            + "."
        )
        same = [
            layer for layer in known if (rows["r_med"][layer][0].ratio > 1) == (rows["condition"][layer][0].ratio > 1)
        ]
        texts.append(
            f"Point estimates lie on the same side of 1 in {len(same)} of {len(known)} layers, decided or not; chance "
            "alone would give about half."
        )
    texts += _gap(task)
    return Answer(title, verdict, texts)


def _gap(task: Task) -> list[str]:
    """How equal the losses are."""
    gaps = [m.difference for matches in task.matches.values() for m in matches]
    if not gaps:
        return []
    worst, mean = (100 * math.expm1(x) for x in (max(map(abs, gaps)), sum(gaps) / len(gaps)))
    return [
        f"The compared iterates' losses differ by {number(worst, 2)} % at most; on average {task.optimizers[1]}'s is "
        f"{number(abs(mean), 2)} % {'higher' if mean > 0 else 'lower'} ({len(gaps)} pairs)."
    ]


def contrasts(task: Task) -> dict[str, dict[str, tuple[OverSeeds, float]]]:
    """Statistic -> layer -> ratio of the optimizers over seeds, and its p after Holm's correction over layers."""
    found = {}
    for key in COMPARED:
        rows = {layer: task.contrast(layer, key) for layer in task.layers}
        adjusted = holm([r.t_test_p for r in rows.values()])
        found[key] = {layer: (r, p) for (layer, r), p in zip(rows.items(), adjusted, strict=True)}
    return found


def _sizes(tasks: Sequence[Task]) -> Answer:
    title = "How large is R_med beside λmax / median |λ|, and is max|H_ii| below λmax?"
    texts, broken, total = [], 0, 0
    for task in tasks:
        points = [p for p in task.points if p.largest_entry > 0 and p.lambda_max_high > 0]
        total += len(points)
        broken += sum(p.largest_entry > ABOVE * p.lambda_max_high for p in points)
        usable = [p for p in task.blocks() if p.kind == "resolved" and 0 < p.r_med < math.inf]
        factors = sorted(p.condition / p.r_med for p in usable)
        shares = sorted(p.lambda_max / p.largest_entry for p in points if p.layer != ALL)
        if factors and shares:
            texts.append(
                f"{task.title}: λmax / median |λ| is {number(factors[0], 2)} to {number(factors[-1], 2)} times R_med, "
                f"{number(_middle(factors), 2)} times in the middle of {len(factors)} blocks; λmax is "
                f"{number(shares[0], 2)} to {number(shares[-1], 2)} times max|H_ii|."
            )
        elif points:
            texts.append(f"{task.title}: no block has a median |λ| that is resolved and above rounding.")
    if not total:
        return Answer(title, "It cannot be said: there is no block with both.", texts, outcome=Verdict.UNDECIDED)
    verdict = (
        f"max|H_ii| ≤ λmax, which must hold, does hold in all {total} blocks and Hessians."
        if not broken
        else f"max|H_ii| ≤ λmax, which must hold, is broken in {broken} of {total} cases: a measurement is wrong there."
    )
    return Answer(title, verdict, texts)


def _densities(tasks: Sequence[Task]) -> Answer:
    title = "The full Hessian at nearly equal loss"
    rows = [(task, key, task.contrast(ALL, key)) for task in tasks for key in FULL]
    adjusted = holm([r.t_test_p for _, _, r in rows])
    names = [
        f"{task.title}: {FULL[key]} {'larger' if r.ratio > 1 else 'smaller'} for {task.optimizers[1]}"
        for (task, key, r), p in zip(rows, adjusted, strict=True)
        if p < LEVEL
    ]
    if names:
        verdict = f"The spectra differ: {'; '.join(names)}."
    elif any(r.n > 1 for _, _, r in rows):
        verdict = "No difference between the two is seen that stands after Holm's correction (it may be too small)."
    else:
        verdict = "It cannot be decided: no two seeds can be compared."
    texts = []
    for task in tasks:
        known = [f"{FULL[key]} {_ratio(r)}" for t, key, r in rows if t is task and r.n]
        if known:
            texts.append(f"{task.title}, {task.ratio} with 95 % interval: {', '.join(known)}. {' '.join(_gap(task))}")
        lost = [FULL[key] for t, key, r in rows if t is task and not r.n]
        if lost:
            texts.append(f"{task.title}: no ratio of {listed(lost)} can be given (not resolved, or below rounding).")
    texts.append(
        "Outliers: |λ| of at least a tenth of λmax; negative: λ below -0.001 λmax, since nearer to zero the sign of a "
        "quadrature node means nothing."
    )
    return Answer(title, verdict, texts)


def _resolution(tasks: Sequence[Task]) -> Answer:
    title = "Can the median |λ| be had at all?"
    points = [p for task in tasks for p in task.points]
    counts = {kind: sum(p.kind == kind for p in points) for kind in ("resolved", "zero", "unresolved", "missing")}
    if not points:
        return Answer(title, "There is no spectrum.", [])
    verdict = (
        f"In {counts['resolved']} of {len(points)} spectra; in {counts['zero']} it is below rounding, and in "
        f"{counts['unresolved']} the quadrature does not resolve it."
    )
    texts = []
    for task in tasks:
        rows = []
        for kind, words in (("zero", "below rounding"), ("unresolved", "not resolved")):
            by_layer = {x: (sum(p.kind == kind for p in task.of(x)), len(task.of(x))) for x in [*task.layers, ALL]}
            names = [f"{layer} ({n} of {m})" for layer, (n, m) in by_layer.items() if n]
            rows += [f"{words} in {listed(names, 8)}"] if names else []
        if rows:
            texts.append(f"{task.title}: {'; '.join(rows)}.")
    zero = [p for p in points if p.kind == "zero"]
    if zero:
        texts.append(
            "Where more than half of a block's eigenvalues are below the rounding of the largest (4 times the "
            "precision of the numbers), the ratio is only known to be huge and compares nothing; R_med is finite in "
            f"{sum(math.isfinite(p.r_med) for p in zero)} of these {len(zero)} cases."
        )
    return Answer(title, verdict, texts)


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


def _three(task: Task, key: str, coefficient: Any, confidence: float) -> str:
    found = task.agreement(key, coefficient, confidence)
    return f"within layers {_corr(found.within)}, between {_corr(found.between)}, pooled {_corr(found.pooled)}"


def _corr(r: RankCorrelation) -> str:
    if not math.isfinite(r.value):
        return "none"
    return f"{r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" if r.n > 1 else f"{r.value:.2f}"


def _ratio(r: OverSeeds) -> str:
    return f"{number(r.ratio)} [{number(r.low, 2)}, {number(r.high, 2)}]" if r.n > 1 else number(r.ratio)


def _seeds(rows: dict[str, tuple[OverSeeds, float]]) -> str:
    counts = sorted({r.n for r, _ in rows.values() if r.n})
    if not counts:
        return "no seed"
    text = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{text} seed{'' if counts == [1] else 's'}"
