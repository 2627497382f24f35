"""What is measured in a process: the lag of its event loop, its CPU time and its memory, and the few statistics of it.

It knows nothing of flow runs and prints nothing.
"""

from __future__ import annotations

import asyncio
import math
import resource
import sys
from collections.abc import Sequence

TICK = 0.05  # seconds


class LoopLag:
    """Measures how late a running event loop is: a callback every 50 ms notes by how much it was overdue."""

    def __init__(self) -> None:
        """Begin with nothing seen; it must be made in the loop."""
        self._loop = asyncio.get_running_loop()
        self._samples: list[tuple[float, float]] = []  # when it was due, and by how much it was late
        self._due = self._loop.time() + TICK
        self._timer = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        self._samples.append((self._due, now - self._due))
        self._due = now + TICK
        self._timer = self._loop.call_at(self._due, self._tick)

    def stop(self) -> None:
        """Stop measuring."""
        self._timer.cancel()

    def now(self) -> float:
        """Give the loop's time, for `lags`."""
        return self._loop.time()

    def lags(self, since: float = 0.0) -> list[float]:
        """Give the lags in seconds, from a moment of the loop's time on.

        A stall keeps the ticker itself from ticking, so the ticks that it swallowed are added: else a stall of three seconds
        would count as one late tick among thousands, and the percentiles would hide it.
        """
        found: list[float] = []
        for due, lag in self._samples:
            swallowed = range(int(lag / TICK) + 1) if due >= since else range(0)
            found += [lag - TICK * number for number in swallowed]
        return found


def percentile(values: Sequence[float], fraction: float) -> float:
    """Give the value below which this part (0 to 1) of the values lies, by the nearest rank; 0.0 of none."""
    return sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)] if values else 0.0


def mean(values: Sequence[float]) -> float:
    """Give the mean; 0.0 of none."""
    return math.fsum(values) / len(values) if values else 0.0


def peak_memory() -> float:
    """Give this process's largest resident memory so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
