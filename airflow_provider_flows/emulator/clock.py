"""The emulator's clock, and how its times are written down.

Everything that depends on time asks this clock; nothing else reads the machine's.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """Wall-clock time, which a test may push forward."""

    def __init__(self) -> None:
        self._offset_seconds = 0.0

    def now(self) -> float:
        """Return epoch seconds."""
        return time.time() + self._offset_seconds

    def advance(self, seconds: float) -> None:
        """Push the clock forward, so that a test need not wait."""
        if seconds < 0:
            raise ValueError(f"A clock goes forward only, not by {seconds} s")
        self._offset_seconds += seconds

    def reset(self) -> None:
        """Go back to the machine's time."""
        self._offset_seconds = 0.0


def to_iso(timestamp: float | None, style: str = "zulu") -> str | None:
    """Write epoch seconds as ISO 8601 in UTC: with Z, with an offset, or with neither."""
    if timestamp is None:
        return None
    text = datetime.fromtimestamp(timestamp, UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    return text + {"zulu": "Z", "offset": "+00:00", "naive": ""}[style]
