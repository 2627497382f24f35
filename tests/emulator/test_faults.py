"""Tests of every kind of fault."""

from __future__ import annotations

import time
from typing import Any

import pytest
import requests

from airflow_provider_flows.emulator import Emulator, Fault
from tests.emulator.client import EmulatorClient


def create(client: EmulatorClient) -> requests.Response:
    """Create and start a flow run."""
    body = {"template": "model_generate_fromprompt", "inputs": [{"data": "a chair"}]}
    return client.call("POST", "/flows", json=body)


def test_status_with_headers_and_body(emulator: Emulator, client: EmulatorClient) -> None:
    """A fault with a status replaces the response, and the service does not process the request."""
    html = {"Content-Type": "text/html", "Retry-After": "7"}
    emulator.add_fault(Fault(method="POST", path="/flows", status=503, headers=html, body=b"<h1>Busy</h1>"))
    response = create(client)
    assert (response.status_code, response.headers["Retry-After"], response.text) == (
        503,
        "7",
        "<h1>Busy</h1>",
    )
    assert response.headers["Content-Type"] == "text/html"
    assert emulator.started_count == 0
    assert create(client).status_code == 200


def test_times_and_skip(emulator: Emulator, client: EmulatorClient) -> None:
    """A fault skips the first requests, hits as many as configured, and is exhausted then."""
    active = emulator.add_fault(Fault(path="/templates", skip=1, times=2, status=500))
    assert [client.call("GET", "/templates").status_code for _ in range(5)] == [200, 500, 500, 200, 200]
    assert (active.hits, active.is_exhausted) == (2, True)


def test_fault_without_times_remains_until_cleared(emulator: Emulator, client: EmulatorClient) -> None:
    """A fault with times=None hits until it is cleared."""
    emulator.add_fault(Fault(times=None, status=502))
    assert {client.call("GET", "/templates").status_code for _ in range(5)} == {502}
    emulator.clear_faults()
    assert client.call("GET", "/templates").status_code == 200


def test_faults_hit_matching_requests_in_order(emulator: Emulator, client: EmulatorClient) -> None:
    """The fault added first hits first; method and path pattern both have to match."""
    emulator.add_fault(Fault(method="get", path="/flows/*", status=500))
    emulator.add_fault(Fault(method="GET", path="/flows/*/outputs", status=501))
    path = f"/flows/{client.create()}"
    assert client.call("DELETE", f"{path}/none").status_code == 404
    assert [client.call("GET", f"{path}/outputs").status_code for _ in range(3)] == [500, 501, 409]


@pytest.mark.parametrize(("when", "started"), [("before", 0), ("after", 1)])
def test_connection_is_reset_before_or_after_the_request(
    emulator: Emulator, client: EmulatorClient, when: Any, started: int
) -> None:
    """The connection is reset before or after the request is processed; either way there is no response."""
    emulator.add_fault(Fault(method="POST", reset=when))
    with pytest.raises(requests.ConnectionError) as caught:
        create(client)
    assert "reset by peer" in str(caught.value)
    assert emulator.started_count == started
    assert [(record.method, record.status) for record in emulator.requests] == [("POST", None)]
    assert create(client).status_code == 200


def test_truncated_body(emulator: Emulator, client: EmulatorClient) -> None:
    """A truncated response announces its full length and ends early."""
    emulator.add_fault(Fault(path="/templates", truncate=10))
    with client.call("GET", "/templates", stream=True) as response:
        assert int(response.headers["Content-Length"]) > 100
        assert response.raw.read(10) == b'{"template'
        with pytest.raises(Exception, match="IncompleteRead"):
            response.raw.read()


def test_changed_body(emulator: Emulator, client: EmulatorClient) -> None:
    """Without a status the request is processed, and body and headers of the response are replaced."""
    emulator.add_fault(Fault(method="POST", headers={"X-Odd": "1"}, body=b"not json"))
    response = create(client)
    assert (response.status_code, response.text, response.headers["X-Odd"]) == (200, "not json", "1")
    assert emulator.started_count == 1


def test_delayed_response_does_not_delay_others(emulator: Emulator, client: EmulatorClient) -> None:
    """A delayed response comes late, but the request is processed at once, and others are served."""
    emulator.add_fault(Fault(method="POST", delay=4))
    start_time = time.monotonic()
    with pytest.raises(requests.ReadTimeout):
        client.session.post(emulator.url + "/flows", json={"template": "model_optimize"}, timeout=0.2)
    assert len(client.get("/flows")["flows"]) == 1
    assert time.monotonic() - start_time < 3
    emulator.add_fault(Fault(path="/templates", delay=0.3, status=504))
    start_time = time.monotonic()
    assert client.call("GET", "/templates").status_code == 504
    assert time.monotonic() - start_time >= 0.3


def test_faults_hit_promptchainer_too(emulator: Emulator, client: EmulatorClient) -> None:
    """A PromptChainer run whose response is lost is still billed."""
    emulator.switches.chain_seconds = 0.0
    emulator.add_fault(Fault(path="/api/flows/run/*", reset="after"))
    with pytest.raises(requests.ConnectionError):
        client.run_chain()
    assert emulator.started_count == 1


@pytest.mark.parametrize(
    "values",
    [{"reset": "later"}, {"delay": -1}, {"times": -1}, {"skip": -1}, {"truncate": -1}, {"status": 42}],
)
def test_an_invalid_fault_is_rejected(values: dict[str, Any]) -> None:
    """A fault with an invalid value is rejected with the name of the value."""
    with pytest.raises(ValueError, match=next(iter(values))):
        Fault(**values)
