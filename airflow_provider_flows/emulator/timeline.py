"""The state of a flow run of Generio's at a moment, computed from the clock alone.

It holds nothing and changes nothing: asking twice at the same moment gives the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass

FINAL = frozenset({"completed", "failed", "aborted"})
STARTING_SHARE = 0.1
ABORTING_SHARE = 0.2
# Short runs too must show `aborting` to a client that looks at once.
LEAST_ABORTING_SECONDS = 0.25
# How long outputs may still be processing after the end.
PROCESSING_SHARE = 0.2


@dataclass(frozen=True)
class Course:
    """All that decides how a flow run goes."""

    seconds: float = 0.0
    outcome: str = "completed"
    unknown_state: str | None = None
    started_at: float | None = None
    aborted_at: float | None = None
    abort: str = "visible"


@dataclass(frozen=True)
class Moment:
    """What a flow run shows at one moment."""

    state: str
    fraction: float = 0.0
    finished_at: float | None = None

    @property
    def final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL


def look(course: Course, now: float) -> Moment:
    """Return what the flow run shows at that moment."""
    if course.started_at is None:
        return Moment("created")
    end = course.started_at + course.seconds
    if course.aborted_at is not None:
        return _aborted(course, now, end)
    if now >= end:
        return Moment(course.outcome, _fraction(course, end), end)
    passed = (now - course.started_at) / course.seconds
    if course.unknown_state is not None and 1 / 3 <= passed < 2 / 3:
        return Moment(course.unknown_state, _fraction(course, now))
    return Moment("starting" if passed < STARTING_SHARE else "running", _fraction(course, now))


def _aborted(course: Course, now: float, end: float) -> Moment:
    asked = course.aborted_at or 0.0
    if course.abort == "finishes":
        return Moment(course.outcome, 1.0, end) if now >= end else Moment("aborting", _fraction(course, now))
    lasts = max(LEAST_ABORTING_SECONDS, ABORTING_SHARE * course.seconds) if course.abort == "visible" else 0.0
    fraction = _fraction(course, asked)
    if now < asked + lasts:
        return Moment("aborting", fraction)
    return Moment("aborted", fraction, asked + lasts)


def _fraction(course: Course, now: float) -> float:
    """Return how much is done; a flow run that ends badly never says that all is."""
    if course.started_at is None or course.seconds <= 0:
        return 1.0 if course.outcome == "completed" else 0.0
    share = (now - course.started_at) / course.seconds
    done = max(0.0, min(1.0, (share - STARTING_SHARE) / (1 - STARTING_SHARE)))
    return done if course.outcome == "completed" else min(done, 0.99)
