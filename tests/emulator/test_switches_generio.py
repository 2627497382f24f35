"""Every value of the switches for how Generio's answers look shows."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_flows.emulator import Emulator, Plan
from tests.emulator.caller import EmulatorClient, read_glb
from tests.emulator.exhibits import SwitchChecks

EXHIBITS = SwitchChecks()


def output(caller: EmulatorClient, **query: str) -> dict[str, Any]:
    """Return the only output of a flow run that is over."""
    path = f"/flows/{caller.finish('a chair')}/outputs"
    shown: dict[str, Any] = caller.get(path, params=query)["outputs"][0]
    return shown


@EXHIBITS.covers("output_id", "both", "asset_id", "id", "_id")
def _(caller: EmulatorClient, value: str) -> None:
    wanted = {"asset_id", "id"} if value == "both" else {value}
    assert {"asset_id", "id", "_id"} & set(output(caller)) == wanted


@EXHIBITS.covers("download", "json", "json_more", "raw", "text")
def _(caller: EmulatorClient, value: str) -> None:
    flow_id = caller.finish("a chair")
    asset = caller.get(f"/flows/{flow_id}/outputs")["outputs"][0]["id"]
    answer = caller.call("GET", f"/flows/{flow_id}/outputs/{asset}")
    kind = answer.headers["content-type"].partition(";")[0]
    if value == "raw":
        assert (kind, bool(read_glb(answer.content))) == ("model/gltf-binary", True)
    elif value == "text":
        assert (kind, answer.text[:30]) == ("text/plain", "data:model/gltf-binary;base64,")
    else:
        keys = (
            {"data"} if value == "json" else {"data", "status", "asset_id", "id", "processed", "additional"}
        )
        assert (kind, set(answer.json())) == ("application/json", keys)


@EXHIBITS.covers("ready_word", "ready", "available")
def _(caller: EmulatorClient, value: str) -> None:
    assert output(caller)["status"] == value


@EXHIBITS.covers("processed", "timestamp", "bool", "null", "missing")
def _(caller: EmulatorClient, value: str) -> None:
    shown = output(caller).get("processed", "missing")
    assert shown == {"bool": True, "null": None, "missing": "missing"}.get(value, shown)
    assert value != "timestamp" or shown.endswith("Z")


@EXHIBITS.covers("progress", "smooth", "late", "steps", "missing", "null", "percent")
def _(caller: EmulatorClient, value: str) -> None:
    caller.emulator.run_seconds = 1000
    flow_id = caller.create("a chair")
    caller.emulator.advance(600)
    shown = caller.get(f"/flows/{flow_id}").get("progress", "missing")
    if value in {"smooth", "percent"}:
        assert shown == pytest.approx(55.6 if value == "percent" else 0.556, rel=0.01)
    else:
        assert shown == {"late": 0.0, "steps": 0.5, "missing": "missing", "null": None}[value]
    caller.emulator.advance(600)
    if value in {"smooth", "late", "steps"}:
        assert caller.get(f"/flows/{flow_id}")["progress"] == 1.0


@EXHIBITS.covers("state_key", "state", "status", "both")
def _(caller: EmulatorClient, value: str) -> None:
    wanted = {"state", "status"} if value == "both" else {value}
    assert {"state", "status"} & set(caller.get(f"/flows/{caller.create()}")) == wanted


@EXHIBITS.covers("state_case", "lower", "upper")
def _(caller: EmulatorClient, value: str) -> None:
    assert caller.get(f"/flows/{caller.create()}")["state"] == ("CREATED" if value == "upper" else "created")


@EXHIBITS.covers("timestamps", "zulu", "offset", "naive")
def _(caller: EmulatorClient, value: str) -> None:
    shown = caller.get(f"/flows/{caller.create()}")["created_at"]
    assert shown[23:] == {"zulu": "Z", "offset": "+00:00", "naive": ""}[value]


@EXHIBITS.covers("error_field", "error", "message", "details", "none")
def _(caller: EmulatorClient, value: str) -> None:
    caller.emulator.add_plan(Plan(outcome="failed", error="out of clay"))
    shown = caller.get(f"/flows/{caller.finish('a chair')}")
    assert [key for key, text in shown.items() if text == "out of clay"] == (
        [] if value == "none" else [value]
    )


@EXHIBITS.covers("envelope", "none", "success", "hidden_errors")
def _(caller: EmulatorClient, value: str) -> None:
    assert caller.get("/templates").get("success") == (None if value == "none" else True)
    missing = caller.call("GET", "/flows/" + "0" * 24)
    assert missing.status_code == (200 if value == "hidden_errors" else 404)
    assert missing.json().get("success") == (None if value == "none" else False)
    # The emulator's own routes are not bent.
    assert caller.call("PATCH", "/_emulator/switches", json={"nonsense": 1}).status_code == 422


@EXHIBITS.covers("create_answer", "full", "id")
def _(caller: EmulatorClient, value: str) -> None:
    shown = caller.call("POST", "/flows", json={"template": "model_optimize"}).json()
    assert ("state" in shown) == (value == "full")
    assert "flow_id" in shown


@EXHIBITS.covers("acknowledgement", "flow", "small", "empty")
def _(caller: EmulatorClient, value: str) -> None:
    path = f"/flows/{caller.create()}"
    caller.call("POST", f"{path}/inputs", json={"data": "a chair"})
    answers = [caller.call("PATCH", path, json={"action": "start"})]
    caller.emulator.advance(60)
    answers.append(caller.call("DELETE", path))
    for answer in answers:
        assert answer.status_code == 200
        assert bool(answer.content) == (value != "empty")
        assert value == "empty" or ("state" in answer.json()) == (value == "flow")


@pytest.mark.parametrize(("name", "value"), EXHIBITS.cases())
def test_switch(caller: EmulatorClient, emulator: Emulator, name: str, value: object) -> None:
    """The value of the switch shows in what goes over the socket."""
    setattr(emulator.switches, name, value)
    EXHIBITS[name].check(caller, value)
