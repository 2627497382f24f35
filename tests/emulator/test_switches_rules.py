"""Every value of the switches for what Generio accepts, refuses and lists shows."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_flows.emulator import Emulator, Plan
from tests.emulator.caller import SAMPLE_FLOW, EmulatorClient, data_uri, picture
from tests.emulator.exhibits import SwitchChecks

EXHIBITS = SwitchChecks()


@EXHIBITS.covers("auth_failure", 401, 403)
def _(caller: EmulatorClient, value: int) -> None:
    caller.session.headers.clear()
    assert caller.call("GET", "/flows").status_code == value
    assert caller.call("GET", f"/api/flows/getFlowInfo/{SAMPLE_FLOW}").status_code == value


@EXHIBITS.covers("conflict", 409, 400, 403, 422, 425)
def _(caller: EmulatorClient, value: int) -> None:
    answer = caller.call("PATCH", f"/flows/{caller.create()}", json={"action": "abort"})
    assert (answer.status_code, type(answer.json()["detail"])) == (value, str)


@EXHIBITS.covers("media_refusal", 415, 422, 400)
def _(caller: EmulatorClient, value: int) -> None:
    body = {"data": data_uri("image/gif", b"GIF89a")}
    path = f"/flows/{caller.create(template='model_generate_fromimage')}/inputs"
    assert caller.call("POST", path, json=body).status_code == value


@EXHIBITS.covers("malformed_id", 404, 422, 400)
def _(caller: EmulatorClient, value: int) -> None:
    assert caller.call("GET", "/flows/not-an-id").status_code == value
    assert caller.call("GET", "/flows/" + "0" * 24).status_code == 404


@EXHIBITS.covers("bad_parameter", 422, 400, "fail")
def _(caller: EmulatorClient, value: Any) -> None:
    body = {
        "template": "model_generate_fromprompt",
        "parameters": {"quality": "odd"},
        "inputs": [{"data": "a chair"}],
    }
    answer = caller.call("POST", "/flows", json=body)
    assert answer.status_code == (200 if value == "fail" else value)
    if value == "fail":
        caller.emulator.advance(60)
        shown = caller.get(f"/flows/{answer.json()['flow_id']}")
        assert (shown["state"], "quality" in shown["error"]) == ("failed", True)


@EXHIBITS.covers("unknown_parameter", "refuse", "ignore")
def _(caller: EmulatorClient, value: str) -> None:
    answer = caller.call(
        "POST", "/flows", json={"template": "model_optimize", "parameters": {"colour": "red"}}
    )
    assert answer.status_code == (422 if value == "refuse" else 200)
    assert value == "refuse" or answer.json()["parameters"] == {"polygon_count": 100_000}


@EXHIBITS.covers("quota", "plenty", 402, 403, 429)
def _(caller: EmulatorClient, value: Any) -> None:
    wanted = 200 if value == "plenty" else value
    caller.emulator.switches.chain_seconds = 0.0
    body = {"template": "model_generate_fromprompt", "inputs": [{"data": "a chair"}]}
    assert caller.call("POST", "/flows", json=body).status_code == wanted
    assert caller.run_chain().status_code == wanted
    path = f"/flows/{caller.create()}"
    caller.call("POST", f"{path}/inputs", json={"data": "a chair"})
    assert caller.call("PATCH", path, json={"action": "start"}).status_code == wanted
    assert caller.emulator.started_count == (3 if value == "plenty" else 0)


@EXHIBITS.covers("error_detail", "string", "list", "object")
def _(caller: EmulatorClient, value: str) -> None:
    detail = caller.call("GET", "/flows/" + "0" * 24).json()["detail"]
    wanted = {
        "string": "Flow not found",
        "list": [{"loc": [], "msg": "Flow not found", "type": "error"}],
        "object": {"message": "Flow not found"},
    }
    assert detail == wanted[value]


@EXHIBITS.covers("input_path", "inputs", "both", "input")
def _(caller: EmulatorClient, value: str) -> None:
    path = f"/flows/{caller.create()}"
    new = caller.call("POST", f"{path}/inputs", json={"data": "a chair"})
    old = caller.call("POST", f"{path}/input", json={"file_data": "a chair"})
    assert (new.status_code, old.status_code) == {
        "inputs": (200, 404),
        "both": (200, 200),
        "input": (405, 200),
    }[value]
    body = {"template": "model_generate_fromprompt", "inputs": [{"file_data": "a chair"}]}
    assert caller.call("POST", "/flows", json=body).status_code == (422 if value == "inputs" else 200)


@EXHIBITS.covers("swapped_data_uri", "reject", "accept")
def _(caller: EmulatorClient, value: str) -> None:
    swapped = data_uri("image/png", picture()).replace(";base64,", ",base64;")
    path = f"/flows/{caller.create(template='model_generate_fromimage')}/inputs"
    assert caller.call("POST", path, json={"data": swapped}).status_code == (
        422 if value == "reject" else 200
    )


@EXHIBITS.covers("bare_base64", "reject", "accept")
def _(caller: EmulatorClient, value: str) -> None:
    bare = data_uri("image/png", picture()).partition(",")[2]
    path = f"/flows/{caller.create(template='model_generate_fromimage')}/inputs"
    assert caller.call("POST", path, json={"data": bare}).status_code == (422 if value == "reject" else 200)


@EXHIBITS.covers("text_data_uri", "accept", "reject", "literal")
def _(caller: EmulatorClient, value: str) -> None:
    prompt = data_uri("text/plain", b"a chair")
    path = f"/flows/{caller.create()}/inputs"
    answer = caller.call("POST", path, json={"data": prompt})
    if value == "reject":
        assert answer.status_code == 422
    else:
        (shown,) = caller.get(path, params={"include_data": "true"})["inputs"]
        assert shown["data"] == ("a chair" if value == "accept" else prompt)


@EXHIBITS.covers("bmp", "reject", "accept")
def _(caller: EmulatorClient, value: str) -> None:
    body = {"data": data_uri("image/bmp", picture("BMP"))}
    path = f"/flows/{caller.create(template='model_generate_fromimage')}"
    answer = caller.call("POST", f"{path}/inputs", json=body)
    assert answer.status_code == (415 if value == "reject" else 200)
    if value == "accept":
        caller.call("PATCH", path, json={"action": "start"})
        caller.emulator.advance(60)
        assert caller.get(path)["state"] == "completed"


@EXHIBITS.covers("abort", "visible", "instant", "finishes")
def _(caller: EmulatorClient, value: str) -> None:
    caller.emulator.run_seconds = 100
    path = f"/flows/{caller.create('a chair')}"
    shown = caller.call("PATCH", path, json={"action": "abort"}).json()
    assert shown["state"] == ("aborted" if value == "instant" else "aborting")
    caller.emulator.advance(100)
    assert caller.get(path)["state"] == ("completed" if value == "finishes" else "aborted")


@EXHIBITS.covers("outputs_after_failure", "empty", "refuse")
def _(caller: EmulatorClient, value: str) -> None:
    caller.emulator.add_plan(Plan(outcome="failed"))
    answer = caller.call("GET", f"/flows/{caller.finish('a chair')}/outputs")
    assert answer.status_code == (200 if value == "empty" else 409)


@EXHIBITS.covers("outputs_ready", "at_once", "later")
def _(caller: EmulatorClient, value: str) -> None:
    caller.emulator.run_seconds = 100
    path = f"/flows/{caller.create('a chair')}"
    caller.emulator.advance(101)
    (shown,) = caller.get(f"{path}/outputs")["outputs"]
    answer = caller.call("GET", f"{path}/outputs/{shown['id']}")
    assert (shown["status"], answer.status_code) == (
        ("ready", 200) if value == "at_once" else ("processing", 409)
    )
    caller.emulator.advance(20)
    (shown,) = caller.get(f"{path}/outputs")["outputs"]
    assert shown["status"] == "ready"


@EXHIBITS.covers("list_endpoint", "present", 404, 405)
def _(caller: EmulatorClient, value: Any) -> None:
    assert caller.call("GET", "/flows").status_code == (200 if value == "present" else value)


@EXHIBITS.covers("templates_endpoint", "present", 404, 405)
def _(caller: EmulatorClient, value: Any) -> None:
    assert caller.call("GET", "/templates").status_code == (200 if value == "present" else value)


@EXHIBITS.covers("template_parameters", "list", "mapping", "schema", "names", "absent")
def _(caller: EmulatorClient, value: str) -> None:
    shown = [row.get("parameters") for row in caller.get("/templates")["templates"]]
    told = shown[0]["properties"] if value == "schema" else shown[0]
    assert type(told) is {"list": list, "names": list, "absent": type(None)}.get(value, dict)
    if value in {"mapping", "schema"}:
        assert (list(told), told["seed"]["type"]) == (["quality", "seed", "texture"], "integer")
        assert told["seed"].get("minimum") == (-1 if value == "schema" else None)
    elif told is not None:
        assert [row if value == "names" else row["name"] for row in told] == ["quality", "seed", "texture"]


@EXHIBITS.covers("template_inputs", "strings", "objects", "words", "absent")
def _(caller: EmulatorClient, value: str) -> None:
    shown = [row.get("inputs") for row in caller.get("/templates")["templates"]]
    wanted = {
        "strings": ["text/plain", "prompt"],
        "objects": [{"type": "text/plain"}, {"type": "prompt"}],
        "words": ["text", "prompt"],
        "absent": None,
    }
    assert shown[0] == wanted[value]
    assert shown[1] == (["png", "jpeg", "tiff", "webp"] if value == "words" else shown[1])
    assert shown[2] == (["glb"] if value == "words" else shown[2])


@EXHIBITS.covers("list_envelope", "flows", "array")
def _(caller: EmulatorClient, value: str) -> None:
    flow_id = caller.create()
    shown = caller.get("/flows")
    rows = shown["flows"] if value == "flows" else shown
    assert [row["flow_id"] for row in rows] == [flow_id]


@EXHIBITS.covers("filter_by", "state", "fields", "fields_only", "ignore")
def _(caller: EmulatorClient, value: str) -> None:
    flow_id = caller.create()
    states = caller.get("/flows", params={"filter_by": "running"})["flows"]
    assert states == {"state": [], "fields": [{"flow_id": flow_id}], "fields_only": [{}]}.get(value, states)
    assert value != "ignore" or states[0]["state"] == "created"
    if value == "fields":
        rows = caller.get("/flows", params={"filter_by": "state,progress"})["flows"]
        assert rows == [{"flow_id": flow_id, "state": "created", "progress": 0.0}]


@EXHIBITS.covers("sort_order", "descending", "ascending")
def _(caller: EmulatorClient, value: str) -> None:
    ids = [caller.create() for _ in range(3)]
    shown = [row["flow_id"] for row in caller.get("/flows")["flows"]]
    assert shown == (ids if value == "ascending" else ids[::-1])


@EXHIBITS.covers("paging", "none", "offset", "page", "silent")
def _(caller: EmulatorClient, value: str) -> None:
    caller.emulator.switches.page_size = 2
    ids = [caller.create() for _ in range(5)][::-1]
    shown = caller.get("/flows")
    rows = [row["flow_id"] for row in shown.pop("flows")]
    assert rows == (ids if value == "none" else ids[:2])
    hints = {"offset": {"total": 5, "limit": 2, "offset": 0}}
    hints["page"] = {"total": 5, "page": 1, "pages": 3, "next": "/flows?page=2"}  # type: ignore[dict-item]
    assert shown == hints.get(value, {})
    if value in {"offset", "page"}:
        query = {"offset": {"limit": 1, "offset": 4}, "page": {"page": 3}}[value]
        assert [row["flow_id"] for row in caller.get("/flows", params=query)["flows"]] == ids[4:]


@EXHIBITS.covers("page_size", 1, 3)
def _(caller: EmulatorClient, value: int) -> None:
    caller.emulator.switches.paging = "silent"
    for _ in range(4):
        caller.create()
    assert len(caller.get("/flows")["flows"]) == value


@pytest.mark.parametrize(("name", "value"), EXHIBITS.cases())
def test_switch(caller: EmulatorClient, emulator: Emulator, name: str, value: object) -> None:
    """The value of the switch shows in what goes over the socket."""
    setattr(emulator.switches, name, value)
    EXHIBITS[name].check(caller, value)
