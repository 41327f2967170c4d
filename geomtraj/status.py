"""The status of a result: "ok", or remarks in sentences for people, each with a code and a block for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any


class Code(str, Enum):
    """What a remark is about; the value is stored, `text` says it in words.

    A remark with `OK` or `NOTE` doubts no number; any other one does.
    """

    def __new__(cls, value: str, text: str) -> Code:
        """A member whose value is stored and whose text is shown."""
        member = str.__new__(cls, value)
        member._value_, member.text = value, text
        return member

    text: str

    OK = "ok", "nothing to say"
    NOTE = "note", "how a number was made, which doubts nothing"
    NOT_CONVERGED = "not_converged", "a residual is larger than the tolerance"
    NOT_FINITE = "not_finite", "the loss, the parameters, a product or an entry is not finite"
    FEW_SAMPLES = "few_samples", "too few random vectors for an error or an end of the interval"
    WIDE = "wide", "the interval is wider than was asked for"
    ZERO = "zero", "the entries or their median are zero, exactly or to rounding"
    TIES = "ties", "the lower and the upper median differ"
    LEFT_OUT = "left_out", "a block or a quantity has no number"
    REPLACED = "replaced", "another method than the one asked for was taken"
    MEMORY = "memory", "less was computed than asked for, since memory ended"
    UNCHECKED = "unchecked", "the derivatives were not checked, or only in part"
    FAILED = "failed", "an error ended the measurement"
    DAMAGED = "damaged", "the stored iterate cannot be read"
    OTHER = "other", "what has no code of its own"


@dataclass(frozen=True)
class Remark:
    """One remark on a result.

    Attributes:
        code: What it is about.
        text: The sentence; it says itself which block it is about.
        label: The block or quantity that is; empty where it is about the whole result.
    """

    code: Code
    text: str
    label: str = ""


class Status(str):
    """A result's status as a string for people, "ok" or sentences; `remarks` tells programs the same.

    Args:
        remarks: `Remark`s; none for "ok".
    """

    remarks: tuple[Remark, ...]

    def __new__(cls, remarks: Iterable[Remark] = ()) -> Status:
        """The status of these remarks, equal ones once."""
        remarks = tuple(dict.fromkeys(remarks))
        status = super().__new__(cls, "; ".join(dict.fromkeys(r.text for r in remarks)) or OK)
        status.remarks = remarks
        return status

    def __reduce__(self) -> Any:
        return type(self), (self.remarks,)

    @classmethod
    def read(cls, status: str) -> Status:
        """The status itself; a plain string, as somebody's own statistic may return, is one remark without a code."""
        if isinstance(status, Status):
            return status
        return cls() if status == OK else cls([Remark(Code.OTHER, status)])

    def has(self, code: Code, label: str | None = None) -> bool:
        """Whether there is a remark of this code, and about this label where one is given."""
        return any(r.code is code and label in (None, r.label) for r in self.remarks)

    @property
    def good(self) -> bool:
        """Whether nothing doubts a number."""
        return all(r.code in (Code.OK, Code.NOTE) for r in self.remarks)

    @property
    def labels(self) -> tuple[str, ...]:
        """The blocks and quantities that remarks are about."""
        return tuple(dict.fromkeys(r.label for r in self.remarks if r.label))

    def of(self, label: str) -> Status:
        """What it says of one block or quantity, and of the whole result."""
        return Status(r for r in self.remarks if r.label in ("", label))

    def under(self, label: str) -> Status:
        """The same remarks, each about this block or quantity, whose name goes before the sentences."""
        return Status(replace(r, text=f"{label}: {r.text}", label=label) for r in self.remarks)

    def plus(self, *remarks: Remark) -> Status:
        """The status with more remarks."""
        return Status((*self.remarks, *remarks))

    def to_json(self) -> list[list[str]]:
        """The remarks as [code, text, label] each."""
        return [[r.code.value, r.text, r.label] for r in self.remarks]

    @classmethod
    def from_json(cls, remarks: Iterable[Iterable[str]]) -> Status:
        """What `to_json` gave; codes of a later geomtraj are `Code.OTHER`.

        Raises:
            ValueError: It is something else.
        """
        return cls(Remark(_CODES.get(code, Code.OTHER), str(text), str(label)) for code, text, label in remarks)


OK = "ok"
_CODES: Mapping[str, Code] = {code.value: code for code in Code}
