"""Tests of the run of an earlier try: it is resumed, deleted or aborted; and of aborting a run.

Tests of states use scripted responses, tests of requests the emulator.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowConflict, FlowServiceError, FlowUnreachable
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.service import ABORT_POLL_SECONDS, abort_run, abort_run_and_wait
from airflow_provider_flows.core.start_or_resume import (
    STAMP_KEY,
    RunRecord,
    find_stamped_runs,
    resume,
    select_record,
)
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.transport import blocking
from tests.support.run_requests import FLOW, RECORD, RUN_REQUEST, start_and_record
from tests.support.scripted_transport import NOON, ScriptedTransport, json_response, no_response

pytestmark = pytest.mark.emulator(run_seconds=60)


TABLE = [
    # state of the run, same request, same generation -> whether it is resumed, requests after the poll
    ("created", True, True, False, ["GET", "DELETE"]),
    ("created", False, False, False, ["GET", "DELETE"]),
    ("starting", True, True, True, []),
    ("running", True, True, True, []),
    ("aborting", True, True, False, ["GET"]),
    ("never seen", True, True, True, []),
    ("completed", True, True, True, []),
    ("failed", True, True, False, ["GET"]),
    ("aborted", True, True, False, ["GET"]),
    ("running", True, False, False, ["GET", "PATCH"]),
    ("running", False, True, False, ["GET", "PATCH"]),
    ("aborting", False, True, False, ["GET"]),
    ("completed", True, False, False, ["GET"]),
    ("completed", False, True, False, ["GET"]),
]


@pytest.mark.parametrize(("state", "same_request", "same_generation", "is_resumed", "then"), TABLE)
def test_run_of_an_earlier_try_is_resumed_or_ended(
    *, state: str, same_request: bool, same_generation: bool, is_resumed: bool, then: list[str]
) -> None:
    """A run of the same request is resumed, a created one deleted, one of another request aborted."""
    record = RunRecord(
        RUN_REQUEST.fingerprint if same_request else "other", 0 if same_generation else 1, flow_run_id="r"
    )
    script = ScriptedTransport(json_response({"flow_id": "r", "state": state}), endless=True)
    run = script.run(resume(Generio(), RUN_REQUEST.fingerprint, record, 0))
    assert (run is not None) == is_resumed
    assert [request.method for request in script.requests] == ["GET", *then]


@pytest.mark.parametrize(
    ("state", "then"), [("running", []), ("completed", []), ("created", ["GET", "DELETE"])]
)
def test_run_of_another_request_is_not_aborted_if_disabled(state: str, then: list[str]) -> None:
    """With abort=False a run from before a Clear continues; one that never ran is still deleted."""
    script = ScriptedTransport(json_response({"flow_id": "r", "state": state}), endless=True)
    assert (
        script.run(
            resume(
                Generio(),
                RUN_REQUEST.fingerprint,
                replace(RECORD, generation=7, flow_run_id="r"),
                0,
                abort=False,
            )
        )
        is None
    )
    assert [request.method for request in script.requests] == ["GET", *then]


def resume_on_scripted_clock(
    hook: GenerioHook, record: RunRecord, clock: ScriptedTransport, **arguments: Any
) -> FlowRun | None:
    """Resume the run of a record at the emulator, without waiting for the pauses."""
    conversation = resume(hook.service, RUN_REQUEST.fingerprint, record, 0, now=clock.clock, **arguments)
    return blocking.run(
        conversation, blocking.BlockingTransport(hook.settings, hook.get_conn()).send, clock.sleep
    )


def start_earlier(hook: GenerioHook) -> RunRecord:
    """Start a run, and return the record that the start has saved, without a deadline."""
    records: list[RunRecord | None] = []
    start_and_record(hook, records.append)
    assert records[-1] is not None
    return replace(records[-1], deadline=None)


@pytest.mark.parametrize("errors", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("path", ["/flows/*", "/flows*"], ids=["the run", "the run and the list"])
def test_run_that_is_not_found_for_a_while_is_resumed(
    flow_emulator: Emulator, hook: GenerioHook, path: str, errors: int
) -> None:
    """A gateway that responds with 404 for up to 30 s does not make the retry start another run."""
    record, missing = start_earlier(hook), list[str]()
    fault = flow_emulator.add_fault(Fault("GET", path, status=404, times=errors))
    run = resume_on_scripted_clock(hook, record, ScriptedTransport(), on_missing=missing.append)
    assert run is not None
    assert (run.flow_run_id, fault.hits, missing) == (record.flow_run_id, errors, [])


@pytest.mark.parametrize("same_id", [True, False])
def test_run_that_is_only_listed_is_resumed(
    flow_emulator: Emulator, hook: GenerioHook, *, same_id: bool
) -> None:
    """A run that is not found for 30 s is resumed if the list has its id, or its stamp."""
    record = start_earlier(hook)
    hook.start(FLOW, "a chair", additional={STAMP_KEY: {"token": "another"}})
    run_request = replace(RUN_REQUEST, additional=["no mapping, so no stamp"])
    unstamped = hook.start_from_request(run_request, record=RECORD, save=lambda _: None, validate=False)
    expected = unstamped.flow_run_id if same_id else record.flow_run_id
    flow_emulator.add_fault(Fault("GET", "/flows/*", status=404, times=None))
    clock = ScriptedTransport()
    named = (
        replace(record, token="lost", flow_run_id=expected) if same_id else replace(record, flow_run_id="r")
    )
    run = resume_on_scripted_clock(hook, named, clock)
    assert run is not None
    assert run.flow_run_id == expected
    assert sum(clock.sleeps) == 30.0


@pytest.mark.parametrize("same_request", [True, False])
def test_run_that_is_gone_is_reported(
    flow_emulator: Emulator, hook: GenerioHook, *, same_request: bool
) -> None:
    """A run that is neither returned nor listed for 30 s is reported, and a new one must be started."""
    record, missing = start_earlier(hook), list[str]()
    hook.abort(str(record.flow_run_id))
    flow_emulator.advance(3600)
    hook.delete(str(record.flow_run_id))
    hook.start(FLOW, "a chair")
    clock = ScriptedTransport()
    named = record if same_request else replace(record, generation=7)
    assert resume_on_scripted_clock(hook, named, clock, on_missing=missing.append) is None
    assert missing == [record.flow_run_id]
    assert sum(clock.sleeps) == 30.0
    assert clock.sleeps == sorted(clock.sleeps)


@pytest.mark.parametrize(("seconds", "slept"), [(-5.0, 1.5), (0.0, 1.5), (5.0, 5.0), (100.0, 30.0)])
def test_search_for_a_run_ends_at_the_deadline(
    flow_emulator: Emulator, hook: GenerioHook, seconds: float, slept: float
) -> None:
    """The pauses end at the deadline, but not within 1.5 s; the list is searched in any case."""
    record = replace(start_earlier(hook), deadline=NOON + seconds)
    flow_emulator.add_fault(Fault("GET", "/flows*", status=404, times=None))
    clock, missing = ScriptedTransport(), list[str]()
    assert resume_on_scripted_clock(hook, record, clock, on_missing=missing.append) is None
    assert sum(clock.sleeps) == slept
    assert "GET /flows" in [f"{sent.method} {sent.path}" for sent in flow_emulator.requests]
    assert missing == [record.flow_run_id]


@pytest.mark.parametrize("status", [402, 500, 503])
def test_list_that_fails_does_not_end_the_search(
    flow_emulator: Emulator, hook: GenerioHook, status: int
) -> None:
    """A list that cannot be searched is ignored, and the run is polled again."""
    record = start_earlier(hook)
    flow_emulator.add_fault(Fault("GET", "/flows", status=status, times=None))
    flow_emulator.add_fault(Fault("GET", "/flows/*", status=404, times=4))
    run = resume_on_scripted_clock(hook, record, ScriptedTransport())
    assert run is not None
    assert run.flow_run_id == record.flow_run_id


@pytest.mark.parametrize(
    ("state", "is_resumed"), [("completed", True), ("failed", False), ("aborted", False)]
)
def test_saved_run_is_resumed_if_it_completed(
    flow_emulator: Emulator, hook: GenerioHook, state: str, *, is_resumed: bool
) -> None:
    """A run that is saved completely is returned without a request, unless it failed or was aborted."""
    saved_run = FlowRun("r", "generio", state=FlowState(state)).to_record()
    record = replace(RECORD, flow_run_id="r", saved_run=saved_run)
    run = hook.resume(record.fingerprint, record, record.generation)
    assert (run is not None) == is_resumed
    assert flow_emulator.requests == ()


def test_missing_record_sends_no_request() -> None:
    """Without a record there is nothing to resume."""
    assert ScriptedTransport().run(resume(Generio(), RUN_REQUEST.fingerprint, None, 0)) is None


def test_run_that_is_briefly_not_found_is_resumed() -> None:
    """A single 404 for the earlier run does not start another one."""
    script = ScriptedTransport(json_response({}, 404), json_response({"flow_id": "r", "state": "running"}))
    run = script.run(resume(Generio(), RUN_REQUEST.fingerprint, replace(RECORD, flow_run_id="r"), 0))
    assert run is not None
    assert run.flow_run_id == "r"


def test_unavailable_service_is_an_error_and_no_new_run() -> None:
    """While the earlier run cannot be polled, no other is started."""
    with pytest.raises(FlowUnreachable):
        ScriptedTransport(no_response()).run(
            resume(Generio(), RUN_REQUEST.fingerprint, replace(RECORD, flow_run_id="r"), 0)
        )


def test_created_run_whose_id_was_not_saved_is_deleted(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """A created run whose id was lost with its worker is found by its stamp and deleted; no other is."""

    def die(record: RunRecord | None) -> None:
        if record is not None and record.flow_run_id is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_and_record(hook, die)
    for additional in (None, "mark", {STAMP_KEY: {"token": "another"}}, {"order": 17}):
        hook.run(Generio().create(FLOW, None, additional))
    started = hook.start(FLOW, "a chair", additional={STAMP_KEY: {"token": "mark"}})
    assert len(flow_emulator.runs) == 6

    assert hook.resume(RUN_REQUEST.fingerprint, RECORD, 0) is None

    assert len(flow_emulator.runs) == 5
    remaining = [run.additional for run in flow_emulator.runs.values()]
    assert RUN_REQUEST.additional | {STAMP_KEY: {"token": "mark"}} not in remaining
    assert started.flow_run_id in flow_emulator.runs


@pytest.mark.parametrize(
    "failure",
    [no_response(), json_response({}, 404), json_response({}, 503), json_response(b"<html>")],
    ids=str,
)
def test_orphans_are_not_searched_without_a_list(failure: Any) -> None:
    """Without a list, a run that never ran remains, and does not prevent a new start."""
    assert ScriptedTransport(failure).run(resume(Generio(), RUN_REQUEST.fingerprint, RECORD, 0)) is None


def test_metadata_that_is_no_mapping_has_no_token(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """Metadata that is no mapping is sent unchanged."""
    start_and_record(hook, request=replace(RUN_REQUEST, additional=["a", 1]))
    assert flow_emulator.requests[0].json["additional"] == ["a", 1]


def test_run_that_became_final_before_its_abort_is_no_error(
    flow_emulator: Emulator, hook: GenerioHook
) -> None:
    """A run of another request that ends at the same time is no error."""
    flow_emulator.add_plan(Plan(run_seconds=0))
    run = hook.start_from_request(RUN_REQUEST)
    assert hook.resume(RUN_REQUEST.fingerprint, RunRecord("other", 0, flow_run_id=run.flow_run_id), 0) is None


def script_states(*states: str | int) -> ScriptedTransport:
    """Return a transport in which the run has these states in turn; a number is an error with this status."""
    return ScriptedTransport(
        *(
            json_response({"detail": "no"}, value)
            if isinstance(value, int)
            else json_response({"state": value})
            for value in states
        )
    )


ABORTS: list[tuple[list[str | int], list[str]]] = [
    (["created", ""], ["GET", "DELETE"]),
    (["running", ""], ["GET", "PATCH"]),
    (["aborting"], ["GET"]),
    (["completed"], ["GET"]),
    ([404, 404, 404], ["GET"] * 3),
    ([404, "running", ""], ["GET", "GET", "PATCH"]),
    (["created", 404], ["GET", "DELETE"]),
    # it was started between the poll and the deletion
    (["created", 409, "running", ""], ["GET", "DELETE", "GET", "PATCH"]),
    # it was not started yet when it was polled, nor at the abort's own poll
    (["starting", 409, "created", "created", ""], ["GET", "PATCH", "GET", "GET", "DELETE"]),
    (["starting", 409, "completed"], ["GET", "PATCH", "GET"]),
]


@pytest.mark.parametrize(("states", "requested"), ABORTS, ids=str)
def test_abort_in_every_state(states: list[str | int], requested: list[str]) -> None:
    """A created run is deleted, an active one aborted; one that changes in between is polled again."""
    script = script_states(*states)
    script.run(abort_run(Generio(), "r"))
    assert [request.method for request in script.requests] == requested


def test_second_conflict_of_an_abort_is_raised() -> None:
    """A second conflict is raised."""
    with pytest.raises(FlowConflict):
        script_states("created", 409, "created", 409).run(abort_run(Generio(), "r"))


def test_abort_and_wait_polls_until_the_run_is_final() -> None:
    """After the abort the run is polled until it is final, for at most ten seconds."""
    script = script_states("running", "", "aborting", "aborting", "aborted")
    run = script.run(abort_run_and_wait(Generio(), "r"))
    assert run is not None
    assert run.state is FlowState.ABORTED
    assert script.sleeps == list(ABORT_POLL_SECONDS[:2])

    script = script_states("running", "", *["aborting"] * len(ABORT_POLL_SECONDS))
    run = script.run(abort_run_and_wait(Generio(), "r"))
    assert run is not None
    assert run.state is FlowState.ABORTING
    assert sum(script.sleeps) == 10.0

    assert script_states("running", "", "aborting", 404).run(abort_run_and_wait(Generio(), "r")) is None


@pytest.mark.parametrize("status", [503, 404])
def test_cancel_retries_after_a_single_error_response(flow_emulator: Emulator, status: int) -> None:
    """A single 503 or 404 does not keep a triggerer from aborting a run."""
    flow_emulator.run_seconds = 3600
    flow_emulator.switches.abort = "instant"
    hook = GenerioHook("generio_default")
    run = hook.start_from_request(RUN_REQUEST)
    flow_emulator.add_fault(Fault("GET", "/flows/*", status=status))
    asyncio.run(hook.arun(abort_run(hook.service, run.flow_run_id)))
    assert [run.state for run in flow_emulator.runs.values()] == ["aborted"]


@pytest.mark.parametrize("run_seconds", [0, 60])
def test_run_with_lost_start_response_is_resumed(flow_emulator: Emulator, run_seconds: float) -> None:
    """After a lost start and a lost poll nothing is deleted; the next try resumes the one run."""
    flow_emulator.run_seconds = run_seconds
    hook = GenerioHook("generio_default")
    records: list[RunRecord | None] = []
    flow_emulator.add_fault(Fault(method="PATCH", path="/flows/*", reset="after"))
    flow_emulator.add_fault(Fault(method="GET", path="/flows/*", status=402, times=1))
    with pytest.raises(FlowServiceError):
        hook.start_from_request(
            RUN_REQUEST, record=RunRecord(RUN_REQUEST.fingerprint, 0), save=records.append
        )
    assert not [sent for sent in flow_emulator.requests if sent.method == "DELETE"]
    run = hook.resume(RUN_REQUEST.fingerprint, records[-1], 0)
    assert run is not None
    assert run.flow_run_id in flow_emulator.runs
    assert flow_emulator.started_count == 1


# Runs whose record was not saved
# --------------------------------------------------------------------------------------------------


def listed_run(flow_run_id: str, state: str, generation: Any = 0, **stamp: Any) -> FlowRun:
    """Return a listed run with the stamp of a record."""
    record = RunRecord("f", generation, 12.5, "mark", created_by={"task_id": "t"})
    return FlowRun(
        flow_run_id, "generio", state=FlowState(state), additional={STAMP_KEY: record.stamp | stamp}
    )


SELECTIONS = [
    # runs, newest first -> the run whose record is used
    ([], None),
    ([listed_run("a", "created")], None),
    ([listed_run("a", "running", token=7)], None),
    ([listed_run("a", "running"), listed_run("b", "running")], "a"),
    ([listed_run("a", "failed"), listed_run("b", "running")], "b"),
    ([listed_run("a", "created"), listed_run("b", "completed")], "b"),
    ([listed_run("a", "running", 1), listed_run("b", "completed")], "b"),
    ([listed_run("a", "running", 1), listed_run("b", "aborted", 1)], "a"),
    ([listed_run("a", "failed"), listed_run("b", "running", 1)], "a"),
    ([listed_run("a", "running", fingerprint=None), listed_run("b", "running")], "b"),
    ([listed_run("a", "unknown")], "a"),
]


@pytest.mark.parametrize(("runs", "selected"), SELECTIONS)
def test_record_of_the_newest_run_that_can_be_resumed(runs: list[FlowRun], selected: str | None) -> None:
    """A run of this run of the task comes first; else the newest one, so that it is aborted."""
    record = select_record(runs, 0)
    assert (None if record is None else record.flow_run_id) == selected


def test_stamp_has_all_that_the_record_needs() -> None:
    """A record that is created from a stamp is equal, but for the connection and the try."""
    record = RunRecord("f", 3, 12.5, "mark", "r", conn_id="c", host="h", created_by={"task_id": "t"})
    run = FlowRun("r", "generio", additional={STAMP_KEY: record.stamp})
    assert RunRecord.from_stamp(run) == replace(record, conn_id=None, host=None, created_by=None)
    assert RunRecord.from_stamp(FlowRun("r", "generio")) is None


def test_stamped_runs_are_newest_first_in_any_list() -> None:
    """Order and paging of a list are not documented, so the runs are sorted."""
    stamp = {STAMP_KEY: {"task_id": "t"}}
    rows = [
        {"flow_id": name, "state": "running", "created_at": created_at, "additional": additional}
        for name, created_at, additional in (
            ("old", "2026-01-01T00:00:00Z", stamp),
            ("other", "2026-01-02T00:00:00Z", {STAMP_KEY: {"task_id": "u"}}),
            ("new", "2026-01-03T00:00:00Z", stamp),
            ("undated", None, stamp),
        )
    ]
    script = ScriptedTransport(json_response({"flows": rows}))
    runs = script.run(find_stamped_runs(Generio(), {"task_id": "t", "region_id": None}))
    assert [run.flow_run_id for run in runs] == ["new", "old", "undated"]
