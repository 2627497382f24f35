"""Tests of the life of a Generio flow run."""

from __future__ import annotations

import time
from typing import Any

import pytest

from airflow_provider_flows.emulator import Emulator, Plan
from tests.emulator.client import EmulatorClient


def test_states_follow_one_another(emulator: Emulator, client: EmulatorClient) -> None:
    """A flow run with inputs passes through starting and running to completed, with progress."""
    emulator.run_seconds = 100
    flow_id = client.create("a chair")
    polls = [client.get(f"/flows/{flow_id}")]
    while polls[-1]["state"] != "completed":
        emulator.advance(5)
        polls.append(client.get(f"/flows/{flow_id}"))
    assert list(dict.fromkeys(item["state"] for item in polls)) == ["starting", "running", "completed"]
    fractions = [item["progress"] for item in polls]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert len(set(fractions)) > 4
    assert polls[0]["finished_at"] is None
    assert polls[-1]["created_at"] <= polls[-1]["started_at"] < polls[-1]["finished_at"]


def test_polls_change_nothing(emulator: Emulator, client: EmulatorClient) -> None:
    """The state depends on the clock alone, not on the number of polls."""
    emulator.run_seconds = 100
    flow_id = client.create("a chair")
    assert {client.get(f"/flows/{flow_id}")["state"] for _ in range(30)} == {"starting"}
    emulator.advance(50)
    assert {client.get(f"/flows/{flow_id}")["state"] for _ in range(30)} == {"running"}
    emulator.advance(50)
    assert client.get(f"/flows/{flow_id}")["state"] == "completed"


def test_run_without_inputs_waits_for_its_start(emulator: Emulator, client: EmulatorClient) -> None:
    """A flow run without inputs is created, accepts inputs, costs nothing, and starts on request."""
    flow_id = client.create()
    result = client.get(f"/flows/{flow_id}")
    assert (result["state"], result["started_at"], result["progress"]) == ("created", None, 0.0)
    for number in range(2):
        body = {"data": f"chair {number}", "additional": number}
        assert client.call("POST", f"/flows/{flow_id}/inputs", json=body).json()["asset_id"]
    assert (emulator.started_count, emulator.runs[flow_id].has_started) == (0, False)
    assert client.call("PATCH", f"/flows/{flow_id}", json={"action": "start"}).json()["state"] == "starting"
    assert emulator.started_count == 1
    client.wait(flow_id, "completed")
    outputs = client.get(f"/flows/{flow_id}/outputs")["outputs"]
    assert [item["additional"] for item in outputs] == [0, 1]


def test_an_empty_list_is_no_inputs(client: EmulatorClient) -> None:
    """An empty list of inputs starts nothing."""
    response = client.call("POST", "/flows", json={"template": "model_optimize", "inputs": []})
    assert response.json()["state"] == "created"


def test_a_run_without_inputs_cannot_start(client: EmulatorClient) -> None:
    """Starting a flow run without inputs is an error."""
    response = client.call("PATCH", f"/flows/{client.create()}", json={"action": "start"})
    assert response.status_code == 422


def test_conflicts_while_a_run_is_in_progress(emulator: Emulator, client: EmulatorClient) -> None:
    """Start, more inputs, deletion and outputs are conflicts while a flow run is in progress."""
    emulator.run_seconds = 100
    path = f"/flows/{client.create('a chair')}"
    responses = [
        client.call("PATCH", path, json={"action": "start"}),
        client.call("POST", f"{path}/inputs", json={"data": "a table"}),
        client.call("DELETE", path),
        client.call("GET", f"{path}/outputs"),
    ]
    assert [response.status_code for response in responses] == [409] * 4
    assert "not starting" in responses[0].json()["detail"]


def test_abort_passes_through_aborting(emulator: Emulator, client: EmulatorClient) -> None:
    """An aborted flow run is aborting for a while, and cannot be aborted twice."""
    emulator.run_seconds = 100
    path = f"/flows/{client.create('a chair')}"
    assert client.call("PATCH", path, json={"action": "abort"}).json()["state"] == "aborting"
    assert client.call("PATCH", path, json={"action": "abort"}).status_code == 409
    assert client.call("DELETE", path).status_code == 409
    emulator.advance(20)
    result = client.get(path)
    assert (result["state"], result["finished_at"] is None) == ("aborted", False)
    assert client.get(f"{path}/outputs")["outputs"] == []
    assert client.call("PATCH", path, json={"action": "abort"}).status_code == 409


def test_only_runs_in_progress_can_be_aborted(client: EmulatorClient) -> None:
    """A flow run that was not started or is final cannot be aborted."""
    for flow_id in (client.create(), client.finish("a chair")):
        assert client.call("PATCH", f"/flows/{flow_id}", json={"action": "abort"}).status_code == 409


def test_a_deleted_run_is_not_found(emulator: Emulator, client: EmulatorClient) -> None:
    """A deleted flow run is not found any more, but remains billed."""
    for flow_id in (client.create(), client.finish("a chair")):
        assert client.call("DELETE", f"/flows/{flow_id}").status_code == 200
        assert client.call("GET", f"/flows/{flow_id}").status_code == 404
        assert flow_id not in emulator.runs
    assert [run.template for run in emulator.paid_runs] == ["model_generate_fromprompt"]


@pytest.mark.parametrize("outcome", ["failed", "aborted"])
def test_planned_failures(emulator: Emulator, client: EmulatorClient, outcome: Any) -> None:
    """As many flow runs as planned have the planned outcome and error."""
    emulator.add_plan(Plan(outcome=outcome, error="out of clay", times=2))
    ids = [client.finish("a chair") for _ in range(3)]
    result = [client.get(f"/flows/{flow_id}") for flow_id in ids]
    assert [item["state"] for item in result] == [outcome, outcome, "completed"]
    assert result[0].get("error") == ("out of clay" if outcome == "failed" else None)
    assert client.get(f"/flows/{ids[0]}/outputs")["outputs"] == []


def test_partial_outputs(emulator: Emulator, client: EmulatorClient) -> None:
    """A failed flow run may have some outputs; the others have an error."""
    emulator.add_plan(Plan(outcome="failed", error="out of clay", partial_outputs=True))
    flow_id = client.finish("a chair", "a table", "a lamp")
    outputs = client.get(f"/flows/{flow_id}/outputs")["outputs"]
    assert [item["status"] for item in outputs] == ["ready", "ready", "error"]
    assert outputs[2]["error"] == "out of clay"
    assert client.call("GET", f"/flows/{flow_id}/outputs/{outputs[0]['id']}").status_code == 200
    assert client.call("GET", f"/flows/{flow_id}/outputs/{outputs[2]['id']}").status_code == 404


def test_a_plan_sets_duration_and_state(emulator: Emulator, client: EmulatorClient) -> None:
    """A plan sets the duration of a flow run, and an unknown state in its middle third."""
    emulator.add_plan(Plan(run_seconds=300, unknown_state="queued"))
    flow_id = client.create("a chair")
    states = []
    for _ in range(4):
        states.append(client.get(f"/flows/{flow_id}")["state"])
        emulator.advance(75)
    assert states == ["starting", "running", "queued", "running"]


def test_an_invalid_plan_is_rejected() -> None:
    """A plan with an unknown outcome is rejected."""
    with pytest.raises(ValueError, match="exploded"):
        Plan(outcome="exploded")


def test_run_seconds_can_be_a_fraction_and_changed(emulator: Emulator, client: EmulatorClient) -> None:
    """The next flow run has the duration that was set last."""
    emulator.run_seconds = 0.05
    flow_id = client.create("a chair")
    time.sleep(0.06)
    assert client.get(f"/flows/{flow_id}")["state"] == "completed"


def test_a_run_is_described_completely(client: EmulatorClient) -> None:
    """A flow run has its parameters, the template's defaults for the others, and the caller's metadata."""
    flow_id = client.create("a chair", parameters={"quality": "low"}, additional={"order": [17, None]})
    result = client.get(f"/flows/{flow_id}")
    assert result["parameters"] == {"quality": "low", "seed": -1, "texture": True}
    assert result["additional"] == {"order": [17, None]}
    assert result["template"] == "model_generate_fromprompt"


def test_list_is_filtered_and_sorted(emulator: Emulator, client: EmulatorClient) -> None:
    """The list is filtered by state, newest first, and sorted by either name of the state."""
    completed = client.finish("a chair")
    emulator.run_seconds = 500
    waiting, busy = client.create(), client.create("a table")
    assert [item["flow_id"] for item in client.get("/flows")["flows"]] == [busy, waiting, completed]
    starting = client.get("/flows", params={"filter_by": "starting"})["flows"]
    assert [item["flow_id"] for item in starting] == [busy]
    for word in ("state", "status"):
        states = [item["state"] for item in client.get("/flows", params={"sort_by": word})["flows"]]
        assert states == ["starting", "created", "completed"]
    assert client.call("GET", "/flows", params={"sort_by": "colour"}).status_code == 422
    assert client.call("GET", "/flows", params={"filter_by": "sleeping"}).status_code == 422


def test_templates_are_found_by_id_or_name(client: EmulatorClient) -> None:
    """A template is found by its id or its name."""
    for template in client.get("/templates")["templates"]:
        assert client.get(f"/templates/{template['template_id']}")["name"] == template["name"]
        flow_id = client.create(template=template["template_id"])
        assert client.get(f"/flows/{flow_id}")["template"] == template["name"]


def test_unknown_ids_and_routes_are_not_found(client: EmulatorClient) -> None:
    """Unknown ids, templates and routes are 404, wrong methods 405."""
    flow_id = client.finish("a chair")
    unknown = "0" * 24
    for path in (
        f"/flows/{unknown}",
        f"/flows/{flow_id}/outputs/{unknown}",
        f"/flows/{flow_id}/inputs/{unknown}",
    ):
        assert client.call("GET", path).status_code == 404
    assert client.call("POST", "/flows", json={"template": "teapot"}).status_code == 404
    assert client.call("GET", "/teapots").json() == {"detail": "Not Found"}
    assert client.call("PUT", f"/flows/{flow_id}").status_code == 405


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic emulator"}]
)
def test_requests_without_the_key_are_rejected(
    emulator: Emulator, client: EmulatorClient, headers: dict[str, str]
) -> None:
    """Without the key as a bearer token the status is 401, and a header names the scheme."""
    client.session.headers.clear()
    for method, path in (("GET", "/flows"), ("POST", "/flows"), ("GET", "/templates")):
        response = client.call(method, path, headers=headers)
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert emulator.runs == {}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"parameters": {}}, "template"),
        ({"template": "model_optimize", "parameters": {"polygon_count": "many"}}, "polygon_count"),
        ({"template": "model_optimize", "parameters": {"polygon_count": True}}, "polygon_count"),
        ({"template": "model_optimize", "parameters": {"polygon_count": 0}}, "polygon_count"),
        ({"template": "model_generate_fromprompt", "parameters": {"quality": "medium"}}, "quality"),
        ({"template": "model_generate_fromprompt", "parameters": {"colour": "red"}}, "colour"),
        ({"template": "model_generate_fromprompt", "parameters": ["quality"]}, "parameters"),
        ({"template": "model_generate_fromprompt", "inputs": "a chair"}, "inputs"),
    ],
)
def test_invalid_bodies_have_validation_errors(
    emulator: Emulator, client: EmulatorClient, body: dict[str, Any], field: str
) -> None:
    """An invalid body gets FastAPI's 422 with the location of each error."""
    response = client.call("POST", "/flows", json=body)
    assert response.status_code == 422
    assert [item["loc"][-1] for item in response.json()["detail"]] == [field]
    assert emulator.runs == {}


def test_documentation_samples_without_a_body_are_rejected(client: EmulatorClient) -> None:
    """The generated samples, which send no body or stub text, get 422."""
    flow_id = client.create()
    assert client.call("POST", "/flows").status_code == 422
    assert client.call("POST", "/flows", json={}).status_code == 422
    assert client.call("PATCH", f"/flows/{flow_id}").status_code == 422
    assert client.call("PATCH", f"/flows/{flow_id}", json={"action": "string"}).status_code == 422
    assert client.call("POST", f"/flows/{flow_id}/inputs", json={}).status_code == 422


def test_inputs_can_be_read_back(client: EmulatorClient) -> None:
    """Inputs are listed, with their data for every value that FastAPI reads as true."""
    flow_id = client.create("a chair", "a table")
    listed = client.get(f"/flows/{flow_id}/inputs")
    assert [item["additional"] for item in listed["inputs"]] == [{"number": 0}, {"number": 1}]
    assert "data" not in listed["inputs"][0]
    for word in ("true", "1", "yes", "on", "True"):
        items = client.get(f"/flows/{flow_id}/inputs", params={"include_data": word})["inputs"]
        assert [item["data"] for item in items] == ["a chair", "a table"]
    asset = listed["inputs"][1]["asset_id"]
    assert client.get(f"/flows/{flow_id}/inputs/{asset}")["data"] == "a table"
