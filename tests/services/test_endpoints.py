"""Tests of every endpoint of both services, by the hooks, against the emulator, which records requests."""

from __future__ import annotations

import json
import re
from typing import Any

import pendulum
import pytest

from airflow_provider_flows.core.definition import FlowDefinition
from airflow_provider_flows.core.exceptions import FlowInputError, FlowNotFound
from airflow_provider_flows.core.flow_run import FlowState
from airflow_provider_flows.core.graph import FlowGraph
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.emulator.graph import sample_graphs
from airflow_provider_flows.hooks import GenerioHook, PromptChainerHook
from airflow_provider_flows.services.generio.api import Generio
from tests.support.scripted_transport import ScriptedTransport, json_response, request_lines

SAMPLE = "clibnwpno000bmc0k9hvv3y7f"
FLOW = "model_generate_fromprompt"

pytestmark = pytest.mark.emulator(run_seconds=0)


def test_generio_from_templates_to_deletion(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """Each of Generio's endpoints does what it is for, by the documented method and path."""
    names = [definition.name for definition in hook.list_definitions()]
    assert FLOW in names
    run = hook.run(hook.service.create(FLOW, {"quality": "low"}, {"order": 17}))
    assert run.state is FlowState.CREATED
    key = run.flow_run_id
    asset = hook.add_input(key, {"data": "a chair", "additional": {"n": 1}})
    hook.run(hook.service.start_created_run(key))
    seen = hook.get_run(key)
    assert (seen.flow, seen.state, seen.parameters["quality"], seen.additional) == (
        FLOW,
        FlowState.COMPLETED,
        "low",
        {"order": 17},
    )
    assert [found.flow_run_id for found in hook.list_runs(FlowState.COMPLETED)] == [key]
    (given,) = hook.list_inputs(key)
    assert (given.asset_id, given.additional, given.value) == (asset, {"n": 1}, None)
    assert hook.list_inputs(key, include_data=True)[0].value == "a chair"
    assert hook.run(hook.service.get_input(key, asset or "")).data == b"a chair"
    (created,) = hook.list_outputs(key)
    assert (created.additional, created.value) == ({"n": 1}, None)
    (full,) = hook.list_outputs(key, include_data=True)
    assert str(full.value).startswith("data:model/gltf-binary;base64,Z2xURg")
    assert hook.download_output(key, created.asset_id or "").data[:4] == b"glTF"
    hook.run(hook.service.abort(key))  # hook.abort sends nothing for a final run
    hook.delete(key)
    with pytest.raises(FlowNotFound):
        hook.get_run(key)
    short = {key: "ID", asset or "-": "A", created.asset_id or "-": "O"}
    paths = [
        re.sub(r"[0-9a-f]{24}", lambda found: short[found[0]], requested)
        for requested in request_lines(flow_emulator.requests)
    ]
    assert paths == [
        "GET /templates",
        "POST /flows",
        "POST /flows/ID/inputs",
        "PATCH /flows/ID",
        "GET /flows/ID",
        "GET /flows",
        "GET /flows/ID/inputs",
        "GET /flows/ID/inputs",
        "GET /flows/ID/inputs/A",
        "GET /flows/ID/outputs",
        "GET /flows/ID/outputs",
        "GET /flows/ID/outputs/O",
        "PATCH /flows/ID",
        "GET /flows/ID",
        "DELETE /flows/ID",
        "GET /flows/ID",
    ]  # fmt: skip


def test_create_with_inputs_is_one_request(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """A run with inputs is created and started by one POST, whose body is exactly as documented."""
    hook.start(
        FLOW, ["a chair", {"data": "a table", "additional": 2}], {"seed": 7}, {"order": 17}, validate=False
    )
    (request,) = flow_emulator.requests
    assert request.json == {
        "template": FLOW,
        "parameters": {"seed": 7},
        "inputs": [{"data": "a chair"}, {"data": "a table", "additional": 2}],
        "additional": {"order": 17},
    }


def test_active_run_is_aborted(flow_emulator: Emulator, hook: GenerioHook) -> None:
    """An active run is aborted; a second abort, or one of a final run, is no error."""
    flow_emulator.run_seconds = 60
    run = hook.start(FLOW, "a chair")
    hook.abort(run.flow_run_id)
    flow_emulator.advance(60)
    assert hook.wait(run.flow_run_id, poll_interval=0.05, timeout=5).state is FlowState.ABORTED
    hook.abort(run.flow_run_id)


def test_timestamps_are_utc_and_raw_has_unknown_keys() -> None:
    """Timestamps of any documented form become pendulum datetimes in UTC; `raw` has unknown fields."""
    noon = pendulum.datetime(2025, 12, 16, 12, tz="UTC")
    forms: list[Any] = [
        "2025-12-16T12:00:00Z",
        "2025-12-16T13:00:00+01:00",
        "2025-12-16T12:00:00",
        "2025-12-16 12:00:00.000000",
        1765886400, 1765886400000,
    ]  # fmt: skip
    for form in forms:
        reported = {
            "flow_id": "r",
            "state": "completed",
            "created_at": form,
            "started_at": form,
            "finished_at": form,
            "queue": [1],
        }
        run = ScriptedTransport(json_response(reported)).run(Generio().get_run("r"))
        for moment in (run.created_at, run.started_at, run.finished_at):
            assert isinstance(moment, pendulum.DateTime)
            assert (moment, moment.timezone_name) == (noon, "UTC")
        assert run.raw["queue"] == [1]
        assert json.loads(json.dumps(run.to_dict()))["finished_at"] == "2025-12-16T12:00:00+00:00"


@pytest.mark.parametrize("form", [None, "", "soon", "never", True, [], {}, "9999999", 1e300])
def test_invalid_timestamp_is_none(form: Any) -> None:
    """A timestamp that cannot be read is None: it is never needed."""
    run = ScriptedTransport(json_response({"flow_id": "r", "state": "running", "created_at": form})).run(
        Generio().get_run("r")
    )
    assert run.created_at is None or isinstance(run.created_at, pendulum.DateTime)
    assert run.state is FlowState.RUNNING


def test_definition_of_a_template(hook: GenerioHook) -> None:
    """The definition has a template's inputs, parameters and outputs, and its raw form."""
    definition = hook.get_definition("model_optimize")
    assert (definition.name, definition.inputs, definition.outputs) == (
        "model_optimize",
        ("model/gltf-binary",),
        ("model/gltf-binary",),
    )
    parameter = definition.parameters["polygon_count"]
    assert (parameter.type, parameter.default) == ("integer", 100_000)


def test_chain_is_one_info_and_one_run(flow_emulator: Emulator, chain_hook: PromptChainerHook) -> None:
    """A chain takes one request for its definition and one for its run, whose response is the final run."""
    run = chain_hook.start(SAMPLE, {"color": "Red", "item": 7}, additional={"order": 17})
    assert request_lines(flow_emulator.requests) == [
        f"GET /api/flows/getFlowInfo/{SAMPLE}",
        f"POST /api/flows/run/{SAMPLE}",
    ]
    assert flow_emulator.requests[1].json == {"variables": {"color": "Red", "item": "7"}}
    assert (run.state, run.progress, run.additional, len(run.outputs)) == (
        FlowState.COMPLETED,
        1.0,
        {"order": 17},
        2,
    )
    assert run.duration is not None
    assert run.raw["outputs"]


@pytest.mark.parametrize(
    ("inputs", "reported"),
    [
        ({"color": "Red"}, "variable 'item' is missing"),
        (
            {"color": "Red", "itme": "Ball"},
            r"'itme' is not known \(did you mean 'item'\?\)\. The flow takes",
        ),
        ({"Color": "Red", "item": "Ball"}, r"variable 'Color' is not known \(did you mean 'color'\?\)"),
        (
            {"color": "Red", "item": "Ball", "xyz": "1"},
            "variable 'xyz' is not known[^(]*The flow takes 'color', 'item'",
        ),
        ({}, "variable 'color' is missing.*variable 'item' is missing"),
        ({"color": None, "item": "x"}, r"inputs\['color'\] must be text"),
        ("Red Ball", "must be a mapping"),
        (["Red"], "must be a mapping"),
    ],
)  # fmt: skip
def test_variables_are_checked_before_the_run(
    flow_emulator: Emulator, chain_hook: PromptChainerHook, inputs: Any, reported: str
) -> None:
    """A missing or misspelt variable is a FlowInputError with the nearest match, and no run is created."""
    with pytest.raises(FlowInputError, match=reported):
        chain_hook.start(SAMPLE, inputs)
    assert flow_emulator.started_count == 0
    assert not [request for request in flow_emulator.requests if request.method == "POST"]


def test_chain_takes_no_parameters(flow_emulator: Emulator, chain_hook: PromptChainerHook) -> None:
    """Parameters for a chain are rejected before anything is sent, even without validation."""
    with pytest.raises(FlowInputError, match="put them into inputs"):
        chain_hook.start(SAMPLE, {"color": "Red", "item": "Ball"}, {"quality": "low"}, validate=False)
    assert flow_emulator.requests == ()


def test_definition_from_a_graph_equals_that_of_the_service(chain_hook: PromptChainerHook) -> None:
    """An exported graph has the same inputs and outputs as getFlowInfo."""
    reported = chain_hook.get_definition(SAMPLE)
    definition = FlowDefinition.from_graph(
        SAMPLE, "promptchainer", FlowGraph.parse(sample_graphs()[SAMPLE].source)
    )
    assert (definition.inputs, definition.outputs, definition.flow) == (
        reported.inputs,
        reported.outputs,
        SAMPLE,
    )
