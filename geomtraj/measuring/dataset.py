"""Results as arrays with named axes, for who has xarray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from geomtraj.errors import InputError
from geomtraj.measuring.record import Measurement

if TYPE_CHECKING:
    import xarray

ENDS = ("value", "low", "high")


def dataset(measured: Mapping[str, list[Measurement]]) -> xarray.Dataset:
    """One variable for each statistic, over `step`, its own labels ("r_med_label") and `part`: value, low, high.

    Args:
        measured: Statistic -> its measurements, ordered by step; a number that is missing is NaN.

    Raises:
        InputError: xarray is not installed.
    """
    try:
        import xarray
    except ImportError:
        raise InputError("to_xarray needs xarray, which is not installed: pip install xarray.") from None
    variables = {}
    steps = sorted({m.step for found in measured.values() for m in found})
    times = {m.step: m.wall_time for found in measured.values() for m in found}
    axes: dict[str, object] = {"step": steps, "part": list(ENDS), "wall_time": ("step", [times[s] for s in steps])}
    for name, found in measured.items():
        labels = list(dict.fromkeys(label for m in found for label in m.quantities))
        numbers = np.full((len(steps), len(labels), len(ENDS)), np.nan)
        for m in found:
            for label, q in m.quantities.items():
                numbers[steps.index(m.step), labels.index(label)] = q.value, q.low, q.high
        variables[name] = (("step", f"{name}_label", "part"), numbers)
        axes[f"{name}_label"] = labels
    return xarray.Dataset(variables, axes)
