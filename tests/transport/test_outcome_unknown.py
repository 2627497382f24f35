"""Tests of what an error says about a request that broke: whether the service may have carried it out.

Everything between "sent" and "final status read" is in doubt. The breakages happen at real sockets, with
both transports.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from airflow_provider_flows.core.exceptions import FlowServiceError
from airflow_provider_flows.core.http import Conversation, Request
from airflow_provider_flows.core.responses import expect_success, request_json
from airflow_provider_flows.services.promptchainer import PromptChainer
from tests.support.drivers import Driver, run_with_requests, settings_for, single_request
from tests.support.modes import package_log_lines
from tests.support.servers import (
    MisbehavingServer,
    StubResponse,
    StubServer,
    TcpServer,
    forward,
    reset,
    send_and_close,
    unused_url,
)
from tests.support.tries import CHAIN_ARGUMENTS, run_with_retries
from tests.support.versions import needs

pytestmark = pytest.mark.usefixtures("no_proxy")

ROWS = json.dumps([{"name": "poem", "type": "output", "output": "Red ball"}]).encode()
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SUCCESS = OK + b"Content-Length: %d\r\n\r\n%s" % (len(ROWS), ROWS)
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
REFUSAL = b"HTTP/1.1 402 Payment Required\r\nContent-Length: 40\r\n\r\n"


def stop_reading(connection: socket.socket) -> None:
    """Leave a request without a response for longer than the client waits."""
    connection.settimeout(10)
    connection.recv(1)


AFTER_SENT: dict[str, Callable[[socket.socket], None]] = {
    "closed": send_and_close(b""),
    "reset": reset,
    "no response": stop_reading,
    "early hints, then closed": send_and_close(EARLY_HINTS),
    "early hints cut": send_and_close(EARLY_HINTS[:-2]),
    "early hints twice, then garbage": send_and_close(EARLY_HINTS * 2 + b"garbage\r\n\r\n"),
    "processing, then closed": send_and_close(b"HTTP/1.1 102 Processing\r\n\r\n"),
    "an unknown informational status, then closed": send_and_close(b"HTTP/1.1 199 Soon\r\n\r\n"),
    "continue, then closed": send_and_close(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "switching protocols": send_and_close(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    ),
    "status 0": send_and_close(b"HTTP/1.1 000 Nothing\r\nContent-Length: 0\r\n\r\n"),
    "status 99": send_and_close(b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n"),
    "status 600": send_and_close(b"HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n"),
    "status 999": send_and_close(b"HTTP/1.1 999 High\r\nContent-Length: 0\r\n\r\n"),
    "status of four digits": send_and_close(b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
    "status that is a word": send_and_close(b"HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n"),
    "no HTTP at all": send_and_close(b"\x15\x03\x03\x00\x02\x02\x50"),
    "garbage": send_and_close("näh\r\n\r\n".encode()),
    "status line cut": send_and_close(b"HTTP/1.1 20"),
    "headers cut": send_and_close(OK[:-9]),
    "too many headers": send_and_close(OK + b"X: y\r\n" * 5000 + b"\r\n"),
    "two lengths": send_and_close(OK + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\n[]"),
    "body cut": send_and_close(SUCCESS[:-5]),
    "body of no length": send_and_close(SUCCESS[: -len(ROWS)]),
    "chunk cut": send_and_close(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n[{"),
    "chunk of no size": send_and_close(OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"),
    "not gzip": send_and_close(OK + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n[]"),
    "not JSON": send_and_close(OK + b"Content-Length: 6\r\n\r\n<html>"),
    "body of a refusal cut": send_and_close(REFUSAL + b'{"detail": "No'),
    "bad gateway": send_and_close(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"),
    "gateway timeout": send_and_close(b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n"),
    "request timeout": send_and_close(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"),
}


def start_chain() -> Conversation[object]:
    """Start a run at PromptChainer: the one request that is paid."""
    return PromptChainer().start("f", {"color": "red"}, None, None)


def post() -> Conversation[object]:
    """Send a request whose response is parsed."""
    return request_json(Request("POST", "/flows", json={"a": 1}), lambda value: value["flow_id"])


@pytest.mark.parametrize("conversation", [start_chain, post], ids=lambda value: value.__name__)
@pytest.mark.parametrize("breakage", AFTER_SENT)
def test_outcome_of_a_sent_request_whose_connection_breaks_is_unknown(
    driver: Driver, breakage: str, conversation: Callable[[], Conversation[object]]
) -> None:
    """Whatever breaks after the request was sent, the error says that the service may have acted on it."""
    with MisbehavingServer(AFTER_SENT[breakage]) as server, pytest.raises(FlowServiceError) as caught:
        driver(settings_for(server.url, read_timeout=0.5), conversation())
    assert len(server.bodies) == 1
    assert caught.value.outcome_unknown is True
    assert caught.value.is_transient is True


@pytest.mark.parametrize(
    "informational",
    [b"", EARLY_HINTS, EARLY_HINTS * 3, b"HTTP/1.1 102 Processing\r\n\r\n" + EARLY_HINTS],
    ids=["none", "early hints", "three", "processing"],
)
def test_informational_responses_are_skipped(driver: Driver, informational: bytes) -> None:
    """The final response counts, however many informational ones come before it."""
    with MisbehavingServer(send_and_close(informational + SUCCESS)) as server:
        run = driver(settings_for(server.url), PromptChainer().start("f", {}, None, None))
    assert [output.value for output in run.outputs] == ["Red ball"]
    assert len(server.bodies) == 1


def test_rejection_after_early_hints_is_a_rejection(driver: Driver) -> None:
    """An informational response does not change what a refusal says: the service did nothing."""
    refusal = REFUSAL.replace(b": 40", b": 2") + b"{}"
    with (
        MisbehavingServer(send_and_close(EARLY_HINTS + refusal)) as server,
        pytest.raises(FlowServiceError, match="HTTP 402") as caught,
    ):
        driver(settings_for(server.url), start_chain())
    assert caught.value.outcome_unknown is False


@pytest.mark.parametrize("location", ["http://[", "http://h:99999999/", "//[bad", "https://h/ok"])
def test_redirect_of_a_post_names_its_status_or_has_an_unknown_outcome(driver: Driver, location: str) -> None:
    """A redirect whose URL cannot be parsed arrived after the request was sent."""
    with (
        StubServer(lambda _: StubResponse(302, {"Location": location})) as server,
        pytest.raises(FlowServiceError) as caught,
    ):
        driver(settings_for(server.url), start_chain())
    assert caught.value.status == 302 or caught.value.outcome_unknown
    assert len(server.requests) == 1


def close_before_tls(connection: socket.socket) -> None:
    """Read the first bytes of a handshake, and close the connection with RST."""
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def respond_to_tls_in_plain_text(connection: socket.socket) -> None:
    """Read the first bytes of a handshake, and respond as a server without TLS."""
    connection.recv(1)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def send_tls_alert(connection: socket.socket) -> None:
    """Read the first bytes of a handshake, and reject it with an alert (handshake_failure)."""
    connection.recv(1)
    connection.sendall(b"\x15\x03\x03\x00\x02\x02\x28")


def stop_reading_handshake(connection: socket.socket) -> None:
    """Read a handshake, and never respond to it."""
    connection.settimeout(10)
    while connection.recv(65536):
        pass


HANDSHAKES: dict[str, Callable[[socket.socket], None]] = {
    "reset": close_before_tls,
    "closed": lambda connection: connection.recv(1) and None,
    "plain text": respond_to_tls_in_plain_text,
    "alert": send_tls_alert,
    "no response": stop_reading_handshake,
}


def assert_never_arrived(driver: Driver, url: str) -> None:
    """Assert that a request to a URL fails, and certainly had no effect."""
    with pytest.raises(FlowServiceError) as caught:
        driver(settings_for(url, connect_timeout=1.0, read_timeout=1.0), start_chain())
    assert caught.value.outcome_unknown is False
    assert caught.value.is_transient is True


@pytest.mark.parametrize("handshake", HANDSHAKES)
def test_request_with_a_failed_handshake_never_arrived(driver: Driver, handshake: str) -> None:
    """A request over a TLS connection that was never established was not sent."""
    with TcpServer(HANDSHAKES[handshake]) as server:
        assert_never_arrived(driver, server.url.replace("http:", "https:"))


def test_request_to_an_unreachable_host_never_arrived(driver: Driver) -> None:
    """A refused connection and an unknown host mean that nothing was sent."""
    with unused_url() as url:
        assert_never_arrived(driver, url)
    assert_never_arrived(driver, "http://no-such-host.invalid")


def test_request_through_a_refused_tunnel_never_arrived(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that refuses a tunnel has not passed the request on."""
    with StubServer(forward) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert_never_arrived(driver, "https://localhost:9")


@pytest.mark.parametrize("handshake", HANDSHAKES)
def test_request_through_a_broken_tunnel_never_arrived(
    monkeypatch: pytest.MonkeyPatch, handshake: str
) -> None:
    """A proxy that breaks while a worker opens a tunnel has not passed the request on.

    aiohttp does not distinguish this from a later breakage, which only makes its error more cautious.
    """
    with TcpServer(HANDSHAKES[handshake]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert_never_arrived(run_with_requests, "https://localhost:9")


def test_request_to_a_host_with_another_certificate_never_arrived(driver: Driver, tmp_path: Path) -> None:
    """A certificate that is refused ends the connection before the request is sent."""
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("example.org").configure_cert(context)
    bundle = tmp_path / "bundle.pem"
    authority.cert_pem.write_to_path(str(bundle))
    with StubServer(tls=context) as server, pytest.raises(FlowServiceError) as caught:
        driver(settings_for(server.url, verify=str(bundle)), start_chain())
    assert caught.value.outcome_unknown is False
    assert server.requests == []


def test_early_hints_come_through_a_proxy(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Informational responses are skipped behind an HTTP proxy as well."""
    with MisbehavingServer(send_and_close(EARLY_HINTS + SUCCESS)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        response = driver(settings_for("http://service.invalid"), single_request(Request("POST", "/f")))
    expect_success(Request("POST", "/f"), response)
    assert response.body == ROWS


RETRIED = ["early hints, then closed", "switching protocols", "status 999", "headers cut", "body cut"]


@needs("task state store")
@pytest.mark.parametrize("breakage", RETRIED)
def test_retry_warns_that_the_flow_may_have_run(monkeypatch: pytest.MonkeyPatch, breakage: str) -> None:
    """After a request in doubt, the next try logs that the flow may have run before."""
    actions = iter([AFTER_SENT[breakage], send_and_close(EARLY_HINTS + SUCCESS)])

    def act_next(connection: socket.socket) -> None:
        next(actions)(connection)

    with MisbehavingServer(act_next) as server:
        connection = {"conn_type": "promptchainer", "host": server.url, "password": "key"}
        monkeypatch.setenv("AIRFLOW_CONN_PROMPTCHAINER_DEFAULT", json.dumps(connection))
        task_result = run_with_retries(
            f"doubt_{breakage.replace(' ', '_').replace(',', '')}", **CHAIN_ARGUMENTS, validate=False
        )
    assert (task_result.state, task_result.tries) == ("success", 2)
    assert any("the flow may have run before" in line for line in package_log_lines(task_result.result.log))
