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
from airflow_provider_flows.core.http import Conversation, Request, Response, check, read_json
from airflow_provider_flows.core.payload.sink import Kept
from airflow_provider_flows.core.retry import Retry, once, patiently
from airflow_provider_flows.emulator import Emulator, Fault
from tests.support.doors import DOORS, TOKEN, Door, one, plain_environment, settings_for, unreachable
from tests.support.servers import Reply, Rude, Seen, Station, nobody, reset, say

GET = Request("GET", "/flows")
POST = Request("POST", "/flows", json={"template": "chair"})
OK = b"HTTP/1.1 200 OK\r\n"
CUT = say(OK + b"Content-Length: 99\r\n\r\n{")
TWO_LENGTHS = say(OK + b"Content-Length: 5, 6\r\n\r\nhello")
BROKEN = [
    reset,
    CUT,
    say(b""),
    say(b"rubbish\r\n\r\n"),
    TWO_LENGTHS,
    say(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    say(OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd"),
    say(OK + b"X: " + b"a" * 200_000 + b"\r\n\r\n"),
]


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Door:
    """Give both transports, one after the other."""
    return DOORS[request.param]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the machine says of proxies and certificates."""
    plain_environment(monkeypatch)


class TestWhatGoesOut:
    """What is on the wire is what the request says, and nothing else."""

    def test_request_is_sent_as_it_is(self, door: Door) -> None:
        """Method, quoted path, query, JSON body and key arrive exactly as they were given."""
        request = Request("POST", "/flows/a%2Fb", {"q": "ä & b"}, {"data": "Stuhl für 2"})
        with Station() as station:
            door(settings_for(station.url), one(request))
        (seen,) = station.seen
        assert (seen.method, seen.body) == ("POST", request.body)
        assert seen.path.replace("%20", "+") == "/flows/a%2Fb?q=%C3%A4+%26+b"
        assert (seen.headers["authorization"], seen.headers["content-type"]) == (
            f"Bearer {TOKEN}",
            "application/json",
        )

    def test_get_has_no_content_type(self, door: Door) -> None:
        """A request without a body says nothing of a content type."""
        with Station() as station:
            door(settings_for(station.url), one(GET))
        assert "content-type" not in station.seen[0].headers

    def test_signed_url_is_not_quoted_again(self, door: Door) -> None:
        """A signed URL's query arrives with the same values, so that its signature still fits."""
        signed = "/private/img.png?sig=a%2Bb%2F%3D&se=2026-01-01T00%3A00%3A00Z"
        with Station() as station:
            door(settings_for(station.url), one(Request("GET", station.url + signed)))
        assert station.seen[0].path == signed

    def test_path_prefix_of_the_host_is_kept(self, door: Door) -> None:
        """A host with a path, as behind a gateway, has it before every path."""
        with Station() as station:
            door(settings_for(f"{station.url}/gateway"), one(GET))
        assert station.seen[0].path == "/gateway/flows"

    @pytest.mark.usefixtures("netrc")
    def test_netrc_does_not_replace_the_key(self, door: Door) -> None:
        """A ~/.netrc that knows the host changes nothing."""
        with Station() as station:
            response = door(settings_for(station.url), one(GET))
            door(settings_for(station.url, credentials={"x-api-key": TOKEN}), one(GET))
        assert response.ok
        assert station.seen[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert station.seen[1].headers["x-api-key"] == TOKEN
        assert "authorization" not in station.seen[1].headers

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

    def test_answer_is_whole(self, door: Door) -> None:
        """Status, lower-case headers and the body come back, whatever the status."""
        with Station(lambda _: Reply(418, {"X-Tea": "Pot"}, b"\x00\xff" * 100_000)) as station:
            response = door(settings_for(station.url), one(Request("GET", "/flows")))
        assert (response.status, response.headers["x-tea"], response.body) == (
            418,
            "Pot",
            b"\x00\xff" * 100_000,
        )

    def test_compressed_answer_is_unpacked(self, door: Door) -> None:
        """A gzip answer is read as what it holds."""
        with Station(
            lambda _: Reply(headers={"Content-Encoding": "gzip"}, body=gzip.compress(b"[1]"))
        ) as station:
            assert door(settings_for(station.url), one(GET)).body == b"[1]"

    def test_answer_beyond_the_bound_is_refused(self, door: Door) -> None:
        """An answer that is no file is refused as soon as it outgrows the bound, also one that unpacks to more."""
        packed = gzip.compress(b" " * 4_000_000)
        with Station(lambda _: Reply(headers={"Content-Encoding": "gzip"}, body=packed)) as station:
            with pytest.raises(FlowMalformed, match="max_answer_mib"):
                door(settings_for(station.url, max_answer_bytes=1_000_000), one(GET))
            kept = Kept()
            door(
                settings_for(station.url, max_answer_bytes=1_000_000), one(Request("GET", "/file", into=kept))
            )
            assert len(kept.data) == 4_000_000

    def test_refusal_that_repeats_the_key_is_blanked(self, door: Door) -> None:
        """A service that repeats the key in its refusal does not get it into what is shown of the response."""
        with Station(
            lambda seen: Reply(401, body=f"no: {seen.headers['authorization']}".encode())
        ) as station:
            response = door(settings_for(station.url), one(GET))
        assert response.shown(response.body.decode()) == "no: Bearer ***"
        with pytest.raises(FlowAuthError, match=r"no: Bearer \*\*\*"):
            check(GET, response)
        assert TOKEN not in repr(response)


class Counted(Kept):
    """A sink that counts answers, and wants no more than so many bytes."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.most = most
        self.begun: list[tuple[int, str | None]] = []

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Keep that an answer begins."""
        super().begin(status, headers)
        self.begun.append((status, headers.get("x-tea")))

    def feed(self, chunk: bytes) -> bool:
        """Keep it; say whether more is wanted."""
        super().feed(chunk)
        return len(self.data) < self.most


class TestWhatASinkTakes:
    """The body of a success goes to the request's sink, piece by piece, and is bounded by nothing but the sink."""

    def test_body_goes_to_the_sink(self, door: Door) -> None:
        """The sink gets all of it, unpacked, and is told the head; the response keeps the start, for messages."""
        body = bytes(range(256)) * 20_000
        reply = Reply(headers={"Content-Encoding": "gzip", "X-Tea": "Pot"}, body=gzip.compress(body))
        sink = Counted()
        with Station(lambda _: reply) as station:
            response = door(
                settings_for(station.url, max_answer_bytes=1_000), one(Request("GET", "/file", into=sink))
            )
        assert (bytes(sink.data), sink.begun) == (body, [(200, "Pot")])
        assert (response.body, response.taken) == (body[:400], len(body))

    @pytest.mark.parametrize("first", [CUT, say(b"HTTP/1.1 503 Away\r\nContent-Length: 3\r\n\r\noff"), reset])
    def test_answer_that_is_asked_for_again_begins_anew(
        self, door: Door, first: Callable[[socket.socket], None]
    ) -> None:
        """Of an answer that broke off, or was none, nothing is left in the sink when the next one is whole."""
        acts = iter([first, say(OK + b"Content-Length: 5\r\n\r\nwhole")])
        sink = Counted()

        def act(connection: socket.socket) -> None:
            next(acts)(connection)

        with Rude(act) as rude:
            door(settings_for(rude.url), patiently(one(Request("GET", "/file", into=sink)), Retry()))
        assert bytes(sink.data) == b"whole"
        assert sink.begun[-1] == (200, None)
        assert {status for status, _ in sink.begun} == {200}

    def test_redirect_is_followed_into_the_sink(self, door: Door) -> None:
        """What stands in the redirect itself is not the file."""
        replies = {"/file": Reply(302, {"Location": "/there"}, b"elsewhere"), "/there": Reply(body=b"file")}
        sink = Counted()
        with Station(lambda seen: replies[seen.path]) as station:
            door(settings_for(station.url), once(one(Request("GET", "/file", into=sink))))
        assert (bytes(sink.data), sink.begun) == (b"file", [(200, None)])

    def test_refusal_is_bounded_and_no_file(self, door: Door) -> None:
        """A refusal's body never gets to the sink, and has the bound that any answer has."""
        sink = Counted()
        with Station(lambda _: Reply(404, body=b"no" * 1_000)) as station:
            assert (
                door(settings_for(station.url), one(Request("GET", "/file", into=sink))).body == b"no" * 1_000
            )
            with pytest.raises(FlowMalformed, match="max_answer_mib"):
                door(
                    settings_for(station.url, max_answer_bytes=1_000), one(Request("GET", "/file", into=sink))
                )
        assert (sink.begun, bytes(sink.data)) == ([], b"")

    def test_sink_that_has_enough_ends_the_reading(self, door: Door) -> None:
        """No more is read than is wanted, and the session goes on with the next request."""
        with Station(lambda _: Reply(body=b"x" * 20_000_000)) as station:
            both = [Counted(1), Counted(1)]

            def two() -> Conversation[list[Response]]:
                first = yield from one(Request("GET", "/file", into=both[0]))
                return [first, (yield from one(Request("GET", "/file", into=both[1])))]

            taken = [response.taken for response in door(settings_for(station.url), two())]
        assert [len(sink.data) for sink in both] == taken
        assert all(told is not None and told < 1_000_000 for told in taken)


class TestTrouble:
    """No answer becomes FlowUnreachable, which tells whether the service may have acted."""

    def test_refused_connection_never_arrived(self, door: Door) -> None:
        """Where nobody listens, a request never arrived."""
        with nobody() as url:
            assert not unreachable(door, settings_for(url), POST).may_have_arrived

    def test_unknown_name_never_arrived(self, door: Door) -> None:
        """A host that is in no directory never got the request."""
        assert not unreachable(door, settings_for("http://no-such-host.invalid"), POST).may_have_arrived

    @pytest.mark.parametrize("host", ["http://" + "a" * 70 + ".test", "http://[::1", "http://host:99999999"])
    def test_impossible_address_is_told_as_one(self, door: Door, host: str) -> None:
        """An address that is none is an error of this provider's, not a library's."""
        assert not unreachable(door, settings_for(host), POST).may_have_arrived

    @pytest.mark.parametrize("act", BROKEN)
    def test_broken_answer_may_have_arrived(self, door: Door, act: object) -> None:
        """A reset, an early end, rubbish and a cut body each leave the doubt whether the service acted."""
        with Rude(act) as rude:  # type: ignore[arg-type]
            assert unreachable(door, settings_for(rude.url), POST).may_have_arrived
        assert rude.bodies == [POST.body]

    def test_answer_of_two_lengths_leaves_no_connection_open(self, door: Door) -> None:
        """Whoever keeps the error keeps no connection with it, although urllib3 leaves this answer open."""
        with Rude(TWO_LENGTHS) as rude, pytest.raises(FlowUnreachable) as kept:
            door(settings_for(rude.url), one(POST))
        mine = [link.raddr.port for link in psutil.Process().net_connections("tcp4") if link.raddr]
        assert rude.port not in mine, kept.value

    def test_read_timeout_may_have_arrived(self, door: Door) -> None:
        """A service that is silent for longer than the read timeout may have acted."""
        with Station(lambda _: Reply(delay=0.6)) as station:
            assert unreachable(door, settings_for(station.url, read_timeout=0.2), POST).may_have_arrived

    def test_connect_timeout_never_arrived(self, door: Door) -> None:
        """A connection that does not come to stand within the connect timeout carried nothing."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            port = full.getsockname()[1]
            held = [socket.socket() for _ in range(3)]
            for client in held:  # the queue of connections is full: the next one gets no answer
                client.settimeout(0)
                client.connect_ex(("127.0.0.1", port))
            error = unreachable(door, settings_for(f"http://127.0.0.1:{port}", connect_timeout=0.3), POST)
            for client in held:
                client.close()
        assert not error.may_have_arrived

    def test_message_says_where_and_what_to_do(self, door: Door) -> None:
        """The message names the request, the host, the kind of trouble and what to check, and no query."""
        with nobody() as url:
            error = unreachable(door, settings_for(url), Request("GET", "/flows", {"secret": "s3cret"}))
        assert str(error).startswith(f"GET /flows got no answer from {url} (")
        assert "Check the connection's host" in str(error)
        assert "s3cret" not in str(error)

    @pytest.mark.parametrize(
        ("fault", "asked"), [(Fault(reset="before"), 2), (Fault(truncate=5), 2), (Fault(status=503), 2)]
    )
    def test_emulators_faults_are_asked_away(
        self, door: Door, flow_emulator: Emulator, fault: Fault, asked: int
    ) -> None:
        """A GET that is reset, cut short or refused by a gateway is asked again, and the second answer counts."""
        flow_emulator.fault(fault)
        settings = settings_for(
            flow_emulator.url, credentials={"Authorization": f"Bearer {flow_emulator.key}"}
        )
        response = door(settings, patiently(one(GET), Retry()))
        assert read_json(GET, response) == {"flows": []}
        assert len(flow_emulator.requests) == asked

    @pytest.mark.parametrize("act", [reset, CUT])
    def test_post_that_may_have_arrived_is_sent_once(self, door: Door, act: object) -> None:
        """A POST whose answer was lost is not sent again, however patient the client is."""
        request = Request("POST", "/flows", json={}, resend=POST.resend.IF_NEVER_ARRIVED)
        with Rude(act) as rude, pytest.raises(FlowUnreachable):  # type: ignore[arg-type]
            door(settings_for(rude.url), patiently(one(request), Retry()))
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
    with Station(lambda seen: Reply(body=seen.body)) as station:
        assert DOORS["requests"](settings_for(station.url), one(POST)).body == POST.body
    assert isinstance(station.seen[0], Seen)
