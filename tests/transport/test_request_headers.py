"""Tests of the headers of single requests, over both transports."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.http import RESERVED_HEADERS, Request
from airflow_provider_flows.core.retry import follow_redirects
from tests.support.drivers import DRIVERS, TOKEN, Driver, settings_for, single_request
from tests.support.servers import ReceivedRequest, StubResponse, StubServer

pytestmark = pytest.mark.usefixtures("no_proxy")
HEADERS = {"Idempotency-Key": "k-1", "Prefer": "respond-async, wait=5", "X-Version": "2026-01-01"}


@pytest.fixture(params=DRIVERS.values(), ids=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Any:
    """Run conversations over each transport."""
    return request.param


def test_headers_are_sent_with_the_credentials(driver: Driver) -> None:
    """A request's own headers reach the service, beside the credentials and what the transport sets."""
    with StubServer() as stub:
        driver(settings_for(stub.url), single_request(Request("POST", "/a", json={}, headers=HEADERS)))
    sent = stub.requests[0].headers
    assert {name: sent[name.lower()] for name in HEADERS} == HEADERS
    assert (sent["authorization"], sent["content-type"]) == (f"Bearer {TOKEN}", "application/json")


def test_headers_do_not_replace_the_credentials(driver: Driver) -> None:
    """A header with the name of the one that has the key, in any spelling, is not sent."""
    with StubServer() as stub:
        settings = settings_for(stub.url, credentials={"X-Api-Key": "own"})
        driver(settings, single_request(Request("GET", "/a", headers={"x-api-KEY": "other"})))
    assert stub.requests[0].headers["x-api-key"] == "own"


def test_headers_stay_at_the_own_host(driver: Driver) -> None:
    """They are not sent to another host, to which a link or a redirect leads."""

    def redirect(_: ReceivedRequest) -> StubResponse:
        return StubResponse(302, {"Location": f"{other.url}/b"})

    with StubServer() as other, StubServer(redirect) as own:
        settings = settings_for(own.url)
        for path in (f"{other.url}/a", "/a"):
            request = Request("GET", path, headers=HEADERS, allow_url=lambda _: True)
            driver(settings, follow_redirects(request))
    assert len(other.requests) == 2
    for received in other.requests:
        assert not {"authorization", *(name.lower() for name in HEADERS)} & received.headers.keys()
    assert own.requests[0].headers["idempotency-key"] == "k-1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "x") for name in sorted(RESERVED_HEADERS)),
        ("Content-LENGTH", "1"),
        ("", "x"),
        ("a b", "x"),
        ("a:", "x"),
        ("A\r\nB", "x"),
        ("A", ""),
        ("A", "x\r\nB: y"),
        ("A", "x\n"),
        ("A", " x"),
        ("A", "x\0"),
        ("A", "gr\u00fcn"),
        ("A", "x" * 5_000),
    ],
)
def test_other_headers_are_rejected(name: str, value: str) -> None:
    """A header that frames the request or has its credentials, or could end the line, is an error at once."""
    with pytest.raises(FlowInputError, match="header"):
        Request("GET", "/a", headers={name: value})
