"""Tests of what all hooks share: the choice of the hook by its connection, the Test button, and errors."""

from __future__ import annotations

import inspect
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import (
    FlowInputError,
    FlowServiceError,
    FlowTimeout,
    FlowUnreachable,
)
from airflow_provider_flows.core.flow_run import FlowRun, FlowState
from airflow_provider_flows.core.polling.schedule import Schedule
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.hooks import FlowsHook, GenerioHook, PromptChainerHook, flows_hook
from tests.support.downloads import KilledError, hook_to, raise_after
from tests.support.hostile import BEHAVIOURS, HostileServer
from tests.support.hostile.slow import send_steadily
from tests.support.servers import MisbehavingServer, StubResponse, StubServer, unused_url

RUN_ID = "6b0203c3fbcc98b1a4059427"
# each failure of a request: the response, if there is one, and what the error says of its cause
FAILURES: dict[str, tuple[StubResponse | None, str]] = {
    "wrong key": (StubResponse(401), "does not accept the API key"),
    "forbidden": (StubResponse(403), "does not allow this with the connection's API key"),
    "unknown run": (StubResponse(404), "has nothing of that name"),
    "gateway": (StubResponse(403, body=b"<html><body>Denied</body></html>"), "A page in HTML came"),
    "redirect": (
        StubResponse(302, headers={"Location": "http://other.example/"}),
        "leads to http://other.example",
    ),
    "https": (
        StubResponse(301, headers={"Location": "https://127.0.0.1/"}),
        "redirect to https",
    ),
    "proxy": (StubResponse(407), "A proxy requires credentials"),
    "rate limit": (StubResponse(429), "receives too many requests"),
    "overloaded": (StubResponse(503), "could not process the request"),
    "no JSON": (StubResponse(body=b"flows"), "cannot be read as JSON"),
    "TLS": (None, "it does not speak TLS there"),
    "closed port": (None, "nothing listens there"),
}
MAX_SECONDS = 15.0  # on a loaded machine; without a deadline these take minutes


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


@pytest.mark.parametrize("kind", [GenerioHook, PromptChainerHook])
def test_key_of_another_type_is_sent_nowhere(
    flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, kind: type[FlowsHook]
) -> None:
    """A hook of one service rejects every connection of another type, also by `get_hook`."""
    other = {"generio": "promptchainer", "promptchainer": "generio"}[kind.conn_type]
    for conn_type in (other, "http", "genrio"):
        value = {"conn_type": conn_type, "host": flow_emulator.url, "password": "a_key"}
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps(value))
        with pytest.raises(FlowInputError, match=f"has type '{conn_type}', not '{kind.conn_type}'"):
            kind("other").get_run("0" * 24)
    with pytest.raises(FlowInputError, match=f"has type '{other}', not '{kind.conn_type}'"):
        kind.get_hook(f"{other}_default")
    assert flow_emulator.requests == ()


def test_connection_without_a_type_is_accepted(
    flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection whose type is not set belongs to the hook that uses it."""
    value = {"host": flow_emulator.url, "password": flow_emulator.key}
    monkeypatch.setenv("AIRFLOW_CONN_UNTYPED", json.dumps(value))
    assert GenerioHook("untyped").test_connection()[0]


NO_IDS: dict[str, tuple[Any, str]] = {
    "None": (None, "flow_run_id must be the id of a flow run, not None"),
    "blank": (" ", "flow_run_id must be the id of a flow run, not ' '"),
    "a number": (5, "flow_run_id must be the id of a flow run, not int"),
    "the run": (
        FlowRun("0" * 24, "generio"),
        "flow_run_id is the flow run itself; pass its id, run.flow_run_id",
    ),
    "a result": (
        {"flow_run_id": "0" * 24, "outputs": []},
        'flow_run_id is all that a task returned; write first.output["flow_run_id"]',
    ),
}
RUN_METHODS: dict[str, Callable[[GenerioHook, Any], object]] = {
    "wait": lambda hook, run_id: hook.wait(run_id),
    "get_run": lambda hook, run_id: hook.get_run(run_id),
    "abort": lambda hook, run_id: hook.abort(run_id),
    "abort_and_wait": lambda hook, run_id: hook.abort_and_wait(run_id),
    "delete": lambda hook, run_id: hook.delete(run_id),
    "list_inputs": lambda hook, run_id: hook.list_inputs(run_id),
    "list_outputs": lambda hook, run_id: hook.list_outputs(run_id),
    "list_ready_outputs": lambda hook, run_id: hook.list_ready_outputs(run_id),
    "download_output": lambda hook, run_id: hook.download_output(run_id, "0"),
    "get_input": lambda hook, run_id: hook.get_input(run_id, "0"),
    "add_input": lambda hook, run_id: hook.add_input(run_id, "A chair"),
    "start_created_run": lambda hook, run_id: hook.start_created_run(run_id),
}


@pytest.mark.parametrize("method", RUN_METHODS)
def test_value_that_is_no_id_is_named(flow_emulator: Emulator, method: str) -> None:
    """Every method with the id of a flow run says what it got instead, and sends nothing."""
    for value, message in NO_IDS.values():
        with pytest.raises(FlowInputError) as caught:
            RUN_METHODS[method](GenerioHook("generio_default"), value)
        assert message in str(caught.value)
    assert flow_emulator.requests == ()


def test_run_methods_are_all_in_the_table() -> None:
    """No method with the id of a flow run is missing above."""
    others = {"save_output", "create_wait", "poll_run"}  # `download_output` and `wait` call them
    methods = {
        name
        for name, method in inspect.getmembers(FlowsHook)
        if inspect.isfunction(method) and "flow_run_id" in inspect.signature(method).parameters
    }
    assert methods == RUN_METHODS.keys() | others


def test_state_may_be_a_text(flow_emulator: Emulator) -> None:
    """A state is a `FlowState` or its text, and a misspelt one is an error with all states."""
    hook = GenerioHook("generio_default")
    assert hook.list_runs("Running") == hook.list_runs(FlowState.RUNNING) == []
    count = len(flow_emulator.requests)
    for method in (hook.list_runs, lambda state: hook.list_newest(1, state)):
        with pytest.raises(FlowInputError, match=r"state must be one of created, .* not 'runing'"):
            method("runing")
    assert len(flow_emulator.requests) == count


@pytest.mark.parametrize("value", [None, "", 5])
def test_value_that_is_no_connection_id_is_named(value: Any) -> None:
    """A value that cannot be an id is no missing connection."""
    with pytest.raises(FlowInputError, match="flows_conn_id must be the id of a connection, not "):
        FlowsHook.get_hook(value)


def test_unknown_fields_of_the_extra_are_logged_once(
    flow_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A misspelt field, or one of another service, is a warning; the Test button shows it as well."""
    extra = {"read_timout": 5, "graphs": "/graphs", "verify": True}
    value = {"conn_type": "generio", "host": flow_emulator.url, "password": flow_emulator.key, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_MISSPELT", json.dumps(value))
    expected = "fields without effect: read_timout (did you mean 'read_timeout'?), graphs"
    for _ in range(2):
        is_ok, message = GenerioHook("misspelt").test_connection()
        assert is_ok
        assert f"The extra of the connection has {expected}." in message
    warnings = [record.getMessage() for record in caplog.records if "fields without" in record.getMessage()]
    assert warnings == [f"The extra of connection 'misspelt' has {expected}"]


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
        assert hook.flows_conn_id not in message  # Airflow's temporary id
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
    monkeypatch.setattr(flows_hook, "TEST_TIMEOUT_SECONDS", 4.0)

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
    assert re.search(r"did not complete within the [0-3](?:\.\d+)? s that were left for it", message)


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


@pytest.mark.usefixtures("no_proxy")
@pytest.mark.parametrize("failure", FAILURES)
async def test_every_failed_request_names_its_connection(
    monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    """Errors, and lines about failed polls, name id and type of the connection once, in both transports."""
    response, cause = FAILURES[failure]
    lines: list[str] = []
    with unused_url() as closed_url, StubServer(lambda _: response or StubResponse()) as server:
        urls = {"closed port": closed_url, "TLS": server.url.replace("http:", "https:")}
        url = urls.get(failure, server.url)
        connection = {"conn_type": "generio", "host": url, "password": "a_key", "extra": {"retries": 0}}
        monkeypatch.setenv("AIRFLOW_CONN_NAMED", json.dumps(connection))
        hook = FlowsHook.get_hook("named")
        with pytest.raises(FlowServiceError) as blocking:
            hook.get_run(RUN_ID)
        with pytest.raises(FlowServiceError) as asynchronous:
            await hook.arun(hook.poll_run(RUN_ID))
        wait = hook.create_wait(RUN_ID, Schedule.of(1, 1), lambda _, line: lines.append(line))
        hook.run(wait.poll_once())

    for error in (blocking.value, asynchronous.value):
        assert cause in str(error)
        assert str(error).count(f"(Connection 'named' of type 'generio', {url})") == 1
    (line,) = lines
    assert line.lower().count("connection 'named' of type 'generio'") == 1


def test_unreadable_graph_names_the_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error of a flow graph that cannot be read names the connection whose folder contains it."""
    (tmp_path / "f.json").write_text("{")
    extra = {"graphs": str(tmp_path)}
    connection = {"conn_type": "promptchainer", "password": "a_key", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_CHAIN", json.dumps(connection))
    with pytest.raises(FlowInputError, match="field graphs of connection 'chain'"):
        PromptChainerHook("chain").get_graph("f")
