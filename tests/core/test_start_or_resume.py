"""Tests of the start protocol: no lost response, crash or rejection starts a second paid run.

The operator's record and save function are plain ones here.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from airflow_provider_flows.core.exceptions import FlowError, FlowInvalid, FlowServiceError
from airflow_provider_flows.core.flow_run import FlowInput, FlowOutput, FlowState
from airflow_provider_flows.core.start_or_resume import STAMP_KEY, RunRecord, RunRequest, resume, start
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.promptchainer import PromptChainer
from tests.support.run_requests import CHAIN_REQUEST, FLOW, RECORD, RUN_REQUEST, start_and_record
from tests.support.scripted_transport import ScriptedTransport, json_response, no_response, request_lines

pytestmark = pytest.mark.emulator(run_seconds=60)


def steps(emulator: Emulator) -> list[str]:
    """Return the requests, without ids."""
    ids = {request.path.split("/")[2] for request in emulator.requests if request.path.count("/") > 1}
    return [
        line.replace(next((i for i in ids if i in line), "-"), "ID")
        for line in request_lines(emulator.requests)
    ]


def test_start_sends_its_requests_in_order(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """The record is saved, the run created, its id saved, its inputs added; only then it is started."""
    saved: list[tuple[RunRecord | None, int, int]] = []
    run = start_and_record(
        hook, lambda record: saved.append((record, len(flow_emulator.requests), flow_emulator.started_count))
    )
    assert steps(flow_emulator) == [
        "POST /flows",
        "POST /flows/ID/inputs",
        "POST /flows/ID/inputs",
        "PATCH /flows/ID",
    ]
    stamp = {
        "token": "mark",
        "generation": 0,
        "fingerprint": RUN_REQUEST.fingerprint,
        "deadline": 12.5,
    }
    additional = {"order": 17, STAMP_KEY: stamp}
    assert flow_emulator.requests[0].json == {
        "template": FLOW,
        "parameters": {"quality": "low"},
        "additional": additional,
    }
    assert [request.json for request in flow_emulator.requests[1:3]] == [
        {"data": "a chair"},
        {"data": "a table", "additional": {"n": 2}},
    ]
    assert saved == [(RECORD, 0, 0), (replace(RECORD, flow_run_id=run.flow_run_id), 1, 0)]
    assert (run.state, flow_emulator.started_count) == (FlowState.STARTING, 1)


@pytest.mark.parametrize("saves", [0, 1])
def test_record_is_saved_before_each_request(flow_emulator: Emulator, hook: GenerioHook, saves: int) -> None:
    """A worker that dies in the first save has sent nothing; in the second, it leaves a created run."""
    saved: list[RunRecord | None] = []

    def die(record: RunRecord | None) -> None:
        if len(saved) == saves:
            raise KeyboardInterrupt
        saved.append(record)

    with pytest.raises(KeyboardInterrupt):
        start_and_record(hook, die)
    assert steps(flow_emulator) == ["POST /flows"][:saves]
    assert flow_emulator.started_count == 0


@pytest.mark.parametrize("fault", [Fault("PATCH", reset="after"), Fault("PATCH", truncate=3)])
def test_lost_response_to_the_start_is_resolved_by_a_poll(
    flow_emulator: Emulator, hook: GenerioHook, fault: Fault
) -> None:
    """If the run started and the response was lost, a GET settles it, and start is not sent twice."""
    flow_emulator.add_fault(fault)
    start_and_record(hook)
    assert steps(flow_emulator)[-2:] == ["PATCH /flows/ID", "GET /flows/ID"]
    assert flow_emulator.started_count == 1


@pytest.mark.parametrize(
    "fault", [Fault("PATCH", reset="before"), Fault("PATCH", status=502), Fault("PATCH", status=504)]
)
def test_start_that_never_arrived_is_sent_again(
    flow_emulator: Emulator, hook: GenerioHook, fault: Fault
) -> None:
    """If the GET finds the run not started, start is sent once more."""
    flow_emulator.add_fault(fault)
    start_and_record(hook)
    assert steps(flow_emulator)[-3:] == ["PATCH /flows/ID", "GET /flows/ID", "PATCH /flows/ID"]
    assert flow_emulator.started_count == 1


def test_rejected_input_deletes_the_run(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """A run whose input is rejected is deleted, and the error is the service's."""
    run_request = RunRequest("model_generate_fromimage", [FlowInput("no image at all")])
    with pytest.raises(FlowInvalid, match="data URI"):
        start_and_record(hook, request=run_request)
    assert steps(flow_emulator)[-1] == "DELETE /flows/ID"
    assert (flow_emulator.runs, flow_emulator.started_count) == ({}, 0)


@pytest.mark.parametrize("quota", [402, 403, 429])
def test_rejected_start_deletes_the_run(flow_emulator: Emulator, hook: GenerioHook, quota: int) -> None:
    """A run that exceeds the quota is deleted."""
    flow_emulator.switches.update({"quota": quota})
    hook.connection.extra = '{"retries": 0}'
    with pytest.raises(FlowServiceError):
        start_and_record(hook)
    assert (flow_emulator.runs, flow_emulator.started_count) == ({}, 0)


def test_error_in_a_success_response_is_an_error(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """A start with the response 200 and success: false did not start."""
    flow_emulator.switches.update({"envelope": "hidden_errors", "quota": 402})
    with pytest.raises(FlowServiceError, match="Generation quota used up"):
        start_and_record(hook)
    assert flow_emulator.started_count == 0


LOST_CREATIONS = [
    # what goes wrong with POST /flows, how many runs are left over, whether the request is sent again
    (Fault("POST", "/flows", status=503, times=2), 0, True),
    *((Fault("POST", "/flows", status=status), 0, True) for status in (429, 502, 504)),
    (Fault("POST", "/flows", reset="before"), 0, True),
    (Fault("POST", "/flows", reset="after"), 1, True),
    (Fault("POST", "/flows", reset="after", times=2), 2, True),
    (Fault("POST", "/flows", delay=1.0), 1, True),
    (Fault("POST", "/flows", status=500), 0, False),
    (Fault("POST", "/flows", body=b"<html>"), 1, False),
    (Fault("POST", "/flows", reset="after", times=3), 3, False),
]


@pytest.mark.parametrize(("fault", "left_over", "is_started"), LOST_CREATIONS, ids=str)
def test_lost_creation_is_sent_again(
    flow_emulator: Emulator, hook: GenerioHook, *, fault: Fault, left_over: int, is_started: bool
) -> None:
    """The request that creates a run is sent again like a GET; runs that this leaves over are deleted."""
    hook.connection.extra = '{"retries": 2, "read_timeout": 0.5}'
    other = hook.create(FLOW, None, {STAMP_KEY: {"token": "another"}})
    flow_emulator.add_fault(replace(fault, headers={"Retry-After": "0"} if fault.status else {}))
    saved: list[RunRecord | None] = []
    if is_started:
        run = start_and_record(hook, saved.append)
        assert set(flow_emulator.runs) == {other.flow_run_id, run.flow_run_id}
        assert saved[-1] == replace(RECORD, flow_run_id=run.flow_run_id)
    else:
        with pytest.raises(FlowServiceError):
            start_and_record(hook, saved.append)
        assert set(flow_emulator.runs) == {other.flow_run_id}
        assert saved == [RECORD]
    assert flow_emulator.started_count == int(is_started)
    assert [line.split()[0] for line in steps(flow_emulator)].count("DELETE") == left_over


def test_list_that_fails_after_lost_creation_does_not_end_the_start(
    flow_emulator: Emulator, hook: GenerioHook
) -> None:
    """Runs that are left over cost nothing, so a start continues if they cannot be found or deleted."""
    hook.connection.extra = '{"retries": 1}'
    flow_emulator.add_fault(Fault("POST", "/flows", reset="after"))
    flow_emulator.add_fault(Fault("GET", "/flows", status=500))
    start_and_record(hook)
    assert (flow_emulator.started_count, len(flow_emulator.runs)) == (1, 2)


@pytest.mark.parametrize("code", [429, 503])
def test_lost_input_deletes_the_run(flow_emulator: Emulator, hook: GenerioHook, code: int) -> None:
    """A 429 for an input is retried; a gateway's error, which may have passed it on, ends the start."""
    flow_emulator.add_fault(Fault("POST", "*/inputs", status=code, headers={"Retry-After": "0"}))
    hook.connection.extra = '{"retries": 1}'
    if code == 429:
        assert len(hook.list_inputs(start_and_record(hook).flow_run_id)) == 2
    else:
        with pytest.raises(FlowServiceError):
            start_and_record(hook)
        assert flow_emulator.runs == {}


def test_start_without_a_record_is_one_request(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """Without a record the run is created, filled and started by one POST."""
    run = hook.start_from_request(RUN_REQUEST, validate=False)
    assert request_lines(flow_emulator.requests) == ["POST /flows"]
    assert len(flow_emulator.requests[0].json["inputs"]) == 2
    assert run.state is FlowState.STARTING


@pytest.mark.emulator(run_seconds=0)
def test_response_of_a_service_without_ids_is_saved_completely(
    flow_emulator: Emulator, chain_hook: PromptChainerHook
) -> None:
    """The record is saved before the one request, then the response; a retry needs no request."""
    saved: list[RunRecord | None] = []
    methods: list[list[str]] = []

    def save(record: RunRecord | None) -> None:
        saved.append(record)
        methods.append([request.method for request in flow_emulator.requests])

    run = start_and_record(chain_hook, save, CHAIN_REQUEST)

    assert methods == [[], ["POST"]]
    assert saved[0] == RECORD
    last = RunRecord.from_dict(json.loads(json.dumps(saved[1].to_dict() if saved[1] else None)))
    assert last is not None
    assert last.flow_run_id == run.flow_run_id
    flow_emulator.reset()
    resumed = chain_hook.resume(
        CHAIN_REQUEST.fingerprint, replace(last, fingerprint=CHAIN_REQUEST.fingerprint), 0
    )
    assert resumed is not None
    assert resumed.to_dict() == run.to_dict()
    assert all(isinstance(output, FlowOutput) for output in resumed.outputs)
    assert [output.is_url for output in resumed.outputs] == [output.is_url for output in run.outputs]
    assert chain_hook.resume(CHAIN_REQUEST.fingerprint, last, 7) is None
    assert flow_emulator.requests == ()


LOST_RESPONSES = [
    # what goes wrong with the POST, whether a run may be there, how many there are
    (Fault("POST", reset="after"), True, 1),
    (Fault("POST", reset="before"), True, 0),
    (Fault("POST", truncate=3), True, 1),
    (Fault("POST", body=b"<html>"), True, 1),
    *((Fault("POST", status=code), True, 0) for code in (408, 500, 502, 503, 504)),
    *((Fault("POST", status=code), False, 0) for code in (400, 401, 402, 403, 404, 409, 413, 422, 429)),
]


@pytest.mark.emulator(run_seconds=0)
@pytest.mark.parametrize(("fault", "doubt", "started"), LOST_RESPONSES, ids=str)
def test_record_after_a_lost_response(
    flow_emulator: Emulator, chain_hook: PromptChainerHook, *, fault: Fault, doubt: bool, started: int
) -> None:
    """The record remains if a run may exist, and is deleted if certainly none does."""
    flow_emulator.add_fault(fault)
    saved: list[RunRecord | None] = []
    with pytest.raises(FlowServiceError):
        start_and_record(chain_hook, saved.append, CHAIN_REQUEST)
    assert saved == ([RECORD] if doubt else [RECORD, None])
    assert flow_emulator.started_count == started


def test_attempt_with_an_unknown_outcome_is_started_again() -> None:
    """A record without a response resumes no run, and sends no request."""
    assert (
        ScriptedTransport().run(
            resume(
                PromptChainer(),
                CHAIN_REQUEST.fingerprint,
                replace(RECORD, fingerprint=CHAIN_REQUEST.fingerprint),
                0,
            )
        )
        is None
    )


def test_fingerprint_distinguishes_requests_only() -> None:
    """Any change of a request changes its fingerprint, except the order of keys; it hides the content."""
    same = RunRequest(FLOW, RUN_REQUEST.inputs, dict(RUN_REQUEST.parameters), {"order": 17})
    assert same.fingerprint == RUN_REQUEST.fingerprint
    others = [
        RunRequest("other", RUN_REQUEST.inputs, RUN_REQUEST.parameters, RUN_REQUEST.additional),
        RunRequest(FLOW, [FlowInput("a chair")], RUN_REQUEST.parameters, RUN_REQUEST.additional),
        RunRequest(FLOW, RUN_REQUEST.inputs, {"quality": "high"}, RUN_REQUEST.additional),
        RunRequest(FLOW, RUN_REQUEST.inputs, RUN_REQUEST.parameters, None),
    ]
    assert len({run_request.fingerprint for run_request in (*others, RUN_REQUEST)}) == 5
    assert "chair" not in RUN_REQUEST.fingerprint
    assert (
        RunRequest("f", {"a": "1", "b": "2"}).fingerprint == RunRequest("f", {"b": "2", "a": "1"}).fingerprint
    )
    assert len(RunRequest("f", [], {1: "a", "b": 2}).fingerprint) == 64


@pytest.mark.parametrize(
    "value", [None, {}, {"flow_run_id": "r"}, {**RECORD.to_dict(), "newer": 1}, [], "x", 5]
)
def test_unreadable_record_is_none(value: object) -> None:
    """An unreadable record, for example of another version, is no record and no error."""
    assert RunRecord.from_dict(value) is None
    record = RunRecord("f", 3, 12.5, flow_run_id="r")
    assert RunRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert record.token != RunRecord("f", 3, 12.5).token


def test_error_before_the_cleanup_is_raised() -> None:
    """If even deleting the run fails, the first error is raised."""
    script = ScriptedTransport(
        json_response({"flow_id": "r"}), json_response({"detail": "too big"}, 413), no_response()
    )
    with pytest.raises(FlowError, match="too big"):
        script.run(start(Generio(), RunRequest(FLOW, [FlowInput("p")]), RECORD, lambda _: None))
