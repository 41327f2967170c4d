"""What is wrong with stored results, found without a problem: for `geomtraj verify` and `geomtraj repair`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from geomtraj.errors import TrajectoryError
from geomtraj.measuring.arrays import FOLDER as ARRAYS
from geomtraj.measuring.folder import FOLDER, listed, read_stored, without_damaged
from geomtraj.measuring.results import of_other_iterates
from geomtraj.measuring.summary import NAME, read_summary
from geomtraj.trajectory.files import numbered

Finding = tuple[str, str]
"""A file, and what is wrong with it."""


def check_results(folder: str | Path) -> list[Finding]:
    """Every stored result whose checksum or name does not hold, or that is of another iterate than is recorded now.

    Each iterate that results name is read once. A folder without results has none; results of format 1, which have no
    checksum, are only seen to be readable.

    Args:
        folder: Folder of the results: the trajectory's own, or what `measure` was given as `out`.
    """
    folder = Path(folder)
    found: list[Finding] = []
    where = folder
    try:
        summary = read_summary(folder)
        if summary is not None and summary.trajectory:
            where = Path(summary.trajectory)
    except TrajectoryError as error:
        found.append((NAME, str(error)))
    try:
        stored = read_stored(folder)
    except TrajectoryError as error:
        return [*found, (FOLDER, str(error))]
    found += [(f"{FOLDER}/{name}", "its checksum does not hold") for name in stored.damaged]
    found += [
        (f"{FOLDER}/{name}", "it holds another step, statistic, setting or problem than its name says")
        for name in stored.misnamed
    ]
    results = list(stored.results.values())
    others: dict[int, str] = {}
    with suppress(TrajectoryError):  # a damaged manifest is named elsewhere
        others = of_other_iterates(where, {}, results)
    for m in results:
        if m.arrays.path is not None and (fault := m.arrays.verify()):
            found.append((f"{FOLDER}/{ARRAYS}/{m.arrays.path.name}", fault))
        if others.get(m.step, m.iterate) not in (m.iterate, ""):  # those that cannot be read are named elsewhere
            found.append((f"{FOLDER}: step {m.step}, {m.statistic}", "it is of another iterate than is recorded now"))
    return found


def repair_results(folder: str | Path) -> list[str]:
    """Renames result files that do not hold to *.damaged; what was done, in sentences.

    What holds in a damaged pack goes into a new one. `measure` makes again what is missing then.

    Raises:
        TrajectoryError: A file cannot be written or renamed.
    """
    folder = Path(folder)
    stored, done = read_stored(folder), []
    bad = {name.split(",")[0] for name in (*stored.damaged, *stored.misnamed)}
    own, packs = listed(folder)
    arrays = {m.arrays.path for m in stored.results.values() if m.arrays.path is not None and m.arrays.verify()}
    for path in sorted(arrays):
        target = _moved(path)
        done.append(f"kept {FOLDER}/{ARRAYS}/{path.name} as {target.name}")
    for path in [path for path in (*packs, *(path for _, _, path in own)) if path.name in bad]:
        if path in packs:
            without_damaged(path)
        done.append(f"kept {FOLDER}/{path.name} as {_moved(path).name}")
    return done


def _moved(path: Path) -> Path:
    target = numbered(path, ".damaged")
    try:
        return path.rename(target)
    except OSError as error:
        raise TrajectoryError(f"cannot rename {path} ({error.strerror}): make its folder writable.") from error
