"""One small file per statistic, and their registry."""

from __future__ import annotations

from collections.abc import Iterable

from geomtraj.errors import InputError, unknown_name
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic
from geomtraj.statistics.condition import Condition
from geomtraj.statistics.loss import Loss
from geomtraj.statistics.r_med import MedianConditionRatio, RMed, r_med
from geomtraj.statistics.spectrum import Spectrum
from geomtraj.statistics.trace import Trace
from geomtraj.statistics.uniformity import SingularVectors
from geomtraj.statistics.units import Units

REGISTRY: dict[str, type[Statistic]] = {
    cls.name: cls
    for cls in (
        Condition,
        Loss,
        MedianConditionRatio,
        SingularVectors,
        Spectrum,
        Trace,
        Units,
    )
}


def resolve(statistics: Iterable[str | Statistic]) -> list[Statistic]:
    """The statistics named or given, each once.

    Raises:
        InputError: A name is unknown, or one name stands for two different settings.
    """
    if isinstance(statistics, (str, Statistic)):
        statistics = [statistics]
    chosen: dict[str, Statistic] = {}
    for item in statistics:
        if isinstance(item, str):
            if item not in REGISTRY:
                raise unknown_name("statistic", item, REGISTRY)
            item = REGISTRY[item]()
        elif not isinstance(item, Statistic):
            raise InputError(f"a statistic is a name or a Statistic, not {type(item).__name__}.")
        if chosen.get(item.name, item) != item:
            raise InputError(
                f"statistic {item.name!r} is asked for twice with different settings: measure one at a time."
            )
        chosen[item.name] = item
    return list(chosen.values())


__all__ = [
    "REGISTRY",
    "Loss",
    "MedianConditionRatio",
    "Outcome",
    "Point",
    "Quantity",
    "RMed",
    "SingularVectors",
    "Spectrum",
    "Statistic",
    "Trace",
    "Units",
    "r_med",
    "resolve",
]
