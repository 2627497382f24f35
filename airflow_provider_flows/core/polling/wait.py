"""The wait for a flow run's end, written once: looks, patience, the deadline, and what the log is told.

When to look is schedule.py's answer; nothing here sleeps or sends, so every mode of waiting holds this same conversation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowServiceError, FlowTimeout
from airflow_provider_flows.core.http import Pause
from airflow_provider_flows.core.polling.schedule import JITTER, Forecast, Schedule, age
from airflow_provider_flows.core.run import FlowRun, FlowState
from airflow_provider_flows.core.timestamps import epoch

if TYPE_CHECKING:
    from airflow_provider_flows.core.http import Conversation

REFUSALS = 3  # looks: a key may be being changed, a run not visible yet, a gateway confused; what persists ends the wait
REFUSED_SECONDS = 10.0  # at the most between looks that must be sure, for a worker is held up by them
TOLD_POINTS = 0.1 - 1e-9  # progress is told when it has moved by ten points

Tell = Callable[[int, str], None]  # a logging level and a line


class Meter:
    """What is counted of waits, for whoever keeps statistics; this one keeps none."""

    __slots__ = ()

    def looked(self) -> None:
        """Count a look at one run."""

    def ended(self, run: FlowRun, waited: float, late: float | None) -> None:
        """Note that a run was seen to be final, so many seconds after the wait began and after its end (None: not known)."""


NO_METER = Meter()


class Wait:
    """One wait for one flow run: what was seen last, what was told of it, and how many looks in a row brought nothing."""

    # thousands live in one triggerer, where each object more is one more for the garbage collector to walk over, on the loop
    __slots__ = (
        "_clock",
        "_forecast",
        "_get_run",
        "_meter",
        "_missed",
        "_misses",
        "_narrator",
        "_recalled",
        "_refusals",
        "_since",
        "flow_run_id",
        "lands",
        "run",
        "schedule",
    )

    def __init__(
        self,
        flow_run_id: str,
        get_run: Callable[[str], Conversation[FlowRun]],
        *,
        schedule: Schedule,
        clock: Callable[[], float],
        tell: Tell,
        meter: Meter | None = None,
        apart: float = 0.0,
    ) -> None:
        """Prepare the wait; nothing is asked yet.

        :param get_run: the service's conversation that reads a run by its id.
        :param clock: gives epoch seconds.
        :param tell: takes the lines for the log; never a secret, never an input's content.
        :param meter: is told of looks and of the end.
        :param apart: seconds that lie between two lines about progress at the least.
        """
        self.flow_run_id = flow_run_id
        self.schedule = schedule
        self.run: FlowRun | None = None
        self.lands = False  # whether the run is expected to be over after the last pause that was given
        self._get_run = get_run
        self._clock = clock
        self._since = clock()
        self._missed: FlowServiceError | None = None
        self._misses = 0
        self._refusals = 0
        self._forecast = Forecast()
        self._recalled = False
        self._meter = meter or NO_METER
        self._narrator = Narrator(tell, apart)

    @property
    def memory(self) -> dict[str, Any]:
        """What a wait that goes on in another process must know so as to tell nothing twice, as plain JSON values."""
        counted = {"since": self._since, "misses": self._misses, "refusals": self._refusals}
        return {**counted, "forecast": self._forecast.memory, **self._narrator.memory}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on from where the wait that gave this memory was."""
        self._since, self._misses = float(memory["since"]), int(memory["misses"])
        self._refusals = int(memory.get("refusals", 0))
        self._forecast = Forecast.recalled(memory.get("forecast"))
        self._narrator.recall(memory)
        self._recalled = True

    def first_pause(self) -> float:
        """Give the seconds until the first look: none, but for a wait that goes on after a look in another process."""
        if not self._recalled:
            return 0.0
        return self.schedule.next_look(self.run, self._clock(), self._since, self._forecast)

    def seconds_left(self) -> float | None:
        """Give the seconds until the deadline, 0 when it has passed, None without one."""
        return None if self.schedule.deadline is None else max(0.0, self.schedule.deadline - self._clock())

    def until_final(self, show: Callable[[FlowRun], None] = lambda _: None) -> Conversation[FlowRun]:
        """Look until the run is final.

        :param show: is told the run as each look sees it.
        :raises FlowTimeout: the deadline passed first.
        :raises FlowServiceError: an answer that will not get better by waiting (401, 404, ...).
        """
        while True:
            run = yield from self.look()
            if run is not None:
                show(run)
                if run.final:
                    return run
            yield Pause(self.pause())

    def look(self) -> Conversation[FlowRun | None]:
        """Look as `glimpse` does, and show on a run that is not final when it is expected to be over."""
        run = yield from self.glimpse()
        return (
            run
            if run is None or run.final or self._forecast.end is None
            else replace(run, expected_at=self._forecast.end)
        )

    def glimpse(self) -> Conversation[FlowRun | None]:
        """Look once; None if nothing could be seen, which is no reason to give up.

        :raises FlowServiceError: the third answer that will not get better by waiting (401, 404, ...).
        """
        self._meter.looked()
        try:
            run = yield from self._get_run(self.flow_run_id)
        except FlowServiceError as error:
            self._refusals += not error.passing
            if not error.passing and self._refusals >= REFUSALS:
                raise
            self._misses += 1
            self._missed = error
            self._narrator.miss(self.flow_run_id, error, self._misses)
            return None
        self.seen(run)
        return self.run

    def look_surely(self) -> Conversation[FlowRun | None]:
        """Look, and soon again where the service refuses, for whoever forgets how often it has refused until the next look.

        :raises FlowServiceError: the third answer that will not get better by waiting (401, 404, ...).
        """
        run = yield from self.look()
        for _ in range(REFUSALS - 1):
            if not self._refusals:
                break
            yield Pause(min(self.pause(), REFUSED_SECONDS))
            run = yield from self.look()
        return run

    def seen(self, run: FlowRun, now: float | None = None) -> None:
        """Take notice of the run as it was seen, whoever looked.

        :param now: epoch seconds at which it was, if that is not just now.
        """
        now = self._clock() if now is None else now
        self._misses, self._refusals, self._missed = 0, 0, None
        self.run = run = _completed_by(run, self.run)
        self._forecast = self._forecast.after(run, now, self.schedule.poll_interval * (1 - JITTER))
        self._narrator.seen(run, now, self._since, self._forecast.end)
        if run.final:
            late = None if run.finished_at is None else max(0.0, now - epoch(run.finished_at))
            self._meter.ended(run, now - self._since, late)

    def reprieved(self) -> None:
        """Forget the refusals so far: whoever holds the wait has changed what was refused."""
        self._refusals = 0

    def pause(self) -> float:
        """Give the seconds until the next look.

        :raises FlowTimeout: the deadline has passed.
        """
        now = self._clock()
        self.lands = False
        if self.schedule.expired(now):
            raise self.too_late()
        if self._missed is not None:
            return self.schedule.after_a_miss(self._misses, now, self._missed.retry_after)
        delay = self.schedule.next_look(self.run, now, self._since, self._forecast)
        self.lands = self._forecast.end is not None and now < self._forecast.end <= now + delay
        return delay

    def too_late(self) -> FlowTimeout:
        """Make the error that says that the deadline has passed, and what was seen of the run."""
        named = f"flow run {self.flow_run_id}" if self.run is None else str(self.run)
        seen = (
            "It was never seen"
            if self.run is None
            else f"It was last seen {self.run.state_word} at {self.run.progress:.0%}"
        )
        missed = f"; the last look failed: {self._missed}" if self._missed else ""
        message = f"The deadline passed before the {named} was final. {seen}{missed}. Give it a longer timeout if it needs one."
        return FlowTimeout(message)


def _completed_by(run: FlowRun, before: FlowRun | None) -> FlowRun:
    """Add to a run what this look did not tell and the one before it did: a list may leave much out."""
    if before is None or (run.flow and run.started_at):
        return run
    known = {
        name: getattr(run, name) or getattr(before, name) for name in ("flow", "created_at", "started_at")
    }
    return replace(run, **known)


class Narrator:
    """Tells the log what changed: the state, every ten points of progress, trouble and its end; nothing twice."""

    __slots__ = ("_apart", "_in_trouble", "_progress", "_state_word", "_tell", "_told_at")

    def __init__(self, tell: Tell, apart: float = 0.0) -> None:
        """Begin with nothing told.

        :param apart: seconds that lie between two lines about progress at the least.
        """
        self._tell = tell
        self._apart = apart
        self._told_at = 0.0
        self._state_word: str | None = None
        self._progress = 0.0  # as told last
        self._in_trouble = False

    @property
    def memory(self) -> dict[str, Any]:
        """What was told last."""
        return {"state_word": self._state_word, "progress": self._progress, "in_trouble": self._in_trouble}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on from what was told last."""
        self._state_word, self._in_trouble = memory.get("state_word"), bool(memory.get("in_trouble"))
        self._progress = float(memory.get("progress", 0.0))

    def seen(self, run: FlowRun, now: float, waiting_since: float, expected_end: float | None) -> None:
        """Tell what is new about the run.

        :param now: epoch seconds, as are the others.
        """
        if self._in_trouble:
            self._in_trouble = False
            self._tell(logging.INFO, f"The {run} can be seen again")
        if run.state_word != self._state_word:
            self._state_word = run.state_word
            self._tell_state(run)
        moved = run.progress - self._progress >= TOLD_POINTS
        if moved and not run.final and now - self._told_at >= self._apart:
            self._progress, self._told_at = run.progress, now
            ends = (
                "unknown"
                if expected_end is None
                else f"{datetime.fromtimestamp(expected_end, tz=UTC):%H:%M:%S} UTC"
            )
            elapsed = age(run, now, waiting_since)
            percent = int(run.progress * 100 + 1e-9)
            self._tell(
                logging.INFO, f"The {run} is at {percent}% after {elapsed:.0f} s; expected end: {ends}"
            )

    def miss(self, flow_run_id: str, error: FlowServiceError, misses: int) -> None:
        """Tell that a look failed: the first time, and whenever the row of misses has doubled."""
        self._in_trouble = True
        if misses & (misses - 1) == 0:
            self._tell(
                logging.WARNING,
                f"The flow run {flow_run_id} could not be looked at ({misses} in a row); the wait goes on: {error}",
            )

    def _tell_state(self, run: FlowRun) -> None:
        if run.state is FlowState.UNKNOWN:
            self._tell(
                logging.WARNING,
                f"The {run} is in state {run.state_word!r}, which this provider does not know; the wait goes on",
            )
        elif run.final:
            lasted = "" if run.duration is None else f" after {run.duration:.1f} s"
            self._tell(logging.INFO, f"The {run} is {run.state_word}{lasted}")
        else:
            self._tell(logging.INFO, f"The {run} is {run.state_word}")
