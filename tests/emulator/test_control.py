"""What can be set from Python can be set over HTTP, requests are recorded, and a reset forgets."""

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
from tests.emulator.caller import SAMPLE_FLOW, EmulatorClient


def control(caller: EmulatorClient, method: str, name: str, **body: Any) -> Any:
    """Call a control route that succeeds, and return its JSON."""
    answer = caller.call(method, f"/_emulator/{name}", json=body or None)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_switches_over_http(emulator: Emulator, caller: EmulatorClient) -> None:
    """Switches are read and set over HTTP; wrong ones are refused by name, and nothing is set."""
    assert control(caller, "GET", "switches") == Switches().to_dict()
    assert control(caller, "PATCH", "switches", download="raw", page_size=3)["download"] == "raw"
    assert (emulator.switches.download, emulator.switches.page_size) == ("raw", 3)
    answer = caller.call("PATCH", "/_emulator/switches", json={"ready_word": "available", "bmp": "maybe"})
    assert (answer.status_code, "'bmp' cannot be 'maybe'" in answer.text) == (422, True)
    assert emulator.switches.ready_word == "ready"


def test_faults_over_http(caller: EmulatorClient) -> None:
    """Faults are added with text or base64 bodies, listed with their count, and cleared."""
    body = base64.b64encode(b"\xff\x00").decode()
    control(caller, "POST", "faults", path="/templates", status=500, body="broken", headers={"X-A": "1"})
    control(caller, "POST", "faults", path="/templates", status=501, body_base64=body, times=None)
    first, second = (caller.call("GET", "/templates") for _ in range(2))
    assert (first.status_code, first.text, first.headers["X-A"]) == (500, "broken", "1")
    assert (second.status_code, second.content) == (501, b"\xff\x00")
    assert [fault["struck"] for fault in control(caller, "GET", "faults")] == [1, 1]
    assert control(caller, "DELETE", "faults") == []
    assert caller.call("GET", "/templates").status_code == 200
    for wrong in ({"reset": "later"}, {"wobble": 1}, {"delay": "long"}, {"body_base64": "%"}):
        assert caller.call("POST", "/_emulator/faults", json=wrong).status_code == 422


def test_plans_runs_and_settings_over_http(caller: EmulatorClient) -> None:
    """Plans, the clock and the length of runs are set over HTTP, and runs are told."""
    control(caller, "POST", "plans", outcome="failed", error="out of clay")
    assert caller.call("POST", "/_emulator/plans", json={"outcome": "exploded"}).status_code == 422
    assert control(caller, "PATCH", "settings", run_seconds=500.5)["run_seconds"] == 500.5
    caller.create()
    flow_id = caller.create("a chair")
    control(caller, "PATCH", "settings", advance=501)
    told = control(caller, "GET", "runs")
    assert [run["state"] for run in told["runs"]] == ["created", "completed"]
    assert [run["flow_run_id"] for run in told["paid_runs"]] == [flow_id]
    assert told["started"] == 1


def test_graphs_over_http(caller: EmulatorClient) -> None:
    """A flow graph is added over HTTP; one that is none is refused."""
    node = {"id": "v", "type": "variableNode", "data": {"variable": {"label": "thing", "value": ""}}}
    control(caller, "POST", "graphs", flow_id="mine", graph={"nodes": [node], "edges": []})
    assert caller.get("/api/flows/getFlowInfo/mine") == [{"name": "thing", "type": "variable"}]
    assert caller.call("POST", "/_emulator/graphs", json={"flow_id": "x", "graph": {}}).status_code == 422


def test_control_needs_the_key(emulator: Emulator, caller: EmulatorClient) -> None:
    """Health is open; everything else takes the key in either service's header."""
    caller.session.headers.clear()
    assert control(caller, "GET", "health") == {"ready": True, "services": ["generio", "promptchainer"]}
    for headers in ({}, {"x-api-key": "wrong"}, {"Authorization": "Bearer wrong"}):
        assert caller.call("POST", "/_emulator/reset", headers=headers).status_code == 401
    for headers in ({"x-api-key": emulator.key}, {"Authorization": f"Bearer {emulator.key}"}):
        assert caller.call("POST", "/_emulator/reset", headers=headers).status_code == 200


def test_requests_are_recorded_without_keys(emulator: Emulator, caller: EmulatorClient) -> None:
    """A record has method, path, query, headers, body, JSON and status; the key is nowhere, control is not recorded."""
    secret = f"{emulator.key}"
    caller.call("GET", "/flows", params={"filter_by": "running"})
    caller.call("POST", f"/api/flows/run/{SAMPLE_FLOW}", json={"variables": 1})
    control(caller, "GET", "switches")
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
    told = control(caller, "GET", "requests")
    assert [item["path"] for item in told] == [first.path, second.path]
    for text in (repr(emulator.requests), repr(emulator), str(told), repr(emulator.paid_runs)):
        assert f"Bearer {secret}" not in text
        assert f"'{secret}'" not in text
    control(caller, "DELETE", "requests")
    assert emulator.requests == ()


def test_long_bodies_are_capped(emulator: Emulator, caller: EmulatorClient) -> None:
    """Of a long body the beginning is kept, and its size."""
    caller.call("POST", "/flows", json={"template": "x" * 1_000_000})
    (record,) = emulator.requests
    assert record.body_size > 1_000_000 > len(record.body) > 100_000
    assert record.json is None


def test_printed_records_hide_signatures(emulator: Emulator, caller: EmulatorClient) -> None:
    """Neither a record nor a flow run shows a signed URL when printed."""
    emulator.switches.chain_seconds = 0.0
    requests.get(caller.run_chain().json()[0]["output"], timeout=10)
    assert "sig=" not in repr(emulator.requests) + repr(emulator.paid_runs)
    assert emulator.requests[-1].query["sig"] not in repr(emulator.requests)


def test_listener_is_told_before_a_request_is_answered(emulator: Emulator, caller: EmulatorClient) -> None:
    """What a listener does to the clock, the very request that it is told of meets; nobody is told any more when it is gone."""
    emulator.run_seconds = 100
    path = f"/flows/{caller.create('a chair')}"
    heard: list[str] = []

    def listen(asked: RecordedRequest) -> None:
        heard.append(f"{asked.method} {asked.path}")
        emulator.advance(60)

    emulator.set_request_listener(listen)
    assert [caller.get(path)["state"] for _ in range(2)] == ["running", "completed"]
    emulator.set_request_listener(None)
    caller.get(path)
    assert heard == [f"GET {path}"] * 2


def spoil(emulator: Emulator, caller: EmulatorClient) -> None:
    """Change all that can be changed."""
    emulator.switches.download = "raw"
    emulator.run_seconds = 77
    emulator.add_fault(Fault(path="/never", status=500))
    emulator.add_fault(Fault(path="/templates", status=500, times=None))
    emulator.add_plan(Plan(outcome="failed", times=5))
    emulator.add_graph("mine", {"nodes": [], "edges": []})
    emulator.advance(1000)
    emulator.set_request_listener(lambda _: emulator.advance(5000))
    caller.create("a chair")


@pytest.mark.parametrize("how", ["python", "http"])
def test_reset_forgets_everything(emulator: Emulator, caller: EmulatorClient, how: str) -> None:
    """After a reset the emulator is as it was made: runs, faults, plans, records, switches, flows, clock and length."""
    spoil(emulator, caller)
    ways: dict[str, Callable[[], Any]] = {
        "python": emulator.reset,
        "http": lambda: control(caller, "POST", "reset"),
    }
    ways[how]()
    assert (emulator.switches, emulator.run_seconds) == (Switches(), 0.5)
    assert (emulator.requests, dict(emulator.runs), emulator.paid_runs, emulator.started_count) == (
        (),
        {},
        [],
        0,
    )
    assert caller.call("GET", "/templates").status_code == 200
    assert caller.call("GET", "/api/flows/getFlowInfo/mine").status_code == 404
    now = caller.get("/_emulator/settings")["now"]
    assert now[:13] == time.strftime("%Y-%m-%dT%H", time.gmtime())
    flow_id = caller.finish("a chair")
    assert caller.get(f"/flows/{flow_id}")["state"] == "completed"


def test_starting_switches_are_what_a_reset_goes_back_to() -> None:
    """Switches given when it was made survive a reset."""
    emulator = Emulator(switches=Switches(download="raw"))
    emulator.switches.update({"download": "text"})
    emulator.reset()
    assert emulator.switches.download == "raw"


def test_emulators_are_independent(emulator: Emulator, caller: EmulatorClient) -> None:
    """Two emulators in one process share nothing, and each has its own key."""
    caller.create("a chair")
    with Emulator(key="other", run_seconds=0.1) as second:
        assert second.url != emulator.url
        assert requests.get(
            second.url + "/flows", headers={"Authorization": "Bearer other"}, timeout=10
        ).json() == {"flows": []}
        assert caller.session.get(second.url + "/flows", timeout=10).status_code == 401
    with pytest.raises(requests.ConnectionError):
        requests.get(second.url, timeout=2)


def test_a_taken_port_is_told_at_once() -> None:
    """A port in use is refused quickly, and named."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(OSError, match=str(port)):
            Emulator(port=port).start()
        assert time.monotonic() - began < 2


def test_stop_does_not_wait_for_slow_answers() -> None:
    """Ending takes little time though an answer is held back for long."""
    emulator = Emulator().start()
    emulator.add_fault(Fault(delay=60))
    with pytest.raises(requests.ReadTimeout):
        requests.get(emulator.url + "/templates", timeout=0.1)
    began = time.monotonic()
    emulator.stop()
    assert time.monotonic() - began < 3


def test_a_second_start_is_an_error(emulator: Emulator) -> None:
    """An emulator that is running is not started again."""
    with pytest.raises(RuntimeError, match="already running"):
        emulator.start()


def test_an_emulator_can_be_started_again() -> None:
    """What was stopped can be started again, with its memory."""
    emulator = Emulator()
    with emulator:
        requests.get(emulator.url + "/flows", timeout=10)
    with emulator:
        requests.get(emulator.url + "/flows", timeout=10)
    assert [record.status for record in emulator.requests] == [401, 401]


def test_url_before_the_start_is_an_error() -> None:
    """An emulator that is not running has no URL, and says so."""
    with pytest.raises(RuntimeError, match="not been started"):
        _ = Emulator().url


def test_run_seconds_are_checked(emulator: Emulator) -> None:
    """A flow run cannot take less than no time."""
    with pytest.raises(ValueError, match="-1"):
        emulator.run_seconds = -1


def imported_by(statement: str, names: str) -> str:
    """Return which of the modules are imported by a statement, in a Python of its own."""
    code = f"{statement}; import sys; print([name for name in {names.split()} if name in sys.modules])"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_it_is_cheap() -> None:
    """Neither a library that costs nor Airflow is imported before an emulator is started; the plugin imports nothing at all."""
    heavy = "fastapi uvicorn starlette pydantic numpy trimesh PIL fast_simplification airflow requests"
    assert imported_by("from airflow_provider_flows.emulator import Emulator; Emulator()", heavy) == "[]"
    ours = "airflow_provider_flows.emulator.emulator airflow_provider_flows.emulator.switches"
    assert imported_by("import airflow_provider_flows.emulator.pytest_plugin", f"{heavy} {ours}") == "[]"


def test_unknown_names_are_not_there() -> None:
    """The package offers its public names, and no others."""
    assert {item.__name__ for item in (Emulator, Fault, Plan, Switches)} <= set(package.__all__)
    with pytest.raises(AttributeError, match="Emulater"):
        _ = package.Emulater
