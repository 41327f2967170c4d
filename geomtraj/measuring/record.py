"""One stored measurement: the record, and its text with a checksum of its own."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geomtraj.display import clipped, html_table, interval
from geomtraj.errors import InputError, TrajectoryError
from geomtraj.measuring.arrays import Arrays, table_of
from geomtraj.statistics.base import Quantity
from geomtraj.status import OK, Code, Status
from geomtraj.trajectory.files import read_bytes

FORMAT_VERSION = 2
"""2: strict JSON on one line, with a checksum and the content of the iterate; 1: neither of them."""

_START, _END = b'{"sha256": "', b'", '
_HEX = 64
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, repr=False)
class Measurement:
    """One statistic at one iterate.

    Attributes:
        step: Optimizer steps before the iterate.
        wall_time: Seconds of training until there.
        statistic: Name of the statistic.
        settings: Its settings.
        quantities: Label (block name, or the quantity's own name) -> value with its 95 % interval.
        details: What else the statistic keeps.
        status: "ok", or the reason why a number is missing or doubtful (a `Status`).
        matvecs: Hessian-vector products spent.
        seconds: Time spent.
        made: How it was made: problem fingerprint, dtype, device, threads, versions; "failure" where the statistic
            raised an error; "code" where it is defined outside geomtraj; "guard", what checking the derivatives found;
            "blocks", {label: [kind, shape]} of the quantities that belong to blocks (`geomtraj.blocks.Block.kind`).
        iterate: Checksum of the parameters and buffers it was measured at; empty where that is not known.
        arrays: Numbers in bulk by name, NumPy arrays; stored ones are read when they are asked for.
    """

    step: int
    wall_time: float
    statistic: str
    settings: dict[str, Any]
    quantities: dict[str, Quantity]
    details: dict[str, Any] = field(default_factory=dict)
    status: str = "ok"
    matvecs: int = 0
    seconds: float = 0.0
    made: dict[str, Any] = field(default_factory=dict)
    iterate: str = ""
    arrays: Arrays = field(default_factory=Arrays, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", Status.read(self.status))

    @property
    def failed(self) -> bool:
        """Whether an error ended the measurement."""
        return "failure" in self.made or Status.read(self.status).has(Code.FAILED)

    def own_statuses(self) -> dict[str, str]:
        """Label -> its own status, where the statistic keeps one with the details of each block."""
        return {
            label: details["status"]
            for label, details in self.details.items()
            if label in self.quantities and isinstance(details, dict) and isinstance(details.get("status"), str)
        }

    def status_of(self, label: str) -> Status:
        """What the measurement says of one of its quantities: that one's own status, and what is about all of them."""
        own = self.own_statuses()
        return Status.read(own.get(label, OK)) if own else Status.read(self.status).of(label)

    def __repr__(self) -> str:
        first = next((f", {name} {q.value:.4g}" for name, q in self.quantities.items()), "")
        more = f" and {len(self.quantities) - 1} more" if len(self.quantities) > 1 else ""
        return f"Measurement({self.statistic} at step {self.step}{clipped(first)}{more}; {clipped(self.status)})"

    def _repr_html_(self) -> str:
        rows = [(name, q.value, interval(q.low, q.high), self.status_of(name)) for name, q in self.quantities.items()]
        caption = f"{self.statistic} at step {self.step}: {self.status}"
        return html_table(caption, ("label", "value", "95 % interval", "status"), rows)

    def to_json(self) -> dict[str, Any]:
        """The record in JSON's types; numbers that are not finite are "NaN", "Infinity" and "-Infinity".

        Raises:
            InputError: It holds something that JSON cannot.
        """
        content = {name: getattr(self, name) for name in _FIELDS}
        content["quantities"] = {
            label: {"value": q.value, "low": q.low, "high": q.high} for label, q in self.quantities.items()
        }
        if self.status != OK:
            content["remarks"] = Status.read(self.status).to_json()
        table = self.arrays.to_json()
        return {"format_version": FORMAT_VERSION, **strict(content | ({"arrays": table} if table else {}))}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Measurement:
        """The record that `to_json` wrote, of any format up to this one.

        Raises:
            TrajectoryError: A field is missing or of another type; the message names it.
        """
        return _record(numbers(content))


_TYPES: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "wall_time": (int, float),
    "statistic": (str,),
    "settings": (dict,),
    "quantities": (dict,),
    "details": (dict,),
    "status": (str,),
    "matvecs": (int,),
    "seconds": (int, float),
    "made": (dict,),
    "iterate": (str,),
}
_NUMBER = (int, float)
_FIELDS = tuple(_TYPES)
_NEEDED = ("step", "wall_time", "statistic", "settings", "quantities")


def _record(content: dict[str, Any]) -> Measurement:
    """The record in content whose numbers are numbers."""
    fields: dict[str, Any] = {}
    for name, kinds in _TYPES.items():
        value = content.get(name)
        if type(value) in kinds and not (type(value) is int and abs(value) >= 2**63):
            fields[name] = value
        elif name in content:
            raise TrajectoryError(f"its {name!r} is {value!r:.40}")
        elif name in _NEEDED:
            raise TrajectoryError(f"it has no {name!r}")
    fields["quantities"] = {label: _quantity(label, q) for label, q in fields["quantities"].items()}
    if "remarks" in content:  # results of earlier versions have the sentences alone
        try:
            fields["status"] = Status.from_json(content["remarks"])
        except (TypeError, ValueError):
            raise TrajectoryError(f"its 'remarks' are {content['remarks']!r:.40}") from None
    if "arrays" in content:
        fields["arrays"] = Arrays(table=table_of(content["arrays"]))
    _check_made(fields.get("made", {}))
    return Measurement(**fields)


_MADE = {"problem": str, "threads": int, "checked": bool, "code": str, "failure": dict, "blocks": dict}


def _check_made(made: dict[str, Any]) -> None:
    """Look at what of `made` is used later, before it is."""
    for name, kind in _MADE.items():
        if name in made and type(made[name]) is not kind:
            raise TrajectoryError(f"its 'made' has {name!r} {made[name]!r:.40}")
    if "failure" in made and not {"again", "code"} <= made["failure"].keys():
        raise TrajectoryError(f"its 'made' has 'failure' {made['failure']!r:.40}")
    for block in made.get("blocks", {}).values():
        if not (type(block) is list and len(block) == 2 and type(block[0]) is str and type(block[1]) is list):
            raise TrajectoryError(f"its 'made' has the block {block!r:.40}")


def _quantity(label: str, content: Any) -> Quantity:
    if type(content) is dict:
        value: Any = content.get("value")
        low, high = content.get("low", math.nan), content.get("high", math.nan)
        if type(value) in _NUMBER and type(low) in _NUMBER and type(high) in _NUMBER:
            with suppress(OverflowError):
                return Quantity(float(value), float(low), float(high))
    raise TrajectoryError(f"its quantity {label!r} is {content!r:.40}")


def to_text(measurement: Measurement) -> bytes:
    """One line of strict JSON that begins with the checksum of what follows it.

    Raises:
        InputError: The record holds something that JSON cannot.
    """
    body = json.dumps(measurement.to_json(), allow_nan=False).encode()
    return _START + hashlib.sha256(body).hexdigest().encode() + _END + body[1:] + b"\n"


def from_text(text: bytes) -> Measurement:
    """The record in a line that `to_text` wrote, if its checksum holds.

    Raises:
        TrajectoryError: It is damaged; the message says how, without a file's name.
        NewerFormat: A later geomtraj wrote it.
    """
    end = len(_START) + _HEX
    body = b"{" + text[end + len(_END) :].rstrip(b"\n")
    whole = text.startswith(_START) and text[end : end + len(_END)] == _END
    if not whole or hashlib.sha256(body).hexdigest().encode() != text[len(_START) : end]:
        return _without_checksum(text)
    try:
        content = json.loads(body.decode())
        version = content.get("format_version") if isinstance(content, dict) else None
        if type(version) is not int:
            raise TrajectoryError("it has no format_version")
        if version > FORMAT_VERSION:
            raise NewerFormat(version)
        if b'NaN"' in body or b'Infinity"' in body:  # else there is nothing to look for
            content = numbers(content)
        return _record(content)
    except (ValueError, RecursionError):
        raise TrajectoryError("its text is no record") from None


def _without_checksum(text: bytes) -> Measurement:
    """The record in a text of format 1, which has none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise TrajectoryError("it is cut short or altered") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise NewerFormat(version)
    if version != 1 or "sha256" in content or "iterate" in content:
        raise TrajectoryError("its checksum does not hold")
    return _record(content)


class NewerFormat(TrajectoryError):
    """A result that a later geomtraj wrote."""

    def __init__(self, version: object, what: str = "it"):
        super().__init__(
            f"{what} has result format {version!r}, newer than this geomtraj reads: upgrade geomtraj, or delete it if "
            "none wrote it"
        )


def read_measurement(path: Path) -> Measurement:
    """Reads one measurement from a file of its own.

    Raises:
        TrajectoryError: The file is missing, damaged, or of a newer format.
    """
    try:
        return from_text(read_bytes(path))
    except OSError as error:
        raise TrajectoryError(f"cannot read {path} ({error.strerror}): measure again.") from error
    except NewerFormat as error:
        raise TrajectoryError(f"{path} cannot be read: {error}.") from error
    except TrajectoryError as error:
        raise TrajectoryError(f"{path} is no whole result ({error}): measure again.") from error


def strict(value: Any) -> Any:
    """The same in JSON's types, without numbers that JSON does not have."""
    if isinstance(value, str):
        return "\\" + value if value.lstrip("\\") in _NOT_FINITE else str(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    if isinstance(value, dict):
        if not all(isinstance(name, (str, int)) for name in value):
            raise InputError(f"a result's dicts have strings as keys, not {next(iter(value))!r}.")
        return {str(name): strict(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        return strict(value.tolist())
    raise InputError(f"a result keeps numbers, strings, lists and dicts, not a {type(value).__name__}.")


def numbers(value: Any) -> Any:
    """What `strict` was given."""
    if isinstance(value, str):
        if value in _NOT_FINITE:
            return _NOT_FINITE[value]
        return value[1:] if value.startswith("\\") and value.lstrip("\\") in _NOT_FINITE else value
    if isinstance(value, dict):
        return {name: numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return value
