"""R_med of each block where the Hessian's diagonal is taken apart as G + R: G everywhere, R sampled.

G_ii comes from squares, with the same small relative error for every entry. R_ii is measured for some entries of many
blocks by each product: with signs s_i on chosen entries, v_i = s_i / sqrt(G_ii), (R v)_i / v_i is R_ii and noise from
the other chosen entries. Blocks that stand next to each other take turns, since what multiplies each other (queries and
keys, the layers of a perceptron) disturbs most. What r = R_ii / G_ii is elsewhere follows from the entries like it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from geomtraj.statistics.r_med.block import DRAWS, BlockDraws, BlockKnown, analyse

TURNS = 12
"""Groups that the blocks are dealt to, so that neighbours are measured by different products."""
PILOT_TOP, PILOT_REST = 4, 8
"""Entries of each block that the first product measures: the largest of G, and others at random."""
FEWEST, MOST = 8, 64
"""Entries of a block that a later product measures for its median."""
ROUNDS = ((0.5, 0.0), (1.0, 0.4))
"""Rounds of products: the share of those left, and the share of the blocks, those of narrow intervals, left out."""
ROUGH = 32
"""Draws that tell where to measure."""
WIDTH = 16
"""Products made together."""

Products = Callable[[np.ndarray], np.ndarray]


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
    """

    known: dict[str, BlockKnown]
    products: Products
    seed: int
    size: int
    spent: int = 0
    draws: dict[str, BlockDraws] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng([self.seed, 7])

    def run(self, passes: int, rtol: float) -> None:
        """Spend about `passes` products where intervals are wider than `rtol`."""
        names = list(self.known)
        first = [self._pilot(group) for group in _dealt(names)]
        rest = [{name: self._others(name, chosen) for name, chosen in mask.items()} for mask in first]
        rest = [{name: chosen for name, chosen in mask.items() if chosen.size} for mask in rest]
        self._pass(first + [mask for mask in rest if mask])
        self.analyse(names, ROUGH)
        for share, spare in ROUNDS:
            left = passes - self.spent
            bar = np.quantile([d.width for d in self.draws.values()], spare)
            wide = [n for n in names if self.draws[n].width > rtol and self.draws[n].width >= bar]
            groups = _dealt(wide)
            if left <= 0 or not wide:
                break
            each = max(1, round(left * share / len(groups)))
            masks = [self._leaders(group, k) for group in groups for k in range(-(-each // 2))]
            masks += [self._panel(group) for group in groups for _ in range(each - -(-each // 2))]
            self._pass([mask for mask in masks if mask][:left])
            self.analyse(wide, ROUGH)
        self.analyse(names)

    def _pilot(self, group: Iterable[str]) -> dict[str, np.ndarray]:
        found = {}
        for name in group:
            known = self.known[name]
            order = np.argsort(-known.g, kind="stable")
            top = order[: min(PILOT_TOP, known.g.size // 4)]
            rest = order[top.size :]
            found[name] = np.concatenate(
                [top, self._rng.choice(rest, min(PILOT_REST, -(-rest.size // 2)), replace=False)]
            )
        return found

    def _others(self, name: str, chosen: np.ndarray) -> np.ndarray:
        """The other entries of a small block, so that each of its entries is measured once."""
        size = self.known[name].g.size
        return np.setdiff1d(np.arange(size), chosen) if size <= 2 * PILOT_REST else chosen[:0]

    def _leaders(self, group: Iterable[str], turn: int) -> dict[str, np.ndarray]:
        """The entry of each block whose turn it is to be measured alone, of those that may be the largest."""
        found = {}
        for name in group:
            draws = self.draws[name]
            if draws.leaders.size and draws.spread[0] > 0.25 * draws.spread[1]:
                found[name] = draws.leaders[[turn % draws.leaders.size]]
        return found

    def _panel(self, group: Iterable[str]) -> dict[str, np.ndarray]:
        """Entries of each block that tell of its median: so many that their noise is about the spread of r."""
        found = {}
        for name in group:
            known, draws = self.known[name], self.draws[name]
            if draws.spread[1] < 0.25 * draws.spread[0]:
                continue
            many = int(np.clip((draws.share_spread / max(known.own_noise, 1e-6)) ** 2, FEWEST, MOST))
            weights = draws.doubt + 0.2 * draws.doubt.mean() + 1e-12
            count = max(1, min(many, known.g.size // 2))
            found[name] = self._rng.choice(known.g.size, count, replace=False, p=weights / weights.sum())
        return found

    def _pass(self, masks: list[dict[str, np.ndarray]]) -> None:
        """Make a product for each mask and add what it tells."""
        for start in range(0, len(masks), WIDTH):
            some = masks[start : start + WIDTH]
            vectors = np.zeros((self.size, len(some)))
            for column, mask in zip(vectors.T, some, strict=True):
                for name, chosen in mask.items():
                    known = self.known[name]
                    column[known.indices[chosen]] = self._rng.choice([-1.0, 1.0], chosen.size) * known.scale[chosen]
            results = self.products(vectors)
            self.spent += len(some)
            for name, known in self.known.items():
                active = [k for k, mask in enumerate(some) if name in mask]
                if active:
                    known.add(vectors[known.indices][:, active], results[known.indices][:, active])

    def analyse(self, names: Iterable[str], count: int = DRAWS) -> None:
        """Draw the entries of these blocks anew."""
        for name in names:
            rng = np.random.default_rng([self.seed, self.known[name].number])
            self.draws[name] = analyse(self.known[name], rng, count)


def _dealt(names: list[str]) -> list[list[str]]:
    """The names in at most `TURNS` groups, neighbours in different ones."""
    return [names[k::TURNS] for k in range(min(TURNS, len(names)))]
