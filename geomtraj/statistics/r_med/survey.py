"""R_med of each block where the Hessian's diagonal is taken apart as G + R: G everywhere, R sampled.

G_ii comes from squares, with the same small relative error for every entry. R_ii is measured for some entries of
several blocks by each product: with v_i = s_i / sqrt|H_ii| for signs s_i on chosen entries, (R v)_i / v_i is R_ii and
noise from the other chosen entries. Entries of a row of a matrix disturb each other most, so that no two of a row are
chosen; and so do blocks that multiply each other (queries and keys, the layers of a perceptron), which the first
products find out. What r = R_ii / G_ii is elsewhere follows from the entries like it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from geomtraj.statistics.r_med.block import DRAWS, BlockDraws, BlockKnown, analyse
from geomtraj.statistics.r_med.composition import Task, compose

PILOT = 12
"""Entries of each block that the first products measure, a third of them among the largest of G."""
FEWEST, MOST = 2, 64
"""Entries of a block that a later product measures for its median."""
RIVALS = 4
"""Entries of a block that a product measures where several may be the largest."""
ROUNDS = (0.3, 0.5, 1.0)
"""Shares of the products that are left, for each round after the first."""
REPEATS = 2
"""Products of the same blocks, each with entries of its own."""
SAFETY = 2.0
"""Factor on the variance that other blocks add: it is a mean over entries, some of which feel them much more."""
ROUGH = 32
"""Draws that tell where to measure."""
WIDTH, ENTRIES = 16, 2**24
"""Products made together, and entries of their vectors, at most."""

Products = Callable[[np.ndarray], np.ndarray]
Mask = dict[str, np.ndarray]


@dataclass
class Survey:
    """What is known of the diagonal G + R (P,) so far, and how R_med's draws follow from it.

    Attributes:
        known: Label -> what is known of the block's entries.
        products: R times the columns of (P, k).
        seed: Seed of what is chosen.
        size: P.
        spent: Products so far.
        draws: Label -> draws of the block's largest entry and median, as far as analysed.
        coupling: Mean square of what one entry of a block (column) adds to a product at another's (row), in the
            blocks' scales; an upper bound where blocks were measured together alone.
    """

    known: dict[str, BlockKnown]
    products: Products
    seed: int
    size: int
    spent: int = 0
    draws: dict[str, BlockDraws] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng([self.seed, 7])
        self._number = {name: k for k, name in enumerate(self.known)}
        self.coupling = np.full((len(self.known), len(self.known)), np.inf)
        self._alone = np.zeros(len(self.known), dtype=bool)

    def run(self, passes: int, rtol: float) -> None:
        """Spend about `passes` products where intervals are wider than `rtol`."""
        names = list(self.known)
        turns = max(1, min(len(names), passes // 2))
        self._pass([self._pilot(names[k::turns]) for k in range(turns)])
        self.coupling = (self.coupling + self.coupling.T) / 2
        self.analyse(names, ROUGH)
        for share in ROUNDS:
            left = passes - self.spent
            wide = [n for n in names if self.draws[n].width > rtol]
            if left <= 0 or not wide:
                break
            self._pass(self._planned(wide, max(1, round(share * left))))
            self.analyse(wide, ROUGH)
        self.analyse(names)

    def _pilot(self, group: Iterable[str]) -> Mask:
        found = {}
        for name in group:
            known = self.known[name]
            weights = np.ones(known.g.size)
            weights[np.argsort(-known.g, kind="stable")[: PILOT // 3]] = known.g.size
            found[name] = known.choose(PILOT, weights, self._rng)
        return found

    def _planned(self, names: Sequence[str], count: int) -> list[Mask]:
        """Masks of so many products, each of blocks that disturb each other little where it helps most."""
        tasks = [task for name in names for task in self._tasks(name)]
        masks: list[Mask] = []
        labels = list(self.known)
        while len(masks) < count:
            chosen = compose(tasks, self.coupling, REPEATS)
            for _ in range(min(REPEATS, count - len(masks))):
                mask = {}
                for task in chosen:
                    name = labels[task.block]
                    known, draws = self.known[name], self.draws[name]
                    weights = draws.lead if task.top else draws.doubt + 0.2 * draws.doubt.mean() + 1e-12
                    mask[name] = known.choose(task.count, weights, self._rng, task.spread)
                masks.append(mask)
        return masks

    def _tasks(self, name: str) -> list[Task]:
        """What may be measured of a block: its largest entry, and entries that tell of its median."""
        known, draws, number = self.known[name], self.draws[name], self._number[name]
        top, median = (deviation**2 for deviation in draws.spread)
        found = []
        if draws.leaders.size:
            count = 1 if draws.lead.max() > 0.5 else min(RIVALS, draws.leaders.size)
            found.append(Task(number, count, top, 0.0, top=True))
        spread, own = draws.share_spread**2, self.coupling[number, number]
        most = max(known.g.size // 2, 1)
        count = int(np.clip(2 * spread / max(own, 1e-12), min(FEWEST, most), min(MOST, most)))
        found.append(Task(number, count, median, spread))
        return found

    def _pass(self, masks: list[Mask]) -> None:
        """Make a product for each mask and add what it tells."""
        width = max(1, min(WIDTH, ENTRIES // self.size))
        for start in range(0, len(masks), width):
            some = masks[start : start + width]
            vectors = np.zeros((self.size, len(some)), dtype=np.float32)
            signs: list[Mask] = []
            for column, mask in zip(vectors.T, some, strict=True):
                signs.append({name: self._rng.choice([-1.0, 1.0], chosen.size) for name, chosen in mask.items()})
                for name, chosen in mask.items():
                    column[self.known[name].indices[chosen]] = signs[-1][name] * self.known[name].scale[chosen]
            results = self.products(vectors)
            self.spent += len(some)
            for mask, sign, result in zip(some, signs, results.T, strict=True):
                self._add(mask, sign, result)

    def _add(self, mask: Mask, signs: Mask, result: np.ndarray) -> None:
        counts = np.zeros(len(self.known))
        for name, chosen in mask.items():
            counts[self._number[name]] = chosen.size
        inside = np.flatnonzero(counts)
        told = inside if inside.size == 1 else inside[~self._alone[inside]]
        self._alone[told] |= inside.size == 1
        for name, known in self.known.items():
            k = self._number[name]
            row = self.coupling[k]
            if name in mask:
                others = inside[inside != k]
                elsewhere = SAFETY * float(np.nan_to_num(row[others], posinf=0.0) @ counts[others])
                own = known.add(mask[name], signs[name], result, elsewhere)
                row[k] = own if np.isinf(row[k]) else (row[k] + own) / 2
            else:
                row[told] = np.minimum(row[told], known.response(result) / counts[told]) if told.size else row[told]

    def analyse(self, names: Sequence[str], count: int = DRAWS) -> None:
        """Draw the entries of these blocks anew."""
        found = analyse([self.known[name] for name in names], self.seed, count)
        for name, draws in zip(names, found, strict=True):
            self.draws[name] = draws
            change = self.known[name].expect(draws.typical)
            self.coupling[self._number[name]] *= change
            self.coupling[:, self._number[name]] *= change
