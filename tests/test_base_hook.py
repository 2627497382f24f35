"""Tests of what all hooks share: the choice of the hook by its connection, the Test button, and errors."""

from __future__ import annotations

import re
import socket
import threading
import time

import pytest

from airflow_provider_flows.core.exceptions import FlowInputError, FlowTimeout, FlowUnreachable
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import FlowsHook, GenerioHook, PromptChainerHook, flows_hook
from tests.support.downloads import KilledError, hook_to, raise_after
from tests.support.hostile import BEHAVIOURS, HostileServer
from tests.support.hostile.slow import send_steadily
from tests.support.servers import MisbehavingServer

MAX_SECONDS = 6.0  # on a loaded machine; without a deadline these take minutes


@pytest.mark.parametrize("kind", [FlowsHook, GenerioHook, PromptChainerHook])
def test_the_connection_type_selects_the_hook(flow_emulator: Emulator, kind: type[FlowsHook]) -> None:
    """`FlowsHook.get_hook` returns the hook of the connection's type, through Airflow's registry."""
    assert flow_emulator.url
    assert type(FlowsHook.get_hook("flows_default")) is GenerioHook
    assert type(FlowsHook.get_hook("promptchainer_default")) is PromptChainerHook
    assert kind.conn_name_attr == "flows_conn_id"


def test_connection_of_another_type_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that runs no flows is an error that names its type and the right ones."""
    monkeypatch.setenv("AIRFLOW_CONN_FILES", '{"conn_type": "fs"}')
    with pytest.raises(FlowInputError, match=r"'fs', which is not a flow service.*generio or promptchainer"):
        FlowsHook.get_hook("files")


def test_test_button_distinguishes_a_wrong_key_from_a_wrong_host(flow_emulator: Emulator) -> None:
    """The Test button distinguishes an accepted key, a rejected key and no response, and never raises."""
    for kind in (GenerioHook, PromptChainerHook):
        hook = kind(f"{kind.conn_type}_default")
        assert hook.test_connection()[0], hook.test_connection()
        hook.connection.password = "wrong"
        is_ok, message = hook.test_connection()
        assert not is_ok
        assert "password" in message
        hook.connection.host = "http://127.0.0.1:9"
        is_ok, message = hook.test_connection()
        assert not is_ok
        assert "got no response" in message
    assert flow_emulator.requests


@pytest.mark.parametrize("absent", [404, 405])
def test_test_button_works_without_a_list_of_runs(flow_emulator: Emulator, absent: int) -> None:
    """Without a list of runs, the Test button uses Generio's templates."""
    flow_emulator.switches.update({"list_endpoint": absent})
    assert GenerioHook("generio_default").test_connection()[0]


@pytest.mark.usefixtures("flow_emulator")
def test_an_unsupported_operation_is_named() -> None:
    """What a service does not support is an error that states it, not an AttributeError."""
    hook = PromptChainerHook("promptchainer_default")
    for call in (hook.get_run, hook.abort, hook.delete, hook.list_outputs):
        with pytest.raises(FlowInputError, match="The service promptchainer cannot "):
            call("r")


@pytest.mark.usefixtures("flow_emulator")
def test_the_base_hook_names_the_right_hook() -> None:
    """The base hook has no service; its error says how to get the right hook."""
    with pytest.raises(FlowInputError, match="get_hook"):
        FlowsHook("generio_default").list_runs()


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize("name", ["a slow body", "slow headers", "endless 100 Continue", "slow chunks"])
def test_wait_ends_at_its_timeout_whatever_dribbles(name: str) -> None:
    """A wait ends soon after its timeout, although the connection would allow a response far more time."""
    with HostileServer(name) as server:
        started_at = time.monotonic()
        with pytest.raises(FlowTimeout):
            hook_to(server.url, read_timeout=600).wait("r", poll_interval=0.1, timeout=0.3)
        assert time.monotonic() - started_at < MAX_SECONDS


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize("name", ["a slow body", "slow headers", "endless 103 Early Hints"])
def test_test_button_ends_in_time_whatever_dribbles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Test button has one time limit for all its requests, and its message says that it was exceeded."""
    monkeypatch.setattr(flows_hook, "TEST_TIMEOUT_SECONDS", 2.5)

    def respond_slowly(connection: socket.socket) -> None:
        """Respond to the first request late that there is no such path."""
        if len(server.bodies) == 1:
            time.sleep(0.5)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            BEHAVIOURS[name](connection)

    with MisbehavingServer(respond_slowly) as server:
        started_at = time.monotonic()
        is_ok, message = hook_to(server.url, read_timeout=600).test_connection()
        assert time.monotonic() - started_at < MAX_SECONDS
        assert len(server.bodies) == 2
    assert not is_ok
    assert re.search(r"did not complete within the (?:[01](?:\.\d+)?|2) s that were left for it", message)


@pytest.mark.usefixtures("no_proxy")
def test_file_ends_at_the_timeout_of_the_task() -> None:
    """A file of any size, at any speed, takes no longer than the task may take, with its retries."""
    with MisbehavingServer(send_steadily(10_000_000, seconds_per_piece=0.02)) as server:
        hook = hook_to(server.url, connect_timeout=0.2, read_timeout=0.3)
        hook.max_transfer_seconds = 0.9
        started_at = time.monotonic()
        with pytest.raises(FlowUnreachable, match=r"within the 0\.\d+ s that were left for it"):
            hook.download_output("r", "a")
        assert time.monotonic() - started_at < MAX_SECONDS


@pytest.mark.usefixtures("no_proxy")
def test_interrupt_ends_a_slow_download_at_once() -> None:
    """An exception of a signal handler ends a download that dribbles, and its watch with it."""
    with HostileServer("a slow body without a length") as server:
        started_at = time.monotonic()
        with pytest.raises(KilledError), raise_after(0.3):
            hook_to(server.url).download_output("r", "a")
        assert time.monotonic() - started_at < MAX_SECONDS
    assert [thread for thread in threading.enumerate() if thread.name == "request-deadline"] == []
