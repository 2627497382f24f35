"""Tests of the deadlines of requests over both transports, against services that are slow without end."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from airflow_provider_flows.core.exceptions import FlowUnreachable
from airflow_provider_flows.core.http import Purpose, Request, Resend, send, with_deadline
from airflow_provider_flows.core.payload.sink import MemoryBuffer
from airflow_provider_flows.core.retry import Retry, with_retries
from airflow_provider_flows.transport.deadline import Deadline
from airflow_provider_flows.transport.settings import Settings
from tests.support.drivers import DRIVERS, Driver, catch_unreachable, settings_for, single_request
from tests.support.hostile import BEHAVIOURS, HostileServer, broken_framing, slow
from tests.support.servers import MisbehavingServer, TcpServer

TIMEOUTS: dict[str, Any] = {"connect_timeout": 0.2, "read_timeout": 0.5}
WINDOW: dict[str, Any] = {"transfer_window": 0.6, "min_transfer_bytes": 1000}
MAX_SECONDS = 15.0  # on a loaded machine; without a deadline these requests take minutes
POLL = Request("GET", "/flows/r")
START = Request("POST", "/run", json={}, resend=Resend.IF_NEVER_ARRIVED, purpose=Purpose.RUN)

pytestmark = pytest.mark.usefixtures("no_proxy", "no_threads_left")


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    """Fail a test that leaves a thread of a deadline behind."""
    yield
    assert [thread for thread in threading.enumerate() if thread.name == "request-deadline"] == []


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    """Return the driver of a transport."""
    return DRIVERS[request.param]


@dataclass(frozen=True)
class Tls:
    """A server's TLS context, and the file with the authority that has signed its certificate."""

    context: ssl.SSLContext
    bundle: str


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """Create a certificate for localhost."""
    authority, path = trustme.CA(), tmp_path_factory.mktemp("tls") / "bundle.pem"
    authority.cert_pem.write_to_path(str(path))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return Tls(context, str(path))


@dataclass
class Zeros:
    """A file of zeros."""

    size: int
    pause: float = 0.0
    media_type: str = "application/octet-stream"

    @property
    def digest(self) -> str:
        """The digest of the content."""
        return hashlib.sha256(bytes(self.size)).hexdigest()

    def chunks(self) -> Iterator[bytes]:
        """Yield the content, slowly if there is a pause."""
        for start in range(0, self.size, 30_000):
            time.sleep(self.pause)
            yield bytes(min(30_000, self.size - start))


def upload_of(size: int, pause: float = 0.0) -> Request:
    """Return a request with a file."""
    return Request("POST", "/inputs", json={"data": Zeros(size, pause)}, resend=Resend.IF_REFUSED)


def catch_in_time(driver: Driver, settings: Settings, request: Request) -> FlowUnreachable:
    """Send a request, and return the error, which must be raised in time."""
    started_at = time.monotonic()
    error = catch_unreachable(driver, settings, request)
    assert time.monotonic() - started_at < MAX_SECONDS
    return error


def wait_until_disconnected(server: TcpServer) -> None:
    """Wait until this process has closed its connections to a server."""
    until = time.monotonic() + 10
    while count_client_sockets(server):
        assert time.monotonic() < until, "a connection is still open"
        time.sleep(0.01)


def count_client_sockets(server: TcpServer) -> int:
    """Return the number of sockets that are connected to a server; the kernel's own do not count."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{server.port:04X}") and row[9] != "0" for row in rows)


@pytest.mark.parametrize("name", [*slow.RESPONSES, "a flood of 100 Continue", "silence"])
def test_slow_response(driver: Driver, name: str) -> None:
    """A response that does not end is an error within the timeouts of the connection, however it dribbles."""
    with HostileServer(name) as server:
        error = catch_in_time(driver, settings_for(server.url, **TIMEOUTS), POLL)
        assert error.may_have_arrived
        if name != "silence":
            assert "did not complete within 0.7 s (connect_timeout and read_timeout together)" in str(error)
            assert "increase read_timeout" in str(error)
        wait_until_disconnected(server)


@pytest.mark.parametrize("name", slow.RESPONSES)
def test_slow_run(driver: Driver, name: str) -> None:
    """A run's response has the read timeout again for its body, because it is paid for, and then ends too."""
    with HostileServer(name) as server:
        error = catch_in_time(driver, settings_for(server.url, **TIMEOUTS), START)
    assert "The service may have acted on it." in str(error)


@pytest.mark.parametrize("name", slow.RESPONSES)
def test_slow_file(driver: Driver, name: str) -> None:
    """A file below the minimum rate is an error that says so, and which field of the connection to raise."""
    with HostileServer(name) as server:
        request = Request("GET", "/file", sink=MemoryBuffer())
        error = catch_in_time(driver, settings_for(server.url, **TIMEOUTS, **WINDOW), request)
        wait_until_disconnected(server)
    if name in slow.OF_A_BODY:
        assert "the service sent its response at less than 1000 bytes in 0.6 s" in str(error)
    else:
        assert "did not complete within 0.7 s" in str(error)
    assert "increase read_timeout" in str(error)


def test_file_above_minimum_rate(driver: Driver) -> None:
    """A file may take much longer than the timeouts, as long as it moves."""
    buffer = MemoryBuffer()
    with MisbehavingServer(slow.send_steadily(80_000, seconds_per_piece=0.05)) as server:
        started_at = time.monotonic()
        settings = settings_for(server.url, **TIMEOUTS, **WINDOW)
        driver(settings, single_request(Request("GET", "/file", sink=buffer)))
    assert len(buffer.data) == 80_000
    assert time.monotonic() - started_at > 1.5


class SlowBuffer(MemoryBuffer):
    """A sink that takes longer for a chunk than the window for the minimum rate."""

    def feed(self, chunk: bytes) -> None:
        """Append the chunk, slowly the first time."""
        time.sleep(0 if self.data else 1.0)
        super().feed(chunk)


def test_slow_store(driver: Driver) -> None:
    """The time for which a store takes a file's bytes is not the service's."""
    with MisbehavingServer(slow.send_steadily(8_000, seconds_per_piece=0.01)) as server:
        settings = settings_for(server.url, **TIMEOUTS | {"read_timeout": 2}, **WINDOW)
        buffer = SlowBuffer()
        driver(settings, single_request(Request("GET", "/file", sink=buffer)))
    assert len(buffer.data) == 8_000


@pytest.mark.parametrize(
    "name",
    [
        "an upload that is not read",
        "an upload that is read slowly",
        "an upload that is not read, after the headers of a response",
    ],
)
def test_slow_upload(driver: Driver, name: str) -> None:
    """An upload that the service does not take in is an error, and the service cannot have it complete."""
    with HostileServer(name) as server:
        # a window and a rate that cannot be met even though the kernel buffers a few megabytes
        settings = settings_for(
            server.url, connect_timeout=2, read_timeout=0.5, transfer_window=1, min_transfer_bytes=200_000
        )
        error = catch_in_time(driver, settings, upload_of(40_000_000))
        wait_until_disconnected(server)
    assert not error.may_have_arrived or "headers" in name


def test_upload_above_minimum_rate(driver: Driver) -> None:
    """An upload may take longer than the timeouts, and the time to read its file is not the service's."""

    def respond(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with MisbehavingServer(respond) as server:
        settings = settings_for(server.url, **TIMEOUTS, **WINDOW)
        started_at = time.monotonic()
        assert driver(settings, single_request(upload_of(120_000, pause=0.3))).body == b"{}"
    assert time.monotonic() - started_at > 1.1


def test_slow_tls_handshake(driver: Driver) -> None:
    """A TLS handshake that does not end is an error, and nothing has arrived."""
    with HostileServer("a slow TLS handshake") as server:
        url = server.url.replace("http:", "https:")
        error = catch_in_time(driver, settings_for(url, **TIMEOUTS | {"connect_timeout": 0.5}), START)
        wait_until_disconnected(server)
    assert not error.may_have_arrived


@pytest.mark.parametrize(
    "name", ["a slow status line", "slow headers", "endless 100 Continue", "silence", "a slow TLS handshake"]
)
def test_slow_proxy(driver: Driver, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that does not open the tunnel is an error, and nothing has arrived."""
    with HostileServer(name) as server:
        scheme = "https:" if "TLS" in name else "http:"
        monkeypatch.setenv("HTTPS_PROXY", server.url.replace("http:", scheme))
        error = catch_in_time(driver, settings_for("https://service.example", **TIMEOUTS), START)
        wait_until_disconnected(server)
    assert not error.may_have_arrived


def test_deadline_of_conversation(driver: Driver) -> None:
    """All requests and retries of a conversation have one deadline, and the error names the time."""

    def ask_often() -> Any:
        for _ in range(100):
            try:
                yield from send(POLL)
            except FlowUnreachable as error:
                errors.append(error)

    errors: list[FlowUnreachable] = []
    with HostileServer("a slow body") as server:
        settings = settings_for(server.url, connect_timeout=10, read_timeout=60)
        started_at = time.monotonic()
        conversation = with_deadline(ask_often(), time.monotonic() + 0.5)
        driver(settings, with_retries(conversation, Retry(attempts=5)))
        assert time.monotonic() - started_at < MAX_SECONDS
        assert len(server.peers) == 1  # after the deadline nothing is sent any more
    # a loaded machine may take a part of the time before the request is sent
    assert re.search(r"did not complete within the 0\.\d+ s that were left for it", str(errors[0]))
    assert "was not sent, because no time was left for it" in str(errors[-1])
    assert not errors[-1].may_have_arrived


def test_deadline_of_file(driver: Driver) -> None:
    """A file that moves fast enough still ends at the caller's deadline."""
    with MisbehavingServer(slow.send_steadily(10_000_000, seconds_per_piece=0.02)) as server:
        request = Request("GET", "/file", sink=MemoryBuffer(), deadline=time.monotonic() + 0.5)
        error = catch_in_time(driver, settings_for(server.url, **TIMEOUTS, **WINDOW), request)
        wait_until_disconnected(server)
    assert "s that were left for it" in str(error)


@pytest.mark.parametrize("name", broken_framing.NAMES)
def test_broken_framing(driver: Driver, name: str) -> None:
    """Framing that breaks, in the first segment or a later one, is the same error, within the same bound."""
    with HostileServer(name) as server:
        settings = settings_for(server.url, **TIMEOUTS)
        started_at = time.monotonic()
        try:
            response = driver(settings, single_request(POLL))
        except FlowUnreachable as error:
            assert error.may_have_arrived  # noqa: PT017  # some breakages may be ignored
        else:
            assert response.body == b"{}"
            assert name.removesuffix(", in a later segment") in broken_framing.HARMLESS
        assert time.monotonic() - started_at < MAX_SECONDS
        wait_until_disconnected(server)


@pytest.mark.parametrize("name", ["a slow body", "a chunk size that is no number, in a later segment"])
def test_connection_is_not_used_again(driver: Driver, name: str) -> None:
    """After a deadline, the next request of the session has a new connection, and succeeds."""
    act, seen = HostileServer(name), list[socket.socket]()

    def misbehave_once(connection: socket.socket) -> None:
        seen.append(connection)
        if len(seen) == 1:
            act._act(connection)
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def poll_twice() -> Any:
        try:
            yield from send(POLL)
        except FlowUnreachable:
            return (yield from send(POLL))
        raise AssertionError

    with MisbehavingServer(misbehave_once) as server:
        assert driver(settings_for(server.url, **TIMEOUTS), poll_twice()).body == b"{}"
        assert len(seen) == 2
    act.stop()


@pytest.mark.parametrize(
    "name", ["a slow body", "slow headers", "slow chunks", "a slow body without a length"]
)
def test_slow_response_over_tls(driver: Driver, name: str, tls: Tls) -> None:
    """The deadline holds over TLS as well."""
    with MisbehavingServer(BEHAVIOURS[name], tls.context) as server:
        settings = settings_for(server.url, connect_timeout=1, read_timeout=0.5, verify=tls.bundle)
        error = catch_in_time(driver, settings, POLL)
        wait_until_disconnected(server)
    assert "did not complete within 1.5 s" in str(error)


def test_slow_upload_over_tls(driver: Driver, tls: Tls) -> None:
    """So does the minimum rate of an upload."""
    with TcpServer(BEHAVIOURS["an upload that is read slowly"], tls.context) as server:
        settings = settings_for(
            server.url,
            connect_timeout=2,
            read_timeout=0.5,
            transfer_window=1,
            min_transfer_bytes=200_000,
            verify=tls.bundle,
        )
        error = catch_in_time(driver, settings, upload_of(40_000_000))
        wait_until_disconnected(server)
    assert not error.may_have_arrived


def test_slow_tunnel_through_tls_proxy(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is reached over TLS cannot hold the handshake with the service up."""

    def open_tunnel_and_dribble(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        BEHAVIOURS["a slow TLS handshake"](connection)

    with MisbehavingServer(open_tunnel_and_dribble, tls.context) as server:
        monkeypatch.setenv("HTTPS_PROXY", server.url)
        settings = settings_for("https://service.example", **TIMEOUTS, verify=tls.bundle)
        error = catch_in_time(DRIVERS["requests"], settings, START)
        wait_until_disconnected(server)
    assert not error.may_have_arrived


def test_many_addresses(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with many addresses that do not respond is an error in the time of the connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        with socket.create_connection(address):  # fills the backlog, so that no other connection is accepted
            found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)] * 40
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
            url = f"http://many.example:{address[1]}"
            error = catch_in_time(driver, settings_for(url, **TIMEOUTS), START)
    assert not error.may_have_arrived


def test_window_follows_a_long_read_timeout() -> None:
    """The window for the minimum rate is not shorter than the time for which a service may send nothing."""
    now = [100.0]
    settings = Settings("http://localhost", {}, connect_timeout=10, read_timeout=300)
    deadline = Deadline(settings, Request("GET", "/file", sink=MemoryBuffer()), lambda: now[0])
    assert deadline.seconds_left() == 310
    deadline.on_response_start(200)
    assert deadline.seconds_left() == 300
    now[0] += 299
    deadline.on_bytes(60 * 1024)
    now[0] += 2
    assert deadline.seconds_left() == 300  # of the next window
    now[0] += 300
    assert deadline.seconds_left() == 0
