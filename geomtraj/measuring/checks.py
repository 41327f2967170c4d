"""What stored results can be relied on for, checked without a problem: for `geomtraj verify` and whoever asks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from geomtraj.errors import TrajectoryError
from geomtraj.measuring.folder import FOLDER, listed, read_stored, without_damaged
from geomtraj.measuring.results import of_other_iterates
from geomtraj.measuring.summary import NAME, read_summary


@dataclass(frozen=True)
class Checked:
    """What was found of the results in a folder.

    Attributes:
        whole: Number of results whose checksum and name hold.
        damaged: Result files (or "pack, line n") that are cut short or altered, and measured.json if it is.
        misnamed: Result files that hold another step, statistic, settings or problem than their name says.
        stale: "step N, statistic" of results of other iterates than those recorded now.
        unchecked: Number of results of format 1, which have no checksum.
        unreadable: Sentences about what could not be read at all.
    """

    whole: int = 0
    damaged: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    unchecked: int = 0
    unreadable: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.damaged or self.misnamed or self.stale or self.unreadable)


def check_results(folder: str | Path, trajectory: str | Path | None = None) -> Checked:
    """Checks every stored result: its checksum, its name, and that its iterate is the one recorded now.

    Each iterate that results name is read once. A folder without results holds.

    Args:
        folder: Folder of the results: the trajectory's own, or what `measure` was given as `out`.
        trajectory: The trajectory's folder, if it is not the one that measured.json names.
    """
    folder = Path(folder)
    damaged, unreadable, where = [], [], Path(trajectory) if trajectory is not None else folder
    try:
        summary = read_summary(folder)
        if trajectory is None and summary is not None and summary.trajectory:
            where = Path(summary.trajectory)
    except TrajectoryError as error:
        damaged.append(NAME)
        unreadable.append(str(error))
    try:
        stored = read_stored(folder)
    except TrajectoryError as error:
        return Checked(damaged=damaged, unreadable=[*unreadable, str(error)])
    found = list(stored.results.values())
    others = of_other_iterates(where, {}, found)
    stale = [f"step {m.step}, {m.statistic}" for m in found if others.get(m.step, m.iterate) != m.iterate]
    return Checked(
        whole=len(found),
        damaged=damaged + [f"{FOLDER}/{name}" for name in stored.damaged],
        misnamed=[f"{FOLDER}/{name}" for name in stored.misnamed],
        stale=stale,
        unchecked=len(stored.first_format),
        unreadable=unreadable,
    )


def set_aside_damaged(folder: str | Path) -> list[Path]:
    """Renames result files that do not hold to *.damaged, so that they are told no more; returns the new names.

    What holds in a damaged pack goes into a new one.

    Raises:
        TrajectoryError: A file cannot be written or renamed.
    """
    folder, renamed = Path(folder), []
    stored = read_stored(folder)
    bad = {name.split(",")[0] for name in (*stored.damaged, *stored.misnamed)}
    own, packs = listed(folder)
    for path in [path for path in (*packs, *(path for _, _, path in own)) if path.name in bad]:
        target = numbered_name(path)
        try:
            if path in packs:
                without_damaged(path)
            path.rename(target)
        except OSError as error:
            raise TrajectoryError(f"cannot rename {path} ({error.strerror}): make its folder writable.") from error
        renamed.append(target)
    return renamed


def numbered_name(path: Path) -> Path:
    """The name for a damaged file, with a number where others were before it."""
    names = (path.with_name(f"{path.name}.damaged{f'.{n}' if n else ''}") for n in range(10**6))
    return next(name for name in names if not name.exists())
