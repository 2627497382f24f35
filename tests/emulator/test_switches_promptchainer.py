"""Checks of PromptChainer's switches."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests

from airflow_provider_flows.emulator import Emulator
from tests.emulator.client import SAMPLE_FLOW, EmulatorClient
from tests.emulator.switch_checks import SwitchChecks

CHECKS = SwitchChecks()


def fast_chain(client: EmulatorClient, **variables: str) -> requests.Response:
    """Run the sample flow at once."""
    client.emulator.switches.chain_seconds = 0.0
    return client.run_chain(**variables)


def two_wires(client: EmulatorClient) -> Any:
    """Run a flow whose only output has two edges, and return the output."""
    nodes: list[dict[str, Any]] = [
        {"id": name, "type": "variableNode", "data": {"variable": {"label": name, "value": ""}}}
        for name in ("a", "b")
    ]
    nodes.append({"id": "o", "type": "outputNode", "data": {"name": "both", "output": {}}})
    edges = [{"source": name, "target": "o"} for name in ("b", "a")]
    client.emulator.switches.chain_seconds = 0.0
    client.emulator.add_graph("two", {"nodes": nodes, "edges": edges})
    return client.run_chain("two", a="first", b="second").json()[0]["output"]


@CHECKS.covers("chain_seconds", None, 0.0, 0.4)
def _(client: EmulatorClient, value: float | None) -> None:
    client.emulator.run_seconds = 1.0
    start_time = time.monotonic()
    client.run_chain()
    duration = time.monotonic() - start_time
    assert duration >= (1.0 if value is None else value)
    assert value is None or duration < 1.0


@CHECKS.covers("chain_key_in_body", *(True, False))
def _(client: EmulatorClient, value: bool) -> None:
    client.emulator.switches.chain_seconds = 0.0
    client.session.headers.clear()
    body = {"apiKey": client.emulator.key, "variables": {"color": "Red", "item": "Ball"}}
    assert client.call("POST", f"/api/flows/run/{SAMPLE_FLOW}", json=body).status_code == (
        200 if value else 401
    )


@CHECKS.covers("chain_errors", "error", "message", "text")
def _(client: EmulatorClient, value: str) -> None:
    response = client.run_chain("unknown")
    assert response.status_code == 404
    if value == "text":
        assert response.text == "Flow not found"
    else:
        bodies = {
            "error": {"error": "Flow not found"},
            "message": {"statusCode": 404, "message": "Flow not found"},
        }
        assert response.json() == bodies[value]


@CHECKS.covers("chain_content_type", "json", "text")
def _(client: EmulatorClient, value: str) -> None:
    response = fast_chain(client)
    assert response.headers["content-type"].startswith(
        "text/plain" if value == "text" else "application/json"
    )
    assert [item["name"] for item in response.json()] == ["image", "text"]


@CHECKS.covers("info_response", "array", "data", "list", "graph")
def _(client: EmulatorClient, value: str) -> None:
    result = client.get(f"/api/flows/getFlowInfo/{SAMPLE_FLOW}")
    if value == "graph":
        assert set(result) == {"nodes", "edges"}
    else:
        items = result if value == "array" else result[value]
        assert [item["name"] for item in items] == ["color", "item", "image", "text"]


@CHECKS.covers("run_response", "array", "outputs", "data", "list")
def _(client: EmulatorClient, value: str) -> None:
    result = fast_chain(client).json()
    items = result if value == "array" else result[value]
    assert [item["name"] for item in items] == ["image", "text"]


@CHECKS.covers("run_items", "outputs", "all", "untyped")
def _(client: EmulatorClient, value: str) -> None:
    types = [item.get("type") for item in fast_chain(client).json()]
    expected = {
        "outputs": ["output", "output"],
        "all": ["variable", "variable", "output", "output"],
        "untyped": [None, None],
    }
    assert types == expected[value]


@CHECKS.covers("output_value", "string", "map")
def _(client: EmulatorClient, value: str) -> None:
    assert two_wires(client) == {"string": "second\nfirst", "map": {"b": "second", "a": "first"}}[value]


@CHECKS.covers("join", "newline", "space", "first", "last")
def _(client: EmulatorClient, value: str) -> None:
    expected = {"newline": "second\nfirst", "space": "second first", "first": "second", "last": "first"}
    assert two_wires(client) == expected[value]


@CHECKS.covers("missing_variable", 400, 422, "blank")
def _(client: EmulatorClient, value: Any) -> None:
    response = fast_chain(client, color="Red")
    if value == "blank":
        assert "A joke about a Red and big " in response.json()[1]["output"]
    else:
        assert (response.status_code, response.json()) == (value, {"error": "Missing variable: item"})


@CHECKS.covers("model_failure", "none", "status", "empty", "null", "missing")
def _(client: EmulatorClient, value: str) -> None:
    response = fast_chain(client)
    assert response.status_code == (500 if value == "status" else 200)
    (run,) = client.emulator.paid_runs
    assert run.state == ("completed" if value == "none" else "failed")
    if value in {"empty", "null"}:
        assert [item["output"] for item in response.json()] == ["" if value == "empty" else None] * 2
    if value == "missing":
        assert response.json() == []


@CHECKS.covers("image_url_seconds", 0.0, 3600.0)
def _(client: EmulatorClient, value: float) -> None:
    url = fast_chain(client).json()[0]["output"]
    assert requests.get(url, timeout=10).status_code == (200 if value else 403)


@pytest.mark.parametrize(("name", "value"), CHECKS.cases())
def test_switch_changes_the_responses(
    client: EmulatorClient, emulator: Emulator, name: str, value: object
) -> None:
    """The value of the switch has its effect on the responses."""
    setattr(emulator.switches, name, value)
    CHECKS[name].check(client, value)
