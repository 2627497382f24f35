"""Tests of the run of an earlier try: it is resumed, deleted or aborted; and of aborting a run.

Tests of states use scripted responses, tests of requests the emulator.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowConflict, FlowServiceError, FlowUnreachable
from airflow_provider_flows.core.flow_run import FlowState
from airflow_provider_flows.core.start_or_resume import (
    ABORT_POLL_SECONDS,
    TOKEN_KEY,
    RunRecord,
    abort_run,
    abort_run_and_wait,
    resume,
)
from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.services.generio.api import Generio
from tests.support.run_requests import FLOW, RECORD, RUN_REQUEST, start_and_record
from tests.support.scripted_transport import ScriptedTransport, json_response, no_response

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


def test_run_that_no_longer_exists_is_not_resumed() -> None:
    """A record whose run is not found three times means a new start; without a record no request is sent."""
    assert (
        ScriptedTransport(*[json_response({}, 404)] * 3).run(
            resume(Generio(), RUN_REQUEST.fingerprint, replace(RECORD, flow_run_id="r"), 0)
        )
        is None
    )
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
    """A created run whose id was lost is found by its token and deleted; no other is."""
    flow_emulator.add_fault(Fault("POST", "/flows", reset="after"))
    with pytest.raises(FlowUnreachable):
        start_and_record(hook)
    for additional in (None, "mark", {TOKEN_KEY: "another"}, {"order": 17}):
        hook.run(Generio().create(FLOW, None, additional))
    started = hook.start(FLOW, "a chair", additional={TOKEN_KEY: "mark"})
    assert len(flow_emulator.runs) == 6

    assert hook.resume(RUN_REQUEST.fingerprint, RECORD, 0) is None

    assert len(flow_emulator.runs) == 5
    remaining = [run.additional for run in flow_emulator.runs.values()]
    assert RUN_REQUEST.additional | {TOKEN_KEY: "mark"} not in remaining
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
    # it was started between the look and the deletion
    (["created", 409, "running", ""], ["GET", "DELETE", "GET", "PATCH"]),
    # it was not started yet when it was looked at, and the abort's own look finds it so
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
    flow_emulator.add_fault(Fault(method="GET", path="/flows/*", status=404, times=1))
    with pytest.raises(FlowServiceError):
        hook.start_from_request(
            RUN_REQUEST, record=RunRecord(RUN_REQUEST.fingerprint, 0), save=records.append
        )
    assert not [sent for sent in flow_emulator.requests if sent.method == "DELETE"]
    run = hook.resume(RUN_REQUEST.fingerprint, records[-1], 0)
    assert run is not None
    assert run.flow_run_id in flow_emulator.runs
    assert flow_emulator.started_count == 1
