"""Tests of how both transports reach a host, and of what an error says when they do not.

Proxies, servers and certificates are real; each test runs with `requests` and with `aiohttp`.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trustme

from airflow_provider_flows import __version__
from airflow_provider_flows.core.exceptions import FlowAuthError, FlowServiceError, FlowUnreachable
from airflow_provider_flows.core.http import Conversation, Request
from airflow_provider_flows.core.responses import raise_for_status
from airflow_provider_flows.core.retry import NO_RETRY, follow_redirects
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import GenerioHook
from airflow_provider_flows.transport.network import KEEP_ALIVE_IDLE_SECONDS, get_proxy_url
from tests.support.drivers import Driver, catch_unreachable, settings_for, single_request
from tests.support.hostile.server import json_response
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

GET = Request("GET", "/flows")
POST = Request("POST", "/flows", json={"template": "chair"})
PROXY = "http://proxy.example:3128"

pytestmark = pytest.mark.usefixtures("no_proxy")


@pytest.mark.parametrize(
    ("entries", "url", "is_direct"),
    [
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://10.1.2.3:8084/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("10.1.2.3/8", "http://10.9.9.9/", True),
        ("10.0.0.0/8", "http://flows.example/", False),
        ("fd00::/8", "http://[fd00::1]/", True),
        ("::1", "http://[::1]:8084/", True),
        ("[::1]", "http://[::1]:8084/", True),
        ("[::1]:8084", "http://[::1]:8084/", True),
        ("[::1]:8085", "http://[::1]:8084/", False),
        ("127.0.0.1", "http://127.0.0.1:8084/", True),
        ("127.0.0.1:8084", "http://127.0.0.1:8084/", True),
        ("127.0.0.1:8084", "http://127.0.0.1:8085/", False),
        ("flows.example:8084", "http://flows.example:8084/", True),
        ("flows.example:8084", "http://flows.example/", False),
        ("flows.example:443", "https://flows.example/", True),
        ("flows.example:80", "http://flows.example/", True),
        ("flows.example", "https://flows.example/", True),
        ("flows.example", "https://api.flows.example/", True),
        ("flows.example", "https://otherflows.example/", False),
        (".flows.example", "https://api.flows.example/", True),
        ("*.flows.example", "https://api.flows.example/", True),
        ("Flows.Example.", "https://flows.example/", True),
        ("a.example, 10.0.0.0/8 ,b.example", "http://10.1.2.3/", True),
        ("a.example 10.0.0.0/8", "http://10.1.2.3/", True),
        ("*", "http://flows.example/", True),
        ("", "http://flows.example/", False),
        ("nonsense/99, :80, /, []", "http://flows.example/", False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_entries_of_no_proxy(
    monkeypatch: pytest.MonkeyPatch, name: str, entries: str, url: str, *, is_direct: bool
) -> None:
    """An entry of NO_PROXY is a host, an address or a network, each with a port or without one."""
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv(name, entries)
    assert get_proxy_url(url) == (None if is_direct else PROXY)


@pytest.mark.parametrize("entries", ["127.0.0.0/8", "127.0.0.1:{port}", "10.0.0.0/8,127.0.0.0/8", "*"])
def test_no_proxy_is_read_in_one_way(driver: Driver, monkeypatch: pytest.MonkeyPatch, entries: str) -> None:
    """A network, or a port, in NO_PROXY lets requests of workers and of triggerers go directly."""
    with StubServer() as stub, StubServer(forward) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", entries.format(port=stub.port))
        assert driver(settings_for(stub.url), single_request(GET)).is_success
    assert (len(stub.requests), proxy.requests) == (1, [])


@pytest.mark.parametrize("entries", ["10.0.0.0/8", "127.0.0.1:1", "[::1]", "localhost"])
def test_proxy_is_used_for_what_no_proxy_does_not_name(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, entries: str
) -> None:
    """Another network or port in NO_PROXY changes nothing."""
    with StubServer() as stub, StubServer(forward) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", entries)
        assert driver(settings_for(stub.url), single_request(GET)).is_success
    assert len(proxy.requests) == 1


def test_user_agent_names_the_provider(driver: Driver) -> None:
    """A service can recognize this provider, and its version, by the User-Agent."""
    with StubServer() as stub:
        driver(settings_for(stub.url), single_request(POST))
    assert stub.requests[0].headers["user-agent"] == f"airflow-provider-flows/{__version__}"


def read_keep_alive_timer(port: int) -> float | None:
    """Return the seconds to the next keep-alive probe of the socket with a local port, None without one."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, _, _, timer, *_ = line.split()
        kind, ticks = timer.split(":")
        if int(local.rpartition(":")[2], 16) == port and kind == "02":
            return int(ticks, 16) / 100
    return None


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the timers of sockets in Linux")
def test_silent_connection_is_kept_alive(driver: Driver) -> None:
    """While a service works on a request, the connection sends probes, so that no gateway drops it."""
    timers: list[float | None] = []

    def act(connection: socket.socket) -> None:
        ends_at = time.monotonic() + 5
        while (timer := read_keep_alive_timer(connection.getpeername()[1])) is None:
            if time.monotonic() > ends_at:
                break
            time.sleep(0.02)
        timers.append(timer)
        connection.sendall(json_response({}))

    with MisbehavingServer(act) as server:
        driver(settings_for(server.url, read_timeout=10.0), single_request(POST))
    (timer,) = timers
    assert timer is not None
    assert KEEP_ALIVE_IDLE_SECONDS - 10 < timer <= KEEP_ALIVE_IDLE_SECONDS


def respond_in_plain_text(connection: socket.socket) -> None:
    """Respond to a TLS handshake as a server of plain http."""
    connection.recv(1)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def close_at_once(connection: socket.socket) -> None:
    """Close the connection when a handshake starts."""
    connection.recv(1)


def reset_at_once(connection: socket.socket) -> None:
    """Reset the connection when a handshake starts."""
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def send_alert(connection: socket.socket) -> None:
    """Reject a handshake."""
    connection.recv(1)
    connection.sendall(b"\x15\x03\x03\x00\x02\x02\x28")


class TestMessages:
    """An error says what happened and what to set, and never doubts about a request that was not sent."""

    @pytest.mark.parametrize(
        "act", [respond_in_plain_text, close_at_once, reset_at_once, send_alert], ids=lambda act: act.__name__
    )
    def test_failed_handshake_suggests_plain_http(
        self, driver: Driver, act: Callable[[socket.socket], None]
    ) -> None:
        """A server without TLS may speak plain http: the message has the host to set."""
        with TcpServer(act) as server:
            error = catch_unreachable(driver, settings_for(server.url.replace("http:", "https:")), POST)
        assert not error.may_have_arrived
        assert "may have acted" not in str(error)
        assert "TLS" in str(error)
        assert f"If the service speaks plain http, set the connection's host to {server.url}." in str(error)

    def test_plain_http_to_a_tls_server_suggests_https(self, driver: Driver) -> None:
        """A server that responds to plain http with a TLS alert needs https."""
        with MisbehavingServer(send_and_close(b"\x15\x03\x03\x00\x02\x02\x28")) as server:
            error = catch_unreachable(driver, settings_for(server.url), POST)
        assert "it speaks TLS; set the connection's host to its https:// address" in str(error)
        assert "may have acted" not in str(error)
        assert error.is_permanent

    def test_close_without_a_response_suggests_https(self, driver: Driver) -> None:
        """A server of TLS may just close a connection of plain http; so may any other, so it is retried."""
        with MisbehavingServer(send_and_close(b"")) as server:
            error = catch_unreachable(driver, settings_for(server.url), POST)
        assert "If the service speaks https, set the connection's host to its https:// address." in str(error)
        assert not error.is_permanent

    def test_untrusted_certificate(self, driver: Driver) -> None:
        """A certificate of an unknown authority is named, with the fields that change what is trusted."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trustme.CA().issue_cert("localhost").configure_cert(context)
        with StubServer(tls=context) as server:
            error = catch_unreachable(driver, settings_for(server.url), POST)
        assert "its certificate is not trusted (unable to get local issuer certificate)" in str(error)
        assert "ca_bundle and verify in its extra" in str(error)
        assert error.is_permanent

    def test_unknown_name(self, driver: Driver) -> None:
        """A name that DNS does not know is called that."""
        error = catch_unreachable(driver, settings_for("http://no-such-host.invalid"), POST)
        assert "its name cannot be resolved" in str(error)

    def test_reset(self, driver: Driver) -> None:
        """A connection that breaks after the request was sent leaves a doubt."""
        with MisbehavingServer(reset) as server:
            error = catch_unreachable(driver, settings_for(server.url), POST)
        assert "it closed the connection. The service may have acted on it." in str(error)

    def test_silence(self, driver: Driver) -> None:
        """A service that sends nothing has the connection's read_timeout for it."""
        with StubServer(lambda _: StubResponse(delay=5)) as server:
            error = catch_unreachable(driver, settings_for(server.url, read_timeout=0.2), POST)
        assert "read_timeout" in str(error)

    def test_unreachable_proxy(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy that is down is named, without its password, and with the variables that name it."""
        with unused_url() as url:
            monkeypatch.setenv("HTTP_PROXY", url.replace("//", "//user:s3cret@"))
            error = catch_unreachable(driver, settings_for("http://flows.example"), POST)
        assert f"the proxy {url} did not connect to it: nothing listens there" in str(error)
        assert "NO_PROXY" in str(error)
        assert "s3cret" not in str(error)

    def test_rejected_tunnel(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy that rejects https is named."""
        with StubServer(forward) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            error = catch_unreachable(driver, settings_for("https://localhost:9"), POST)
        assert f"the proxy {proxy.url} did not connect to it: it refused" in str(error)

    def test_unsupported_proxy(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """A SOCKS proxy without a library for it is an error that names the proxy."""
        monkeypatch.setenv("HTTP_PROXY", "socks5://proxy.example:1080")
        error = catch_unreachable(driver, settings_for("http://flows.example"), POST)
        assert "the proxy socks5://proxy.example:1080 is of a kind that is not supported" in str(error)

    @pytest.mark.parametrize("request_", [GET, POST], ids=["GET", "POST"])
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_redirect_to_https_is_called_that(self, driver: Driver, request_: Request, status: int) -> None:
        """A service that redirects plain http to https is no matter of the key: the host to set is named."""

        def reply(_: object) -> StubResponse:
            return StubResponse(status, {"Location": f"https://127.0.0.1:{stub.port}/flows"})

        def send_and_check() -> Conversation[None]:
            raise_for_status(request_, (yield from follow_redirects(request_)))

        with StubServer(reply) as stub, pytest.raises(FlowServiceError) as caught:
            driver(settings_for(stub.url), send_and_check())
        assert not isinstance(caught.value, FlowAuthError)
        assert "key" not in str(caught.value)
        expected = f"redirect to https; set the connection's host to it (https://127.0.0.1:{stub.port})."
        assert expected in str(caught.value)
        assert len(stub.requests) == 1

    @pytest.mark.parametrize(
        "page",
        [
            b"<html><head><title>403 Forbidden</title></head><body>nginx</body></html>",
            b"\r\n<!DOCTYPE html>\n<html lang='en'>Attention Required! | Cloudflare",
            b"\xef\xbb\xbf<!doctype HTML><HTML>",
            b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'>",
            b"<!-- a comment --><html>",
        ],
    )
    @pytest.mark.parametrize("status", [401, 403])
    def test_page_of_a_gateway_is_no_matter_of_the_key(
        self, driver: Driver, status: int, page: bytes
    ) -> None:
        """A gateway's page in HTML is called that; the API key is not blamed."""
        with StubServer(lambda _: StubResponse(status, body=page)) as stub:
            response = driver(settings_for(stub.url), single_request(GET))
        with pytest.raises(FlowServiceError, match="a gateway or a proxy has answered, or") as caught:
            raise_for_status(GET, response)
        assert type(caught.value) is FlowServiceError
        assert caught.value.status == status
        assert not re.search("check the (connection's )?password", str(caught.value))

    @pytest.mark.parametrize("body", [b"", b'{"detail": "<html>"}', b"no", b"<error>key</error>"])
    @pytest.mark.parametrize("status", [401, 403])
    def test_rejection_by_the_service_is_a_matter_of_the_key(
        self, driver: Driver, status: int, body: bytes
    ) -> None:
        """What is no page in HTML comes from the service."""
        with StubServer(lambda _: StubResponse(status, body=body)) as stub:
            response = driver(settings_for(stub.url), single_request(GET))
        with pytest.raises(FlowAuthError, match="password"):
            raise_for_status(GET, response)

    def test_proxy_that_requires_credentials(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """The 407 of a proxy says where its credentials belong."""
        with StubServer(lambda _: StubResponse(407, body=b"")) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            response = driver(settings_for("http://flows.example"), single_request(GET))
        with pytest.raises(FlowServiceError, match="HTTP_PROXY"):
            raise_for_status(GET, response)


def test_host_without_a_scheme_that_speaks_plain_http(
    flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Test button and a request name the http:// address to set, where https was assumed."""
    address = flow_emulator.url.removeprefix("http://")
    monkeypatch.setenv(
        "AIRFLOW_CONN_C", json.dumps({"conn_type": "generio", "host": address, "password": "k"})
    )
    hook = GenerioHook("c")
    is_ok, message = hook.test_connection()
    with closing(hook), pytest.raises(FlowUnreachable) as caught:
        hook.run(single_request(POST), retry=NO_RETRY)
    assert not is_ok
    for text in (message, str(caught.value)):
        assert f"If the service speaks plain http, set the connection's host to {flow_emulator.url}." in text
    assert not caught.value.may_have_arrived
