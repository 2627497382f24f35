"""Checks of the switches for the requests that Generio accepts and rejects, and for its lists."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_flows.emulator import Emulator, Plan
from tests.emulator.client import SAMPLE_FLOW, EmulatorClient, data_uri, draw_image
from tests.emulator.switch_checks import SwitchChecks

CHECKS = SwitchChecks()


@CHECKS.covers("auth_failure", 401, 403)
def _(client: EmulatorClient, value: int) -> None:
    client.session.headers.clear()
    assert client.call("GET", "/flows").status_code == value
    assert client.call("GET", f"/api/flows/getFlowInfo/{SAMPLE_FLOW}").status_code == value


@CHECKS.covers("conflict", 409, 400, 403, 422, 425)
def _(client: EmulatorClient, value: int) -> None:
    response = client.call("PATCH", f"/flows/{client.create()}", json={"action": "abort"})
    assert (response.status_code, type(response.json()["detail"])) == (value, str)


@CHECKS.covers("unsupported_media", 415, 422, 400)
def _(client: EmulatorClient, value: int) -> None:
    body = {"data": data_uri("image/gif", b"GIF89a")}
    path = f"/flows/{client.create(template='model_generate_fromimage')}/inputs"
    assert client.call("POST", path, json=body).status_code == value


@CHECKS.covers("malformed_id", 404, 422, 400)
def _(client: EmulatorClient, value: int) -> None:
    assert client.call("GET", "/flows/not-an-id").status_code == value
    assert client.call("GET", "/flows/" + "0" * 24).status_code == 404


@CHECKS.covers("bad_parameter", 422, 400, "fail")
def _(client: EmulatorClient, value: Any) -> None:
    body = {
        "template": "model_generate_fromprompt",
        "parameters": {"quality": "odd"},
        "inputs": [{"data": "a chair"}],
    }
    response = client.call("POST", "/flows", json=body)
    assert response.status_code == (200 if value == "fail" else value)
    if value == "fail":
        client.emulator.advance(60)
        result = client.get(f"/flows/{response.json()['flow_id']}")
        assert (result["state"], "quality" in result["error"]) == ("failed", True)


@CHECKS.covers("unknown_parameter", "reject", "ignore")
def _(client: EmulatorClient, value: str) -> None:
    response = client.call(
        "POST", "/flows", json={"template": "model_optimize", "parameters": {"colour": "red"}}
    )
    assert response.status_code == (422 if value == "reject" else 200)
    assert value == "reject" or response.json()["parameters"] == {"polygon_count": 100_000}


@CHECKS.covers("quota", "plenty", 402, 403, 429)
def _(client: EmulatorClient, value: Any) -> None:
    expected = 200 if value == "plenty" else value
    client.emulator.switches.chain_seconds = 0.0
    body = {"template": "model_generate_fromprompt", "inputs": [{"data": "a chair"}]}
    assert client.call("POST", "/flows", json=body).status_code == expected
    assert client.run_chain().status_code == expected
    path = f"/flows/{client.create()}"
    client.call("POST", f"{path}/inputs", json={"data": "a chair"})
    assert client.call("PATCH", path, json={"action": "start"}).status_code == expected
    assert client.emulator.started_count == (3 if value == "plenty" else 0)


@CHECKS.covers("error_detail", "string", "list", "object")
def _(client: EmulatorClient, value: str) -> None:
    detail = client.call("GET", "/flows/" + "0" * 24).json()["detail"]
    expected = {
        "string": "Flow not found",
        "list": [{"loc": [], "msg": "Flow not found", "type": "error"}],
        "object": {"message": "Flow not found"},
    }
    assert detail == expected[value]


@CHECKS.covers("input_path", "inputs", "both", "input")
def _(client: EmulatorClient, value: str) -> None:
    path = f"/flows/{client.create()}"
    new = client.call("POST", f"{path}/inputs", json={"data": "a chair"})
    old = client.call("POST", f"{path}/input", json={"file_data": "a chair"})
    assert (new.status_code, old.status_code) == {
        "inputs": (200, 404),
        "both": (200, 200),
        "input": (405, 200),
    }[value]
    body = {"template": "model_generate_fromprompt", "inputs": [{"file_data": "a chair"}]}
    assert client.call("POST", "/flows", json=body).status_code == (422 if value == "inputs" else 200)


@CHECKS.covers("swapped_data_uri", "reject", "accept")
def _(client: EmulatorClient, value: str) -> None:
    swapped = data_uri("image/png", draw_image()).replace(";base64,", ",base64;")
    path = f"/flows/{client.create(template='model_generate_fromimage')}/inputs"
    assert client.call("POST", path, json={"data": swapped}).status_code == (
        422 if value == "reject" else 200
    )


@CHECKS.covers("bare_base64", "reject", "accept")
def _(client: EmulatorClient, value: str) -> None:
    bare = data_uri("image/png", draw_image()).partition(",")[2]
    path = f"/flows/{client.create(template='model_generate_fromimage')}/inputs"
    assert client.call("POST", path, json={"data": bare}).status_code == (422 if value == "reject" else 200)


@CHECKS.covers("text_data_uri", "accept", "reject", "literal")
def _(client: EmulatorClient, value: str) -> None:
    prompt = data_uri("text/plain", b"a chair")
    path = f"/flows/{client.create()}/inputs"
    response = client.call("POST", path, json={"data": prompt})
    if value == "reject":
        assert response.status_code == 422
    else:
        (result,) = client.get(path, params={"include_data": "true"})["inputs"]
        assert result["data"] == ("a chair" if value == "accept" else prompt)


@CHECKS.covers("bmp", "reject", "accept")
def _(client: EmulatorClient, value: str) -> None:
    body = {"data": data_uri("image/bmp", draw_image("BMP"))}
    path = f"/flows/{client.create(template='model_generate_fromimage')}"
    response = client.call("POST", f"{path}/inputs", json=body)
    assert response.status_code == (415 if value == "reject" else 200)
    if value == "accept":
        client.call("PATCH", path, json={"action": "start"})
        client.emulator.advance(60)
        assert client.get(path)["state"] == "completed"


@CHECKS.covers("abort", "visible", "instant", "finishes")
def _(client: EmulatorClient, value: str) -> None:
    client.emulator.run_seconds = 100
    path = f"/flows/{client.create('a chair')}"
    result = client.call("PATCH", path, json={"action": "abort"}).json()
    assert result["state"] == ("aborted" if value == "instant" else "aborting")
    client.emulator.advance(100)
    assert client.get(path)["state"] == ("completed" if value == "finishes" else "aborted")


@CHECKS.covers("outputs_after_failure", "empty", "reject")
def _(client: EmulatorClient, value: str) -> None:
    client.emulator.add_plan(Plan(outcome="failed"))
    response = client.call("GET", f"/flows/{client.finish('a chair')}/outputs")
    assert response.status_code == (200 if value == "empty" else 409)


@CHECKS.covers("outputs_ready", "at_once", "later")
def _(client: EmulatorClient, value: str) -> None:
    client.emulator.run_seconds = 100
    path = f"/flows/{client.create('a chair')}"
    client.emulator.advance(101)
    (result,) = client.get(f"{path}/outputs")["outputs"]
    response = client.call("GET", f"{path}/outputs/{result['id']}")
    assert (result["status"], response.status_code) == (
        ("ready", 200) if value == "at_once" else ("processing", 409)
    )
    client.emulator.advance(20)
    (result,) = client.get(f"{path}/outputs")["outputs"]
    assert result["status"] == "ready"


@CHECKS.covers("list_endpoint", "present", 404, 405)
def _(client: EmulatorClient, value: Any) -> None:
    assert client.call("GET", "/flows").status_code == (200 if value == "present" else value)


@CHECKS.covers("templates_endpoint", "present", 404, 405)
def _(client: EmulatorClient, value: Any) -> None:
    assert client.call("GET", "/templates").status_code == (200 if value == "present" else value)


@CHECKS.covers("template_parameters", "list", "mapping", "schema", "names", "absent")
def _(client: EmulatorClient, value: str) -> None:
    result = [row.get("parameters") for row in client.get("/templates")["templates"]]
    parameters = result[0]["properties"] if value == "schema" else result[0]
    assert type(parameters) is {"list": list, "names": list, "absent": type(None)}.get(value, dict)
    if value in {"mapping", "schema"}:
        assert (list(parameters), parameters["seed"]["type"]) == (["quality", "seed", "texture"], "integer")
        assert parameters["seed"].get("minimum") == (-1 if value == "schema" else None)
    elif parameters is not None:
        assert [row if value == "names" else row["name"] for row in parameters] == [
            "quality",
            "seed",
            "texture",
        ]


@CHECKS.covers("template_inputs", "strings", "objects", "words", "absent")
def _(client: EmulatorClient, value: str) -> None:
    result = [row.get("inputs") for row in client.get("/templates")["templates"]]
    expected = {
        "strings": ["text/plain", "prompt"],
        "objects": [{"type": "text/plain"}, {"type": "prompt"}],
        "words": ["text", "prompt"],
        "absent": None,
    }
    assert result[0] == expected[value]
    assert result[1] == (["png", "jpeg", "tiff", "webp"] if value == "words" else result[1])
    assert result[2] == (["glb"] if value == "words" else result[2])


@CHECKS.covers("list_envelope", "flows", "array")
def _(client: EmulatorClient, value: str) -> None:
    flow_id = client.create()
    result = client.get("/flows")
    rows = result["flows"] if value == "flows" else result
    assert [row["flow_id"] for row in rows] == [flow_id]


@CHECKS.covers("filter_by", "state", "fields", "fields_only", "ignore")
def _(client: EmulatorClient, value: str) -> None:
    flow_id = client.create()
    states = client.get("/flows", params={"filter_by": "running"})["flows"]
    assert states == {"state": [], "fields": [{"flow_id": flow_id}], "fields_only": [{}]}.get(value, states)
    assert value != "ignore" or states[0]["state"] == "created"
    if value == "fields":
        rows = client.get("/flows", params={"filter_by": "state,progress"})["flows"]
        assert rows == [{"flow_id": flow_id, "state": "created", "progress": 0.0}]


@CHECKS.covers("sort_order", "descending", "ascending")
def _(client: EmulatorClient, value: str) -> None:
    ids = [client.create() for _ in range(3)]
    result = [row["flow_id"] for row in client.get("/flows")["flows"]]
    assert result == (ids if value == "ascending" else ids[::-1])


@CHECKS.covers("paging", "none", "offset", "page", "silent")
def _(client: EmulatorClient, value: str) -> None:
    client.emulator.switches.page_size = 2
    ids = [client.create() for _ in range(5)][::-1]
    result = client.get("/flows")
    rows = [row["flow_id"] for row in result.pop("flows")]
    assert rows == (ids if value == "none" else ids[:2])
    hints = {"offset": {"total": 5, "limit": 2, "offset": 0}}
    hints["page"] = {"total": 5, "page": 1, "pages": 3, "next": "/flows?page=2"}
    assert result == hints.get(value, {})
    if value in {"offset", "page"}:
        query = {"offset": {"limit": 1, "offset": 4}, "page": {"page": 3}}[value]
        assert [row["flow_id"] for row in client.get("/flows", params=query)["flows"]] == ids[4:]


@CHECKS.covers("page_size", 1, 3)
def _(client: EmulatorClient, value: int) -> None:
    client.emulator.switches.paging = "silent"
    for _ in range(4):
        client.create()
    assert len(client.get("/flows")["flows"]) == value


@pytest.mark.parametrize(("name", "value"), CHECKS.cases())
def test_switch_changes_the_responses(
    client: EmulatorClient, emulator: Emulator, name: str, value: object
) -> None:
    """The value of the switch has its effect on the responses."""
    setattr(emulator.switches, name, value)
    CHECKS[name].check(client, value)
