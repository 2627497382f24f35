"""Tests of both transports over real sockets: what is sent, what is received, and how failures are reported.

Each test runs with `requests` and with `aiohttp`, and is independent of any service.
"""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable, Mapping
from errno import ENOSPC
from pathlib import Path

import psutil
import pytest

from airflow_provider_flows.core.exceptions import FlowAuthError, FlowError, FlowMalformed, FlowUnreachable
from airflow_provider_flows.core.http import Conversation, Request
from airflow_provider_flows.core.payload.sink import MemoryBuffer, WriteFailedError
from airflow_provider_flows.core.responses import parse_json, raise_for_status
from airflow_provider_flows.core.retry import NO_RETRY, Retry, with_retries
from airflow_provider_flows.emulator import Emulator, Fault
from tests.support.drivers import (
    DRIVERS,
    TOKEN,
    Driver,
    catch_unreachable,
    settings_for,
    single_request,
)
from tests.support.servers import (
    MisbehavingServer,
    ReceivedRequest,
    StubResponse,
    StubServer,
    reset,
    send_and_close,
    unused_url,
)

GET = Request("GET", "/flows")
POST = Request("POST", "/flows", json={"template": "chair"})
OK = b"HTTP/1.1 200 OK\r\n"
TRUNCATED = send_and_close(OK + b"Content-Length: 99\r\n\r\n{")
TWO_LENGTHS = send_and_close(OK + b"Content-Length: 5, 6\r\n\r\nhello")
BROKEN = [
    reset,
    TRUNCATED,
    send_and_close(b""),
    send_and_close(b"rubbish\r\n\r\n"),
    TWO_LENGTHS,
    send_and_close(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    send_and_close(OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd"),
    send_and_close(OK + b"X: " + b"a" * 200_000 + b"\r\n\r\n"),
]

pytestmark = pytest.mark.usefixtures("no_proxy")


class TestRequests:
    """A request on the wire is exactly what the `Request` states."""

    def test_request_is_sent_unchanged(self, driver: Driver) -> None:
        """Method, quoted path, query, JSON body and key arrive unchanged."""
        request = Request("POST", "/flows/a%2Fb", {"q": "ä & b"}, {"data": "Stuhl für 2"})
        with StubServer() as stub:
            driver(settings_for(stub.url), single_request(request))
        (seen,) = stub.requests
        assert (seen.method, seen.body) == ("POST", request.body)
        assert seen.path.replace("%20", "+") == "/flows/a%2Fb?q=%C3%A4+%26+b"
        assert (seen.headers["authorization"], seen.headers["content-type"]) == (
            f"Bearer {TOKEN}",
            "application/json",
        )

    def test_get_has_no_content_type(self, driver: Driver) -> None:
        """A request without a body has no content type."""
        with StubServer() as stub:
            driver(settings_for(stub.url), single_request(GET))
        assert "content-type" not in stub.requests[0].headers

    def test_signed_url_is_not_quoted_again(self, driver: Driver) -> None:
        """The query of a signed URL arrives with the same values, so that its signature remains valid."""
        signed = "/private/img.png?sig=a%2Bb%2F%3D&se=2026-01-01T00%3A00%3A00Z"
        with StubServer() as stub:
            driver(settings_for(stub.url), single_request(Request("GET", stub.url + signed)))
        assert stub.requests[0].path == signed

    def test_path_prefix_of_the_host_is_used(self, driver: Driver) -> None:
        """The path of a host, as behind a gateway, precedes every path."""
        with StubServer() as stub:
            driver(settings_for(f"{stub.url}/gateway"), single_request(GET))
        assert stub.requests[0].path == "/gateway/flows"

    @pytest.mark.usefixtures("netrc")
    def test_netrc_does_not_replace_the_key(self, driver: Driver) -> None:
        """A ~/.netrc with an entry for the host changes nothing."""
        with StubServer() as stub:
            response = driver(settings_for(stub.url), single_request(GET))
            driver(settings_for(stub.url, credentials={"x-api-key": TOKEN}), single_request(GET))
        assert response.is_success
        assert stub.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert stub.requests[1].headers["x-api-key"] == TOKEN
        assert "authorization" not in stub.requests[1].headers

    @pytest.fixture
    def netrc(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Write a netrc with other credentials for the host."""
        path = tmp_path / ".netrc"
        path.write_text("machine 127.0.0.1 login somebody password else\n")
        path.chmod(0o600)
        monkeypatch.setenv("NETRC", str(path))
        monkeypatch.setenv("HOME", str(tmp_path))


class TestResponses:
    """Responses are complete, bounded and decompressed."""

    def test_response_is_complete(self, driver: Driver) -> None:
        """Status, lower-case headers and the body are returned for any status."""
        with StubServer(lambda _: StubResponse(418, {"X-Tea": "Pot"}, b"\x00\xff" * 100_000)) as stub:
            response = driver(settings_for(stub.url), single_request(Request("GET", "/flows")))
        assert (response.status, response.headers["x-tea"], response.body) == (
            418,
            "Pot",
            b"\x00\xff" * 100_000,
        )

    def test_compressed_response_is_decompressed(self, driver: Driver) -> None:
        """A gzip response is decompressed."""
        with StubServer(
            lambda _: StubResponse(headers={"Content-Encoding": "gzip"}, body=gzip.compress(b"[1]"))
        ) as stub:
            assert driver(settings_for(stub.url), single_request(GET)).body == b"[1]"

    def test_response_beyond_the_limit_is_rejected(self, driver: Driver) -> None:
        """A response without a sink is rejected once it exceeds the limit, even if only decompressed."""
        packed = gzip.compress(b" " * 4_000_000)
        with StubServer(lambda _: StubResponse(headers={"Content-Encoding": "gzip"}, body=packed)) as stub:
            with pytest.raises(FlowMalformed, match="max_response_mib"):
                driver(settings_for(stub.url, max_response_bytes=1_000_000), single_request(GET))
            buffer = MemoryBuffer()
            driver(
                settings_for(stub.url, max_response_bytes=1_000_000),
                single_request(Request("GET", "/file", sink=buffer)),
            )
            assert len(buffer.data) == 4_000_000

    def test_key_in_an_error_response_is_redacted(self, driver: Driver) -> None:
        """A service that repeats the key in an error does not cause a message that has it."""
        with StubServer(
            lambda seen: StubResponse(401, body=f"no: {seen.headers['authorization']}".encode())
        ) as stub:
            response = driver(settings_for(stub.url), single_request(GET))
        assert response.redact(response.body.decode()) == "no: Bearer ***"
        with pytest.raises(FlowAuthError, match=r"no: Bearer \*\*\*"):
            raise_for_status(GET, response)
        assert TOKEN not in repr(response)


class CountingSink(MemoryBuffer):
    """A sink that counts responses, and rejects more than so many bytes."""

    def __init__(self, max_bytes: int = 10**9) -> None:
        super().__init__()
        self.max_bytes = max_bytes
        self.starts: list[tuple[int, str | None]] = []

    def on_response_start(self, status: int, headers: Mapping[str, str]) -> None:
        """Record that a response starts."""
        super().on_response_start(status, headers)
        self.starts.append((status, headers.get("x-tea")))

    def feed(self, chunk: bytes) -> None:
        """Record a chunk."""
        super().feed(chunk)
        if len(self.data) > self.max_bytes:
            message = f"more than {self.max_bytes} bytes"
            raise ValueError(message)


class FullDiskSink(MemoryBuffer):
    """A sink whose target fails as a full disk does."""

    def feed(self, chunk: bytes) -> None:
        """Fail."""
        raise WriteFailedError(OSError(ENOSPC, "No space left on device", len(chunk)))


class TestSinks:
    """The body of a success goes to the request's sink in chunks, and only the sink limits its size."""

    def test_body_goes_to_the_sink(self, driver: Driver) -> None:
        """The sink receives the complete body and the headers; the response has the start, for messages."""
        body = bytes(range(256)) * 20_000
        reply = StubResponse(headers={"Content-Encoding": "gzip", "X-Tea": "Pot"}, body=gzip.compress(body))
        sink = CountingSink()
        with StubServer(lambda _: reply) as stub:
            response = driver(
                settings_for(stub.url, max_response_bytes=1_000),
                single_request(Request("GET", "/file", sink=sink)),
            )
        assert (bytes(sink.data), sink.starts) == (body, [(200, "Pot")])
        assert (response.body, response.bytes_received) == (body[:400], len(body))

    @pytest.mark.parametrize(
        "first", [TRUNCATED, send_and_close(b"HTTP/1.1 503 Away\r\nContent-Length: 3\r\n\r\noff"), reset]
    )
    def test_second_response_replaces_an_incomplete_one(
        self, driver: Driver, first: Callable[[socket.socket], None]
    ) -> None:
        """After an incomplete or missing response, the sink contains only the next complete one."""
        acts = iter([first, send_and_close(OK + b"Content-Length: 5\r\n\r\nwhole")])
        sink = CountingSink()

        def act(connection: socket.socket) -> None:
            next(acts)(connection)

        with MisbehavingServer(act) as server:
            driver(
                settings_for(server.url),
                with_retries(single_request(Request("GET", "/file", sink=sink)), Retry()),
            )
        assert bytes(sink.data) == b"whole"
        assert sink.starts[-1] == (200, None)
        assert {status for status, _ in sink.starts} == {200}

    def test_redirect_is_followed_into_the_sink(self, driver: Driver) -> None:
        """The body of the redirect itself does not reach the sink."""
        replies = {
            "/file": StubResponse(302, {"Location": "/there"}, b"elsewhere"),
            "/there": StubResponse(body=b"file"),
        }
        sink = CountingSink()
        with StubServer(lambda seen: replies[seen.path]) as stub:
            driver(
                settings_for(stub.url),
                with_retries(single_request(Request("GET", "/file", sink=sink)), NO_RETRY),
            )
        assert (bytes(sink.data), sink.starts) == (b"file", [(200, None)])

    def test_error_response_is_bounded_and_no_file(self, driver: Driver) -> None:
        """The body of an error never reaches the sink, and has the limit of any response."""
        sink = CountingSink()
        with StubServer(lambda _: StubResponse(404, body=b"no" * 1_000)) as stub:
            assert (
                driver(settings_for(stub.url), single_request(Request("GET", "/file", sink=sink))).body
                == b"no" * 1_000
            )
            with pytest.raises(FlowMalformed, match="max_response_mib"):
                driver(
                    settings_for(stub.url, max_response_bytes=1_000),
                    single_request(Request("GET", "/file", sink=sink)),
                )
        assert (sink.starts, bytes(sink.data)) == ([], b"")

    def test_body_that_the_sink_rejects_is_not_read_to_its_end(self, driver: Driver) -> None:
        """A rejected body is malformed and not read further, and the session can send the next request."""
        with StubServer(lambda _: StubResponse(body=b"x" * 20_000_000)) as stub:
            sinks = [CountingSink(1), CountingSink(1)]

            def send_both() -> Conversation[list[str]]:
                messages = []
                for sink in sinks:
                    try:
                        yield from single_request(Request("GET", "/file", sink=sink))
                    except FlowMalformed as error:
                        messages.append(str(error))
                return messages

            messages = driver(settings_for(stub.url), send_both())
        assert len(messages) == 2
        assert all("GET /file holds no complete file (more than 1 bytes)" in text for text in messages)
        assert all(len(sink.data) < 1_000_000 for sink in sinks)

    def test_error_of_the_sinks_target_is_raised_as_it_is(self, driver: Driver) -> None:
        """A full disk is no unreachable service: its error is raised, and the request is not sent again."""
        with StubServer(lambda _: StubResponse(body=b"file")) as stub:
            request = Request("GET", "/file", sink=FullDiskSink())
            with pytest.raises(OSError, match="No space left") as caught:
                driver(settings_for(stub.url), with_retries(single_request(request), Retry()))
            assert len(stub.requests) == 1
        assert not isinstance(caught.value, FlowError)


class TestErrors:
    """A missing response raises FlowUnreachable, which states whether the service may have acted."""

    def test_refused_connection_never_arrived(self, driver: Driver) -> None:
        """A request to a closed port never arrived."""
        with unused_url() as url:
            assert not catch_unreachable(driver, settings_for(url), POST).may_have_arrived

    def test_unknown_name_never_arrived(self, driver: Driver) -> None:
        """A request to an unknown host name never arrived."""
        assert not catch_unreachable(
            driver, settings_for("http://no-such-host.invalid"), POST
        ).may_have_arrived

    @pytest.mark.parametrize("host", ["http://" + "a" * 70 + ".test", "http://[::1", "http://host:99999999"])
    def test_invalid_url_is_reported(self, driver: Driver, host: str) -> None:
        """An invalid URL raises this provider's error, not a library's."""
        assert not catch_unreachable(driver, settings_for(host), POST).may_have_arrived

    @pytest.mark.parametrize("act", BROKEN)
    def test_request_with_a_broken_response_may_have_arrived(self, driver: Driver, act: object) -> None:
        """After a reset, an early end, an invalid response or a cut body, the service may have acted."""
        with MisbehavingServer(act) as server:
            assert catch_unreachable(driver, settings_for(server.url), POST).may_have_arrived
        assert server.bodies == [POST.body]

    def test_response_with_two_lengths_leaves_no_connection_open(self, driver: Driver) -> None:
        """An error in use holds no connection open, although urllib3 leaves this response open."""
        with MisbehavingServer(TWO_LENGTHS) as server, pytest.raises(FlowUnreachable) as caught:
            driver(settings_for(server.url), single_request(POST))
        mine = [link.raddr.port for link in psutil.Process().net_connections("tcp4") if link.raddr]
        assert server.port not in mine, caught.value

    def test_read_timeout_may_have_arrived(self, driver: Driver) -> None:
        """A service that sends nothing for longer than the read timeout may have acted."""
        with StubServer(lambda _: StubResponse(delay=0.6)) as stub:
            assert catch_unreachable(driver, settings_for(stub.url, read_timeout=0.2), POST).may_have_arrived

    def test_connect_timeout_never_arrived(self, driver: Driver) -> None:
        """A request whose connection is not established within the connect timeout never arrived."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            port = full.getsockname()[1]
            held = [socket.socket() for _ in range(3)]
            for client in held:  # the queue of connections is full: the next one gets no response
                client.settimeout(0)
                client.connect_ex(("127.0.0.1", port))
            error = catch_unreachable(
                driver, settings_for(f"http://127.0.0.1:{port}", connect_timeout=0.3), POST
            )
            for client in held:
                client.close()
        assert not error.may_have_arrived

    def test_message_has_the_host_and_advice(self, driver: Driver) -> None:
        """The message names the request, the host, the kind of failure and what to check, without query."""
        with unused_url() as url:
            error = catch_unreachable(
                driver, settings_for(url), Request("GET", "/flows", {"secret": "s3cret"})
            )
        assert str(error).startswith(
            f"GET /flows got no response from {url}: nothing listens there (connection refused). "
        )
        assert "Check the host and the port of the connection" in str(error)
        assert "s3cret" not in str(error)

    @pytest.mark.parametrize(
        ("fault", "request_count"),
        [(Fault(reset="before"), 2), (Fault(truncate=5), 2), (Fault(status=503), 2)],
    )
    def test_retries_overcome_the_faults_of_the_emulator(
        self, driver: Driver, flow_emulator: Emulator, fault: Fault, request_count: int
    ) -> None:
        """A GET that is reset, cut short or rejected by a gateway is sent again, and then succeeds."""
        flow_emulator.add_fault(fault)
        settings = settings_for(
            flow_emulator.url, credentials={"Authorization": f"Bearer {flow_emulator.key}"}
        )
        response = driver(settings, with_retries(single_request(GET), Retry()))
        assert parse_json(GET, response) == {"flows": []}
        assert len(flow_emulator.requests) == request_count

    @pytest.mark.parametrize("act", [reset, TRUNCATED])
    def test_post_that_may_have_arrived_is_sent_once(self, driver: Driver, act: object) -> None:
        """A POST whose response is lost is not sent again, under any retry policy."""
        request = Request("POST", "/flows", json={}, resend=POST.resend.IF_NEVER_ARRIVED)
        with MisbehavingServer(act) as server, pytest.raises(FlowUnreachable):
            driver(settings_for(server.url), with_retries(single_request(request), Retry()))
        assert len(server.bodies) == 1


def test_repr_of_settings_has_no_key() -> None:
    """The repr of settings does not contain the key."""
    assert TOKEN not in repr(settings_for("http://h"))


def test_transports_know_no_service() -> None:
    """Each transport contains no path, no state and no service."""
    folder = Path(__file__).parents[2] / "airflow_provider_flows" / "transport"
    for name in ("blocking.py", "asynchronous.py"):
        text = (folder / name).read_text()
        assert not [
            word
            for word in ("/flows", "FlowState", "generio", "promptchainer", "Authorization")
            if word in text
        ]


def test_stub_records_its_requests() -> None:
    """The tests' own server records its requests, with headers in lower case."""
    with StubServer(lambda seen: StubResponse(body=seen.body)) as stub:
        assert DRIVERS["requests"](settings_for(stub.url), single_request(POST)).body == POST.body
    assert isinstance(stub.requests[0], ReceivedRequest)
