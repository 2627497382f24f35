"""Time in the emulator: an adjustable clock, and the state of a Generio flow run at a given time.

The state is a pure function of a `Timeline` and the time, so polling a flow run never changes it.
Times are epoch seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

FINAL_STATES = frozenset({"completed", "failed", "aborted"})
STARTING_SHARE = 0.1
ABORTING_SHARE = 0.2
# A client that polls right after its abort sees `aborting` for short runs, too.
MIN_ABORTING_SECONDS = 0.25
# How long outputs may still be processing after the end, as a share of the run's duration.
PROCESSING_SHARE = 0.2


class Clock:
    """Wall-clock time that a test can advance."""

    def __init__(self) -> None:
        self._offset_seconds = 0.0

    def now(self) -> float:
        """Return the current time in epoch seconds."""
        return time.time() + self._offset_seconds

    def advance(self, seconds: float) -> None:
        """Move the clock forward, so that a test need not wait.

        :raises ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"The clock cannot be moved back: {seconds} s")
        self._offset_seconds += seconds

    def reset(self) -> None:
        """Return to the machine's time."""
        self._offset_seconds = 0.0


def to_iso(timestamp: float | None, style: str = "zulu") -> str | None:
    """Format epoch seconds as ISO 8601 in UTC.

    :param style: ``"zulu"`` appends ``Z``, ``"offset"`` appends ``+00:00``, ``"naive"`` appends nothing.
    """
    if timestamp is None:
        return None
    text = datetime.fromtimestamp(timestamp, UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    return text + {"zulu": "Z", "offset": "+00:00", "naive": ""}[style]


@dataclass(frozen=True)
class Timeline:
    """Everything that decides which state a flow run has at a given time."""

    seconds: float = 0.0
    outcome: str = "completed"
    unknown_state: str | None = None
    started_at: float | None = None
    aborted_at: float | None = None
    abort: str = "visible"


@dataclass(frozen=True)
class StateAt:
    """The state of a flow run at one time; `fraction` is its progress from 0 to 1."""

    state: str
    fraction: float = 0.0
    finished_at: float | None = None

    @property
    def is_final(self) -> bool:
        """Whether the state will not change any more."""
        return self.state in FINAL_STATES


def compute_state(timeline: Timeline, now: float) -> StateAt:
    """Return the state of a flow run at the given time."""
    if timeline.started_at is None:
        return StateAt("created")
    end = timeline.started_at + timeline.seconds
    if timeline.aborted_at is not None:
        return _compute_aborted_state(timeline, timeline.aborted_at, now, end)
    if now >= end:
        return StateAt(timeline.outcome, _fraction(timeline, end), end)
    elapsed_share = (now - timeline.started_at) / timeline.seconds
    if timeline.unknown_state is not None and 1 / 3 <= elapsed_share < 2 / 3:
        return StateAt(timeline.unknown_state, _fraction(timeline, now))
    return StateAt("starting" if elapsed_share < STARTING_SHARE else "running", _fraction(timeline, now))


def _compute_aborted_state(timeline: Timeline, aborted_at: float, now: float, end: float) -> StateAt:
    if timeline.abort == "finishes":
        if now >= end:
            return StateAt(timeline.outcome, 1.0, end)
        return StateAt("aborting", _fraction(timeline, now))
    abort_seconds = 0.0
    if timeline.abort == "visible":
        abort_seconds = max(MIN_ABORTING_SECONDS, ABORTING_SHARE * timeline.seconds)
    fraction = _fraction(timeline, aborted_at)
    if now < aborted_at + abort_seconds:
        return StateAt("aborting", fraction)
    return StateAt("aborted", fraction, aborted_at + abort_seconds)


def _fraction(timeline: Timeline, now: float) -> float:
    """Return the progress; a flow run that does not complete stays below 1."""
    if timeline.started_at is None or timeline.seconds <= 0:
        return 1.0 if timeline.outcome == "completed" else 0.0
    share = (now - timeline.started_at) / timeline.seconds
    done = max(0.0, min(1.0, (share - STARTING_SHARE) / (1 - STARTING_SHARE)))
    return done if timeline.outcome == "completed" else min(done, 0.99)
