"""Every kind of fault strikes as told, and only what it is meant for."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests

from airflow_provider_flows.emulator import Emulator, Fault
from tests.emulator.caller import EmulatorClient


def create(caller: EmulatorClient) -> requests.Response:
    """Create and start a flow run."""
    body = {"template": "model_generate_fromprompt", "inputs": [{"data": "a chair"}]}
    return caller.call("POST", "/flows", json=body)


def test_status_with_headers_and_body(emulator: Emulator, caller: EmulatorClient) -> None:
    """A fault answers in place of the service, with status, headers and body, and no work is done."""
    html = {"Content-Type": "text/html", "Retry-After": "7"}
    emulator.add_fault(Fault(method="POST", path="/flows", status=503, headers=html, body=b"<h1>Busy</h1>"))
    answer = create(caller)
    assert (answer.status_code, answer.headers["Retry-After"], answer.text) == (503, "7", "<h1>Busy</h1>")
    assert answer.headers["Content-Type"] == "text/html"
    assert emulator.started_count == 0
    assert create(caller).status_code == 200


def test_times_and_skip(emulator: Emulator, caller: EmulatorClient) -> None:
    """A fault lets the first requests pass, strikes so many, and then is over."""
    armed = emulator.add_fault(Fault(path="/templates", skip=1, times=2, status=500))
    assert [caller.call("GET", "/templates").status_code for _ in range(5)] == [200, 500, 500, 200, 200]
    assert (armed.hits, armed.is_exhausted) == (2, True)


def test_until_cleared(emulator: Emulator, caller: EmulatorClient) -> None:
    """A fault without a number of times strikes until it is cleared."""
    emulator.add_fault(Fault(times=None, status=502))
    assert {caller.call("GET", "/templates").status_code for _ in range(5)} == {502}
    emulator.clear_faults()
    assert caller.call("GET", "/templates").status_code == 200


def test_faults_strike_in_order_and_only_what_matches(emulator: Emulator, caller: EmulatorClient) -> None:
    """The first fault added strikes first; method and path pattern both have to match."""
    emulator.add_fault(Fault(method="get", path="/flows/*", status=500))
    emulator.add_fault(Fault(method="GET", path="/flows/*/outputs", status=501))
    path = f"/flows/{caller.create()}"
    assert caller.call("DELETE", f"{path}/none").status_code == 404
    assert [caller.call("GET", f"{path}/outputs").status_code for _ in range(3)] == [500, 501, 409]


@pytest.mark.parametrize(("when", "started"), [("before", 0), ("after", 1)])
def test_reset(emulator: Emulator, caller: EmulatorClient, when: Any, started: int) -> None:
    """A connection is reset before the work is done, or after it; either way no answer comes."""
    emulator.add_fault(Fault(method="POST", reset=when))
    with pytest.raises(requests.ConnectionError) as caught:
        create(caller)
    assert "reset by peer" in str(caught.value)
    assert emulator.started_count == started
    assert [(record.method, record.status) for record in emulator.requests] == [("POST", None)]
    assert create(caller).status_code == 200


def test_truncated_body(emulator: Emulator, caller: EmulatorClient) -> None:
    """A truncated answer announces its full length and ends early."""
    emulator.add_fault(Fault(path="/templates", truncate=10))
    with caller.call("GET", "/templates", stream=True) as answer:
        assert int(answer.headers["Content-Length"]) > 100
        assert answer.raw.read(10) == b'{"template'
        with pytest.raises(Exception, match="IncompleteRead"):
            answer.raw.read()


def test_changed_body(emulator: Emulator, caller: EmulatorClient) -> None:
    """Without a status the work is done, and the answer's body and headers are replaced."""
    emulator.add_fault(Fault(method="POST", headers={"X-Odd": "1"}, body=b"not json"))
    answer = create(caller)
    assert (answer.status_code, answer.text, answer.headers["X-Odd"]) == (200, "not json", "1")
    assert emulator.started_count == 1


def test_delay(emulator: Emulator, caller: EmulatorClient) -> None:
    """A delayed answer comes late, while the work is done at once and others are served."""
    emulator.add_fault(Fault(method="POST", delay=4))
    began = time.monotonic()
    with pytest.raises(requests.ReadTimeout):
        caller.session.post(emulator.url + "/flows", json={"template": "model_optimize"}, timeout=0.2)
    assert len(caller.get("/flows")["flows"]) == 1
    assert time.monotonic() - began < 3
    emulator.add_fault(Fault(path="/templates", delay=0.3, status=504))
    began = time.monotonic()
    assert caller.call("GET", "/templates").status_code == 504
    assert time.monotonic() - began >= 0.3


def test_faults_strike_promptchainer_too(emulator: Emulator, caller: EmulatorClient) -> None:
    """A run of PromptChainer's whose answer is lost is paid for all the same."""
    emulator.switches.chain_seconds = 0.0
    emulator.add_fault(Fault(path="/api/flows/run/*", reset="after"))
    with pytest.raises(requests.ConnectionError):
        caller.run_chain()
    assert emulator.started_count == 1


@pytest.mark.parametrize(
    "values",
    [{"reset": "later"}, {"delay": -1}, {"times": -1}, {"skip": -1}, {"truncate": -1}, {"status": 42}],
)
def test_an_impossible_fault_is_refused(values: dict[str, Any]) -> None:
    """A fault that could never strike as meant is refused, by the name of what is wrong."""
    with pytest.raises(ValueError, match=next(iter(values))):
        Fault(**values)
