"""What uniformity found, in words computed from the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from analyses.uniformity.data import CONTROL, Contrasts, Points
from geomtraj.inference import Explained, Share, Verdict
from geomtraj.reporting import Answer, listed, number

MOST = 0.5  # share from which on an explanation accounts for most
LITTLE = 0.25  # share below which it accounts for little
WORDS = {
    "most": "accounts for most of",
    "some": "accounts for less than half of",
    "little": "does not explain",
    "over": "goes the same way as, but by more than,",
    "open": "may account for more or less than half of",
    "none": "says nothing on",
}
EXPLANATIONS = {
    "singular vectors": (
        "vectors",
        "The pair of leading singular vectors",
        "does the theorem explain R_med?",
    ),
    "near-dead units": ("dead", "The share of near-dead units", "do near-dead units make R_med?"),
    "token frequency": ("frequency", "The tokens' frequency", "do the tokens' frequencies make R_med?"),
    "factorised diagonal": (
        "factorised",
        "The factorised diagonal",
        "does E[x²] E[g²] predict R_med?",
    ),
}
"""Set of the regression -> predictor of the contrast, subject of a sentence, what is asked."""

WHOSE = {
    "vectors": "singular vectors' left times right",
    "dead": "factorised R_med that near-dead units make",
    "frequency": "frequencies",
    "factorised": "factorised R_med",
}
"""Predictor -> whose contrast is compared with that of R_med, with a slope of 1."""

Found = Mapping[str, Points]
Facing = Mapping[str, Contrasts | None]


def answers(config: dict[str, Any], found: Found, facing: Facing) -> list[Answer]:
    """The findings, in the order of the page."""
    tasks = [name for name in config["tasks"] if name in found]
    asked = [_explanation(config, task, found, facing, name) for name in EXPLANATIONS for task in tasks]
    return [*asked, _control(config, found, facing)]


def kind(e: Explained) -> str:
    """Which of `WORDS` an R^2 allows: its interval and what is held out must both say so."""
    if not math.isfinite(e.r2):
        return "none"
    if not math.isfinite(e.low) or not math.isfinite(e.held_out):
        return "open"
    if e.low > MOST and e.held_out > MOST:
        return "most"
    if e.high < LITTLE or e.held_out <= 0:
        return "little"
    return "some" if e.high < MOST else "open"


def kind_of_share(share: Share) -> str:
    """Which of `WORDS` a share allows by its interval."""
    if not math.isfinite(share.low):
        return "open" if math.isfinite(share.share) else "none"
    if share.low > 1 and share.high > 2 - MOST:
        return "over"
    if share.low > MOST:
        return "most" if share.high < 2 - MOST else "open"
    if share.high < LITTLE:
        return "little"
    return "some" if share.high < MOST else "open"


def _explanation(config: dict[str, Any], task: str, found: Found, facing: Facing, name: str) -> Answer:
    predictor, subject, asked = EXPLANATIONS[name]
    points, against = found[task], facing.get(task)
    within, between = (points.explained(name, part) for part in ("within", "between"))
    parts = [f"{WORDS[kind(within)]} the variation of log R_med within layers"]
    if kind(between) != "none":
        parts.append(f"{WORDS[kind(between)]} the differences between layers")
    share = against.shares.get(predictor) if against else None
    if share is not None and against is not None and against.firm():
        firm = f"{len(against.firm())} of {len(against.rows['r_med'])} layers where it is firm"
        parts.append(f"{WORDS[kind_of_share(share)]} the contrast of the optimizers at equal loss in the {firm}")
    if name == "token frequency" and (alone := _levels(points)):
        parts.append(alone)
    verdict = f"{_subject(subject, predictor, within)} {listed(parts, 4)}."
    texts = [
        f"{_seeds(points)}: {_regression(points, name, within, between)}",
        *_extra(points, name),
        *_contrast(config, against, predictor),
    ]
    return Answer(f"{config['recipes'][task]['title']}: {asked}", verdict, [_capital(text) for text in texts])


def _levels(points: Points) -> str:
    """In which layers the frequency makes up most of log R_med itself, whatever it varies by."""
    shares = {layer: s for layer in points.layers if (s := points.level("frequency", layer)).n}
    most = [layer for layer, s in shares.items() if kind_of_share(s) == "most"]
    if not most:
        return "is not seen to make up most of log R_med itself in any layer" if shares else ""
    return f"makes up most of log R_med itself in {listed(most, 4)}"


def _subject(subject: str, predictor: str, within: Explained) -> str:
    """The subject of a sentence, and where it can be asked."""
    if predictor == "frequency" and math.isfinite(within.r2):
        where = "layer that has" if within.layers == 1 else f"{within.layers} layers that have"
        return f"{subject}, in the {where} one,"
    return subject


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _regression(points: Points, chosen: str, within: Explained, between: Explained) -> str:
    if not math.isfinite(within.r2):
        text = f"within layers R² of {chosen} cannot be given (nothing varies, or there are too few points)"
    else:
        loss = points.explained("loss", "within")
        more = points.explained(chosen, "within", with_loss=True)
        text = (
            f"R² within layers {_r2(within)}; on seeds that were left out {number(within.held_out)}, where the loss "
            f"alone gives {number(loss.held_out)} and both together {number(more.held_out)}"
        )
    if math.isfinite(between.r2):
        text += f". Between the {between.layers} layers {_r2(between)}; on layers left out {number(between.held_out)}"
    return text + "."


def _extra(points: Points, name: str) -> list[str]:
    """What belongs to one explanation only."""
    if name == "near-dead units":
        dead = [points.mean(side, of=lambda p, s=side: p.values[s]) for side in ("dead_inputs", "dead_outputs")]
        return [
            f"on average {number(100 * dead[0], 2)} % of a layer's inputs and {number(100 * dead[1], 2)} % of "
            "its output units are near-dead; leaving them out takes "
            f"{_share(points.level('dead'))} off the factorised part of log R_med."
        ]
    if name == "token frequency":
        rows = {layer: points.level("frequency", layer) for layer in points.layers}
        known = {layer: s for layer, s in rows.items() if s.n}
        if not known:
            return ["no layer looks tokens up or predicts them by a softmax."]
        shares = ", ".join(f"{layer} {_share(s)}" for layer, s in known.items())
        return [f"log of max over median of the frequency, of log R_med: {shares}."]
    if name == "factorised diagonal":
        shares = {k: points.level(k) for k in ("input", "output", "combined", "rest")}
        return [
            f"over all layers log R_med is made up of {_share(shares['input'])} from the inputs' second "
            f"moments, {_share(shares['output'])} from the output gradients', {_share(shares['combined'])} from the "
            f"median of their products, and {_share(shares['rest'])} that the factorisation misses."
        ]
    share = points.mean("first_share", of=lambda p: p.values["first_share"])
    return [f"the first singular value holds {number(100 * share, 2)} % of a weight's squared norm on average."]


def _contrast(config: dict[str, Any], against: Contrasts | None, predictor: str) -> list[str]:
    if against is None or "r_med" not in against.rows:
        return ["there is no contrast at equal loss to account for."]
    firm, layers = against.firm(), len(against.rows["r_med"])
    if not firm:
        return [f"in none of {layers} layers is the contrast of R_med firm, so there is nothing to account for."]
    if predictor not in against.shares:
        return []
    same, opposite = against.alike(predictor)
    second, first = reversed(config["optimizers"])
    return [
        f"R_med of {second} over that of {first} at equal loss is firmly not 1 in {len(firm)} of {layers} layers; the "
        f"contrast of the {WHOSE[predictor]} goes firmly the same way in {same} of these and the other way in "
        f"{opposite}, and over all of them is {_share(against.shares[predictor])} of the log contrast of R_med."
    ]


def _control(config: dict[str, Any], found: Found, facing: Facing) -> Answer:
    title = "The control: the two-layer linear network, where the answer is known"
    points, against = found[CONTROL], facing.get(CONTROL)
    if not points.points:
        return Answer(
            title,
            "It cannot be decided: no iterate lies in the window in which the theorem speaks.",
            [],
            outcome=Verdict.UNDECIDED,
        )
    within = points.explained("singular vectors", "within")
    share = against.shares.get("vectors") if against else None
    good = kind(within) == "most" and (share is None or kind_of_share(share) == "most")
    verdict = (
        "The measures see what they should: the leading singular vectors account for most of R_med there."
        if good
        else "The measures do not show there what is known to hold: read the rest of this page with doubt."
        if kind(within) in ("little", "some", "none")
        else "It cannot be decided whether they account for most of R_med there."
    )
    held = 100 * points.mean("first_share", of=lambda p: p.values["first_share"])
    texts = [
        f"{_seeds(points)}, iterates in the theorem's window: R² within layers {_r2(within)}, on seeds left out "
        f"{number(within.held_out)}; the first singular value holds {number(held, 3)} % of a weight's squared norm.",
        f"The factorised diagonal, which is exact there in theory, is {_share(points.level('factorised'))} of log "
        "R_med. The inputs are white, so that the right singular vectors of the first weight play no part, and left "
        "times right overstates its contrast.",
        *_contrast(config, against, "vectors"),
    ]
    return Answer(title, verdict, texts)


def _r2(e: Explained) -> str:
    return f"{number(e.r2)}{_interval(e.low, e.high)}"


def _share(s: Share) -> str:
    share, low, high = (round(100 * x, 9) + 0.0 for x in (s.share, s.low, s.high))
    return f"{number(share)} %{_interval(low, high)}" if math.isfinite(s.share) else "a share that is not known"


def _interval(low: float, high: float) -> str:
    return f" [{number(low, 2)}, {number(high, 2)}]" if math.isfinite(low) and math.isfinite(high) else ""


def _seeds(points: Points) -> str:
    return f"{points.seeds} seed{'s' * (points.seeds != 1)}"
