"""Tests of the control API, the request log, reset, and the life cycle of the emulator."""

from __future__ import annotations

import base64
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests

from airflow_provider_flows import emulator as package
from airflow_provider_flows.emulator import Emulator, Fault, Plan, RecordedRequest, Switches
from tests.emulator.client import SAMPLE_FLOW, EmulatorClient


def control(client: EmulatorClient, method: str, name: str, **body: Any) -> Any:
    """Call a control route that succeeds, and return its JSON."""
    response = client.call(method, f"/_emulator/{name}", json=body or None)
    assert response.status_code == 200, response.text
    return response.json()


def test_switches_over_http(emulator: Emulator, client: EmulatorClient) -> None:
    """Switches are read and set over HTTP; an invalid one is named in the error, and none is set."""
    assert control(client, "GET", "switches") == Switches().to_dict()
    assert control(client, "PATCH", "switches", download="raw", page_size=3)["download"] == "raw"
    assert (emulator.switches.download, emulator.switches.page_size) == ("raw", 3)
    response = client.call("PATCH", "/_emulator/switches", json={"ready_word": "available", "bmp": "maybe"})
    assert (response.status_code, "'bmp' cannot be 'maybe'" in response.text) == (422, True)
    assert emulator.switches.ready_word == "ready"


def test_faults_over_http(client: EmulatorClient) -> None:
    """Faults are added with text or base64 bodies, listed with their count, and cleared."""
    body = base64.b64encode(b"\xff\x00").decode()
    control(client, "POST", "faults", path="/templates", status=500, body="broken", headers={"X-A": "1"})
    control(client, "POST", "faults", path="/templates", status=501, body_base64=body, times=None)
    first, second = (client.call("GET", "/templates") for _ in range(2))
    assert (first.status_code, first.text, first.headers["X-A"]) == (500, "broken", "1")
    assert (second.status_code, second.content) == (501, b"\xff\x00")
    assert [fault["struck"] for fault in control(client, "GET", "faults")] == [1, 1]
    assert control(client, "DELETE", "faults") == []
    assert client.call("GET", "/templates").status_code == 200
    for wrong in ({"reset": "later"}, {"wobble": 1}, {"delay": "long"}, {"body_base64": "%"}):
        assert client.call("POST", "/_emulator/faults", json=wrong).status_code == 422


def test_plans_runs_and_settings_over_http(client: EmulatorClient) -> None:
    """Plans, clock and duration of runs are set over HTTP, and runs are listed."""
    control(client, "POST", "plans", outcome="failed", error="out of clay")
    assert client.call("POST", "/_emulator/plans", json={"outcome": "exploded"}).status_code == 422
    assert control(client, "PATCH", "settings", run_seconds=500.5)["run_seconds"] == 500.5
    client.create()
    flow_id = client.create("a chair")
    control(client, "PATCH", "settings", advance=501)
    records = control(client, "GET", "runs")
    assert [run["state"] for run in records["runs"]] == ["created", "completed"]
    assert [run["flow_run_id"] for run in records["paid_runs"]] == [flow_id]
    assert records["started"] == 1


def test_graphs_over_http(client: EmulatorClient) -> None:
    """A flow graph is added over HTTP; an invalid one is rejected."""
    node = {"id": "v", "type": "variableNode", "data": {"variable": {"label": "thing", "value": ""}}}
    control(client, "POST", "graphs", flow_id="mine", graph={"nodes": [node], "edges": []})
    assert client.get("/api/flows/getFlowInfo/mine") == [{"name": "thing", "type": "variable"}]
    assert client.call("POST", "/_emulator/graphs", json={"flow_id": "x", "graph": {}}).status_code == 422


def test_control_needs_the_key(emulator: Emulator, client: EmulatorClient) -> None:
    """The health check needs no key; all other routes accept it in the header of either service."""
    client.session.headers.clear()
    assert control(client, "GET", "health") == {"ready": True, "services": ["generio", "promptchainer"]}
    for headers in ({}, {"x-api-key": "wrong"}, {"Authorization": "Bearer wrong"}):
        assert client.call("POST", "/_emulator/reset", headers=headers).status_code == 401
    for headers in ({"x-api-key": emulator.key}, {"Authorization": f"Bearer {emulator.key}"}):
        assert client.call("POST", "/_emulator/reset", headers=headers).status_code == 200


def test_requests_are_recorded_without_keys(emulator: Emulator, client: EmulatorClient) -> None:
    """Records have all parts of a request and the status, but no key; control requests are not recorded."""
    secret = f"{emulator.key}"
    client.call("GET", "/flows", params={"filter_by": "running"})
    client.call("POST", f"/api/flows/run/{SAMPLE_FLOW}", json={"variables": 1})
    control(client, "GET", "switches")
    first, second = emulator.requests
    assert (first.method, first.path, first.query, first.status) == (
        "GET",
        "/flows",
        {"filter_by": "running"},
        200,
    )
    assert (second.json, second.body_size, second.status) == ({"variables": 1}, len(second.body), 400)
    assert first.headers["authorization"] == second.headers["x-api-key"] == "***"
    assert abs(first.at - time.time()) < 10
    records = control(client, "GET", "requests")
    assert [item["path"] for item in records] == [first.path, second.path]
    for text in (repr(emulator.requests), repr(emulator), str(records), repr(emulator.paid_runs)):
        assert f"Bearer {secret}" not in text
        assert f"'{secret}'" not in text
    control(client, "DELETE", "requests")
    assert emulator.requests == ()


def test_long_bodies_are_truncated(emulator: Emulator, client: EmulatorClient) -> None:
    """A long body is recorded with its start and its size."""
    client.call("POST", "/flows", json={"template": "x" * 1_000_000})
    (record,) = emulator.requests
    assert record.body_size > 1_000_000 > len(record.body) > 100_000
    assert record.json is None


def test_printed_records_hide_signatures(emulator: Emulator, client: EmulatorClient) -> None:
    """The repr of records and flow runs does not contain signed URLs."""
    emulator.switches.chain_seconds = 0.0
    requests.get(client.run_chain().json()[0]["output"], timeout=10)
    assert "sig=" not in repr(emulator.requests) + repr(emulator.paid_runs)
    assert emulator.requests[-1].query["sig"] not in repr(emulator.requests)


def test_listener_is_called_before_the_response(emulator: Emulator, client: EmulatorClient) -> None:
    """A request sees what the listener did to the clock before it; a removed listener is not called."""
    emulator.run_seconds = 100
    path = f"/flows/{client.create('a chair')}"
    received: list[str] = []

    def listen(request: RecordedRequest) -> None:
        received.append(f"{request.method} {request.path}")
        emulator.advance(60)

    emulator.set_request_listener(listen)
    assert [client.get(path)["state"] for _ in range(2)] == ["running", "completed"]
    emulator.set_request_listener(None)
    client.get(path)
    assert received == [f"GET {path}"] * 2


def change_everything(emulator: Emulator, client: EmulatorClient) -> None:
    """Change everything that a reset restores."""
    emulator.switches.download = "raw"
    emulator.run_seconds = 77
    emulator.add_fault(Fault(path="/never", status=500))
    emulator.add_fault(Fault(path="/templates", status=500, times=None))
    emulator.add_plan(Plan(outcome="failed", times=5))
    emulator.add_graph("mine", {"nodes": [], "edges": []})
    emulator.advance(1000)
    emulator.set_request_listener(lambda _: emulator.advance(5000))
    client.create("a chair")


@pytest.mark.parametrize("how", ["python", "http"])
def test_reset_restores_everything(emulator: Emulator, client: EmulatorClient, how: str) -> None:
    """A reset restores runs, faults, plans, records, switches, flows, clock and duration."""
    change_everything(emulator, client)
    resets: dict[str, Callable[[], Any]] = {
        "python": emulator.reset,
        "http": lambda: control(client, "POST", "reset"),
    }
    resets[how]()
    assert (emulator.switches, emulator.run_seconds) == (Switches(), 0.5)
    assert (emulator.requests, dict(emulator.runs), emulator.paid_runs, emulator.started_count) == (
        (),
        {},
        [],
        0,
    )
    assert client.call("GET", "/templates").status_code == 200
    assert client.call("GET", "/api/flows/getFlowInfo/mine").status_code == 404
    now = client.get("/_emulator/settings")["now"]
    assert now[:13] == time.strftime("%Y-%m-%dT%H", time.gmtime())
    flow_id = client.finish("a chair")
    assert client.get(f"/flows/{flow_id}")["state"] == "completed"


def test_reset_restores_the_initial_switches() -> None:
    """A reset restores the switches that the emulator was created with."""
    emulator = Emulator(switches=Switches(download="raw"))
    emulator.switches.update({"download": "text"})
    emulator.reset()
    assert emulator.switches.download == "raw"


def test_emulators_are_independent(emulator: Emulator, client: EmulatorClient) -> None:
    """Two emulators in one process share nothing, and each has its own key."""
    client.create("a chair")
    with Emulator(key="other", run_seconds=0.1) as second:
        assert second.url != emulator.url
        assert requests.get(
            second.url + "/flows", headers={"Authorization": "Bearer other"}, timeout=10
        ).json() == {"flows": []}
        assert client.session.get(second.url + "/flows", timeout=10).status_code == 401
    with pytest.raises(requests.ConnectionError):
        requests.get(second.url, timeout=2)


def test_a_port_in_use_is_an_error_at_once() -> None:
    """Starting on a port in use fails at once, with the port in the message."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        start_time = time.monotonic()
        with pytest.raises(OSError, match=str(port)):
            Emulator(port=port).start()
        assert time.monotonic() - start_time < 2


def test_stop_does_not_wait_for_slow_responses() -> None:
    """stop() takes little time while a response is delayed."""
    emulator = Emulator().start()
    emulator.add_fault(Fault(delay=60))
    with pytest.raises(requests.ReadTimeout):
        requests.get(emulator.url + "/templates", timeout=0.1)
    start_time = time.monotonic()
    emulator.stop()
    assert time.monotonic() - start_time < 3


def test_a_second_start_is_an_error(emulator: Emulator) -> None:
    """start() on a running emulator is an error."""
    with pytest.raises(RuntimeError, match="already running"):
        emulator.start()


def test_an_emulator_can_be_started_again() -> None:
    """A stopped emulator can be started again, and still has its records."""
    emulator = Emulator()
    with emulator:
        requests.get(emulator.url + "/flows", timeout=10)
    with emulator:
        requests.get(emulator.url + "/flows", timeout=10)
    assert [record.status for record in emulator.requests] == [401, 401]


def test_url_before_the_start_is_an_error() -> None:
    """The URL of an emulator that was never started is an error."""
    with pytest.raises(RuntimeError, match="not been started"):
        _ = Emulator().url


def test_run_seconds_are_checked(emulator: Emulator) -> None:
    """A negative duration is an error."""
    with pytest.raises(ValueError, match="-1"):
        emulator.run_seconds = -1


def modules_imported_by(statement: str, names: str) -> str:
    """Return which of the modules a statement imports in a new Python process."""
    code = f"{statement}; import sys; print([name for name in {names.split()} if name in sys.modules])"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_it_is_cheap() -> None:
    """No expensive library is imported before an emulator starts, and the plugin imports no module of it."""
    heavy = "fastapi uvicorn starlette pydantic numpy trimesh PIL fast_simplification airflow requests"
    assert (
        modules_imported_by("from airflow_provider_flows.emulator import Emulator; Emulator()", heavy) == "[]"
    )
    ours = "airflow_provider_flows.emulator.emulator airflow_provider_flows.emulator.switches"
    assert (
        modules_imported_by("import airflow_provider_flows.emulator.pytest_plugin", f"{heavy} {ours}") == "[]"
    )


def test_unknown_names_are_attribute_errors() -> None:
    """The package has its public names, and no others."""
    assert {item.__name__ for item in (Emulator, Fault, Plan, Switches)} <= set(package.__all__)
    with pytest.raises(AttributeError, match="Emulater"):
        _ = package.Emulater
