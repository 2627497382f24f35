"""Tests of a retry over another connection than the earlier try's, or one that leads elsewhere now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_flows.core.exceptions import FlowInputError, FlowServiceError
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.worker.task_state import RECORD_KEY
from tests.support.task_instances import Store, context
from tests.support.tries import CHAIR_ARGUMENTS, run_states

pytestmark = pytest.mark.emulator(run_seconds=3600, abort="instant", retries=0)

Connect = Callable[[str, str | None], None]
POLLING: dict[str, Any] = {"poll_interval": 0.1, "max_poll_interval": 0.2}


@pytest.fixture
def other_emulator() -> Iterator[Emulator]:
    """Yield the service of another connection, whose flow runs complete immediately."""
    emulator = Emulator(run_seconds=0).start()
    yield emulator
    emulator.stop()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Return a function that lets a connection lead to a host; without a host it is deleted."""

    def set_host(name: str, host: str | None) -> None:
        variable = f"AIRFLOW_CONN_{name.upper()}"
        if host is None:
            monkeypatch.delenv(variable)
            return
        extra = {"retries": 0}
        monkeypatch.setenv(
            variable,
            json.dumps({"conn_type": "generio", "host": host, "password": "emulator", "extra": extra}),
        )

    return set_host


@pytest.fixture
def store(emulator: Emulator, connect: Connect) -> Store:
    """Return the store after a first try over the connection `first`, which left an active flow run."""
    connect("first", emulator.url)
    store = Store()
    emulator.add_fault(Fault("GET", "/flows/*", status=402, times=3))
    with pytest.raises(FlowServiceError):
        retry("first").execute(context(store, 1, 2))
    assert store[RECORD_KEY]["host"] == emulator.url
    assert emulator.started_count == 1
    return store


def retry(conn_id: str, **arguments: Any) -> RunFlowOperator:
    """Return the operator of a try over a connection."""
    return RunFlowOperator(task_id="t", flows_conn_id=conn_id, **{**CHAIR_ARGUMENTS, **POLLING, **arguments})


def earlier_run_lines(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Return the log lines about an earlier flow run at another connection, by level."""
    lines = [
        line for line in capsys.readouterr().out.splitlines() if "of an earlier try was started over" in line
    ]
    return {level: [line for line in lines if f"[{level}" in line] for level in ("info", "warning")}


def is_active(emulator: Emulator) -> bool:
    """Return whether the first try's flow run is still active."""
    return "aborted" not in run_states(emulator)


def test_retry_over_other_connection_aborts_the_earlier_run(
    emulator: Emulator,
    other_emulator: Emulator,
    store: Store,
    connect: Connect,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The earlier flow run is aborted over the connection that its record names, and a new one started."""
    connect("second", other_emulator.url)
    assert retry("second").execute(context(store, 2, 2))["state"] == "completed"
    assert run_states(emulator) == ["aborted"]
    assert (emulator.started_count, other_emulator.started_count) == (1, 1)
    lines = earlier_run_lines(capsys)
    assert "was aborted over that connection" in lines["info"][0]
    assert lines["warning"] == []
    assert (store[RECORD_KEY]["conn_id"], store[RECORD_KEY]["host"]) == ("second", other_emulator.url)


def test_earlier_run_that_has_ended_is_no_warning(
    emulator: Emulator,
    other_emulator: Emulator,
    store: Store,
    connect: Connect,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An earlier flow run that completed in the meantime needs no abort."""
    connect("second", other_emulator.url)
    emulator.advance(7200)
    retry("second").execute(context(store, 2, 2))
    assert run_states(emulator) == ["completed"]
    lines = earlier_run_lines(capsys)
    assert "is completed" in lines["info"][0]
    assert lines["warning"] == []


# what happens to the connection `first` before a retry over `second`, and the reason in the log
UNUSABLE: list[tuple[str, Callable[[Connect, Emulator, Emulator], None], dict[str, Any], str]] = [
    (
        "deleted",
        lambda connect, _first, _second: connect("first", None),
        {},
        "Connection 'first' does not exist",
    ),
    (
        "edited",
        lambda connect, _first, second: connect("first", second.url),
        {},
        "the connection leads to {other} now",
    ),
    (
        "rejects the abort",
        lambda _connect, first, _second: first.add_fault(Fault("PATCH", status=402)) and None,
        {},
        "HTTP 402",
    ),
    (
        "does not find the run",
        lambda _connect, first, _second: first.add_fault(Fault("GET", status=404, times=None)) and None,
        {},
        "HTTP 404",
    ),
    (
        "abort_on_kill=False",
        lambda _connect, _first, _second: None,
        {"abort_on_kill": False},
        "abort_on_kill is False",
    ),
]


@pytest.mark.parametrize(
    ("prepare", "arguments", "reason"),
    [pytest.param(*values, id=name) for name, *values in UNUSABLE],
)
def test_earlier_run_that_cannot_be_aborted_is_a_warning(
    emulator: Emulator,
    other_emulator: Emulator,
    store: Store,
    connect: Connect,
    capsys: pytest.CaptureFixture[str],
    *,
    prepare: Callable[[Connect, Emulator, Emulator], None],
    arguments: dict[str, Any],
    reason: str,
) -> None:
    """If the earlier flow run cannot be aborted, a warning has its id, its host and the reason."""
    connect("second", other_emulator.url)
    flow_run_id = store[RECORD_KEY]["flow_run_id"]
    prepare(connect, emulator, other_emulator)
    retry("second", **arguments).execute(context(store, 2, 2))
    emulator.clear_faults()
    assert is_active(emulator)
    (line,) = earlier_run_lines(capsys)["warning"]
    for text in (flow_run_id, "'first'", emulator.url, reason.format(other=other_emulator.url)):
        assert text in line
    assert "emulator'" not in line  # the password


def test_edited_host_is_a_warning(
    emulator: Emulator,
    other_emulator: Emulator,
    store: Store,
    connect: Connect,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """If the connection leads to another service now, a warning has the earlier run's id and host."""
    flow_run_id = store[RECORD_KEY]["flow_run_id"]
    connect("first", other_emulator.url)
    assert retry("first").execute(context(store, 2, 2))["state"] == "completed"
    assert is_active(emulator)
    (line,) = earlier_run_lines(capsys)["warning"]
    assert flow_run_id in line
    assert emulator.url in line
    assert (emulator.started_count, other_emulator.started_count) == (1, 1)


@pytest.mark.parametrize("conn_id", ["first", "second"])
@pytest.mark.parametrize("alias", [True, False])
def test_other_way_to_the_same_account_resumes_the_run(
    emulator: Emulator,
    store: Store,
    connect: Connect,
    capsys: pytest.CaptureFixture[str],
    conn_id: str,
    *,
    alias: bool,
) -> None:
    """Another connection or host name that leads to the same flow run resumes it, and the record names it."""
    url = emulator.url.replace("127.0.0.1", "localhost") if alias else emulator.url
    connect(conn_id, url)
    emulator.advance(7200)
    returned = retry(conn_id).execute(context(store, 2, 2))
    assert (returned["state"], emulator.started_count) == ("completed", 1)
    assert earlier_run_lines(capsys)["warning"] == []
    assert (store[RECORD_KEY]["conn_id"], store[RECORD_KEY]["host"]) == (conn_id, url)


def test_run_that_another_account_must_not_see_is_aborted(
    emulator: Emulator, store: Store, connect: Connect
) -> None:
    """A 403 for the earlier run's id means another account; the run is aborted over its own connection."""
    connect("second", emulator.url)
    emulator.add_fault(Fault("GET", "/flows/*", status=403))
    emulator.run_seconds = 0
    retry("second").execute(context(store, 2, 2))
    assert run_states(emulator) == ["aborted", "completed"]


def test_other_connection_that_rejects_its_key_changes_nothing(
    emulator: Emulator, store: Store, connect: Connect
) -> None:
    """A 401 says nothing about the earlier run, so it is not aborted, and the record stays."""
    connect("second", emulator.url)
    record = dict(store[RECORD_KEY])
    emulator.add_fault(Fault("GET", "/flows/*", status=401, times=None))
    with pytest.raises(FlowServiceError):
        retry("second").execute(context(store, 2, 3))
    emulator.clear_faults()
    assert is_active(emulator)
    assert store[RECORD_KEY] == record


def test_failed_last_try_over_other_connection_aborts_the_earlier_run(
    emulator: Emulator, other_emulator: Emulator, store: Store, connect: Connect
) -> None:
    """A last try that fails before its start aborts the earlier flow run over its own connection."""
    connect("second", other_emulator.url)
    with pytest.raises(FlowInputError):
        retry("second", inputs=[]).execute(context(store, 3, 2))
    assert run_states(emulator) == ["aborted"]
    assert other_emulator.started_count == 0


def test_kill_over_other_connection_aborts_the_earlier_run(
    emulator: Emulator, other_emulator: Emulator, store: Store, connect: Connect
) -> None:
    """A try that is killed before its start aborts the earlier flow run over its own connection."""
    connect("second", other_emulator.url)
    other_emulator.add_fault(Fault("GET", "/flows/*", status=503))
    operator = retry("second")
    with pytest.raises(FlowServiceError):
        operator.execute(context(store, 2, 2))
    assert is_active(emulator)
    operator.on_kill()
    assert run_states(emulator) == ["aborted"]
