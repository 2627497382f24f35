"""Tests of the start protocol against the emulator: no lost answer, crash or refusal makes a second paid run.

What the operator keeps and hands in is a plain function and a plain record here.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from airflow_provider_flows.core.exceptions import FlowError, FlowInvalid, FlowServiceError, FlowUnreachable
from airflow_provider_flows.core.run import FlowInput, FlowOutput, FlowState
from airflow_provider_flows.core.start import TOKEN_KEY, RunRecord, RunRequest, resume, start
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.promptchainer import PromptChainer
from tests.support.run_requests import CHAIN_REQUEST, FLOW, RECORD, RUN_REQUEST, start_and_record
from tests.support.scripted_transport import ScriptedTransport, json_response, no_response, request_lines

pytestmark = pytest.mark.emulator(run_seconds=60)


def steps(emulator: Emulator) -> list[str]:
    """Give what was asked, ids left out."""
    ids = {request.path.split("/")[2] for request in emulator.requests if request.path.count("/") > 1}
    return [
        asked.replace(next((i for i in ids if i in asked), "-"), "ID")
        for asked in request_lines(emulator.requests)
    ]


def test_start_is_made_in_steps(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """The intention is kept, the run made, its id kept, then it is filled one by one, and started; until then nothing is paid."""
    kept: list[tuple[RunRecord | None, int, int]] = []
    run = start_and_record(
        hook, lambda record: kept.append((record, len(flow_emulator.requests), flow_emulator.started_count))
    )
    assert steps(flow_emulator) == [
        "POST /flows",
        "POST /flows/ID/inputs",
        "POST /flows/ID/inputs",
        "PATCH /flows/ID",
    ]
    additional = {"order": 17, TOKEN_KEY: "mark"}
    assert flow_emulator.requests[0].json == {
        "template": FLOW,
        "parameters": {"quality": "low"},
        "additional": additional,
    }
    assert [request.json for request in flow_emulator.requests[1:3]] == [
        {"data": "a chair"},
        {"data": "a table", "additional": {"n": 2}},
    ]
    assert kept == [(RECORD, 0, 0), (replace(RECORD, flow_run_id=run.flow_run_id), 1, 0)]
    assert (run.state, flow_emulator.started_count) == (FlowState.STARTING, 1)


@pytest.mark.parametrize("keeps", [0, 1])
def test_nothing_is_sent_before_it_is_kept(flow_emulator: Emulator, hook: GenerioHook, keeps: int) -> None:
    """A worker that dies while keeping the intention has sent nothing; while keeping the id, it leaves a run that never ran."""
    kept: list[RunRecord | None] = []

    def die(record: RunRecord | None) -> None:
        if len(kept) == keeps:
            raise KeyboardInterrupt
        kept.append(record)

    with pytest.raises(KeyboardInterrupt):
        start_and_record(hook, die)
    assert steps(flow_emulator) == ["POST /flows"][:keeps]
    assert flow_emulator.started_count == 0


@pytest.mark.parametrize("fault", [Fault("PATCH", reset="after"), Fault("PATCH", truncate=3)])
def test_lost_answer_of_start_is_settled_by_looking(
    flow_emulator: Emulator, hook: GenerioHook, fault: Fault
) -> None:
    """Where the service started the run and its answer was lost, a GET finds that out, and start is not sent twice."""
    flow_emulator.add_fault(fault)
    start_and_record(hook)
    assert steps(flow_emulator)[-2:] == ["PATCH /flows/ID", "GET /flows/ID"]
    assert flow_emulator.started_count == 1


@pytest.mark.parametrize(
    "fault", [Fault("PATCH", reset="before"), Fault("PATCH", status=502), Fault("PATCH", status=504)]
)
def test_start_that_did_not_arrive_is_sent_again(
    flow_emulator: Emulator, hook: GenerioHook, fault: Fault
) -> None:
    """Where the look finds the run not started, start is sent once more."""
    flow_emulator.add_fault(fault)
    start_and_record(hook)
    assert steps(flow_emulator)[-3:] == ["PATCH /flows/ID", "GET /flows/ID", "PATCH /flows/ID"]
    assert flow_emulator.started_count == 1


def test_refused_input_leaves_no_run_behind(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """A run whose input the service refuses is deleted again, and the error is the service's."""
    order = RunRequest("model_generate_fromimage", [FlowInput("no image at all")])
    with pytest.raises(FlowInvalid, match="data URI"):
        start_and_record(hook, request=order)
    assert steps(flow_emulator)[-1] == "DELETE /flows/ID"
    assert (flow_emulator.runs, flow_emulator.started_count) == ({}, 0)


@pytest.mark.parametrize("quota", [402, 403, 429])
def test_refused_start_leaves_no_run_behind(flow_emulator: Emulator, hook: GenerioHook, quota: int) -> None:
    """A run that the account cannot pay for is deleted again."""
    flow_emulator.switches.update({"quota": quota})
    hook.connection.extra = '{"retries": 0}'
    with pytest.raises(FlowServiceError):
        start_and_record(hook)
    assert (flow_emulator.runs, flow_emulator.started_count) == ({}, 0)


def test_refusal_inside_a_success_is_a_refusal(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """A start that is answered with 200 and success: false did not start."""
    flow_emulator.switches.update({"envelope": "hidden_errors", "quota": 402})
    with pytest.raises(FlowServiceError, match="Generation quota used up"):
        start_and_record(hook)
    assert flow_emulator.started_count == 0


def test_lost_answer_of_create_makes_no_second_run(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """A run that was made, but whose id was lost, is not made again: it costs nothing, and a second might."""
    flow_emulator.add_fault(Fault("POST", "/flows", reset="after"))
    with pytest.raises(FlowUnreachable):
        start_and_record(hook)
    assert steps(flow_emulator) == ["POST /flows"]
    assert flow_emulator.started_count == 0


@pytest.mark.parametrize("code", [429, 503])
def test_lost_input_deletes_the_run(flow_emulator: Emulator, hook: GenerioHook, code: int) -> None:
    """A 429 for an input is waited out; an answer of a gateway, which may or may not have passed it on, ends the start."""
    flow_emulator.add_fault(Fault("POST", "*/inputs", status=code, headers={"Retry-After": "0"}))
    hook.connection.extra = '{"retries": 1}'
    if code == 429:
        assert len(hook.list_inputs(start_and_record(hook).flow_run_id)) == 2
    else:
        with pytest.raises(FlowServiceError):
            start_and_record(hook)
        assert flow_emulator.runs == {}


def test_one_request_does_it_all_without_keeping(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """Without anything to keep the run is made, filled and started by one POST."""
    run = hook.start(RUN_REQUEST, validate=False)
    assert request_lines(flow_emulator.requests) == ["POST /flows"]
    assert len(flow_emulator.requests[0].json["inputs"]) == 2
    assert run.state is FlowState.STARTING


@pytest.fixture
def chain(flow_emulator: Emulator) -> PromptChainerHook:
    """Give a hook to a PromptChainer whose runs take no time, which asks everything once."""
    flow_emulator.run_seconds = 0
    found = PromptChainerHook("promptchainer_default")
    found.connection.extra = '{"retries": 0}'
    return found


def test_answer_of_a_service_without_ids_is_kept_whole(
    flow_emulator: Emulator, chain: PromptChainerHook
) -> None:
    """The intention is kept right before the one request that costs, then the answer; a retry reads it and asks nobody."""
    kept: list[RunRecord | None] = []
    asked: list[list[str]] = []

    def keep(record: RunRecord | None) -> None:
        kept.append(record)
        asked.append([request.method for request in flow_emulator.requests])

    run = start_and_record(chain, keep, CHAIN_REQUEST)

    assert asked == [[], ["POST"]]
    assert kept[0] == RECORD
    last = RunRecord.from_dict(json.loads(json.dumps(kept[1].to_dict() if kept[1] else None)))
    assert last is not None
    assert last.flow_run_id == run.flow_run_id
    flow_emulator.reset()
    again = chain.resume(CHAIN_REQUEST, replace(last, fingerprint=CHAIN_REQUEST.fingerprint), 0)
    assert again is not None
    assert again.to_dict() == run.to_dict()
    assert all(isinstance(output, FlowOutput) for output in again.outputs)
    assert [output.is_url for output in again.outputs] == [output.is_url for output in run.outputs]
    assert chain.resume(CHAIN_REQUEST, last, 7) is None
    assert flow_emulator.requests == ()


DOUBTS = [
    # what goes wrong with the POST, whether a run may be there, how many there are
    (Fault("POST", reset="after"), True, 1),
    (Fault("POST", reset="before"), True, 0),
    (Fault("POST", truncate=3), True, 1),
    (Fault("POST", body=b"<html>"), True, 1),
    *((Fault("POST", status=code), True, 0) for code in (408, 500, 502, 503, 504)),
    *((Fault("POST", status=code), False, 0) for code in (400, 401, 402, 403, 404, 409, 413, 422, 429)),
]


@pytest.mark.parametrize(("fault", "doubt", "started"), DOUBTS, ids=str)
def test_what_is_kept_after_a_lost_answer(
    flow_emulator: Emulator, chain: PromptChainerHook, *, fault: Fault, doubt: bool, started: int
) -> None:
    """The intention stays where a run may have been made, and is forgotten where it is certain that none was."""
    flow_emulator.add_fault(fault)
    kept: list[RunRecord | None] = []
    with pytest.raises(FlowServiceError):
        start_and_record(chain, kept.append, CHAIN_REQUEST)
    assert kept == ([RECORD] if doubt else [RECORD, None])
    assert flow_emulator.started_count == started


def test_doubtful_attempt_is_run_again() -> None:
    """A record without an answer gives no run; the service is asked nothing, for it could not tell."""
    assert (
        ScriptedTransport().run(
            resume(PromptChainer(), CHAIN_REQUEST, replace(RECORD, fingerprint=CHAIN_REQUEST.fingerprint), 0)
        )
        is None
    )


def test_fingerprint_tells_orders_apart_and_nothing_else() -> None:
    """Whatever makes an order another one changes its fingerprint; the order of keys does not, and content is not in it."""
    same = RunRequest(FLOW, RUN_REQUEST.inputs, dict(RUN_REQUEST.parameters), {"order": 17})
    assert same.fingerprint == RUN_REQUEST.fingerprint
    others = [
        RunRequest("other", RUN_REQUEST.inputs, RUN_REQUEST.parameters, RUN_REQUEST.additional),
        RunRequest(FLOW, [FlowInput("a chair")], RUN_REQUEST.parameters, RUN_REQUEST.additional),
        RunRequest(FLOW, RUN_REQUEST.inputs, {"quality": "high"}, RUN_REQUEST.additional),
        RunRequest(FLOW, RUN_REQUEST.inputs, RUN_REQUEST.parameters, None),
    ]
    assert len({order.fingerprint for order in (*others, RUN_REQUEST)}) == 5
    assert "chair" not in RUN_REQUEST.fingerprint
    assert (
        RunRequest("f", {"a": "1", "b": "2"}).fingerprint == RunRequest("f", {"b": "2", "a": "1"}).fingerprint
    )
    assert len(RunRequest("f", [], {1: "a", "b": 2}).fingerprint) == 64


@pytest.mark.parametrize(
    "told", [None, {}, {"flow_run_id": "r"}, {**RECORD.to_dict(), "newer": 1}, [], "x", 5]
)
def test_record_that_cannot_be_read_is_none(told: object) -> None:
    """Whatever another version may have kept is read as no record, not as an error."""
    assert RunRecord.from_dict(told) is None
    record = RunRecord("f", 3, 12.5, flow_run_id="r")
    assert RunRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert record.token != RunRecord("f", 3, 12.5).token


def test_error_that_led_to_tidying_up_is_the_one_told() -> None:
    """Where even deleting the run fails, the first error is raised."""
    script = ScriptedTransport(
        json_response({"flow_id": "r"}), json_response({"detail": "too big"}, 413), no_response()
    )
    with pytest.raises(FlowError, match="too big"):
        script.run(start(Generio(), RunRequest(FLOW, [FlowInput("p")]), RECORD, lambda _: None))
