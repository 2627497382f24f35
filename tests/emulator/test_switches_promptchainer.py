"""Every value of PromptChainer's switches shows."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests

from airflow_provider_flows.emulator import Emulator
from tests.emulator.caller import SAMPLE_FLOW, EmulatorClient
from tests.emulator.exhibits import SwitchChecks

EXHIBITS = SwitchChecks()


def fast_chain(caller: EmulatorClient, **variables: str) -> requests.Response:
    """Run the sample flow at once."""
    caller.emulator.switches.chain_seconds = 0.0
    return caller.run_chain(**variables)


def two_wires(caller: EmulatorClient) -> Any:
    """Run a flow whose one output has two wires, and return the output."""
    nodes: list[dict[str, Any]] = [
        {"id": name, "type": "variableNode", "data": {"variable": {"label": name, "value": ""}}}
        for name in ("a", "b")
    ]
    nodes.append({"id": "o", "type": "outputNode", "data": {"name": "both", "output": {}}})
    edges = [{"source": name, "target": "o"} for name in ("b", "a")]
    caller.emulator.switches.chain_seconds = 0.0
    caller.emulator.add_graph("two", {"nodes": nodes, "edges": edges})
    return caller.run_chain("two", a="first", b="second").json()[0]["output"]


@EXHIBITS.covers("chain_seconds", None, 0.0, 0.4)
def _(caller: EmulatorClient, value: float | None) -> None:
    caller.emulator.run_seconds = 1.0
    began = time.monotonic()
    caller.run_chain()
    lasted = time.monotonic() - began
    assert lasted >= (1.0 if value is None else value)
    assert value is None or lasted < 1.0


@EXHIBITS.covers("chain_key_in_body", *(True, False))
def _(caller: EmulatorClient, value: bool) -> None:  # noqa: FBT001  the value of a switch
    caller.emulator.switches.chain_seconds = 0.0
    caller.session.headers.clear()
    body = {"apiKey": caller.emulator.key, "variables": {"color": "Red", "item": "Ball"}}
    assert caller.call("POST", f"/api/flows/run/{SAMPLE_FLOW}", json=body).status_code == (
        200 if value else 401
    )


@EXHIBITS.covers("chain_errors", "error", "message", "text")
def _(caller: EmulatorClient, value: str) -> None:
    answer = caller.run_chain("unknown")
    assert answer.status_code == 404
    if value == "text":
        assert answer.text == "Flow not found"
    else:
        bodies = {
            "error": {"error": "Flow not found"},
            "message": {"statusCode": 404, "message": "Flow not found"},
        }
        assert answer.json() == bodies[value]


@EXHIBITS.covers("chain_content_type", "json", "text")
def _(caller: EmulatorClient, value: str) -> None:
    answer = fast_chain(caller)
    assert answer.headers["content-type"].startswith("text/plain" if value == "text" else "application/json")
    assert [item["name"] for item in answer.json()] == ["image", "text"]


@EXHIBITS.covers("info_answer", "array", "data", "list", "graph")
def _(caller: EmulatorClient, value: str) -> None:
    shown = caller.get(f"/api/flows/getFlowInfo/{SAMPLE_FLOW}")
    if value == "graph":
        assert set(shown) == {"nodes", "edges"}
    else:
        items = shown if value == "array" else shown[value]
        assert [item["name"] for item in items] == ["color", "item", "image", "text"]


@EXHIBITS.covers("run_answer", "array", "outputs", "data", "list")
def _(caller: EmulatorClient, value: str) -> None:
    shown = fast_chain(caller).json()
    items = shown if value == "array" else shown[value]
    assert [item["name"] for item in items] == ["image", "text"]


@EXHIBITS.covers("run_items", "outputs", "all", "untyped")
def _(caller: EmulatorClient, value: str) -> None:
    types = [item.get("type") for item in fast_chain(caller).json()]
    wanted = {
        "outputs": ["output", "output"],
        "all": ["variable", "variable", "output", "output"],
        "untyped": [None, None],
    }
    assert types == wanted[value]


@EXHIBITS.covers("output_value", "string", "map")
def _(caller: EmulatorClient, value: str) -> None:
    assert two_wires(caller) == {"string": "second\nfirst", "map": {"b": "second", "a": "first"}}[value]


@EXHIBITS.covers("join", "newline", "space", "first", "last")
def _(caller: EmulatorClient, value: str) -> None:
    wanted = {"newline": "second\nfirst", "space": "second first", "first": "second", "last": "first"}
    assert two_wires(caller) == wanted[value]


@EXHIBITS.covers("missing_variable", 400, 422, "blank")
def _(caller: EmulatorClient, value: Any) -> None:
    answer = fast_chain(caller, color="Red")
    if value == "blank":
        assert "A joke about a Red and big " in answer.json()[1]["output"]
    else:
        assert (answer.status_code, answer.json()) == (value, {"error": "Missing variable: item"})


@EXHIBITS.covers("model_failure", "none", "status", "empty", "null", "missing")
def _(caller: EmulatorClient, value: str) -> None:
    answer = fast_chain(caller)
    assert answer.status_code == (500 if value == "status" else 200)
    (run,) = caller.emulator.paid_runs
    assert run.state == ("completed" if value == "none" else "failed")
    if value in {"empty", "null"}:
        assert [item["output"] for item in answer.json()] == ["" if value == "empty" else None] * 2
    if value == "missing":
        assert answer.json() == []


@EXHIBITS.covers("image_url_seconds", 0.0, 3600.0)
def _(caller: EmulatorClient, value: float) -> None:
    url = fast_chain(caller).json()[0]["output"]
    assert requests.get(url, timeout=10).status_code == (200 if value else 403)


@pytest.mark.parametrize(("name", "value"), EXHIBITS.cases())
def test_switch(caller: EmulatorClient, emulator: Emulator, name: str, value: object) -> None:
    """The value of the switch shows in what goes over the socket."""
    setattr(emulator.switches, name, value)
    EXHIBITS[name].check(caller, value)
