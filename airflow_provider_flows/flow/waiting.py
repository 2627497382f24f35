"""The wait for a flow run's end, written once: looks, patience, the deadline, and what the log is told.

When to look is schedule.py's answer; nothing here sleeps or sends, so every mode of waiting holds this same conversation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_flows.flow.errors import FlowAuthError, FlowNotFound, FlowServiceError, FlowTimeout
from airflow_provider_flows.flow.exchange import Pause
from airflow_provider_flows.flow.run import FlowRun, FlowState
from airflow_provider_flows.flow.schedule import Schedule, age, expected_end

if TYPE_CHECKING:
    from airflow_provider_flows.flow.exchange import Conversation

# a key that is being changed, a run that is not visible yet just after it was made: these get some looks to settle
SETTLING = (FlowAuthError, FlowNotFound)
REFUSALS = 3
TOLD_POINTS = 0.1 - 1e-9  # progress is told when it has moved by ten points

Tell = Callable[[int, str], None]  # a logging level and a line


class Wait:
    """One wait for one flow run: what was seen last, what was told of it, and how many looks in a row brought nothing."""

    def __init__(
        self,
        flow_run_id: str,
        get_run: Callable[[str], Conversation[FlowRun]],
        *,
        schedule: Schedule,
        clock: Callable[[], float],
        tell: Tell,
    ) -> None:
        """Prepare the wait; nothing is asked yet.

        :param get_run: the service's conversation that reads a run by its id.
        :param clock: gives epoch seconds.
        :param tell: takes the lines for the log; never a secret, never an input's content.
        """
        self.flow_run_id = flow_run_id
        self.schedule = schedule
        self.run: FlowRun | None = None
        self._get_run = get_run
        self._clock = clock
        self._since = clock()
        self._missed: FlowServiceError | None = None
        self._misses = 0
        self._refusals = 0
        self._narrator = Narrator(tell)

    @property
    def memory(self) -> dict[str, Any]:
        """What a wait that goes on in another process must know so as to tell nothing twice, as plain JSON values."""
        return {"since": self._since, "misses": self._misses, "refusals": self._refusals, **self._narrator.memory}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on from where the wait that gave this memory was."""
        self._since, self._misses = float(memory["since"]), int(memory["misses"])
        self._refusals = int(memory.get("refusals", 0))
        self._narrator.recall(memory)

    def until_final(self) -> Conversation[FlowRun]:
        """Look until the run is final.

        :raises FlowTimeout: the deadline passed first.
        :raises FlowServiceError: an answer that will not get better by waiting (401, 404, ...).
        """
        while True:
            run = yield from self.look()
            if run is not None and run.final:
                return run
            yield Pause(self.pause())

    def look(self) -> Conversation[FlowRun | None]:
        """Look once; None if nothing could be seen, which is no reason to give up.

        :raises FlowServiceError: an answer that will not get better by waiting; 401, 403 and 404 get three looks.
        """
        try:
            run = yield from self._get_run(self.flow_run_id)
        except FlowServiceError as error:
            self._refusals += isinstance(error, SETTLING)
            if not error.passing and not (isinstance(error, SETTLING) and self._refusals < REFUSALS):
                raise
            self._misses += 1
            self._missed = error
            self._narrator.miss(self.flow_run_id, error, self._misses)
            return None
        self._misses, self._refusals, self._missed = 0, 0, None
        self.run = run
        self._narrator.seen(run, self._clock(), self._since)
        return run

    def pause(self) -> float:
        """Give the seconds until the next look.

        :raises FlowTimeout: the deadline has passed.
        """
        now = self._clock()
        if self.schedule.expired(now):
            raise FlowTimeout(self._too_late())
        if self._missed is not None:
            return self.schedule.after_a_miss(self._misses, now, self._missed.retry_after)
        return self.schedule.next_look(self.run, now, self._since)

    def _too_late(self) -> str:
        named = f"flow run {self.flow_run_id}" if self.run is None else str(self.run)
        seen = "It was never seen" if self.run is None else f"It was last seen {self.run.state_word} at {self.run.progress:.0%}"
        missed = f"; the last look failed: {self._missed}" if self._missed else ""
        return f"The deadline passed before the {named} was final. {seen}{missed}. Give it a longer timeout if it needs one."


class Narrator:
    """Tells the log what changed: the state, every ten points of progress, trouble and its end; nothing twice."""

    def __init__(self, tell: Tell) -> None:
        """Begin with nothing told."""
        self._tell = tell
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

    def seen(self, run: FlowRun, now: float, waiting_since: float) -> None:
        """Tell what is new about the run."""
        if self._in_trouble:
            self._in_trouble = False
            self._tell(logging.INFO, f"The {run} can be seen again")
        if run.state_word != self._state_word:
            self._state_word = run.state_word
            self._tell_state(run)
        if run.progress - self._progress >= TOLD_POINTS and not run.final:
            self._progress = run.progress
            end = expected_end(run, now)
            ends = "unknown" if end is None else f"{datetime.fromtimestamp(end, tz=UTC):%H:%M:%S} UTC"
            elapsed = age(run, now, waiting_since)
            percent = int(run.progress * 100 + 1e-9)
            self._tell(logging.INFO, f"The {run} is at {percent}% after {elapsed:.0f} s; expected end: {ends}")

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
