"""Tests of the pages while one service or storage is slow or limits requests: the others respond as usual."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from airflow_provider_flows.core.limits import (
    MAX_EXTRA_THREADS,
    MAX_QUEUED_JOBS,
    MAX_REQUESTS_PER_SECOND,
    MAX_SERVICE_THREADS,
)
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import FlowsHook
from airflow_provider_flows.plugin import run_view
from airflow_provider_flows.plugin.abort_queue import ABORT_QUEUE
from airflow_provider_flows.plugin.cache import QUEUE_FULL, RESPONSE_CACHE, STILL_WAITING
from tests.support.hostile import HostileServer
from tests.support.plugin_site import airflow_clients
from tests.support.servers import ReceivedRequest, StubResponse, StubServer, unused_url

pytestmark = pytest.mark.emulator(run_seconds=0, retries=0)

TABS = 20
SLOW_SECONDS = 60.0  # longer than any test here
SLOW_RUN = {"flow_id": "r", "template": "model", "state": "completed"}
SLOW_OUTPUTS = {"outputs": [{"asset_id": "a", "name": "model", "media_type": "model/gltf-binary"}]}


@pytest.fixture(scope="module")
def client(airflow_database: None) -> Iterator[TestClient]:  # noqa: ARG001  # a fixture requests another
    """Yield the client of an administrator."""
    with airflow_clients() as clients:
        yield clients["anna"]


@pytest.fixture(autouse=True)
def patient_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the cache, and let the pages wait so long that no slow page ends before the test has looked."""
    RESPONSE_CACHE.clear()
    monkeypatch.setattr(RESPONSE_CACHE, "_wait_seconds", SLOW_SECONDS)
    monkeypatch.setattr(run_view, "PAGE_TIMEOUT_SECONDS", SLOW_SECONDS)


def connect(monkeypatch: pytest.MonkeyPatch, conn_id: str, url: str, **extra: object) -> None:
    """Set a connection to a service."""
    connection = {"conn_type": "generio", "host": url, "password": "key", "extra": {"retries": 0, **extra}}
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until a condition is true; fail if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def page_threads() -> list[threading.Thread]:
    """Return the threads that load what pages show."""
    return [thread for thread in threading.enumerate() if thread.name in {"flows-pages", "flows-files"}]


@contextmanager
def open_tabs(
    client: TestClient, paths: list[str], stop: Callable[[], object]
) -> Iterator[list[Future[str]]]:
    """Request pages at the same time; yield the futures of their texts, and at the end stop the service."""
    with ThreadPoolExecutor(len(paths)) as tabs:
        try:
            yield [tabs.submit(lambda path=path: client.get(f"/flows/{path}").text) for path in paths]
        finally:
            stop()


def assert_healthy(client: TestClient) -> None:
    """Assert that each page and each download of the other connection responds with its content."""
    hook = FlowsHook.get_hook("flows_default")
    run = hook.start("model_generate_fromprompt", ["A chair"], {"quality": "low"}).flow_run_id
    for path, content in {
        f"json/connection/flows_default/run/{run}": '"completed"',
        "json/connection/flows_default": run,
        "connection/flows_default": run,
        "connection/flows_default/flow/model_generate_fromprompt": "<h2>Outputs",
        f"json/connection/flows_default/run/{run}/output/0/info": "model/gltf-binary",
        f"connection/flows_default/run/{run}/output/0": "glTF",
    }.items():
        response = client.get(f"/flows/{path}")
        assert response.status_code == 200, path
        assert content.encode() in response.content, path


@pytest.mark.parametrize(
    "behaviour",
    [
        "no response to any request",
        "a run of which one byte arrives per second",
        "headers of which one byte arrives per second",
        "a response that is announced without end",
        "a run and then bytes without end",
    ],
)
@pytest.mark.usefixtures("emulator")
def test_twenty_tabs_on_a_slow_service_do_not_delay_another_connection(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    """Every page of a healthy connection responds while twenty tabs of the slow one are still waiting."""
    with HostileServer(behaviour) as server:
        connect(monkeypatch, "slow", server.url)
        with open_tabs(
            client, [f"connection/slow/run/{number}" for number in range(TABS)], server.stop
        ) as tabs:
            wait_until(lambda: server.open_connections == MAX_SERVICE_THREADS)
            assert_healthy(client)
            assert not any(tab.done() for tab in tabs)
            assert server.open_connections == MAX_SERVICE_THREADS
    wait_until(lambda: not page_threads())


def is_list(path: str) -> bool:
    """Return whether a request lists the runs."""
    return path.partition("?")[0] == "/flows"


def is_download(path: str) -> bool:
    """Return whether a request downloads an output."""
    return "/outputs/" in path


@pytest.mark.parametrize(
    ("is_slow", "paths"),
    [
        (is_list, ["connection/slow", "json/connection/slow"]),
        (lambda path: "template" in path, [f"connection/slow/flow/flow{number}" for number in range(TABS)]),
        (lambda path: path.startswith("/flows/"), [f"connection/slow/run/{n}" for n in range(TABS)]),
        (lambda path: path.endswith("/outputs"), [f"connection/slow/run/{n}" for n in range(TABS)]),
        (is_download, [f"connection/slow/run/{n}/output/0" for n in range(TABS)]),
        (is_download, [f"connection/slow/run/{n}/output/0/image" for n in range(TABS)]),
        (is_download, [f"json/connection/slow/run/{n}/output/0/info" for n in range(TABS)]),
    ],
    ids=["list", "definition", "run", "outputs", "download", "image", "info"],
)
@pytest.mark.usefixtures("emulator")
def test_no_slow_request_delays_another_connection(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, is_slow: Callable[[str], bool], paths: list[str]
) -> None:
    """Whichever request a service does not answer, another connection's pages and downloads respond."""

    def reply(request: ReceivedRequest) -> StubResponse:
        path = request.path.partition("?")[0]
        delay = SLOW_SECONDS if is_slow(path) else 0.0
        body = SLOW_OUTPUTS if path.endswith("/outputs") else {"flows": []} if is_list(path) else SLOW_RUN
        return StubResponse(body=json.dumps(body).encode(), delay=delay)

    with StubServer(reply) as server:
        connect(monkeypatch, "slow", server.url)
        with open_tabs(client, paths, server.stop) as tabs:
            wait_until(lambda: any(is_slow(request.path.partition("?")[0]) for request in server.requests))
            assert_healthy(client)
            if is_slow is is_download:  # nor does it delay the same connection's pages
                assert "completed" in client.get("/flows/json/connection/slow/run/other").text
            assert not any(tab.done() for tab in tabs)


@pytest.mark.usefixtures("emulator")
def test_a_slow_storage_delays_no_service(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, emulator: Emulator
) -> None:
    """A folder of graphs that does not respond delays neither the same connection's service nor others."""
    pipe = tmp_path / "flow.json"
    os.mkfifo(pipe)  # opening it waits for a writer
    fields = {"conn_type": "promptchainer", "host": emulator.url, "password": emulator.key}
    monkeypatch.setenv("AIRFLOW_CONN_SLOW", json.dumps({**fields, "extra": {"graphs": tmp_path.as_uri()}}))

    def open_writers() -> None:
        """Let every reader read the end of the file, until none is left."""
        while page_threads():
            with suppress(OSError):
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            time.sleep(0.02)

    with open_tabs(client, ["connection/slow/flow/flow"], open_writers) as tabs:
        wait_until(lambda: bool(page_threads()))
        assert_healthy(client)
        assert "does not list flow runs" in client.get("/flows/json/connection/slow").text
        assert not tabs[0].done()


@pytest.mark.usefixtures("emulator")
def test_a_service_that_refuses_connections_delays_nobody(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty tabs get the error, and no thread remains."""
    with unused_url() as url:
        connect(monkeypatch, "away", url)
        with open_tabs(
            client, [f"connection/away/run/{number}" for number in range(TABS)], lambda: None
        ) as tabs:
            assert_healthy(client)
            assert all("could not be fetched" in tab.result() for tab in tabs)
    wait_until(lambda: not page_threads())


def test_a_full_queue_has_a_message_at_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the threads and the queue of a connection, a page does not wait and says why."""
    count = MAX_SERVICE_THREADS + MAX_QUEUED_JOBS + 3
    with HostileServer("no response to any request") as server:
        connect(monkeypatch, "slow", server.url)
        with open_tabs(
            client, [f"json/connection/slow/run/{number}" for number in range(count)], server.stop
        ) as tabs:
            wait_until(lambda: sum(tab.done() for tab in tabs) == 3)
            assert all(QUEUE_FULL in tab.result() for tab in tabs if tab.done())


def test_a_page_waits_for_a_limited_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that shows nothing yet says that it is waiting, and refreshes itself."""
    monkeypatch.setattr(RESPONSE_CACHE, "_wait_seconds", 0.1)
    with HostileServer("no response to any request") as server:
        connect(monkeypatch, "slow", server.url)
        page = client.get("/flows/json/connection/slow/run/r").json()
        assert STILL_WAITING in page["note"]
        assert page["refresh_after"]


def test_hundreds_of_slow_connections_use_few_threads(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection has a thread, all together few more, and no thread is left when they are done."""
    monkeypatch.setattr(RESPONSE_CACHE, "_wait_seconds", 0.05)
    connections = 60
    with HostileServer("no response to any request") as server:
        for number in range(connections):
            connect(monkeypatch, f"slow_{number}", server.url)
        with ThreadPoolExecutor(8) as tabs:
            paths = [
                f"connection/slow_{number}/run/{run}" for run in range(3) for number in range(connections)
            ]
            list(tabs.map(lambda path: client.get(f"/flows/{path}"), paths))
        wait_until(lambda: server.open_connections == len(page_threads()))
        assert connections <= len(page_threads()) <= connections + MAX_EXTRA_THREADS
    wait_until(lambda: not page_threads())


# rate -------------------------------------------------------------------------------------------------------


def reply_running(_: ReceivedRequest) -> StubResponse:
    """Respond with a run in progress, of which no outputs are requested."""
    return StubResponse(body=json.dumps({**SLOW_RUN, "state": "running"}).encode())


@pytest.mark.parametrize(
    ("extra", "per_second"), [({"max_requests_per_second": 8}, 8), ({}, MAX_REQUESTS_PER_SECOND)]
)
def test_the_pages_of_a_connection_observe_its_rate(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, extra: dict[str, object], per_second: float
) -> None:
    """All pages together send at most `max_requests_per_second`, and without it at most a default."""
    with StubServer(reply_running) as server:
        connect(monkeypatch, "limited", server.url, **extra)
        paths = [f"json/connection/limited/run/{number}" for number in range(TABS)]
        with open_tabs(client, paths, lambda: None) as tabs:
            assert all('"running"' in tab.result() for tab in tabs)
    times = sorted(request.at for request in server.requests)
    assert len(times) == TABS
    assert times[-1] - times[0] > 0.8 * (TABS - 1) / per_second


@pytest.mark.parametrize(
    "paths",
    [
        ["json/connection/limited/run/second", "json/connection/limited", "connection/limited/flow/model"],
        ["json/connection/limited/run/second"] * TABS,
    ],
    ids=["other pages", "tabs"],
)
@pytest.mark.usefixtures("emulator")
def test_a_rejected_request_stops_all_pages_of_the_connection(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, paths: list[str]
) -> None:
    """After a 429 no page sends a request for the time of its Retry-After, and says so at once."""
    monkeypatch.setattr(run_view, "PAGE_TIMEOUT_SECONDS", 5.0)
    with StubServer(lambda _: StubResponse(429, {"Retry-After": "600"})) as server:
        connect(monkeypatch, "limited", server.url)
        client.get("/flows/json/connection/limited/run/first")
        for path in paths:
            assert "admits no further request for" in client.get(f"/flows/{path}").text
        assert len(server.requests) == 1
        assert_healthy(client)
        connect(monkeypatch, "limited", server.url, max_requests_per_second=50)  # a changed connection
        RESPONSE_CACHE.clear()
        client.get("/flows/json/connection/limited/run/first")
        assert len(server.requests) == 2


def test_downloads_and_aborts_share_the_rate_of_the_pages(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 429 for a download stops pages and aborts, too; the abort is sent when its time is over."""
    rejected_at: list[float] = []

    def reply(request: ReceivedRequest) -> StubResponse:
        if is_download(request.path) and not rejected_at:
            rejected_at.append(request.at)
            return StubResponse(429, {"Retry-After": "3"})
        body = SLOW_OUTPUTS if request.path.partition("?")[0].endswith("/outputs") else SLOW_RUN
        return StubResponse(body=json.dumps(body).encode())

    with StubServer(reply) as server:
        connect(monkeypatch, "limited", server.url)
        assert client.get("/flows/json/connection/limited/run/r").json()["outputs"]
        monkeypatch.setattr(run_view, "PAGE_TIMEOUT_SECONDS", 0.5)
        with open_tabs(client, ["connection/limited/run/r/output/0"], lambda: None):
            wait_until(lambda: bool(rejected_at))
            wait_until(
                lambda: "admits no" in client.get(f"/flows/json/connection/limited/run/{time.time()}").text
            )
            ABORT_QUEUE.submit("limited", "aborted")
            wait_until(lambda: any(request.path == "/flows/aborted" for request in server.requests))
    (aborted_at,) = [request.at for request in server.requests if request.path == "/flows/aborted"]
    assert aborted_at - rejected_at[0] > 2.5
