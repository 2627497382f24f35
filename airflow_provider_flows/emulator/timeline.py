"""The state of a flow run of Generio's at a moment, computed from the clock alone.

It holds nothing and changes nothing: asking twice at the same moment gives the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass

FINAL_STATES = frozenset({"completed", "failed", "aborted"})
STARTING_SHARE = 0.1
ABORTING_SHARE = 0.2
# Short runs too must show `aborting` to a client that looks at once.
MIN_ABORTING_SECONDS = 0.25
# How long outputs may still be processing after the end.
PROCESSING_SHARE = 0.2


@dataclass(frozen=True)
class Timeline:
    """All that decides how a flow run goes."""

    seconds: float = 0.0
    outcome: str = "completed"
    unknown_state: str | None = None
    started_at: float | None = None
    aborted_at: float | None = None
    abort: str = "visible"


@dataclass(frozen=True)
class StateAt:
    """What a flow run shows at one moment."""

    state: str
    fraction: float = 0.0
    finished_at: float | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL_STATES


def compute_state(timeline: Timeline, now: float) -> StateAt:
    """Return what the flow run shows at that moment."""
    if timeline.started_at is None:
        return StateAt("created")
    end = timeline.started_at + timeline.seconds
    if timeline.aborted_at is not None:
        return _compute_aborted_state(timeline, now, end)
    if now >= end:
        return StateAt(timeline.outcome, _fraction(timeline, end), end)
    elapsed_share = (now - timeline.started_at) / timeline.seconds
    if timeline.unknown_state is not None and 1 / 3 <= elapsed_share < 2 / 3:
        return StateAt(timeline.unknown_state, _fraction(timeline, now))
    return StateAt("starting" if elapsed_share < STARTING_SHARE else "running", _fraction(timeline, now))


def _compute_aborted_state(timeline: Timeline, now: float, end: float) -> StateAt:
    aborted_at = timeline.aborted_at or 0.0
    if timeline.abort == "finishes":
        return (
            StateAt(timeline.outcome, 1.0, end)
            if now >= end
            else StateAt("aborting", _fraction(timeline, now))
        )
    abort_seconds = (
        max(MIN_ABORTING_SECONDS, ABORTING_SHARE * timeline.seconds) if timeline.abort == "visible" else 0.0
    )
    fraction = _fraction(timeline, aborted_at)
    if now < aborted_at + abort_seconds:
        return StateAt("aborting", fraction)
    return StateAt("aborted", fraction, aborted_at + abort_seconds)


def _fraction(timeline: Timeline, now: float) -> float:
    """Return how much is done; a flow run that ends badly never says that all is."""
    if timeline.started_at is None or timeline.seconds <= 0:
        return 1.0 if timeline.outcome == "completed" else 0.0
    share = (now - timeline.started_at) / timeline.seconds
    done = max(0.0, min(1.0, (share - STARTING_SHARE) / (1 - STARTING_SHARE)))
    return done if timeline.outcome == "completed" else min(done, 0.99)
