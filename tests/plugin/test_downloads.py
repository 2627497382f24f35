"""Tests of downloads from the tab over a real socket: slow readers, readers that leave, broken downloads.

The API server is Airflow's own, in `uvicorn` as in a deployment, with all of its middleware.
"""

from __future__ import annotations

import http.client
import json
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from airflow.sdk import DAG
from fastapi import HTTPException
from fastapi.testclient import TestClient

from airflow_provider_flows.core.limits import MAX_IMAGE_BYTES
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.plugin import output_routes
from airflow_provider_flows.plugin.cache import RESPONSE_CACHE, DownloadSlots
from tests.support.airflow_run import run_dag
from tests.support.hostile import HostileServer, downloads
from tests.support.hostile.downloads import BREAK_BYTES, MIB, model
from tests.support.plugin_site import airflow_clients, serve, task_path
from tests.support.tries import CHAIR_ARGUMENTS

pytestmark = pytest.mark.emulator(run_seconds=0, retries=0)

MAX_AHEAD_BYTES = 24 * MIB  # buffers of both sockets included, which the operating system enlarges


@pytest.fixture(scope="module")
def site(airflow_database: None) -> Iterator[tuple[str, TestClient]]:  # noqa: ARG001  # a fixture requests another
    """Yield the URL of an API server, and the client of a viewer."""
    with airflow_clients() as clients, serve(clients["vera"]) as url:
        yield url, clients["vera"]


@pytest.fixture(autouse=True)
def slots(monkeypatch: pytest.MonkeyPatch) -> DownloadSlots:
    """Return new slots for downloads, for which a request waits half a second."""
    RESPONSE_CACHE.clear()
    new = DownloadSlots(wait_seconds=0.5)
    monkeypatch.setattr(output_routes, "DOWNLOAD_SLOTS", new)
    return new


@pytest.fixture(autouse=True)
def empty_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the API server store its temporary files where a test can count them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def run_path(emulator: object) -> str:  # noqa: ARG001  # it sets the connection
    """Run a task that leaves its output at the service, and return the path of its tab."""
    with DAG("downloads", schedule=None) as dag:
        RunFlowOperator(task_id="run", poll_interval=0.1, **CHAIR_ARGUMENTS)
    return task_path("downloads", run_dag(dag).run_id)


@contextmanager
def hostile_service(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    """Replace the service of the task's connection."""
    with HostileServer(name) as server:
        connection = {"conn_type": "generio", "host": server.url, "password": "k", "extra": {"retries": 0}}
        monkeypatch.setenv("AIRFLOW_CONN_FLOWS_DEFAULT", json.dumps(connection))
        yield server


@contextmanager
def request(site: tuple[str, TestClient], path: str) -> Iterator[http.client.HTTPResponse]:
    """Send a request, and yield its response without its body."""
    url, client = site
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)) as connection:
        connection.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.request("GET", f"/flows/{path}", headers={"Cookie": f"_token={client.cookies['_token']}"})
        with connection.getresponse() as response:
            yield response


def wait_until(is_true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until a condition is true.

    :raises AssertionError: it is not in time.
    """
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until_unchanged(get: Callable[[], int]) -> int:
    """Return a number that has not changed for half a second."""
    while True:
        before = get()
        time.sleep(0.5)
        if get() == before:
            return before


def count_download_threads() -> int:
    """Return the number of threads that read a download's source."""
    return sum(thread.name == "flows-pipe" for thread in threading.enumerate())


@pytest.mark.parametrize("case", [("a model that never ends", ""), ("a picture that never ends", "/image")])
def test_slow_reader_stops_the_service_and_leaving_ends_it(
    site: tuple[str, TestClient],
    run_path: str,
    slots: DownloadSlots,
    case: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The API server takes no more than its reader, keeps no file, and disconnects once the reader leaves."""
    name, rest = case
    temporary_files = Path(tempfile.gettempdir())
    with hostile_service(name, monkeypatch) as service:
        with request(site, f"{run_path}/output/0{rest}") as response:
            assert response.status == 200
            response.read(1000)
            sent = wait_until_unchanged(lambda: downloads.bytes_sent[service.port])
            assert 0 < sent < min(MAX_AHEAD_BYTES, MAX_IMAGE_BYTES)
            assert len(slots) == count_download_threads() == 1
            assert not list(temporary_files.iterdir())
        wait_until(lambda: not service.open_connections and not slots and not count_download_threads())
    assert not list(temporary_files.iterdir())


def test_an_endless_picture_ends_with_an_error(
    site: tuple[str, TestClient], run_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture above the maximum breaks off, although its first bytes were sent."""
    with (
        hostile_service("a picture that never ends", monkeypatch),
        request(site, f"{run_path}/output/0/image") as response,
        pytest.raises(http.client.IncompleteRead) as error,
    ):
        response.read()
    assert len(error.value.partial) <= MAX_IMAGE_BYTES


@pytest.mark.parametrize(
    "name",
    [
        "a file that always breaks off",
        "a file that breaks off, and then is another one",
        "a file that breaks off, and then is shorter",
    ],
)
def test_a_broken_download_is_not_taken_for_complete(
    site: tuple[str, TestClient],
    run_path: str,
    slots: DownloadSlots,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its connection ends before the end of the body, so that a browser reports a failed download."""
    with (
        hostile_service(name, monkeypatch),
        request(site, f"{run_path}/output/0") as response,
        pytest.raises(http.client.IncompleteRead) as error,
    ):
        response.read()
    assert error.value.partial == model()[: len(error.value.partial)]
    assert len(error.value.partial) <= BREAK_BYTES
    wait_until(lambda: not slots)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a file that breaks off once", model()),
        ("a file that contradicts its header each time", model(header_size=100)),
    ],
)
def test_a_repeated_attempt_continues_the_download(
    site: tuple[str, TestClient],
    run_path: str,
    name: str,
    expected: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An attempt that sends the same bytes again continues where the one before broke off."""
    with hostile_service(name, monkeypatch), request(site, f"{run_path}/output/0") as response:
        assert response.read() == expected


def test_one_download_of_an_output_at_a_time(
    site: tuple[str, TestClient],
    run_path: str,
    slots: DownloadSlots,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second download of an output waits, and is rejected (429) if the first one does not end."""
    with hostile_service("a model that never ends", monkeypatch):
        with request(site, f"{run_path}/output/0") as response:
            response.read(1000)
            for rest in ("", "/image"):
                with request(site, f"{run_path}/output/0{rest}") as second:
                    assert second.status == 429
                    assert second.headers["retry-after"]
                    assert b"being downloaded" in second.read()
        wait_until(lambda: not slots)
        with request(site, f"{run_path}/output/0") as third:
            assert third.status == 200


def test_downloads_at_a_time_are_limited(
    site: tuple[str, TestClient],
    run_path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Downloads of different outputs are limited as well, because each has a thread."""
    monkeypatch.setattr(output_routes, "DOWNLOAD_SLOTS", DownloadSlots(max_downloads=0, wait_seconds=0))
    with request(site, f"{run_path}/output/0") as response:
        assert response.status == 429
        assert b"Too many outputs" in response.read()


def test_reader_who_takes_nothing_frees_the_download(
    site: tuple[str, TestClient], run_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader who pauses for too long holds no download, and does not get a truncated file as complete."""
    slots = DownloadSlots(stall_seconds=1.0)
    monkeypatch.setattr(output_routes, "DOWNLOAD_SLOTS", slots)
    with (
        hostile_service("a model that never ends", monkeypatch) as service,
        request(site, f"{run_path}/output/0") as response,
    ):
        assert response.status == 200
        wait_until(lambda: not slots and not service.open_connections)
        with pytest.raises(http.client.IncompleteRead):
            response.read()


def test_leaving_during_the_silence_of_a_service_frees_the_buffer(
    site: tuple[str, TestClient],
    run_path: str,
    slots: DownloadSlots,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The output stays taken until the service's connection has ended, so that there is one at a time."""
    with hostile_service("a file that stops and stays silent", monkeypatch) as service:
        with request(site, f"{run_path}/output/0") as response:
            response.read(2 * MIB)
        time.sleep(0.5)
        assert len(slots) == service.open_connections
    wait_until(lambda: not slots)


async def test_downloads_of_one_connection_take_no_slot_of_another() -> None:
    """The limit is for each connection; a download that has ended makes room for another one."""
    slots = DownloadSlots(max_downloads=1, wait_seconds=0)
    await slots.acquire(("slow", "first"))
    await slots.acquire(("healthy", "first"))
    with pytest.raises(HTTPException) as caught:
        await slots.acquire(("slow", "second"))
    assert caught.value.status_code == 429
    slots.release(("slow", "first"))
    await slots.acquire(("slow", "second"))
    assert len(slots) == 2
