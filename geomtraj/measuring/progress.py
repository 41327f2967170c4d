"""What measuring will cost, said before the work; a bar that moves within a measurement; and an end to it."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import numpy as np
from tqdm import tqdm

from geomtraj.errors import InputError
from geomtraj.measuring.record import Measurement

TICK_SECONDS = 1.0
NEARLY = 0.95
"""How far the bar may move within a measurement that takes longer than expected."""


def in_words(seconds: float) -> str:
    """A duration in the unit that suits it, such as "40 min"."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}" if seconds < 9.5 * length else f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


class Pace:
    """How long each statistic takes at an iterate, learnt from results as they come; and when time is up.

    Args:
        left: Statistic -> number of iterates where it is still to be measured.
        max_seconds: Seconds after which nothing begins any more.

    Raises:
        InputError: `max_seconds` is no positive number.
    """

    def __init__(self, left: dict[str, int], max_seconds: float | None):
        if max_seconds is not None and not (isinstance(max_seconds, (int, float)) and max_seconds > 0):
            raise InputError(f"max_seconds is {max_seconds!r}: give a positive number of seconds.")
        self.left, self.max_seconds = dict(left), max_seconds
        self.started = time.monotonic()
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)

    def learn(self, measurement: Measurement) -> None:
        """Takes the seconds of a result."""
        if measurement.seconds > 0 and not measurement.failed:
            self._seconds[measurement.statistic].append(measurement.seconds)

    def expected(self, statistic: str) -> float | None:
        """Seconds that a statistic takes; None if it is not known yet."""
        seconds = self._seconds[statistic]
        return float(np.mean(seconds)) if seconds else None

    def remaining(self) -> float:
        """Seconds that what is left takes, one after the other, as far as is known."""
        return sum(count * (self.expected(name) or 0.0) for name, count in self.left.items())

    @property
    def elapsed(self) -> float:
        """Seconds since measuring began."""
        return time.monotonic() - self.started

    def over(self, statistic: str = "") -> bool:
        """Whether time is up, or would be before this statistic is measured."""
        if self.max_seconds is None:
            return False
        return self.elapsed + (self.expected(statistic) or 0.0) >= self.max_seconds


def widths(measurements: Iterable[Measurement]) -> list[str]:
    """For each statistic of positive quantities with errors, how wide its intervals are: "r_med ... 1.4"."""
    told = []
    by_name: defaultdict[str, list[Any]] = defaultdict(list)
    for m in measurements:
        by_name[m.statistic] += m.quantities.values()
    for name, quantities in by_name.items():
        noisy = [q for q in quantities if q.low > 0 and q.high > q.low]
        factors = [q.high / q.low for q in noisy if math.isfinite(q.high)]
        if factors:
            unbounded = len(noisy) - len(factors)
            more = f" ({unbounded} of {len(noisy)} without upper end)" if unbounded else ""
            told.append(f"expected width of {name} a factor of {np.median(factors):.2g}{more}")
    return told


class Bar:
    """A progress bar on stderr that counts results, and moves while one is being measured.

    Args:
        total: Number of results to make.
        title: What is measured.
        show: Whether to show anything.
    """

    def __init__(self, total: int, title: str, show: bool):
        self._title, self._show = title, show
        self._bar = tqdm(
            total=total,
            desc=f"measure {title}",
            unit="result",
            disable=not show,
            bar_format="{l_bar}{bar}| {n:.1f}/{total} [{elapsed}{postfix}]",
        )
        self._done, self._label, self._since, self._expected = 0, "", time.monotonic(), 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="geomtraj: progress", daemon=True)

    def __enter__(self) -> Bar:
        if self._show:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._show:
            self._thread.join()
        self._bar.n = self._done
        self._bar.close()

    def say(self, sentence: str) -> None:
        """Writes a line above the bar."""
        if self._show:
            tqdm.write(f"{self._title}: {sentence}", file=sys.stderr)

    def expect(self, label: str, seconds: float | None) -> None:
        """Says what is being measured from now on, and how long it takes where that is known."""
        self._label, self._since, self._expected = label, time.monotonic(), seconds or 0.0

    def more(self, count: int) -> None:
        """So many more results are to be made."""
        if self._bar.total is not None:
            self._bar.total += count

    def done(self) -> None:
        """One result is there."""
        self._done += 1
        self._move()

    def _tick(self) -> None:
        interval = TICK_SECONDS if sys.stderr.isatty() else 30 * TICK_SECONDS
        while not self._end.wait(interval):
            self._move()

    def _move(self) -> None:
        within = time.monotonic() - self._since
        share = min(within / self._expected, NEARLY) if self._expected else 0.0
        self._bar.n = min(self._done + share, self._bar.total or 0)
        self._bar.set_postfix_str(f"{self._label}, {in_words(within)}" if self._label else "", refresh=True)
