"""Results to an experiment tracker: anything with `log(dict, step=)`, as the runs of wandb and trackio have."""

from __future__ import annotations

import math
from typing import Any

from geomtraj.errors import InputError
from geomtraj.measuring.results import Results


def check_logger(logger: Any) -> None:
    """Refuse what cannot take results.

    Raises:
        InputError: It has no method `log`.
    """
    if logger is not None and not callable(getattr(logger, "log", None)):
        raise InputError(
            f"logger is a {type(logger).__name__} without a method log: pass a run of wandb or trackio, or any object "
            "with log(numbers, step=step)."
        )


def send(results: Results, logger: Any) -> None:
    """Hand all results to a logger: one call for each step, in their order, {"r_med/all": 12.3, ...}.

    Numbers that are not finite are left out.

    Args:
        results: What was measured.
        logger: Its `log` takes a dict and `step=`.
    """
    for step in results.steps:
        found = [m for m in results.measurements if m.step == step]
        numbers = {
            f"{m.statistic}/{label}": q.value
            for m in found
            for label, q in m.quantities.items()
            if math.isfinite(q.value)
        }
        if numbers:
            logger.log(numbers, step=step)
