"""Tests of the wait: what does not end it, what ends it, and what it logs.

Both drivers run it, over scripted responses, with a clock that only their sleeps advance.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowConflict,
    FlowInvalid,
    FlowNotFound,
    FlowServiceError,
    FlowTimeout,
)
from airflow_provider_flows.core.flow_run import FlowRun
from airflow_provider_flows.core.http import Response
from airflow_provider_flows.core.polling.schedule import Delay, Schedule, Step
from airflow_provider_flows.core.polling.wait import Wait
from airflow_provider_flows.core.retry import NO_RETRY, with_retries
from airflow_provider_flows.services.generio.api import Generio
from tests.support.scripted_transport import NOON, ScriptedTransport, json_response, no_response

HTML = json_response(b"<html><body>502 Bad Gateway</body></html>")
CUT = json_response(b'{"flow_id": "r", "state": "runn')
TRANSIENT = [no_response(), HTML, CUT, *(json_response({}, code) for code in (408, 429, 500, 502, 503, 504))]


def state(word: str, **more: Any) -> Response:
    """Make the answer about a run that began at noon."""
    return json_response({"flow_id": "r", "state": word, "started_at": NOON, **more})


class ScriptedWait:
    """A wait over a script, and the lines that the log got."""

    def __init__(
        self,
        *answers: Response | FlowServiceError,
        deadline: float | None = None,
        endless: bool = False,
        min_log_interval: float = 0.0,
        **observers: Any,
    ) -> None:
        self.script = ScriptedTransport(*answers, endless=endless)
        self.lines: list[tuple[int, str]] = []
        schedule = Schedule(5, 60, deadline, jitter=lambda: 0.0)
        self.wait = Wait(
            "r",
            Generio().get_run,
            schedule=schedule,
            clock=self.script.clock,
            log=lambda *line: self.lines.append(line),
            min_log_interval=min_log_interval,
            **observers,
        )

    def run(self, kind: str = "blocking") -> FlowRun:
        """Wait to the end."""
        return self.script.run(with_retries(self.wait.poll_until_final(), NO_RETRY), kind)

    def poll(self) -> Step:
        """Poll once, and return the next step."""
        return self.script.run(with_retries(self.wait.poll(), NO_RETRY))

    def lines_of(self, level: int) -> list[str]:
        """Return the lines of one level."""
        return [line for line_level, line in self.lines if line_level == level]


@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
@pytest.mark.parametrize("end", ["completed", "failed", "aborted", "COMPLETED"])
def test_wait_ends_with_the_run(kind: str, end: str) -> None:
    """A wait ends at a final state, whichever it is, and gives the run as it was seen."""
    scripted = ScriptedWait(state("created"), state("starting"), state("running"), state(end, progress=0.5))
    assert scripted.run(kind).raw_state == end.lower()
    assert len(scripted.script.sleeps) == 3


@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
@pytest.mark.parametrize("failure", TRANSIENT, ids=str)
def test_failed_look_is_no_failed_run(kind: str, failure: Response | FlowServiceError) -> None:
    """No answer, an overloaded service, HTML and cut JSON are waited out."""
    scripted = ScriptedWait(state("running"), failure, failure, failure, state("completed"))
    assert scripted.run(kind).is_final
    assert scripted.script.sleeps == [5, 5, 10, 20]


PERMANENT = [
    (400, FlowInvalid),
    (401, FlowAuthError),
    (402, FlowServiceError),
    (403, FlowAuthError),
    (404, FlowNotFound),
    (409, FlowConflict),
    (415, FlowInvalid),
    (422, FlowInvalid),
]


@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
@pytest.mark.parametrize(("code", "error"), PERMANENT)
def test_refusal_gets_three_looks(kind: str, code: int, error: type[FlowServiceError]) -> None:
    """A refused key, an unknown run or any other refusal ends the wait when three looks met it."""
    scripted = ScriptedWait(state("running"), *[json_response({"detail": "no"}, code)] * 3)
    with pytest.raises(error, match="no"):
        scripted.run(kind)
    assert scripted.script.sleeps == [5, 5, 10]


def test_key_that_is_changed_in_time_ends_nothing() -> None:
    """A good look between refusals begins the count anew, however many they are."""
    scripted = ScriptedWait(
        *[json_response({}, 404), json_response({}, 401), state("running")] * 3,
        json_response({}, 403),
        state("completed"),
    )
    assert scripted.run().is_final
    assert len(scripted.script.requests) == 11


def test_refusals_between_other_trouble_count_on() -> None:
    """A failed poll is no successful one: three rejections with other failures between them end the wait."""
    scripted = ScriptedWait(
        state("running"),
        json_response({}, 401),
        json_response({}, 503),
        json_response({}, 401),
        no_response(),
        json_response({}, 401),
    )
    with pytest.raises(FlowAuthError):
        scripted.run()


def test_who_forgets_looks_until_it_is_sure() -> None:
    """Without saved state a poll is repeated soon after a rejection, and not after a transient error."""
    refused = ScriptedWait(*[json_response({}, 404)] * 3)
    with pytest.raises(FlowNotFound):
        refused.script.run(with_retries(refused.wait.poll_confirming_errors(), NO_RETRY))
    assert refused.script.sleeps == [5, 10]

    late = ScriptedWait(json_response({}, 404), json_response({}, 503), state("completed"))
    run = late.script.run(with_retries(late.wait.poll_confirming_errors(), NO_RETRY))
    assert run is not None
    assert run.is_final

    away = ScriptedWait(json_response({}, 503))
    assert away.script.run(with_retries(away.wait.poll_confirming_errors(), NO_RETRY)) is None


def test_refusals_are_counted_on_in_another_process() -> None:
    """A wait that continues in another process counts on, also from the state of an older version."""
    first = ScriptedWait(json_response({}, 404), json_response({}, 404))
    for _ in range(2):
        assert isinstance(first.poll(), Delay)
    memory = json.loads(json.dumps(first.wait.to_dict()))
    second = ScriptedWait(json_response({}, 404))
    second.wait.restore(memory)
    with pytest.raises(FlowNotFound):
        second.run()

    for name in ("permanent_errors", "progress"):
        del memory[name]
    third = ScriptedWait(json_response({}, 404), state("completed"))
    third.wait.restore(memory)
    assert third.run().is_final


def test_retry_after_is_honoured_by_the_wait() -> None:
    """A service that asks for a pause is left in peace that long."""
    scripted = ScriptedWait(state("running"), json_response({}, 503, retry_after="120"), state("completed"))
    scripted.run()
    assert scripted.script.sleeps == [5, 120]


@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
def test_deadline_ends_the_wait_at_its_second(kind: str) -> None:
    """At the deadline the wait looks once more, then raises FlowTimeout, which says what was seen last."""
    scripted = ScriptedWait(state("running", progress=0.25), deadline=NOON + 12, endless=True)
    with pytest.raises(FlowTimeout, match=r"it was 'running' at 25%.*increase timeout"):
        scripted.run(kind)
    assert scripted.script.now == NOON + 12
    assert len(scripted.script.requests) == 4


def test_run_that_ends_by_the_deadline_is_given() -> None:
    """A run that is final at the look on the deadline is not late."""
    assert (
        ScriptedWait(state("running"), state("running"), state("completed"), deadline=NOON + 8).run().is_final
    )


def test_deadline_holds_in_trouble_too() -> None:
    """A service that never responds is polled until the deadline, and the error says why."""
    scripted = ScriptedWait(no_response(), deadline=NOON + 60, endless=True)
    with pytest.raises(FlowTimeout, match="No poll succeeded; the last poll failed: GET / got no response"):
        scripted.run()
    assert scripted.script.now == NOON + 60


def test_state_word_never_seen_is_waited_out_and_warned_of_once() -> None:
    """A word that nobody knows is warned of once, by that word, and the wait goes on."""
    scripted = ScriptedWait(state("paused"), state("paused"), state("paused"), state("completed"))
    assert scripted.run().is_final
    (warning,) = scripted.lines_of(logging.WARNING)
    assert "'paused'" in warning
    assert "polling continues" in warning


def test_state_is_told_when_it_changes() -> None:
    """Each change of state is one line, however often it was looked."""
    scripted = ScriptedWait(
        *[state("starting")] * 3, *[state("running")] * 9, state("completed", finished_at=NOON + 61.5)
    )
    scripted.run()
    assert scripted.lines_of(logging.INFO) == [
        "The generio flow run r is starting",
        "The generio flow run r is running",
        "The generio flow run r is completed after 61.5 s",
    ]


def test_progress_is_told_every_ten_points() -> None:
    """Progress is logged for each ten points, with age and expected end; a decrease is not logged."""
    seen = (0.0, 0.05, 0.1, 0.12, 0.19, 0.29, 0.1, 0.3, 0.75, 0.75, 0.99, 1.0)
    scripted = ScriptedWait(*(state("running", progress=progress) for progress in seen), state("completed"))
    scripted.run()
    lines = [line for line in scripted.lines_of(logging.INFO) if "%" in line]
    assert [line.split(" at ")[1].split("%")[0] for line in lines] == ["10", "29", "75", "99"]
    assert lines[0].endswith("after 10 s; expected end: 12:01:40 UTC")
    assert len(scripted.lines) == len(lines) + 2


def test_trouble_is_told_and_its_end() -> None:
    """The first miss of a row is a warning, then each doubling of the row, and its end is told once."""
    scripted = ScriptedWait(
        state("running"), *[json_response({}, 503)] * 9, state("running"), no_response(), state("completed")
    )
    scripted.run()
    warnings = scripted.lines_of(logging.WARNING)
    assert [warning.split("(")[1].split(" ")[0] for warning in warnings] == ["1", "2", "4", "8", "1"]
    assert all("polling continues" in warning for warning in warnings)
    assert [line for line in scripted.lines_of(logging.INFO) if "polled again" in line] == [
        "The generio flow run r can be polled again"
    ] * 2


def test_single_look_gives_none_in_trouble() -> None:
    """A failed poll returns no run and ends nothing; the next poll comes after the poll interval."""
    scripted = ScriptedWait(no_response(), state("running"))
    assert scripted.script.run(with_retries(scripted.wait.poll_once(), NO_RETRY)) is None
    assert scripted.wait.next_delay() == 5
    run = scripted.script.run(with_retries(scripted.wait.poll_once(), NO_RETRY))
    assert run is not None
    assert not run.is_final
