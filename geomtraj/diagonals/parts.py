"""Which parts of the parameters are estimated by factored second derivatives and which by signs at their taps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from geomtraj.layers.probe_groups import ProbeGroup, SharedEntries

Key = tuple[tuple[int, ...], str]
"""The taps of a group and a parameter there; "" for all of them where the group is not divided."""


def key_of_part(group: ProbeGroup, part: SharedEntries) -> Key:
    """What tells a part of a group in any batch."""
    return tuple(group.taps), "" if group.positions_decouple else group.name_of(part)


@dataclass(frozen=True)
class Choice:
    """How the parts of a problem's parameters are estimated.

    Attributes:
        factored: Keys of the parts that are estimated by factored second derivatives; the others are by signs.
        factored_samples: Random vectors for these, and for the Gauss-Newton part of all.
        signs_samples: Random signs for the others.
    """

    factored: frozenset[Key]
    factored_samples: int
    signs_samples: int

    def divided(self, groups: Iterable[tuple[ProbeGroup, bool]], factored: bool) -> list[tuple[ProbeGroup, bool]]:
        """The groups with those of their parts that are, or are not, factored; the second of each pair stays."""
        found = []
        for group, split in groups:
            parts = [p for p in group.shared_entries if (key_of_part(group, p) in self.factored) == factored]
            if parts:
                found.append((replace(group, shared_entries=parts), split))
        return found
