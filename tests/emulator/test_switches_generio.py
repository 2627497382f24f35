"""Checks of the switches for the bodies of Generio's responses."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_flows.emulator import Emulator, Plan
from tests.emulator.client import EmulatorClient, read_glb
from tests.emulator.switch_checks import SwitchChecks

CHECKS = SwitchChecks()


def output(client: EmulatorClient, **query: str) -> dict[str, Any]:
    """Return the only output of a flow run that is over."""
    path = f"/flows/{client.finish('a chair')}/outputs"
    result: dict[str, Any] = client.get(path, params=query)["outputs"][0]
    return result


@CHECKS.covers("output_id", "both", "asset_id", "id", "_id")
def _(client: EmulatorClient, value: str) -> None:
    expected = {"asset_id", "id"} if value == "both" else {value}
    assert {"asset_id", "id", "_id"} & set(output(client)) == expected


@CHECKS.covers("download", "json", "json_more", "raw", "text")
def _(client: EmulatorClient, value: str) -> None:
    flow_id = client.finish("a chair")
    asset = client.get(f"/flows/{flow_id}/outputs")["outputs"][0]["id"]
    response = client.call("GET", f"/flows/{flow_id}/outputs/{asset}")
    kind = response.headers["content-type"].partition(";")[0]
    if value == "raw":
        assert (kind, bool(read_glb(response.content))) == ("model/gltf-binary", True)
    elif value == "text":
        assert (kind, response.text[:30]) == ("text/plain", "data:model/gltf-binary;base64,")
    else:
        keys = (
            {"data"} if value == "json" else {"data", "status", "asset_id", "id", "processed", "additional"}
        )
        assert (kind, set(response.json())) == ("application/json", keys)


@CHECKS.covers("ready_word", "ready", "available")
def _(client: EmulatorClient, value: str) -> None:
    assert output(client)["status"] == value


@CHECKS.covers("processed", "timestamp", "bool", "null", "missing")
def _(client: EmulatorClient, value: str) -> None:
    result = output(client).get("processed", "missing")
    assert result == {"bool": True, "null": None, "missing": "missing"}.get(value, result)
    assert value != "timestamp" or result.endswith("Z")


@CHECKS.covers("progress", "smooth", "late", "steps", "missing", "null", "percent")
def _(client: EmulatorClient, value: str) -> None:
    client.emulator.run_seconds = 1000
    flow_id = client.create("a chair")
    client.emulator.advance(600)
    result = client.get(f"/flows/{flow_id}").get("progress", "missing")
    if value in {"smooth", "percent"}:
        assert result == pytest.approx(55.6 if value == "percent" else 0.556, rel=0.01)
    else:
        assert result == {"late": 0.0, "steps": 0.5, "missing": "missing", "null": None}[value]
    client.emulator.advance(600)
    if value in {"smooth", "late", "steps"}:
        assert client.get(f"/flows/{flow_id}")["progress"] == 1.0


@CHECKS.covers("state_key", "state", "status", "both")
def _(client: EmulatorClient, value: str) -> None:
    expected = {"state", "status"} if value == "both" else {value}
    assert {"state", "status"} & set(client.get(f"/flows/{client.create()}")) == expected


@CHECKS.covers("state_case", "lower", "upper")
def _(client: EmulatorClient, value: str) -> None:
    assert client.get(f"/flows/{client.create()}")["state"] == ("CREATED" if value == "upper" else "created")


@CHECKS.covers("timestamps", "zulu", "offset", "naive")
def _(client: EmulatorClient, value: str) -> None:
    result = client.get(f"/flows/{client.create()}")["created_at"]
    assert result[23:] == {"zulu": "Z", "offset": "+00:00", "naive": ""}[value]


@CHECKS.covers("error_field", "error", "message", "details", "none")
def _(client: EmulatorClient, value: str) -> None:
    client.emulator.add_plan(Plan(outcome="failed", error="out of clay"))
    result = client.get(f"/flows/{client.finish('a chair')}")
    assert [key for key, text in result.items() if text == "out of clay"] == (
        [] if value == "none" else [value]
    )


@CHECKS.covers("envelope", "none", "success", "hidden_errors")
def _(client: EmulatorClient, value: str) -> None:
    assert client.get("/templates").get("success") == (None if value == "none" else True)
    missing = client.call("GET", "/flows/" + "0" * 24)
    assert missing.status_code == (200 if value == "hidden_errors" else 404)
    assert missing.json().get("success") == (None if value == "none" else False)
    # The emulator's own routes are not bent.
    assert client.call("PATCH", "/_emulator/switches", json={"nonsense": 1}).status_code == 422


@CHECKS.covers("create_response", "full", "id")
def _(client: EmulatorClient, value: str) -> None:
    result = client.call("POST", "/flows", json={"template": "model_optimize"}).json()
    assert ("state" in result) == (value == "full")
    assert "flow_id" in result


@CHECKS.covers("acknowledgement", "flow", "small", "empty")
def _(client: EmulatorClient, value: str) -> None:
    path = f"/flows/{client.create()}"
    client.call("POST", f"{path}/inputs", json={"data": "a chair"})
    responses = [client.call("PATCH", path, json={"action": "start"})]
    client.emulator.advance(60)
    responses.append(client.call("DELETE", path))
    for response in responses:
        assert response.status_code == 200
        assert bool(response.content) == (value != "empty")
        assert value == "empty" or ("state" in response.json()) == (value == "flow")


@pytest.mark.parametrize(("name", "value"), CHECKS.cases())
def test_switch_changes_the_responses(
    client: EmulatorClient, emulator: Emulator, name: str, value: object
) -> None:
    """The value of the switch has its effect on the responses."""
    setattr(emulator.switches, name, value)
    CHECKS[name].check(client, value)
