"""Tests of the wait: what does not end it, what ends it, what it saves and logs, and what its observers get.

Both drivers run it, over scripted responses, with a clock that only their sleeps advance.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import (
    FlowAuthError,
    FlowConflict,
    FlowInvalid,
    FlowNotFound,
    FlowQuotaExceeded,
    FlowServiceError,
    FlowTimeout,
)
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.http import Response
from airflow_provider_flows.core.polling.schedule import Delay, Done, Failed, PollState
from airflow_provider_flows.core.polling.wait import ProgressLogger
from airflow_provider_flows.core.retry import NO_RETRY, with_retries
from tests.support.scripted_transport import NOON, json_response, no_response
from tests.support.scripted_wait import ScriptedWait, run_response

HTML = json_response(b"<html><body>502 Bad Gateway</body></html>")


TRUNCATED = json_response(b'{"flow_id": "r", "state": "runn')


TRANSIENT = [
    no_response(),
    HTML,
    TRUNCATED,
    *(json_response({}, code) for code in (408, 429, 500, 502, 503, 504)),
]


@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
@pytest.mark.parametrize("end", ["completed", "failed", "aborted", "COMPLETED"])
def test_wait_ends_with_the_run(kind: str, end: str) -> None:
    """A wait ends at any final state, and returns the run as the last poll returned it."""
    scripted = ScriptedWait(
        run_response("created"),
        run_response("starting"),
        run_response("running"),
        run_response(end, progress=0.5),
    )
    assert scripted.run(kind).raw_state == end.lower()
    assert len(scripted.script.sleeps) == 3


@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
@pytest.mark.parametrize("failure", TRANSIENT, ids=str)
def test_failed_poll_is_no_failed_run(kind: str, failure: Response | FlowServiceError) -> None:
    """After no response, an overloaded service, HTML or truncated JSON polling continues with backoff."""
    scripted = ScriptedWait(run_response("running"), failure, failure, failure, run_response("completed"))
    assert scripted.run(kind).is_final
    assert scripted.script.sleeps == [5, 5, 10, 20]


PERMANENT = [
    (400, FlowInvalid),
    (401, FlowAuthError),
    (402, FlowQuotaExceeded),
    (403, FlowAuthError),
    (404, FlowNotFound),
    (409, FlowConflict),
    (415, FlowInvalid),
    (422, FlowInvalid),
]


@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
@pytest.mark.parametrize(("code", "error"), PERMANENT)
def test_third_permanent_error_ends_the_wait(kind: str, code: int, error: type[FlowServiceError]) -> None:
    """A rejected key, an unknown run or another permanent error ends the wait at the third poll."""
    scripted = ScriptedWait(*[json_response({"detail": "no"}, code)] * 3)
    with pytest.raises(error, match="no"):
        scripted.run(kind)
    assert scripted.script.sleeps == [5, 10]


@pytest.mark.parametrize("is_restored", [False, True])
@pytest.mark.parametrize(("missing_seconds", "is_over"), [(15, False), (29, False), (31, True), (58, True)])
def test_found_run_may_be_missing_for_half_a_minute(
    missing_seconds: float, *, is_over: bool, is_restored: bool
) -> None:
    """A gateway that fails over responds with 404 to polls of an active run; that ends no wait."""
    polls = [run_response("running"), *[json_response({}, 404)] * 3]
    scripted = ScriptedWait(*polls, *[json_response({}, 404) if is_over else run_response("completed")])
    scripted.poll()
    for _ in range(2):
        scripted.poll()
        scripted.script.sleep(missing_seconds / 4)
    if is_restored:
        saved = scripted.wait.to_dict()
        scripted.wait.poll_state = PollState("r", scripted.script.clock())
        scripted.wait.restore(json.loads(json.dumps(saved)))
    assert isinstance(scripted.poll(), Delay)
    scripted.script.sleep(missing_seconds / 2)
    last = scripted.poll()
    assert isinstance(last, Failed) if is_over else isinstance(last, Done)


def test_quota_of_requests_ends_no_wait() -> None:
    """A 429 for a poll that speaks of a quota limits requests: the run is paid, and polling continues."""
    failures = [json_response({"detail": "Quota exceeded"}, 429)] * 4
    scripted = ScriptedWait(run_response("running"), *failures, run_response("completed"))
    assert scripted.run().is_final


def test_successful_poll_resets_permanent_errors() -> None:
    """A successful poll between permanent errors resets their count, however many there were."""
    scripted = ScriptedWait(
        *[json_response({}, 404), json_response({}, 401), run_response("running")] * 3,
        json_response({}, 403),
        run_response("completed"),
    )
    assert scripted.run().is_final
    assert len(scripted.script.requests) == 11


def test_transient_errors_do_not_reset_permanent_errors() -> None:
    """A failed poll is no successful one: three rejections with other failures between them end the wait."""
    scripted = ScriptedWait(
        run_response("running"),
        json_response({}, 401),
        json_response({}, 503),
        json_response({}, 401),
        no_response(),
        json_response({}, 401),
    )
    with pytest.raises(FlowAuthError):
        scripted.run()


def test_permanent_error_is_confirmed_without_saved_state() -> None:
    """Without saved state a poll is repeated soon after a rejection, and not after a transient error."""
    rejected = ScriptedWait(*[json_response({}, 404)] * 3)
    with pytest.raises(FlowNotFound):
        rejected.script.run(with_retries(rejected.wait.poll_confirming_errors(), NO_RETRY))
    assert rejected.script.sleeps == [5, 10]

    visible = ScriptedWait(json_response({}, 404), json_response({}, 503), run_response("completed"))
    run = visible.script.run(with_retries(visible.wait.poll_confirming_errors(), NO_RETRY))
    assert run is not None
    assert run.is_final

    overloaded = ScriptedWait(json_response({}, 503))
    assert overloaded.script.run(with_retries(overloaded.wait.poll_confirming_errors(), NO_RETRY)) is None


def test_permanent_errors_are_counted_across_processes() -> None:
    """A wait that continues in another process counts on, also from the state of an older version."""
    first = ScriptedWait(json_response({}, 404), json_response({}, 404))
    for _ in range(2):
        assert isinstance(first.poll(), Delay)
    saved = json.loads(json.dumps(first.wait.to_dict()))
    second = ScriptedWait(json_response({}, 404))
    second.wait.restore(saved)
    with pytest.raises(FlowNotFound):
        second.run()

    for name in ("permanent_errors", "progress"):
        del saved[name]
    third = ScriptedWait(json_response({}, 404), run_response("completed"))
    third.wait.restore(saved)
    assert third.run().is_final


def test_wait_honours_retry_after() -> None:
    """The next poll comes no sooner than the service requested."""
    scripted = ScriptedWait(
        run_response("running"), json_response({}, 503, retry_after="120"), run_response("completed")
    )
    scripted.run()
    assert scripted.script.sleeps == [5, 120]


@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
def test_wait_ends_exactly_at_the_deadline(kind: str) -> None:
    """At the deadline the wait polls once more, then raises FlowTimeout with the last known state."""
    scripted = ScriptedWait(run_response("running", progress=0.25), deadline=NOON + 12, endless=True)
    with pytest.raises(FlowTimeout, match=r"it was 'running' at 25%.*increase timeout"):
        scripted.run(kind)
    assert scripted.script.now == NOON + 12
    assert len(scripted.script.requests) == 4


def test_run_that_is_final_at_the_deadline_is_returned() -> None:
    """A run that is final at the last poll, which is at the deadline, is returned."""
    assert (
        ScriptedWait(
            run_response("running"), run_response("running"), run_response("completed"), deadline=NOON + 8
        )
        .run()
        .is_final
    )


def test_failed_polls_end_at_the_deadline() -> None:
    """A service that never responds is polled until the deadline, and the error says why."""
    scripted = ScriptedWait(no_response(), deadline=NOON + 60, endless=True)
    with pytest.raises(
        FlowTimeout, match="No poll succeeded; the last poll failed: GET / got no response"
    ) as caught:
        scripted.run()
    assert scripted.script.now == NOON + 60
    assert "increase timeout" not in str(caught.value)


def test_single_poll_returns_none_after_an_error() -> None:
    """A failed poll returns no run and ends nothing; the next poll comes after the poll interval."""
    scripted = ScriptedWait(no_response(), run_response("running"))
    assert scripted.script.run(with_retries(scripted.wait.poll_once(), NO_RETRY)) is None
    assert scripted.wait.next_delay() == 5
    run = scripted.script.run(with_retries(scripted.wait.poll_once(), NO_RETRY))
    assert run is not None
    assert not run.is_final


def test_run_carries_its_expected_end() -> None:
    """The run of a poll has the expected end that the log shows; a final run has none."""
    scripted = ScriptedWait(
        run_response("running"),
        run_response("running", progress=0.1),
        run_response("completed", progress=1.0),
    )
    assert scripted.poll_run().expected_end is None
    scripted.script.sleep(10)
    run = scripted.poll_run()
    assert (run.expected_end_epoch, str(run.expected_end)) == (NOON + 100, "2025-12-15 12:01:40+00:00")
    scripted.script.sleep(10)
    assert scripted.poll_run().expected_end is None


def test_steady_run_is_polled_rarely_until_its_expected_end() -> None:
    """Polls of a steady run become rare, and the one at its expected end is marked as such."""
    scripted = ScriptedWait(*(run_response("running", progress=part / 100) for part in (10, 20, 60)))
    steps = []
    for seconds in (10, 20, 60):
        scripted.script.now = NOON + seconds
        steps.append(scripted.poll())
    assert steps[:2] == [Delay(5), Delay(40)]
    assert isinstance(steps[2], Delay)
    assert steps[2].is_at_expected_end
    assert 40 < steps[2].seconds < 42


def test_forecast_is_saved_for_another_process() -> None:
    """A wait that continues in another process has the same forecast and starts where the first ended."""
    first = ScriptedWait(run_response("running", progress=0.1), run_response("running", progress=0.2))
    for seconds in (10, 20):
        first.script.now = NOON + seconds
        first.poll_run()
    saved = json.loads(json.dumps(first.wait.to_dict()))

    second = ScriptedWait(run_response("running", progress=0.5))
    second.script.now = NOON + 50
    second.wait.restore(saved)

    assert second.wait.to_dict() == first.wait.to_dict()
    assert second.wait.initial_delay() > 0
    run = second.poll_run()
    assert run.expected_end_epoch == NOON + 100
    assert 50 < second.wait.next_delay() < 52  # until just after the end, because two forecasts agree on it


def test_new_wait_polls_at_once() -> None:
    """Only a wait that continues after a poll elsewhere starts with a delay."""
    assert ScriptedWait().wait.initial_delay() == 0


@pytest.mark.parametrize(
    "forecast", [None, {}, {"progress": 0.5}, {"progress": 0.5, "of_a_later_version": 1}]
)
def test_saved_state_of_another_version_can_be_restored(forecast: Any) -> None:
    """Saved state of another version, or without a forecast, is read as far as possible."""
    scripted = ScriptedWait(run_response("running", progress=0.5), run_response("completed"))
    scripted.wait.restore({**scripted.wait.to_dict(), "forecast": forecast})
    assert scripted.wait.initial_delay() >= 0
    assert scripted.run().is_final


@pytest.mark.parametrize("started", ["0001-01-01T00:00:00Z", -62135596800, NOON - 1e12])
def test_implausible_start_time_does_not_break_a_wait(started: Any) -> None:
    """A start in the year 1, which some services write for none, does not break a wait."""
    scripted = ScriptedWait(
        *(run_response("running", progress=part, started_at=started) for part in (0.1, 0.3, 0.5)),
        run_response("completed"),
    )
    assert scripted.run().is_final


def test_callbacks_count_polls_and_report_the_end() -> None:
    """Each poll is counted, failed ones too; the end is reported with wait time and detection delay."""
    polls, ends = list[None](), list[tuple[str, float, float | None]]()

    def on_final(run: FlowRun, wait_seconds: float, detection_delay: float | None) -> None:
        ends.append((run.raw_state, wait_seconds, detection_delay))

    responses = run_response("running"), no_response(), run_response("failed", finished_at=NOON + 7)
    ScriptedWait(*responses, count_poll=lambda: polls.append(None), on_final=on_final).run()
    assert (len(polls), ends) == (3, [("failed", 10, 3)])


def test_list_does_not_remove_known_fields() -> None:
    """Flow and timestamps from a poll are not lost when a list lacks them."""
    scripted = ScriptedWait(run_response("running", template="chair", progress=0.1))
    scripted.script.sleep(10)
    scripted.poll_run()
    scripted.script.sleep(10)
    scripted.wait.record_poll(FlowRun("r", "generio", state=FlowState.RUNNING, progress=0.2))
    assert scripted.wait.run is not None
    assert (scripted.wait.run.flow, scripted.wait.run.progress) == ("chair", 0.2)
    assert scripted.wait.run.started_at is not None
    assert scripted.wait.to_dict()["forecast"]["end"] == pytest.approx(NOON + 100)


def test_unknown_state_is_logged_once() -> None:
    """A state that this provider does not know causes one warning with its name, and polling continues."""
    scripted = ScriptedWait(
        run_response("paused"), run_response("paused"), run_response("paused"), run_response("completed")
    )
    assert scripted.run().is_final
    (warning,) = scripted.lines_of(logging.WARNING)
    assert "'paused'" in warning
    assert "polling continues" in warning


def test_state_is_logged_when_it_changes() -> None:
    """Each change of state is one line, however many polls return it."""
    scripted = ScriptedWait(
        *[run_response("starting")] * 3,
        *[run_response("running")] * 9,
        run_response("completed", finished_at=NOON + 61.5),
    )
    scripted.run()
    assert scripted.lines_of(logging.INFO) == [
        "The generio flow run r is starting",
        "The flow run r is running",
        "The flow run r is completed after 61.5 s",
    ]


def test_only_the_first_line_names_the_run_in_full() -> None:
    """The first line has service, id and flow, also if a poll failed; later ones the end of the id."""
    flow_run_id = "6b0cff80866b6f320d018eb3"
    run = FlowRun(flow_run_id, "generio", "chair", FlowState.RUNNING, "running")
    lines: list[str] = []
    logger = ProgressLogger(lambda _, line: lines.append(line))
    poll_state = PollState(flow_run_id, NOON)

    logger.on_run(run, poll_state, NOON)
    logger.on_failed_poll(poll_state._replace(failed_polls=1))
    other = ProgressLogger(lambda _, line: lines.append(line))
    other.restore(logger.to_dict())
    other.on_failed_poll(poll_state._replace(failed_polls=2))
    other.on_run(replace(run, progress=0.5), poll_state, NOON)
    ProgressLogger(lambda _, line: lines.append(line), is_named=True).on_run(run, poll_state, NOON)
    ProgressLogger(lambda _, line: lines.append(line)).on_failed_poll(poll_state._replace(failed_polls=1))

    full, short = f"The generio flow run {flow_run_id} (flow chair) ", "The flow run ...018eb3 (chair) "
    starts = [full, *[short] * 5, f"The flow run {flow_run_id} "]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts


def test_progress_is_logged_every_ten_points() -> None:
    """Progress is logged for each ten points, with age and expected end; a decrease is not logged."""
    values = (0.0, 0.05, 0.1, 0.12, 0.19, 0.29, 0.1, 0.3, 0.75, 0.75, 0.99, 1.0)
    scripted = ScriptedWait(
        *(run_response("running", progress=progress) for progress in values), run_response("completed")
    )
    scripted.run()
    lines = [line for line in scripted.lines_of(logging.INFO) if "%" in line]
    assert [line.split(" at ")[1].split("%")[0] for line in lines] == ["10", "29", "75", "99"]
    assert lines[0].endswith("after 10 s; expected end: 12:01:40 UTC")
    assert len(scripted.lines) == len(lines) + 2


def test_progress_is_logged_at_most_once_an_interval() -> None:
    """At least `min_log_interval` seconds lie between two lines about progress; states are logged at once."""
    scripted = ScriptedWait(
        *(run_response("running", progress=part / 10) for part in range(9)),
        run_response("aborting"),
        run_response("aborted"),
        min_log_interval=30,
    )
    for _ in range(11):
        scripted.poll_run()
        scripted.script.sleep(10)
    lines = [line for line in scripted.lines_of(logging.INFO) if "%" in line]
    assert [line.split(" at ")[1].split("%")[0] for line in lines] == ["10", "40", "70"]
    assert [
        line.split()[-1] for line in scripted.lines_of(logging.INFO) if " is a" in line and "%" not in line
    ] == [
        "aborting",
        "aborted",
    ]


REPEATED_ERRORS = {
    # the responses, and how often all of their error is in the log and in the error that ends the wait
    "not found": ([json_response({"detail": "because"}, 404)] * 3, 1),
    "invalid key": ([json_response({"detail": "because"}, 401)] * 3, 1),
    "overloaded": ([*[json_response({"detail": "because"}, 503)] * 9, run_response("completed")], 1),
}


@pytest.mark.parametrize("case", REPEATED_ERRORS)
def test_repeated_error_is_reported_in_full_once(case: str) -> None:
    """The warnings about an error that ends the wait, or that repeats, have a summary of it only."""
    responses, count = REPEATED_ERRORS[case]
    scripted = ScriptedWait(*responses)
    messages = []
    try:
        scripted.run()
    except FlowServiceError as error:
        messages.append(str(error))
    messages += scripted.lines_of(logging.WARNING)
    assert len(messages) > 1
    assert sum("because" in message for message in messages) == count
    assert all("HTTP " in message for message in messages)


def test_failed_polls_and_recovery_are_logged() -> None:
    """The first failed poll of a series, each doubling of their number, and the recovery are logged."""
    scripted = ScriptedWait(
        run_response("running"),
        *[json_response({}, 503)] * 9,
        run_response("running"),
        no_response(),
        run_response("completed"),
    )
    scripted.run()
    warnings = scripted.lines_of(logging.WARNING)
    assert [warning.split("(")[1].split(" ")[0] for warning in warnings] == ["1", "2", "4", "8", "1"]
    assert all("polling continues" in warning for warning in warnings)
    assert [line for line in scripted.lines_of(logging.INFO) if "polled again" in line] == [
        "The flow run r can be polled again"
    ] * 2
