"""Tests of both transports over real sockets: what goes out, what comes back, and what every kind of trouble becomes.

Each test runs through `requests` and through `aiohttp`; nothing in it knows a service.
"""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest

from airflow_provider_flows.core.exceptions import FlowAuthError, FlowMalformed, FlowUnreachable
from airflow_provider_flows.core.http import Conversation, Request, Response, parse_json, raise_for_status
from airflow_provider_flows.core.payload.sink import MemoryBuffer
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
CUT = send_and_close(OK + b"Content-Length: 99\r\n\r\n{")
TWO_LENGTHS = send_and_close(OK + b"Content-Length: 5, 6\r\n\r\nhello")
BROKEN = [
    reset,
    CUT,
    send_and_close(b""),
    send_and_close(b"rubbish\r\n\r\n"),
    TWO_LENGTHS,
    send_and_close(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    send_and_close(OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd"),
    send_and_close(OK + b"X: " + b"a" * 200_000 + b"\r\n\r\n"),
]

pytestmark = pytest.mark.usefixtures("no_proxy")


class TestWhatGoesOut:
    """What is on the wire is what the request says, and nothing else."""

    def test_request_is_sent_as_it_is(self, door: Driver) -> None:
        """Method, quoted path, query, JSON body and key arrive exactly as they were given."""
        request = Request("POST", "/flows/a%2Fb", {"q": "ä & b"}, {"data": "Stuhl für 2"})
        with StubServer() as station:
            door(settings_for(station.url), single_request(request))
        (seen,) = station.requests
        assert (seen.method, seen.body) == ("POST", request.body)
        assert seen.path.replace("%20", "+") == "/flows/a%2Fb?q=%C3%A4+%26+b"
        assert (seen.headers["authorization"], seen.headers["content-type"]) == (
            f"Bearer {TOKEN}",
            "application/json",
        )

    def test_get_has_no_content_type(self, door: Driver) -> None:
        """A request without a body says nothing of a content type."""
        with StubServer() as station:
            door(settings_for(station.url), single_request(GET))
        assert "content-type" not in station.requests[0].headers

    def test_signed_url_is_not_quoted_again(self, door: Driver) -> None:
        """A signed URL's query arrives with the same values, so that its signature still fits."""
        signed = "/private/img.png?sig=a%2Bb%2F%3D&se=2026-01-01T00%3A00%3A00Z"
        with StubServer() as station:
            door(settings_for(station.url), single_request(Request("GET", station.url + signed)))
        assert station.requests[0].path == signed

    def test_path_prefix_of_the_host_is_kept(self, door: Driver) -> None:
        """A host with a path, as behind a gateway, has it before every path."""
        with StubServer() as station:
            door(settings_for(f"{station.url}/gateway"), single_request(GET))
        assert station.requests[0].path == "/gateway/flows"

    @pytest.mark.usefixtures("netrc")
    def test_netrc_does_not_replace_the_key(self, door: Driver) -> None:
        """A ~/.netrc that knows the host changes nothing."""
        with StubServer() as station:
            response = door(settings_for(station.url), single_request(GET))
            door(settings_for(station.url, credentials={"x-api-key": TOKEN}), single_request(GET))
        assert response.is_success
        assert station.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert station.requests[1].headers["x-api-key"] == TOKEN
        assert "authorization" not in station.requests[1].headers

    @pytest.fixture
    def netrc(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Write a netrc with other credentials for the host."""
        path = tmp_path / ".netrc"
        path.write_text("machine 127.0.0.1 login somebody password else\n")
        path.chmod(0o600)
        monkeypatch.setenv("NETRC", str(path))
        monkeypatch.setenv("HOME", str(tmp_path))


class TestWhatComesBack:
    """Answers are whole, bounded, and readable by anybody."""

    def test_answer_is_whole(self, door: Driver) -> None:
        """Status, lower-case headers and the body come back, whatever the status."""
        with StubServer(lambda _: StubResponse(418, {"X-Tea": "Pot"}, b"\x00\xff" * 100_000)) as station:
            response = door(settings_for(station.url), single_request(Request("GET", "/flows")))
        assert (response.status, response.headers["x-tea"], response.body) == (
            418,
            "Pot",
            b"\x00\xff" * 100_000,
        )

    def test_compressed_answer_is_unpacked(self, door: Driver) -> None:
        """A gzip answer is read as what it holds."""
        with StubServer(
            lambda _: StubResponse(headers={"Content-Encoding": "gzip"}, body=gzip.compress(b"[1]"))
        ) as station:
            assert door(settings_for(station.url), single_request(GET)).body == b"[1]"

    def test_answer_beyond_the_bound_is_refused(self, door: Driver) -> None:
        """An answer that is no file is refused as soon as it outgrows the bound, also one that unpacks to more."""
        packed = gzip.compress(b" " * 4_000_000)
        with StubServer(lambda _: StubResponse(headers={"Content-Encoding": "gzip"}, body=packed)) as station:
            with pytest.raises(FlowMalformed, match="max_response_mib"):
                door(settings_for(station.url, max_response_bytes=1_000_000), single_request(GET))
            kept = MemoryBuffer()
            door(
                settings_for(station.url, max_response_bytes=1_000_000),
                single_request(Request("GET", "/file", sink=kept)),
            )
            assert len(kept.data) == 4_000_000

    def test_refusal_that_repeats_the_key_is_blanked(self, door: Driver) -> None:
        """A service that repeats the key in its refusal does not get it into what is shown of the response."""
        with StubServer(
            lambda seen: StubResponse(401, body=f"no: {seen.headers['authorization']}".encode())
        ) as station:
            response = door(settings_for(station.url), single_request(GET))
        assert response.redact(response.body.decode()) == "no: Bearer ***"
        with pytest.raises(FlowAuthError, match=r"no: Bearer \*\*\*"):
            raise_for_status(GET, response)
        assert TOKEN not in repr(response)


class Counted(MemoryBuffer):
    """A sink that counts answers, and wants no more than so many bytes."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.most = most
        self.begun: list[tuple[int, str | None]] = []

    def on_response_start(self, status: int, headers: Mapping[str, str]) -> None:
        """Keep that an answer begins."""
        super().on_response_start(status, headers)
        self.begun.append((status, headers.get("x-tea")))

    def feed(self, chunk: bytes) -> bool:
        """Keep it; say whether more is wanted."""
        super().feed(chunk)
        return len(self.data) < self.most


class TestWhatASinkTakes:
    """The body of a success goes to the request's sink, piece by piece, and is bounded by nothing but the sink."""

    def test_body_goes_to_the_sink(self, door: Driver) -> None:
        """The sink gets all of it, unpacked, and is told the head; the response keeps the start, for messages."""
        body = bytes(range(256)) * 20_000
        reply = StubResponse(headers={"Content-Encoding": "gzip", "X-Tea": "Pot"}, body=gzip.compress(body))
        sink = Counted()
        with StubServer(lambda _: reply) as station:
            response = door(
                settings_for(station.url, max_response_bytes=1_000),
                single_request(Request("GET", "/file", sink=sink)),
            )
        assert (bytes(sink.data), sink.begun) == (body, [(200, "Pot")])
        assert (response.body, response.bytes_received) == (body[:400], len(body))

    @pytest.mark.parametrize(
        "first", [CUT, send_and_close(b"HTTP/1.1 503 Away\r\nContent-Length: 3\r\n\r\noff"), reset]
    )
    def test_answer_that_is_asked_for_again_begins_anew(
        self, door: Driver, first: Callable[[socket.socket], None]
    ) -> None:
        """Of an answer that broke off, or was none, nothing is left in the sink when the next one is whole."""
        acts = iter([first, send_and_close(OK + b"Content-Length: 5\r\n\r\nwhole")])
        sink = Counted()

        def act(connection: socket.socket) -> None:
            next(acts)(connection)

        with MisbehavingServer(act) as rude:
            door(
                settings_for(rude.url),
                with_retries(single_request(Request("GET", "/file", sink=sink)), Retry()),
            )
        assert bytes(sink.data) == b"whole"
        assert sink.begun[-1] == (200, None)
        assert {status for status, _ in sink.begun} == {200}

    def test_redirect_is_followed_into_the_sink(self, door: Driver) -> None:
        """What stands in the redirect itself is not the file."""
        replies = {
            "/file": StubResponse(302, {"Location": "/there"}, b"elsewhere"),
            "/there": StubResponse(body=b"file"),
        }
        sink = Counted()
        with StubServer(lambda seen: replies[seen.path]) as station:
            door(
                settings_for(station.url),
                with_retries(single_request(Request("GET", "/file", sink=sink)), NO_RETRY),
            )
        assert (bytes(sink.data), sink.begun) == (b"file", [(200, None)])

    def test_refusal_is_bounded_and_no_file(self, door: Driver) -> None:
        """A refusal's body never gets to the sink, and has the bound that any answer has."""
        sink = Counted()
        with StubServer(lambda _: StubResponse(404, body=b"no" * 1_000)) as station:
            assert (
                door(settings_for(station.url), single_request(Request("GET", "/file", sink=sink))).body
                == b"no" * 1_000
            )
            with pytest.raises(FlowMalformed, match="max_response_mib"):
                door(
                    settings_for(station.url, max_response_bytes=1_000),
                    single_request(Request("GET", "/file", sink=sink)),
                )
        assert (sink.begun, bytes(sink.data)) == ([], b"")

    def test_sink_that_has_enough_ends_the_reading(self, door: Driver) -> None:
        """No more is read than is wanted, and the session goes on with the next request."""
        with StubServer(lambda _: StubResponse(body=b"x" * 20_000_000)) as station:
            both = [Counted(1), Counted(1)]

            def two() -> Conversation[list[Response]]:
                first = yield from single_request(Request("GET", "/file", sink=both[0]))
                return [first, (yield from single_request(Request("GET", "/file", sink=both[1])))]

            taken = [response.bytes_received for response in door(settings_for(station.url), two())]
        assert [len(sink.data) for sink in both] == taken
        assert all(told is not None and told < 1_000_000 for told in taken)


class TestTrouble:
    """No answer becomes FlowUnreachable, which tells whether the service may have acted."""

    def test_refused_connection_never_arrived(self, door: Driver) -> None:
        """Where nobody listens, a request never arrived."""
        with unused_url() as url:
            assert not catch_unreachable(door, settings_for(url), POST).may_have_arrived

    def test_unknown_name_never_arrived(self, door: Driver) -> None:
        """A host that is in no directory never got the request."""
        assert not catch_unreachable(door, settings_for("http://no-such-host.invalid"), POST).may_have_arrived

    @pytest.mark.parametrize("host", ["http://" + "a" * 70 + ".test", "http://[::1", "http://host:99999999"])
    def test_impossible_address_is_told_as_one(self, door: Driver, host: str) -> None:
        """An address that is none is an error of this provider's, not a library's."""
        assert not catch_unreachable(door, settings_for(host), POST).may_have_arrived

    @pytest.mark.parametrize("act", BROKEN)
    def test_broken_answer_may_have_arrived(self, door: Driver, act: object) -> None:
        """A reset, an early end, rubbish and a cut body each leave the doubt whether the service acted."""
        with MisbehavingServer(act) as rude:  # type: ignore[arg-type]
            assert catch_unreachable(door, settings_for(rude.url), POST).may_have_arrived
        assert rude.bodies == [POST.body]

    def test_answer_of_two_lengths_leaves_no_connection_open(self, door: Driver) -> None:
        """Whoever keeps the error keeps no connection with it, although urllib3 leaves this answer open."""
        with MisbehavingServer(TWO_LENGTHS) as rude, pytest.raises(FlowUnreachable) as kept:
            door(settings_for(rude.url), single_request(POST))
        mine = [link.raddr.port for link in psutil.Process().net_connections("tcp4") if link.raddr]
        assert rude.port not in mine, kept.value

    def test_read_timeout_may_have_arrived(self, door: Driver) -> None:
        """A service that is silent for longer than the read timeout may have acted."""
        with StubServer(lambda _: StubResponse(delay=0.6)) as station:
            assert catch_unreachable(door, settings_for(station.url, read_timeout=0.2), POST).may_have_arrived

    def test_connect_timeout_never_arrived(self, door: Driver) -> None:
        """A connection that does not come to stand within the connect timeout carried nothing."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            port = full.getsockname()[1]
            held = [socket.socket() for _ in range(3)]
            for client in held:  # the queue of connections is full: the next one gets no answer
                client.settimeout(0)
                client.connect_ex(("127.0.0.1", port))
            error = catch_unreachable(
                door, settings_for(f"http://127.0.0.1:{port}", connect_timeout=0.3), POST
            )
            for client in held:
                client.close()
        assert not error.may_have_arrived

    def test_message_says_where_and_what_to_do(self, door: Driver) -> None:
        """The message names the request, the host, the kind of trouble and what to check, and no query."""
        with unused_url() as url:
            error = catch_unreachable(door, settings_for(url), Request("GET", "/flows", {"secret": "s3cret"}))
        assert str(error).startswith(f"GET /flows got no answer from {url} (")
        assert "Check the connection's host" in str(error)
        assert "s3cret" not in str(error)

    @pytest.mark.parametrize(
        ("fault", "asked"), [(Fault(reset="before"), 2), (Fault(truncate=5), 2), (Fault(status=503), 2)]
    )
    def test_emulators_faults_are_asked_away(
        self, door: Driver, flow_emulator: Emulator, fault: Fault, asked: int
    ) -> None:
        """A GET that is reset, cut short or refused by a gateway is asked again, and the second answer counts."""
        flow_emulator.add_fault(fault)
        settings = settings_for(
            flow_emulator.url, credentials={"Authorization": f"Bearer {flow_emulator.key}"}
        )
        response = door(settings, with_retries(single_request(GET), Retry()))
        assert parse_json(GET, response) == {"flows": []}
        assert len(flow_emulator.requests) == asked

    @pytest.mark.parametrize("act", [reset, CUT])
    def test_post_that_may_have_arrived_is_sent_once(self, door: Driver, act: object) -> None:
        """A POST whose answer was lost is not sent again, however patient the client is."""
        request = Request("POST", "/flows", json={}, resend=POST.resend.IF_NEVER_ARRIVED)
        with MisbehavingServer(act) as rude, pytest.raises(FlowUnreachable):  # type: ignore[arg-type]
            door(settings_for(rude.url), with_retries(single_request(request), Retry()))
        assert len(rude.bodies) == 1


def test_response_hides_what_may_be_signed() -> None:
    """A response's repr shows neither its URL nor its body."""
    shown = repr(Response(200, {}, b"body-secret", "https://h/?sig=secret"))
    assert "secret" not in shown


def test_settings_hide_the_key() -> None:
    """The repr of settings does not show the key."""
    assert TOKEN not in repr(settings_for("http://h"))


def test_transports_are_short() -> None:
    """Each transport is a module of less than 100 lines that knows no path, no state and no service."""
    folder = Path(__file__).parents[2] / "airflow_provider_flows" / "transport"
    for name in ("blocking.py", "asynchronous.py"):
        text = (folder / name).read_text()
        assert len(text.splitlines()) < 100
        assert not [
            word
            for word in ("/flows", "FlowState", "generio", "promptchainer", "Authorization")
            if word in text
        ]


def test_seen_request_is_kept_by_the_station() -> None:
    """The tests' own server keeps what it saw, headers in lower case."""
    with StubServer(lambda seen: StubResponse(body=seen.body)) as station:
        assert DRIVERS["requests"](settings_for(station.url), single_request(POST)).body == POST.body
    assert isinstance(station.requests[0], ReceivedRequest)
