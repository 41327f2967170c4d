"""One small file per statistic, and their registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from geomtraj.errors import InputError, unknown_name
from geomtraj.plugins import announced
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic
from geomtraj.statistics.batch_sharpness import BatchSharpness
from geomtraj.statistics.block_spectra import BlockSpectra
from geomtraj.statistics.condition import Condition
from geomtraj.statistics.critical_sharpness import CriticalSharpness
from geomtraj.statistics.cross_layer import CrossLayer
from geomtraj.statistics.directional import Directional
from geomtraj.statistics.eigenvectors import Eigenvectors
from geomtraj.statistics.gauss_newton_diagonal import GaussNewtonDiagonal
from geomtraj.statistics.l1_norm import L1Norm
from geomtraj.statistics.loss import Loss
from geomtraj.statistics.noise_scale import NoiseScale
from geomtraj.statistics.path import Path
from geomtraj.statistics.preconditioned_sharpness import PreconditionedSharpness
from geomtraj.statistics.r_med import MedianConditionRatio, RMed, r_med
from geomtraj.statistics.spectrum import Spectrum
from geomtraj.statistics.sqrt_trace import SqrtTrace
from geomtraj.statistics.token_groups import TokenGroups
from geomtraj.statistics.trace import Trace
from geomtraj.statistics.uniformity import SingularVectors
from geomtraj.statistics.units import Units
from geomtraj.statistics.updates import Updates

REGISTRY: dict[str, type[Statistic]] = {
    cls.name: cls
    for cls in (
        BatchSharpness,
        BlockSpectra,
        Condition,
        CriticalSharpness,
        CrossLayer,
        Directional,
        Eigenvectors,
        L1Norm,
        GaussNewtonDiagonal,
        Loss,
        MedianConditionRatio,
        NoiseScale,
        Path,
        PreconditionedSharpness,
        SingularVectors,
        Spectrum,
        SqrtTrace,
        TokenGroups,
        Trace,
        Units,
        Updates,
    )
}


def add(cls: type[Statistic], name: str | None = None) -> None:
    """Make a statistic known by its name.

    Raises:
        InputError: It cannot be used, or the name is another's.
    """
    name = name or getattr(checked(cls), "name", None)
    known = REGISTRY.get(str(name))
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InputError(f"there is a statistic {name!r} already ({known.__qualname__}): choose another name.")
    if name != cls.name:
        raise InputError(f"{cls.__name__} says that its name is {cls.name!r}: register it under that.")
    REGISTRY[name] = cls


def checked(cls: type[Statistic]) -> type[Statistic]:
    """The class, if it can be made and named.

    Raises:
        InputError: It cannot.
    """
    for attribute in ("name", "title"):
        if not isinstance(getattr(cls, attribute, None), str):
            raise InputError(
                f"the statistic {cls.__name__} has no {attribute}: write {attribute} = '...' in its class."
            )
    try:
        cls()
    except TypeError as error:
        raise InputError(
            f"the statistic {cls.__name__} cannot be made without arguments ({error}): define measure(self, point), "
            "and give every setting a default."
        ) from error
    return cls


def find(name: str) -> type[Statistic]:
    """The statistic of that name, of this package, registered, or announced by another package.

    Raises:
        InputError: There is none.
    """
    return REGISTRY[name] if name in REGISTRY else _found(name)


def everything() -> dict[str, type[Statistic]]:
    """All statistics that there are, by name."""
    for cls in announced("statistics").values():
        if isinstance(cls, type) and issubclass(cls, Statistic) and cls.name not in REGISTRY:
            add(cls)
    return REGISTRY


def _found(name: str) -> type[Statistic]:
    known = everything()
    if name not in known:
        raise unknown_name("statistic", name, known)
    return known[name]


def resolve(
    statistics: Iterable[str | Statistic], settings: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Statistic]:
    """The statistics named or given, each once.

    Args:
        statistics: Names or `Statistic` objects.
        settings: Statistic -> {setting: value} to change in them.

    Raises:
        InputError: A name or a setting is unknown, or one name stands for two different settings.
    """
    if isinstance(statistics, (str, Statistic)):
        statistics = [statistics]
    chosen: dict[str, Statistic] = {}
    for item in statistics:
        if isinstance(item, str):
            item = find(item)()
        elif not isinstance(item, Statistic):
            raise InputError(f"a statistic is a name or a Statistic, not {type(item).__name__}.")
        if chosen.get(item.name, item) != item:
            raise InputError(
                f"statistic {item.name!r} is asked for twice with different settings: measure one at a time."
            )
        chosen[item.name] = item
    for name, changes in _checked(settings).items():
        if name not in chosen and name in REGISTRY:
            raise InputError(
                f"settings for {name!r}, which is not among the statistics to measure ({', '.join(chosen)}): add it."
            )
        if name not in chosen:
            raise unknown_name("statistic in settings", name, chosen)
        chosen[name] = chosen[name].changed(changes)
    return list(chosen.values())


def _checked(settings: object) -> Mapping[str, Mapping[str, Any]]:
    given = {} if settings is None else settings
    if not isinstance(given, Mapping) or not all(isinstance(changes, Mapping) for changes in given.values()):
        raise InputError(f"settings is {settings!r:.60}: write {{'r_med': {{'samples': 8}}}}.")
    return given


__all__ = [
    "REGISTRY",
    "GaussNewtonDiagonal",
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
