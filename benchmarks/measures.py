"""Measurements in a process: the lag of its event loop, its memory, and statistics."""

from __future__ import annotations

import asyncio
import math
import resource
import sys
from collections.abc import Sequence

TICK = 0.05  # seconds


class LoopLag:
    """Measures the lag of a running event loop: a callback every 50 ms records by how much it is overdue."""

    def __init__(self) -> None:
        """Start measuring; call this in the loop."""
        self._loop = asyncio.get_running_loop()
        self._samples: list[tuple[float, float]] = []  # due time and lag
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
        """Return the loop's time, for `lags`."""
        return self._loop.time()

    def lags(self, since: float = 0.0) -> list[float]:
        """Return the lags in seconds since a time of the loop's clock.

        A stall also blocks the ticks themselves, so the missing ticks are added. Otherwise a stall of three
        seconds would count as one late tick among thousands, and percentiles would hide it.
        """
        found: list[float] = []
        for due, lag in self._samples:
            missing = range(int(lag / TICK) + 1) if due >= since else range(0)
            found += [lag - TICK * number for number in missing]
        return found


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the percentile (`fraction` from 0 to 1) by the nearest rank; 0.0 without values."""
    return sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)] if values else 0.0


def mean(values: Sequence[float]) -> float:
    """Return the mean; 0.0 without values."""
    return math.fsum(values) / len(values) if values else 0.0


def peak_memory() -> float:
    """Return the maximum resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
