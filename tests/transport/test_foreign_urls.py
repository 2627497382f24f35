"""Tests that no request leaves the connection's own origin, wherever a service leads it.

Each kind of request is led to each target by a redirect, and each list by the reference to its next page. The
servers are real, and most targets are other spellings of the service's own host: a second request there would
be seen.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.sdk import Connection

from airflow_provider_flows.core.exceptions import FlowMalformed, FlowServiceError, FlowUnreachable
from airflow_provider_flows.core.flow_run import FlowInput
from airflow_provider_flows.core.http import Conversation, Request, is_same_origin, to_origin
from airflow_provider_flows.core.payload.sink import MemoryBuffer
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.core.retry import NO_RETRY, follow_redirects
from airflow_provider_flows.core.start_or_resume import RunRequest, start_without_record
from airflow_provider_flows.hooks import FlowsHook, GenerioHook, PromptChainerHook
from airflow_provider_flows.services.generio.api import Generio
from airflow_provider_flows.services.promptchainer import PromptChainer
from tests.support.drivers import Driver, settings_for, single_request
from tests.support.hostile import HostileServer, links
from tests.support.servers import ReceivedRequest, StubResponse, StubServer

pytestmark = pytest.mark.usefixtures("no_proxy")

KEY = "the-key-of-the-connection"
GENERIO, CHAIN = Generio(), PromptChainer()
RUN_REQUEST = RunRequest("chair", (FlowInput("A chair"),), None, None)

Operation = Callable[[FlowsHook], Conversation[Any]]

READS: dict[str, Operation] = {
    "poll": lambda _: GENERIO.get_run("r"),
    "wait": lambda hook: hook.create_wait("r", Schedule.of(0.01, 0.01, None)).poll_until_final(),
    "list of runs": lambda _: GENERIO.list_runs(),
    "list of active runs": lambda _: GENERIO.list_active(["6b01", "6b02"]),
    "list of outputs": lambda _: GENERIO.list_outputs("r"),
    "list of inputs": lambda _: GENERIO.list_inputs("r"),
    "list of outputs with data": lambda _: GENERIO.list_outputs("r", include_data=True),
    "definitions": lambda _: GENERIO.list_definitions(),
    "definition": lambda _: GENERIO.get_definition("another"),
    "test of the key": lambda _: GENERIO.check_credentials(),
    "output": lambda _: GENERIO.save_output("r", "a", MemoryBuffer()),
    "input": lambda _: GENERIO.get_input("r", "a"),
    "definition of a chain": lambda _: CHAIN.get_definition("another"),
    "test of the key of a chain": lambda _: PromptChainer("flow").check_credentials(),
}
CHANGES: dict[str, Operation] = {
    "create": lambda _: GENERIO.create("chair", None, None),
    "add an input": lambda _: GENERIO.add_input("r", FlowInput("A chair")),
    "start a created run": lambda _: GENERIO.start_created_run("r"),
    "start": lambda _: start_without_record(GENERIO, RUN_REQUEST),
    "abort": lambda _: GENERIO.abort("r"),
    "delete": lambda _: GENERIO.delete("r"),
    "run a chain": lambda _: CHAIN.start("flow", {}, None, None),
}
LISTS = ("list of runs", "list of active runs", "definitions", "definition")


def hook_for(url: str, kind: type[FlowsHook] = GenerioHook, **extra: Any) -> FlowsHook:
    """Return a hook with a connection to a service."""
    hook = kind("own")
    hook._connection = Connection(
        conn_id="own", conn_type=kind.conn_type, host=url, password=KEY, extra=json.dumps(extra)
    )
    return hook


def run_blocking(hook: FlowsHook, conversation: Conversation[Any]) -> Any:
    """Run a conversation as a worker does."""
    return hook.run(conversation, retry=NO_RETRY)


def run_asynchronously(hook: FlowsHook, conversation: Conversation[Any]) -> Any:
    """Run a conversation as a triggerer does."""
    return asyncio.run(hook.arun(conversation, retry=NO_RETRY))


RUNNERS = {"requests": run_blocking, "aiohttp": run_asynchronously}


@pytest.fixture(params=RUNNERS)
def run(request: pytest.FixtureRequest) -> Callable[[FlowsHook, Conversation[Any]], Any]:
    """Return a function that runs a conversation over one of the transports."""
    return RUNNERS[request.param]


def paths_of(server: HostileServer) -> Iterator[str]:
    """Return the path of each request that a server has received."""
    return (line.split(" ")[1].partition("?")[0] for line in server.request_lines)


def assert_names_target(error: FlowServiceError, name: str) -> None:
    """Assert that a message names the host that the service led to, what to do, and no query."""
    message = str(error)
    assert "set the connection's host to it" in message
    assert "c0ffee" not in message
    assert "goalstate" not in message
    host = re.match(r"(?:https?:)?//([a-z0-9.-]+)(?::\{port\})?/", links.TARGETS[name], re.IGNORECASE)
    if host is not None:
        assert f"://{host[1]}" in message


@pytest.mark.parametrize("name", links.TARGETS)
def test_no_request_is_redirected_to_another_origin(
    name: str, run: Callable[[FlowsHook, Conversation[Any]], Any]
) -> None:
    """A redirect of any request is an error that names the host, and nothing is sent there."""
    with HostileServer(links.redirect_to(name)) as server:
        hook = hook_for(server.url)
        for operation in (READS | CHANGES).values():
            with pytest.raises(FlowServiceError) as caught:
                run(hook, operation(hook))
            assert not isinstance(caught.value, (FlowMalformed, FlowUnreachable))
            assert not caught.value.is_transient
            assert_names_target(caught.value, name)
        assert not [
            path for path in paths_of(server) if not path.startswith(("/flows", "/templates", "/api/"))
        ]


@pytest.mark.parametrize("name", links.TARGETS)
def test_no_list_is_continued_at_another_origin(
    name: str, run: Callable[[FlowsHook, Conversation[Any]], Any]
) -> None:
    """A list whose next page is elsewhere is an error that names the host, and nothing is sent there."""
    with HostileServer(links.next_page_at(name)) as server:
        hook = hook_for(server.url)
        for operation in LISTS:
            with pytest.raises(FlowServiceError) as caught:
                run(hook, READS[operation](hook))
            assert not isinstance(caught.value, (FlowMalformed, FlowUnreachable))
            assert_names_target(caught.value, name)
        assert {*paths_of(server)} <= {"/flows", "/templates"}
        assert len(server.request_lines) == len(LISTS)


@pytest.mark.parametrize("name", links.TARGETS)
@pytest.mark.parametrize("kind", [GenerioHook, PromptChainerHook])
def test_test_button_is_not_redirected(name: str, kind: type[FlowsHook]) -> None:
    """The Test button of a connection names the host that the service led to, and sends nothing there."""
    with HostileServer(links.redirect_to(name)) as server:
        is_ok, message = hook_for(server.url, kind).test_connection()
        assert (is_ok, len(server.request_lines)) == (False, 1)
    assert "nothing was sent there" in message
    assert "connection's host" in message


def test_message_names_request_and_target() -> None:
    """The message names the request, the origin it was led to and the remedy."""
    with HostileServer(links.redirect_to("another name of the machine")) as server:
        with pytest.raises(FlowServiceError) as caught:
            hook_for(server.url).get_run("6b01")
        target = f"http://localhost:{server.port}"
        assert str(caught.value) == (
            f"GET /flows/6b01 leads to {target}, and nothing was sent there. Requests are sent to scheme, "
            "host and port of the connection only. If the service has moved there, set the connection's host "
            f"to it. (Connection 'own' of type 'generio', {server.url})"
        )


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "spelling",
    [
        "/there",
        "there",
        "?page=2",
        "//127.0.0.1:{port}/there",
        "http://127.0.0.1:{port}/there",
        "HTTP://127.0.0.1:{port}/there",
        "http:/there",
    ],
)
def test_redirect_within_the_origin_is_followed(driver: Driver, status: int, spelling: str) -> None:
    """A redirect to the own scheme, host and port is followed with the key, in each way to write it."""

    def reply(seen: ReceivedRequest) -> StubResponse:
        if len(stub.requests) > 1:
            return StubResponse()
        return StubResponse(status, {"Location": spelling.format(port=seen.headers["host"].split(":")[1])})

    with StubServer(reply) as stub:
        assert driver(settings_for(stub.url), follow_redirects(Request("GET", "/flows"))).is_success
    assert [seen.path for seen in stub.requests][1] in {"/there", "/flows?page=2"}
    assert all("authorization" in seen.headers for seen in stub.requests)


@pytest.mark.parametrize(
    "spelling",
    ["?page=2", "/flows?page=2", "//127.0.0.1:{port}/flows?page=2", "http://127.0.0.1:{port}/flows?page=2"],
)
def test_next_page_of_the_origin_is_fetched(
    spelling: str, run: Callable[[FlowsHook, Conversation[Any]], Any]
) -> None:
    """A reference to a next page at the own host is followed, in each way to write it."""

    def reply(seen: ReceivedRequest) -> StubResponse:
        port = seen.headers["host"].split(":")[1]
        is_first = "page=2" not in seen.path
        page = {"flows": [{"flow_id": "1" if is_first else "2", "state": "running"}]}
        more = {"next": spelling.format(port=port)} if is_first else {}
        return StubResponse(body=json.dumps(page | more).encode())

    with StubServer(reply) as stub:
        hook = hook_for(stub.url)
        assert {found.flow_run_id for found in run(hook, GENERIO.list_runs())} == {"1", "2"}
    assert [seen.path.startswith("/flows?") for seen in stub.requests] == [True, True]


def test_body_of_a_redirect_is_bounded(run: Callable[[FlowsHook, Conversation[Any]], Any]) -> None:
    """The body of a redirect is bounded like that of any other response."""
    with HostileServer("a redirect with an endless body") as server:
        hook = hook_for(server.url, max_response_mib=1)
        with pytest.raises(FlowMalformed, match="larger than 1 MiB"):
            run(hook, GENERIO.get_run("r"))


@pytest.mark.parametrize("target", links.TARGETS.values(), ids=links.TARGETS)
def test_no_absolute_url_of_a_request_leaves_the_origin(driver: Driver, target: str) -> None:
    """A request that a service itself addresses to another origin is not sent; redirects play no part."""
    with StubServer() as stub:
        with pytest.raises(FlowServiceError, match="nothing was sent there"):
            driver(
                settings_for(stub.url),
                single_request(Request("POST", target.format(port=stub.port), json={})),
            )
        assert stub.peers == set()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h.example:8443/p?sig=s#f", "https://h.example:8443"),
        ("https://user:secret@h.example/p", "a URL whose host is ambiguous"),
        ("https://h\u00f6.example/", "https://h?.example"),
        ("https://h.example\\@x/", "a URL whose host is ambiguous"),
        ("http://[::1]:80/", "http://[::1]:80"),
        ("http://[::1", "an invalid URL"),
        ("javascript:alert(1)", "a URL without a host"),
        (f"https://{'a' * 5000}.example", f"https://{'a' * 200}"),
        ("https://h.example\n[2026-01-01] forged line/", "https://h.example?2026-01-01??forged?line"),
    ],
)
def test_origin_in_a_message_has_no_secrets(url: str, expected: str) -> None:
    """An origin in a message has neither user name nor path, no odd characters, and a bounded length."""
    shown = to_origin(url)
    assert "\n" not in shown
    assert len(shown) < 300
    if "forged" not in url:
        assert shown == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/flows/6b01?sig=c0ffee", "GET /flows/6b01"),
        ("https://h.example/a/b.png?sig=c0ffee", "GET https://h.example/a/b.png"),
        ("https://u:c0ffee@h.example/a.png", "GET a URL whose host is ambiguous/a.png"),
        ("https://h.example/" + "a" * 5000, "GET https://h.example/" + "a" * (500 - 18)),
    ],
)
def test_request_is_named_without_secrets(path: str, expected: str) -> None:
    """A request in a message has neither query nor user name, a bounded length, and its first path."""
    request = Request("GET", path)
    assert str(request) == expected
    assert str(request.follow("https://elsewhere.example/")) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://own.example/a", True),
        ("https://OWN.example:443/a", True),
        ("https://own.example/a@b\\c?d", True),
        ("https://own.example./a", False),
        ("https://own.example:8443/a", False),
        ("http://own.example/a", False),
        ("https://own.example\t/a", False),
        (" https://own.example/a", False),
        ("https://own.example\n.attacker.example/a", False),
        ("https://own.example%2eattacker.example/a", False),
        ("https://own.example@attacker.example/a", False),
        ("https://own.example\\.attacker.example/a", False),
        ("https:own.example/a", False),
        ("https:///own.example/a", False),
        ("", False),
    ],
)
def test_same_origin(url: str, expected: bool) -> None:
    """Only an unambiguous URL with the own scheme, host and port is of the own origin."""
    assert is_same_origin(url, "https://own.example/prefix") is expected


def test_internationalized_host_of_a_connection_is_its_own() -> None:
    """A connection's host may be an internationalized name; only its own spelling is of its origin."""
    assert is_same_origin("https://b\u00fccher.example/a", "https://b\u00fccher.example")
    assert not is_same_origin("https://b\u00fccher.example\u3002evil/a", "https://b\u00fccher.example")
