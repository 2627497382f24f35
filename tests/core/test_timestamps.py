"""Tests of the reading of timestamps: what a service writes for "not yet" is no time, to every reader."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.http import Response
from airflow_provider_flows.core.polling.schedule import PollState, Schedule
from airflow_provider_flows.core.timestamps import parse_timestamp
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.generio.responses import parse_running_row
from tests.support.scripted_transport import ScriptedTransport, json_response

ZEROS: list[Any] = [
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00",
    "0001-01-01T00:00:00+00:00",
    "0001-01-01T00:00:00.000000Z",
    "0001-01-01 00:00:00",
    "0001-01-01T00:00:00+05:00",
    "0001-01-01",
    "0000-00-00 00:00:00",
    "1900-01-01T00:00:00",
    "1969-12-31T19:00:00-05:00",
    "1970-01-01T00:00:00Z",
    "1970-01-01T00:00:00-05:00",
    "1970-01-01T01:00:00",
    "1970-01-01",
    "0",
    "00",
    "-1",
    "1",
    "00:00:00",
    "0:00",
    0,
    0.0,
    -1,
    0.001,
    3600,  # the zero of a clock in another time zone, as "1970-01-01T01:00:00"
    28_800_000,
    -62135596800,
    -62135596800000,
]
NAMES = ("created_at", "started_at", "finished_at")


@pytest.mark.parametrize("zero", ZEROS)
def test_zero_times_are_absent_to_every_reader(zero: Any) -> None:
    """A zero time is None in a run that was polled, in a row of a list, in an event and in a record."""
    row = {"flow_id": "r", "state": "running", "template": "t", **dict.fromkeys(NAMES, zero)}
    stored = {"flow_run_id": "r", "service": "generio", "state": "running", **dict.fromkeys(NAMES, zero)}
    polled = ScriptedTransport(json_response(row)).run(Generio().get_run("r"))
    (listed,) = ScriptedTransport(json_response([row])).run(Generio().list_runs())
    in_bulk = parse_running_row("r", row)
    assert in_bulk is not None
    for run in (
        polled,
        listed,
        in_bulk,
        FlowRun.from_event(stored),
        FlowRun.from_record({**stored, "outputs": []}),
    ):
        assert [getattr(run, name) for name in NAMES] == [None] * 3
        assert run.duration is None


@pytest.mark.parametrize("zero", ZEROS)
def test_zero_times_make_polls_no_rarer(zero: Any) -> None:
    """A run that says "not yet" by a zero time is polled as often as one that says nothing."""
    now = time.time()
    run = FlowRun("r", "generio", state=FlowState.RUNNING, started_at=parse_timestamp(zero))
    schedule = Schedule(5, 60, jitter=lambda: 0.0)
    assert schedule.poll_delay(PollState("r", now, run), now).seconds == 5


@pytest.mark.parametrize("value", ["1971-01-01T00:00:00Z", "2025-12-16T12:00:00Z", 31_536_000, 1765886400])
def test_plausible_timestamps_are_parsed(value: Any) -> None:
    """A time after 1970 is a timestamp."""
    assert parse_timestamp(value) is not None


@pytest.mark.parametrize(
    "zero",
    ["Thu, 01 Jan 1970 00:00:00 GMT", "Wed, 31 Dec 1969 19:00:00 -0500", "Mon, 01 Jan 0001 00:00:00 GMT"],
)
def test_zero_time_in_a_header_is_absent(zero: str) -> None:
    """A Retry-After with a zero time asks for no pause, and so for the usual one."""
    assert Response(429, {"retry-after": zero}).retry_after(time.time()) is None
    past = "Thu, 01 Jan 2026 00:00:00 GMT"
    assert Response(429, {"retry-after": past}).retry_after(time.time()) == 0.0


UNREADABLE: list[Any] = [
    "2025-12-16T12:00:00." + "0" * 50,
    "12:" + "9" * 29, "0:", "2025-12-16T12:00:00" + "0" * 200_000, "2025" + "1" * 1_000_000, "2025-W99",
    "2025-13-45T99:99:99Z", "2025 " * 12, "9" * 64, 10**400, float("nan"), float("inf"), -(10**30), True, [],
    {"a": 1}, "2025-12-16T12:00:00+99:99", "2025-12-16T12:00:00Z" * 2, "\uff12\uff10\uff12\uff15-01-01",
]  # fmt: skip


@pytest.mark.parametrize("value", UNREADABLE, ids=lambda value: repr(value)[:30])
def test_unreadable_time_is_absent_at_once(value: Any) -> None:
    """A time that cannot be read is None to every reader, in no time: it blocks no event loop."""
    started = time.process_time()
    row = {"flow_id": "r", "state": "running", "template": "t", **dict.fromkeys(NAMES, value)}
    run = ScriptedTransport(json_response(row)).run(Generio().get_run("r"))
    (listed,) = ScriptedTransport(json_response([row])).run(Generio().list_runs())
    assert [(one.created_at, one.started_at, one.finished_at) for one in (run, listed)] == [(None,) * 3] * 2
    assert time.process_time() - started < 1.0


@given(
    st.text(alphabet="0123456789-:TZ+. WP/,", max_size=80)
    | st.text(max_size=80)
    | st.integers()
    | st.floats()
)
@settings(max_examples=500, deadline=None)
def test_any_value_is_a_time_or_none(value: Any) -> None:
    """No text and no number raises an error."""
    timestamp = parse_timestamp(value)
    assert timestamp is None or timestamp.year >= 1971
