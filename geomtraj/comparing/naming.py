"""Names of groups of runs: the optimizer, with its learning rate and settings where they tell runs apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from geomtraj.measuring.results import Results

UNKNOWN = "–"
OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
"""Values of settings that are switched off."""


@dataclass(frozen=True)
class Optimizer:
    """What trained a run, as its manifest tells.

    Attributes:
        name: Class, or classes joined by " + "; `meta`'s "optimizer" where the manifest has none.
        rate: Learning rates of its parameter groups, joined by " / ".
        settings: Other settings that are not switched off, such as "betas [0.9, 0.999], weight_decay 0.1".
    """

    name: str
    rate: str
    settings: str


def optimizer_of(r: Results) -> Optimizer:
    """What trained a run; a dash for what is not known."""
    stored = r.manifest.get("optimizers") or r.manifest.get("optimizer") or {}
    each = [o for o in (stored if isinstance(stored, list) else [stored]) if isinstance(o, dict)]
    groups = [g for o in each for g in o.get("groups") or [] if isinstance(g, dict)]
    name = " + ".join(str(o["class"]) for o in each if o.get("class")) or str(r.meta.get("optimizer", UNKNOWN))
    rates = list(dict.fromkeys(_text(g["lr"]) for g in groups if "lr" in g)) or [_text(r.meta.get("lr"))]
    keys = dict.fromkeys(k for g in groups for k, v in g.items() if k not in ("lr", "initial_lr") and v not in OFF)
    settings = [
        f"{k} {' / '.join(dict.fromkeys(str(g[k]) for g in groups if k in g and g[k] not in OFF))}" for k in keys
    ]
    return Optimizer(name, " / ".join(rates), ", ".join(settings) or UNKNOWN)


def by_optimizer(runs: Iterable[Results]) -> dict[str, list[Results]]:
    """Runs by their optimizer, in order: "adam"; "adam, lr 0.01" where rates differ, with settings where these do.

    The name is `meta`'s "optimizer", else the class that the manifest tells, else the run's folder.
    """
    known = [(r, optimizer_of(r)) for r in runs]
    names = [str(r.meta.get("optimizer") or (o.name if o.name != UNKNOWN else r.path.name)) for r, o in known]
    alike: dict[str, set[Optimizer]] = {}
    for name, (_, optimizer) in zip(names, known, strict=True):
        alike.setdefault(name, set()).add(optimizer)
    groups: dict[str, list[Results]] = {}
    for name, (r, optimizer) in zip(names, known, strict=True):
        others = alike[name]
        parts = [name]
        if len({o.rate for o in others}) > 1:
            parts.append(f"lr {optimizer.rate}")
        if len({o.settings for o in others if o.rate == optimizer.rate}) > 1:
            parts.append(optimizer.settings)
        groups.setdefault(", ".join(parts), []).append(r)
    return groups


def _text(value: Any) -> str:
    if value is None or value == "":
        return UNKNOWN
    return f"{value:.6g}" if isinstance(value, float) else str(value)
