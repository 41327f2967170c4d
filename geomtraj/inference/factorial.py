"""Two factors of two levels each, every combination run with the same seeds: which of the two matters more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from geomtraj.inference.ratios import OverSeeds, over_seeds


@dataclass(frozen=True)
class TwoWay:
    """A quantity y over two factors, as ratios: dimensionless, geometric means over seeds.

    Attributes:
        rows: y in the first row over y in the second, geometric mean over both columns.
        columns: y in the first column over y in the second, geometric mean over both rows.
        interaction: The rows' ratio in the first column over that in the second.
        product: `rows` times `columns`, seed by seed.
        quotient: `rows` over `columns`, seed by seed.
    """

    rows: OverSeeds
    columns: OverSeeds
    interaction: OverSeeds
    product: OverSeeds
    quotient: OverSeeds

    @property
    def larger(self) -> str:
        """The factor whose effect is further from 1 in either direction: "rows", "columns", or "" if undecided.

        |a| > |b| just where a - b and a + b have the same sign, so both of their 95 % intervals must leave out 0: the
        chance to name the wrong factor, or one of two equal ones, is at most 5 %.
        """
        signs = [(x.low > 1) - (x.high < 1) for x in (self.product, self.quotient)]
        if 0 in signs:
            return ""
        return "rows" if signs[0] == signs[1] else "columns"


def two_way(logs: ArrayLike) -> TwoWay:
    """The effects of both factors and their interaction, paired over seeds.

    Args:
        logs: Natural logarithm of y, shape (n seeds, 2 rows, 2 columns), finite.
    """
    y = np.asarray(logs, dtype=np.float64).reshape(-1, 2, 2)
    rows = (y[:, 0] - y[:, 1]).mean(axis=1)
    columns = (y[:, :, 0] - y[:, :, 1]).mean(axis=1)
    interaction = (y[:, 0, 0] - y[:, 1, 0]) - (y[:, 0, 1] - y[:, 1, 1])
    return TwoWay(
        over_seeds(rows), over_seeds(columns), over_seeds(interaction), over_seeds(rows + columns),
        over_seeds(rows - columns),
    )  # fmt: skip
