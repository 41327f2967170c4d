"""The files that hold results: one for each, and packs of many.

A result's own file is `results/STEP.STATISTIC.HASH.json`, whole or absent, so that nothing is lost when a process is
killed. Where they are many, a pack takes them over: `results/pack.NUMBER.ID.jsonl` is nothing but such files one behind
the other, so that ten thousand results are a few files. A pack is never changed; what stands in a file of its own, or
in a pack of a higher number, comes before what stands in another.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any

from geomtraj.errors import TrajectoryError
from geomtraj.measuring.arrays import Arrays
from geomtraj.measuring.record import Measurement, NewerFormat, from_text, to_text
from geomtraj.trajectory.files import NO_FILE_OF_OURS, read_bytes, write_bytes

FOLDER = "results"
PACK_FROM = 1000
"""So many results in files of their own go into a pack."""

_OWN = re.compile(r"(\d{8,})\.(.+)\.json")
_PACK = re.compile(r"pack\.(\d+)\.\w+\.jsonl")


def key(statistic: str, settings: dict[str, Any], fingerprint: str) -> str:
    """The part of a file's name that tells settings and problems apart."""
    text = json.dumps([statistic, settings, fingerprint], sort_keys=True)
    name = re.sub(r"[^\w-]", "_", statistic)[:60]
    return f"{name}.{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def key_of(measurement: Measurement) -> str:
    """The key that a measurement's own statement of statistic, settings and problem gives."""
    stated = measurement.statistic, str(measurement.settings), str(measurement.made.get("problem", ""))
    found = _KEYS.get(stated)
    if found is None:
        if len(_KEYS) >= 1000:
            _KEYS.clear()
        found = _KEYS[stated] = key(measurement.statistic, measurement.settings, stated[2])
    return found


_KEYS: dict[tuple[str, str, str], str] = {}
"""What `key` gave for settings as text: ten thousand results have few of them."""


def result_path(folder: Path, step: int, result_key: str) -> Path:
    """Where one measurement is stored."""
    return folder / FOLDER / f"{step:08d}.{result_key}.json"


def write_measurement(folder: Path, measurement: Measurement) -> Measurement:
    """Stores one measurement, whole or not at all; its arrays first, so that no record stands without them.

    Returns:
        The measurement with arrays that are read from where they were written.

    Raises:
        TrajectoryError: The disk is full; what was stored before stays.
    """
    path = result_path(folder, measurement.step, key_of(measurement))
    if len(measurement.arrays):
        measurement = replace(measurement, arrays=measurement.arrays.stored(path.stem, path.parent))
    write_bytes(path, to_text(measurement))
    if measurement.arrays.path is not None:
        for earlier in measurement.arrays.path.parent.glob(f"{escape(path.stem)}.*.npz"):
            if earlier != measurement.arrays.path:
                earlier.unlink(missing_ok=True)
    return measurement


def read_one(folder: Path, step: int, result_key: str) -> Measurement | None:
    """A result that stands in a file of its own; None where there is none, or it does not hold."""
    path = result_path(folder, step, result_key)
    with suppress(OSError, TrajectoryError):
        found = _with_arrays(from_text(path.read_bytes()), path.parent)
        if found is not None and (found.step, key_of(found)) == (step, result_key):
            return found
    return None


def _with_arrays(measurement: Measurement, folder: Path) -> Measurement | None:
    """The measurement with its arrays found below the folder of the results; None where their file is not whole."""
    if not measurement.arrays.to_json():
        return measurement
    arrays = Arrays(table=measurement.arrays.to_json(), folder=folder)
    return replace(measurement, arrays=arrays) if arrays.whole else None


@dataclass
class Stored:
    """What a folder holds of the results that were looked for.

    Attributes:
        results: (step, key) -> measurement whose checksum and name hold.
        damaged: Files, or "file, line n", that are cut short or altered.
        misnamed: Files whose names say another step, statistic, settings or problem than they hold.
        first_format: Files of format 1, which name neither their content nor that of their iterate.
    """

    results: dict[tuple[int, str], Measurement] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    misnamed: list[str] = field(default_factory=list)
    first_format: dict[tuple[int, str], Measurement] = field(default_factory=dict)

    def remarks(self, folder: Path) -> list[str]:
        """One sentence for each kind of file that was passed over."""
        kinds = (
            (self.damaged, "passed over, because their checksums do not hold"),
            (self.misnamed, "passed over, because they hold another step, statistic, setting or problem than they say"),
        )
        return [f"{folder}: {counted(files, 'result')} {reason} ({some(files)})." for files, reason in kinds if files]


def counted(things: Collection[Any], noun: str) -> str:
    """Such as "1 result" and "3 results"."""
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def some(names: Collection[str]) -> str:
    """The first few of many names."""
    shown = list(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_stored(folder: Path, keys: Collection[str] | None = None) -> Stored:
    """The results of these keys in a folder, or all of them.

    Raises:
        TrajectoryError: A result is of a newer format, or a file cannot be read.
    """
    for _ in range(5):
        with suppress(FileNotFoundError), no_collection():  # another process may pack the files meanwhile
            return _scanned(folder, None if keys is None else set(keys))
    raise TrajectoryError(f"{folder / FOLDER} changes all the time: wait until the other process is done.")


@contextmanager
def no_collection() -> Iterator[None]:
    """No search for garbage: every record that is read would set off another one, half of the time in all."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _scanned(folder: Path, keys: set[str] | None) -> Stored:
    stored = Stored()
    own, packs = listed(folder)
    for path in packs:
        for number, line in enumerate(_read(path).splitlines(keepends=True), start=1):
            measurement = _whole(line, path)
            if measurement is None:
                stored.damaged.append(f"{path.name}, line {number}")
                continue
            name = key_of(measurement)
            if keys is None or name in keys:
                stored.results[measurement.step, name] = measurement
    for step, name, path in own:
        if keys is not None and name not in keys:
            continue
        measurement = _whole(_read(path), path)
        if measurement is None:
            stored.damaged.append(path.name)
        elif (measurement.step, key_of(measurement)) != (step, name):
            stored.misnamed.append(path.name)
        elif not measurement.iterate:
            stored.first_format[step, name] = measurement
        else:
            stored.results[step, name] = measurement
    return stored


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except FileNotFoundError:
        if path.is_symlink():  # to nothing: as good as damaged
            return b""
        raise
    except OSError as error:
        if error.errno in NO_FILE_OF_OURS:  # as good as damaged
            return b""
        raise TrajectoryError(f"cannot read {path} ({error.strerror}): make it readable or delete it.") from error


def _whole(text: bytes, path: Path) -> Measurement | None:
    """The measurement in a text; None if it is damaged."""
    try:
        return _with_arrays(from_text(text), path.parent)
    except NewerFormat as error:
        raise TrajectoryError(f"{path} cannot be read: {error}.") from error
    except TrajectoryError:
        return None


def listed(folder: Path) -> tuple[list[tuple[int, str, Path]], list[Path]]:
    """The results in files of their own, as step, key and path, and the packs, later ones last."""
    try:
        names = sorted(os.listdir(folder / FOLDER))
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        raise TrajectoryError(f"cannot read {folder / FOLDER} ({error.strerror}): make it readable.") from error
    own = [(int(m[1]), m[2], folder / FOLDER / name) for name in names if (m := _OWN.fullmatch(name))]
    packs = [(int(m[1]), name) for name in names if (m := _PACK.fullmatch(name))]
    return own, [folder / FOLDER / name for _, name in sorted(packs)]


def pack(folder: Path) -> None:
    """Moves results in files of their own into a pack, where they are many; those that do not hold stay.

    Another process may write, read or pack at the same time: at worst a result is in two packs.

    Raises:
        TrajectoryError: The disk is full; nothing has been moved then.
    """
    own, packs = listed(folder)
    if len(own) < PACK_FROM:
        return
    texts = dict(_packable(own))
    number = 1 + max((_number(path) for path in packs), default=0)
    _write_pack(folder / FOLDER, number, texts.values())
    for path in texts:
        with suppress(FileNotFoundError):
            path.unlink()


def without_damaged(path: Path) -> None:
    """Writes what holds in a pack into another of the same number.

    Raises:
        TrajectoryError: The disk is full or the pack cannot be read.
    """
    lines = _read(path).splitlines(keepends=True)
    _write_pack(path.parent, _number(path), (line for line in lines if _whole(line, path) is not None))


def _number(path: Path) -> int:
    found = _PACK.fullmatch(path.name)
    return int(found[1]) if found else 0


def _write_pack(folder: Path, number: int, texts: Iterable[bytes]) -> None:
    write_bytes(folder / f"pack.{number:06d}.{uuid.uuid4().hex[:8]}.jsonl", b"".join(texts))


def _packable(own: list[tuple[int, str, Path]]) -> Iterator[tuple[Path, bytes]]:
    for step, name, path in own:
        with suppress(FileNotFoundError, TrajectoryError):
            text = _read(path)
            measurement = from_text(text)
            if measurement.iterate and (measurement.step, key_of(measurement)) == (step, name):
                yield path, text
