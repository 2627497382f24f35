"""The life of a flow run of Generio's, over the socket."""

from __future__ import annotations

import time
from typing import Any

import pytest

from airflow_provider_flows.emulator import Emulator, Plan
from tests.emulator.caller import EmulatorClient


def test_states_follow_one_another(emulator: Emulator, caller: EmulatorClient) -> None:
    """A flow run with inputs goes by itself through starting and running to completed, with progress."""
    emulator.run_seconds = 100
    flow_id = caller.create("a chair")
    seen = [caller.get(f"/flows/{flow_id}")]
    while seen[-1]["state"] != "completed":
        emulator.advance(5)
        seen.append(caller.get(f"/flows/{flow_id}"))
    assert list(dict.fromkeys(item["state"] for item in seen)) == ["starting", "running", "completed"]
    fractions = [item["progress"] for item in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert len(set(fractions)) > 4
    assert seen[0]["finished_at"] is None
    assert seen[-1]["created_at"] <= seen[-1]["started_at"] < seen[-1]["finished_at"]


def test_looking_changes_nothing(emulator: Emulator, caller: EmulatorClient) -> None:
    """The state depends on the clock alone, however often somebody looks."""
    emulator.run_seconds = 100
    flow_id = caller.create("a chair")
    assert {caller.get(f"/flows/{flow_id}")["state"] for _ in range(30)} == {"starting"}
    emulator.advance(50)
    assert {caller.get(f"/flows/{flow_id}")["state"] for _ in range(30)} == {"running"}
    emulator.advance(50)
    assert caller.get(f"/flows/{flow_id}")["state"] == "completed"


def test_run_without_inputs_waits_for_its_start(emulator: Emulator, caller: EmulatorClient) -> None:
    """A flow run without inputs is created, takes inputs, costs nothing, and starts when told."""
    flow_id = caller.create()
    shown = caller.get(f"/flows/{flow_id}")
    assert (shown["state"], shown["started_at"], shown["progress"]) == ("created", None, 0.0)
    for number in range(2):
        body = {"data": f"chair {number}", "additional": number}
        assert caller.call("POST", f"/flows/{flow_id}/inputs", json=body).json()["asset_id"]
    assert (emulator.started_count, emulator.runs[flow_id].has_started) == (0, False)
    assert caller.call("PATCH", f"/flows/{flow_id}", json={"action": "start"}).json()["state"] == "starting"
    assert emulator.started_count == 1
    caller.wait(flow_id, "completed")
    outputs = caller.get(f"/flows/{flow_id}/outputs")["outputs"]
    assert [item["additional"] for item in outputs] == [0, 1]


def test_an_empty_list_is_no_inputs(caller: EmulatorClient) -> None:
    """An empty list of inputs starts nothing."""
    answer = caller.call("POST", "/flows", json={"template": "model_optimize", "inputs": []})
    assert answer.json()["state"] == "created"


def test_a_run_without_inputs_cannot_start(caller: EmulatorClient) -> None:
    """There is nothing to start where there are no inputs."""
    answer = caller.call("PATCH", f"/flows/{caller.create()}", json={"action": "start"})
    assert answer.status_code == 422


def test_what_is_forbidden_while_it_runs(emulator: Emulator, caller: EmulatorClient) -> None:
    """Start, more inputs, deletion and outputs are conflicts while a flow run is under way."""
    emulator.run_seconds = 100
    path = f"/flows/{caller.create('a chair')}"
    answers = [
        caller.call("PATCH", path, json={"action": "start"}),
        caller.call("POST", f"{path}/inputs", json={"data": "a table"}),
        caller.call("DELETE", path),
        caller.call("GET", f"{path}/outputs"),
    ]
    assert [answer.status_code for answer in answers] == [409] * 4
    assert "not starting" in answers[0].json()["detail"]


def test_abort_passes_through_aborting(emulator: Emulator, caller: EmulatorClient) -> None:
    """An aborted flow run shows aborting for a moment, and cannot be aborted twice."""
    emulator.run_seconds = 100
    path = f"/flows/{caller.create('a chair')}"
    assert caller.call("PATCH", path, json={"action": "abort"}).json()["state"] == "aborting"
    assert caller.call("PATCH", path, json={"action": "abort"}).status_code == 409
    assert caller.call("DELETE", path).status_code == 409
    emulator.advance(20)
    shown = caller.get(path)
    assert (shown["state"], shown["finished_at"] is None) == ("aborted", False)
    assert caller.get(f"{path}/outputs")["outputs"] == []
    assert caller.call("PATCH", path, json={"action": "abort"}).status_code == 409


def test_abort_is_for_runs_under_way(caller: EmulatorClient) -> None:
    """What was only created or is over cannot be aborted."""
    for flow_id in (caller.create(), caller.finish("a chair")):
        assert caller.call("PATCH", f"/flows/{flow_id}", json={"action": "abort"}).status_code == 409


def test_deleted_is_gone(emulator: Emulator, caller: EmulatorClient) -> None:
    """A deleted flow run is not found any more, and stays paid."""
    for flow_id in (caller.create(), caller.finish("a chair")):
        assert caller.call("DELETE", f"/flows/{flow_id}").status_code == 200
        assert caller.call("GET", f"/flows/{flow_id}").status_code == 404
        assert flow_id not in emulator.runs
    assert [run.template for run in emulator.paid_runs] == ["model_generate_fromprompt"]


@pytest.mark.parametrize("outcome", ["failed", "aborted"])
def test_plans_end_badly(emulator: Emulator, caller: EmulatorClient, outcome: Any) -> None:
    """A planned outcome comes about, with its reason, for as many flow runs as planned."""
    emulator.add_plan(Plan(outcome=outcome, error="out of clay", times=2))
    ids = [caller.finish("a chair") for _ in range(3)]
    shown = [caller.get(f"/flows/{flow_id}") for flow_id in ids]
    assert [item["state"] for item in shown] == [outcome, outcome, "completed"]
    assert shown[0].get("error") == ("out of clay" if outcome == "failed" else None)
    assert caller.get(f"/flows/{ids[0]}/outputs")["outputs"] == []


def test_partial_outputs(emulator: Emulator, caller: EmulatorClient) -> None:
    """A failed flow run may have some outputs; the others say why they are missing."""
    emulator.add_plan(Plan(outcome="failed", error="out of clay", partial_outputs=True))
    flow_id = caller.finish("a chair", "a table", "a lamp")
    outputs = caller.get(f"/flows/{flow_id}/outputs")["outputs"]
    assert [item["status"] for item in outputs] == ["ready", "ready", "error"]
    assert outputs[2]["error"] == "out of clay"
    assert caller.call("GET", f"/flows/{flow_id}/outputs/{outputs[0]['id']}").status_code == 200
    assert caller.call("GET", f"/flows/{flow_id}/outputs/{outputs[2]['id']}").status_code == 404


def test_a_plan_has_its_own_time_and_words(emulator: Emulator, caller: EmulatorClient) -> None:
    """A plan sets how long a flow run takes, and a state nobody knows in the middle of it."""
    emulator.add_plan(Plan(run_seconds=300, unknown_state="queued"))
    flow_id = caller.create("a chair")
    states = []
    for _ in range(4):
        states.append(caller.get(f"/flows/{flow_id}")["state"])
        emulator.advance(75)
    assert states == ["starting", "running", "queued", "running"]


def test_an_impossible_plan_is_refused() -> None:
    """A plan for an outcome that there is not says so."""
    with pytest.raises(ValueError, match="exploded"):
        Plan(outcome="exploded")  # type: ignore[arg-type]


def test_run_seconds_can_be_a_fraction_and_changed(emulator: Emulator, caller: EmulatorClient) -> None:
    """The next flow run takes the time set last."""
    emulator.run_seconds = 0.05
    flow_id = caller.create("a chair")
    time.sleep(0.06)
    assert caller.get(f"/flows/{flow_id}")["state"] == "completed"


def test_the_whole_of_a_run_is_shown(caller: EmulatorClient) -> None:
    """Parameters come back with the template's defaults in the gaps, and the caller's own data as it was."""
    flow_id = caller.create("a chair", parameters={"quality": "low"}, additional={"order": [17, None]})
    shown = caller.get(f"/flows/{flow_id}")
    assert shown["parameters"] == {"quality": "low", "seed": -1, "texture": True}
    assert shown["additional"] == {"order": [17, None]}
    assert shown["template"] == "model_generate_fromprompt"


def test_list_is_filtered_and_sorted(emulator: Emulator, caller: EmulatorClient) -> None:
    """The list shows one state if asked, newest first, by either word for the state."""
    done = caller.finish("a chair")
    emulator.run_seconds = 500
    waiting, busy = caller.create(), caller.create("a table")
    assert [item["flow_id"] for item in caller.get("/flows")["flows"]] == [busy, waiting, done]
    starting = caller.get("/flows", params={"filter_by": "starting"})["flows"]
    assert [item["flow_id"] for item in starting] == [busy]
    for word in ("state", "status"):
        states = [item["state"] for item in caller.get("/flows", params={"sort_by": word})["flows"]]
        assert states == ["starting", "created", "completed"]
    assert caller.call("GET", "/flows", params={"sort_by": "colour"}).status_code == 422
    assert caller.call("GET", "/flows", params={"filter_by": "sleeping"}).status_code == 422


def test_templates_are_found_by_either_reference(caller: EmulatorClient) -> None:
    """A template's id does as well as its name."""
    for template in caller.get("/templates")["templates"]:
        assert caller.get(f"/templates/{template['template_id']}")["name"] == template["name"]
        flow_id = caller.create(template=template["template_id"])
        assert caller.get(f"/flows/{flow_id}")["template"] == template["name"]


def test_what_is_unknown_is_not_found(caller: EmulatorClient) -> None:
    """Unknown ids, templates and routes are 404, wrong methods 405."""
    flow_id = caller.finish("a chair")
    unknown = "0" * 24
    for path in (
        f"/flows/{unknown}",
        f"/flows/{flow_id}/outputs/{unknown}",
        f"/flows/{flow_id}/inputs/{unknown}",
    ):
        assert caller.call("GET", path).status_code == 404
    assert caller.call("POST", "/flows", json={"template": "teapot"}).status_code == 404
    assert caller.call("GET", "/teapots").json() == {"detail": "Not Found"}
    assert caller.call("PUT", f"/flows/{flow_id}").status_code == 405


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic emulator"}]
)
def test_only_the_key_opens(emulator: Emulator, caller: EmulatorClient, headers: dict[str, str]) -> None:
    """Without the key as a bearer token the answer is 401 and names the scheme."""
    caller.session.headers.clear()
    for method, path in (("GET", "/flows"), ("POST", "/flows"), ("GET", "/templates")):
        answer = caller.call(method, path, headers=headers)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert emulator.runs == {}


@pytest.mark.parametrize(
    ("body", "where"),
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
def test_bad_bodies_are_explained(
    emulator: Emulator, caller: EmulatorClient, body: dict[str, Any], where: str
) -> None:
    """A body that is wrong is answered as FastAPI answers: 422 with the places."""
    answer = caller.call("POST", "/flows", json=body)
    assert answer.status_code == 422
    assert [item["loc"][-1] for item in answer.json()["detail"]] == [where]
    assert emulator.runs == {}


def test_documentation_samples_without_a_body_are_refused(caller: EmulatorClient) -> None:
    """The generated samples, which send no body or stub text, get 422."""
    flow_id = caller.create()
    assert caller.call("POST", "/flows").status_code == 422
    assert caller.call("POST", "/flows", json={}).status_code == 422
    assert caller.call("PATCH", f"/flows/{flow_id}").status_code == 422
    assert caller.call("PATCH", f"/flows/{flow_id}", json={"action": "string"}).status_code == 422
    assert caller.call("POST", f"/flows/{flow_id}/inputs", json={}).status_code == 422


def test_inputs_can_be_read_back(caller: EmulatorClient) -> None:
    """Inputs are listed, with their data when asked in any of FastAPI's words for yes."""
    flow_id = caller.create("a chair", "a table")
    listed = caller.get(f"/flows/{flow_id}/inputs")
    assert [item["additional"] for item in listed["inputs"]] == [{"number": 0}, {"number": 1}]
    assert "data" not in listed["inputs"][0]
    for word in ("true", "1", "yes", "on", "True"):
        items = caller.get(f"/flows/{flow_id}/inputs", params={"include_data": word})["inputs"]
        assert [item["data"] for item in items] == ["a chair", "a table"]
    asset = listed["inputs"][1]["asset_id"]
    assert caller.get(f"/flows/{flow_id}/inputs/{asset}")["data"] == "a table"
