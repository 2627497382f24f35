"""Tests of the start protocol against the emulator: no lost answer, crash or refusal makes a second paid run.

What the operator keeps and hands in is a plain function and a plain record here.
"""

from __future__ import annotations

import pytest

from airflow_provider_flows.emulator import Emulator, Fault, Plan
from airflow_provider_flows.flow.errors import FlowError, FlowInvalid, FlowServiceError, FlowUnreachable
from airflow_provider_flows.flow.run import FlowInput, FlowRun, FlowState
from airflow_provider_flows.flow.services.generio import Generio
from airflow_provider_flows.flow.starting import Order, Record, picked_up, start
from airflow_provider_flows.hooks import GenerioHook
from tests.scripted import Script, answer, methods, silence

FLOW = "model_generate_fromprompt"
ORDER = Order(FLOW, [FlowInput("a chair"), FlowInput("a table", {"n": 2})], {"quality": "low"}, {"order": 17})


@pytest.fixture
def hook(flow_emulator: Emulator) -> GenerioHook:
    """Give a hook to an emulator whose runs last."""
    flow_emulator.run_seconds = 60
    return GenerioHook("generio_default")


def steps(emulator: Emulator) -> list[str]:
    """Give what was asked, ids left out."""
    ids = {request.path.split("/")[2] for request in emulator.requests if request.path.count("/") > 1}
    return [asked.replace(next((i for i in ids if i in asked), "-"), "ID") for asked in methods(emulator.requests)]


def test_start_is_made_in_steps(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """The run is made, then kept, then filled one input at a time, then started; until then nothing is paid."""
    kept: list[tuple[str, int]] = []
    run = hook.start(ORDER, keep=lambda made: kept.append((made.flow_run_id, flow_emulator.started)))
    assert steps(flow_emulator) == ["POST /flows", "POST /flows/ID/inputs", "POST /flows/ID/inputs", "PATCH /flows/ID"]
    assert flow_emulator.requests[0].json == {"template": FLOW, "parameters": {"quality": "low"}, "additional": {"order": 17}}
    assert [request.json for request in flow_emulator.requests[1:3]] == [
        {"data": "a chair"},
        {"data": "a table", "additional": {"n": 2}},
    ]
    assert kept == [(run.flow_run_id, 0)]
    assert (run.state, flow_emulator.started) == (FlowState.STARTING, 1)


def test_id_is_kept_before_anything_else_is_sent(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """A worker that dies while keeping the id leaves a run that never ran."""

    def die(_: FlowRun) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hook.start(ORDER, keep=die)
    assert steps(flow_emulator) == ["POST /flows"]
    assert flow_emulator.started == 0


@pytest.mark.parametrize("fault", [Fault("PATCH", reset="after"), Fault("PATCH", truncate=3)])
def test_lost_answer_of_start_is_settled_by_looking(flow_emulator: Emulator, hook: GenerioHook, fault: Fault) -> None:
    """Where the service started the run and its answer was lost, a GET finds that out, and start is not sent twice."""
    flow_emulator.fault(fault)
    hook.start(ORDER, keep=lambda _: None)
    assert steps(flow_emulator)[-2:] == ["PATCH /flows/ID", "GET /flows/ID"]
    assert flow_emulator.started == 1


@pytest.mark.parametrize("fault", [Fault("PATCH", reset="before"), Fault("PATCH", status=502), Fault("PATCH", status=504)])
def test_start_that_did_not_arrive_is_sent_again(flow_emulator: Emulator, hook: GenerioHook, fault: Fault) -> None:
    """Where the look finds the run not started, start is sent once more."""
    flow_emulator.fault(fault)
    hook.start(ORDER, keep=lambda _: None)
    assert steps(flow_emulator)[-3:] == ["PATCH /flows/ID", "GET /flows/ID", "PATCH /flows/ID"]
    assert flow_emulator.started == 1


def test_refused_input_leaves_no_run_behind(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """A run whose input the service refuses is deleted again, and the error is the service's."""
    order = Order("model_generate_fromimage", [FlowInput("no image at all")])
    with pytest.raises(FlowInvalid, match="data URI"):
        hook.start(order, keep=lambda _: None)
    assert steps(flow_emulator)[-1] == "DELETE /flows/ID"
    assert (flow_emulator.runs, flow_emulator.started) == ({}, 0)


@pytest.mark.parametrize("quota", [402, 403, 429])
def test_refused_start_leaves_no_run_behind(flow_emulator: Emulator, hook: GenerioHook, quota: int) -> None:
    """A run that the account cannot pay for is deleted again."""
    flow_emulator.switches.update({"quota": quota})
    hook.connection.extra = '{"retries": 0}'
    with pytest.raises(FlowServiceError):
        hook.start(ORDER, keep=lambda _: None)
    assert (flow_emulator.runs, flow_emulator.started) == ({}, 0)


def test_refusal_inside_a_success_is_a_refusal(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """A start that is answered with 200 and success: false did not start."""
    flow_emulator.switches.update({"envelope": "hidden_errors", "quota": 402})
    with pytest.raises(FlowServiceError, match="Generation quota used up"):
        hook.start(ORDER, keep=lambda _: None)
    assert flow_emulator.started == 0


def test_lost_answer_of_create_makes_no_second_run(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """A run that was made, but whose id was lost, is not made again: it costs nothing, and a second might."""
    flow_emulator.fault(Fault("POST", "/flows", reset="after"))
    with pytest.raises(FlowUnreachable):
        hook.start(ORDER, keep=lambda _: None)
    assert steps(flow_emulator) == ["POST /flows"]
    assert flow_emulator.started == 0


@pytest.mark.parametrize("code", [429, 503])
def test_lost_input_deletes_the_run(flow_emulator: Emulator, hook: GenerioHook, code: int) -> None:
    """A 429 for an input is waited out; an answer of a gateway, which may or may not have passed it on, ends the start."""
    flow_emulator.fault(Fault("POST", "*/inputs", status=code, headers={"Retry-After": "0"}))
    hook.connection.extra = '{"retries": 1}'
    if code == 429:
        assert len(hook.list_inputs(hook.start(ORDER, keep=lambda _: None).flow_run_id)) == 2
    else:
        with pytest.raises(FlowServiceError):
            hook.start(ORDER, keep=lambda _: None)
        assert flow_emulator.runs == {}


def test_one_request_does_it_all_without_keeping(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """Without anything to keep the run is made, filled and started by one POST."""
    run = hook.start(ORDER)
    assert methods(flow_emulator.requests) == ["POST /flows"]
    assert len(flow_emulator.requests[0].json["inputs"]) == 2
    assert run.state is FlowState.STARTING


TABLE = [
    # state of the run, same order, same lineage -> picked up, what is asked of the service beside GET
    ("created", True, True, False, ["DELETE"]),
    ("created", False, False, False, ["DELETE"]),
    ("starting", True, True, True, []),
    ("running", True, True, True, []),
    ("aborting", True, True, True, []),
    ("never seen", True, True, True, []),
    ("completed", True, True, True, []),
    ("failed", True, True, False, []),
    ("aborted", True, True, False, []),
    ("running", True, False, False, ["PATCH"]),
    ("running", False, True, False, ["PATCH"]),
    ("completed", True, False, False, []),
    ("completed", False, True, False, []),
]


@pytest.mark.parametrize(("state", "order", "lineage", "taken", "then"), TABLE)
def test_what_an_earlier_try_left_is_settled(*, state: str, order: bool, lineage: bool, taken: bool, then: list[str]) -> None:
    """A run of the same request is gone on with, one that never ran is deleted, one of another request is aborted."""
    record = Record("r", ORDER.fingerprint if order else "other", 0 if lineage else 1)
    script = Script(answer({"flow_id": "r", "state": state}), answer({}))
    run = script.hold(picked_up(Generio(), ORDER, record, 0))
    assert (run is not None) == taken
    assert [request.method for request in script.requests] == ["GET", *then]


def test_run_that_is_gone_is_forgotten() -> None:
    """A record whose run the service does not know any more means a new start, and no record asks nothing."""
    assert Script(answer({}, 404)).hold(picked_up(Generio(), ORDER, Record("r", "", 0), 0)) is None
    assert Script().hold(picked_up(Generio(), ORDER, None, 0)) is None


def test_service_that_cannot_tell_starts_nothing() -> None:
    """While the service cannot be asked about the earlier run, no other is started."""
    with pytest.raises(FlowUnreachable):
        Script(silence()).hold(picked_up(Generio(), ORDER, Record("r", "", 0), 0))


def test_run_that_ended_before_it_could_be_aborted_is_no_trouble(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """A run of another order that ends in the same moment is simply let go."""
    flow_emulator.plan(Plan(run_seconds=0))
    run = hook.start(ORDER)
    assert hook.pick_up(ORDER, Record(run.flow_run_id, "other", 0), 0) is None
    assert (
        Script(answer({"state": "running"}), answer({}, 409), answer({"state": "created"})).hold(
            picked_up(Generio(), ORDER, Record("r", "other", 0), 0)
        )
        is None
    )


def test_fingerprint_tells_orders_apart_and_nothing_else() -> None:
    """Whatever makes an order another one changes its fingerprint; the order of keys does not, and content is not in it."""
    same = Order(FLOW, ORDER.inputs, dict(ORDER.parameters), {"order": 17})
    assert same.fingerprint == ORDER.fingerprint
    others = [
        Order("other", ORDER.inputs, ORDER.parameters, ORDER.additional),
        Order(FLOW, [FlowInput("a chair")], ORDER.parameters, ORDER.additional),
        Order(FLOW, ORDER.inputs, {"quality": "high"}, ORDER.additional),
        Order(FLOW, ORDER.inputs, ORDER.parameters, None),
    ]
    assert len({order.fingerprint for order in (*others, ORDER)}) == 5
    assert "chair" not in ORDER.fingerprint
    assert Order("f", {"a": "1", "b": "2"}).fingerprint == Order("f", {"b": "2", "a": "1"}).fingerprint
    assert len(Order("f", [], {1: "a", "b": 2}).fingerprint) == 64


@pytest.mark.parametrize("told", [None, {}, {"flow_run_id": "r"}, {"newer": 1}, [], "x", 5])
def test_record_that_cannot_be_read_is_none(told: object) -> None:
    """Whatever another version may have kept is read as no record, not as an error."""
    assert Record.from_dict(told) is None
    record = Record("r", "f", 3, 12.5)
    assert Record.from_dict(record.as_dict()) == record


def test_error_that_led_to_tidying_up_is_the_one_told() -> None:
    """Where even deleting the run fails, the first error is raised."""
    script = Script(answer({"flow_id": "r"}), answer({"detail": "too big"}, 413), silence())
    with pytest.raises(FlowError, match="too big"):
        script.hold(start(Generio(), Order(FLOW, [FlowInput("p")]), lambda _: None))
