"""Tests of missing and invalid connections: one try, one traceback, an error that says what to do.

Every kind of task meets every mistake in a connection. The emulator gets no request.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.models.taskinstance import TaskInstance
from airflow.sdk import DAG
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.decorators import task
from airflow_provider_flows.emulator import Emulator
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.sensors import FlowRunSensor
from airflow_provider_flows.triggers import FlowRunFinishedTrigger, FlowRunTrigger, run_from_event
from tests.support.airflow_run import run_dag
from tests.support.modes import FLOW
from tests.support.task_instances import context
from tests.support.tries import create_retry
from tests.support.versions import AIRFLOW, needs

FLOW_RUN_ID = "6b0203c3fbcc98b1a4059427"
RETRIES: dict[str, Any] = {"retries": 2, "retry_delay": timedelta(0)}
KEY = {"conn_type": "generio", "password": "a_key"}

NO_OBJECT = "must be a JSON object such as {"
MISSING = "does not exist, or Airflow cannot read it. Create or correct it in Airflow"
# each mistake: the connection, None if it is missing, and what the error says besides its name
MISTAKES: dict[str, tuple[Any, str]] = {
    "missing": (None, MISSING),
    "unreadable": (
        "{conn_type",
        "is in the environment variable AIRFLOW_CONN_UNREADABLE, but Airflow cannot",
    ),
    "wrong_type": ({"conn_type": "fs"}, "has type 'fs', which is not a flow service. Set flows_conn_id to"),
    "no_type": (
        "generio//:emulator@127.0.0.1:18084",
        "has no type. Correct it in the environment variable AIRFLOW_CONN_NO_TYPE: generio://:TOKEN@ as",
    ),
    "unknown_type": ({"conn_type": "genrio"}, "has type 'genrio', which is not a flow service"),
    # Airflow 3.1 cannot read it
    "extra_list": (
        {**KEY, "extra": "[1]"},
        NO_OBJECT if AIRFLOW >= (3, 2) else "but Airflow cannot read it",
    ),
    "extra_number": ({**KEY, "extra": {"read_timeout": "soon"}}, "read_timeout in the extra of connection"),
    "extra_boolean": ({**KEY, "extra": {"verify": "perhaps"}}, "verify in the extra of connection"),
    "extra_hosts": ({**KEY, "extra": {"picture_hosts": "https://a.example/b"}}, "picture_hosts in the extra"),
    "no_password": ({"conn_type": "generio"}, "has no password; put the API key into its password field"),
    "bad_password": ({**KEY, "password": "two words"}, "put the API key into its password field"),
    "bad_scheme": ({**KEY, "host": "htp://files.example"}, "its scheme is 'htp'"),
    "bad_port": ({**KEY, "host": "localhost:80840"}, "its port is 80840, which is not in 1 to 65535"),
    "port_of_letters": ({**KEY, "host": "http://127.0.0.1:abc"}, "its port 'abc' is not a number"),
    "bare_ipv6": ({**KEY, "host": "http://fe80::abc"}, "an IPv6 address must be in brackets"),
    "bad_host": ({**KEY, "host": "http://"}, "must be a host name, or an http(s) URL such as"),
    "missing_bundle": ({**KEY, "extra": {"ca_bundle": "/no/such.pem"}}, "/no/such.pem does not exist"),
    "empty_bundle": ({**KEY, "extra": {"ca_bundle": "/dev/null"}}, "/dev/null has none in PEM format"),
}


def return_prompt() -> str:
    """Return a prompt."""
    return "A chair"


TASKS: dict[str, Callable[..., Any]] = {
    "blocking": lambda **more: RunFlowOperator(flow=FLOW, inputs="A chair", deferrable=False, **more),
    "deferrable": lambda **more: RunFlowOperator(flow=FLOW, inputs="A chair", deferrable=True, **more),
    "unvalidated": lambda **more: RunFlowOperator(flow=FLOW, inputs="A chair", validate=False, **more),
    "decorator": lambda **more: task.flow(flow=FLOW, **more)(return_prompt)(),
    "deferrable decorator": lambda **more: task.flow(flow=FLOW, deferrable=True, **more)(return_prompt)(),
    "sensor, reschedule": lambda **more: FlowRunSensor(flow_run_id=FLOW_RUN_ID, **more),
    "sensor, poke": lambda **more: FlowRunSensor(flow_run_id=FLOW_RUN_ID, mode="poke", **more),
    "sensor, deferrable": lambda **more: FlowRunSensor(flow_run_id=FLOW_RUN_ID, deferrable=True, **more),
    "sensor, silent": lambda **more: FlowRunSensor(
        flow_run_id=FLOW_RUN_ID, mode="poke", poke_interval=0.1, timeout=5, silent_fail=True, **more
    ),
}


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the connections, each with the name of its mistake."""
    for name, (connection, _) in MISTAKES.items():
        if connection is not None:
            value = connection if isinstance(connection, str) else json.dumps(connection)
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", value)


def assert_explained(error: BaseException | None, mistake: str) -> None:
    """Assert that an error names the connection, and says what is wrong with it and what to do."""
    assert type(error) is FlowInputError, mistake
    assert f"onnection '{mistake}'" in str(error)
    assert MISTAKES[mistake][1] in str(error), mistake


@needs("retry policies")
@pytest.mark.parametrize("kind", TASKS)
def test_invalid_connection_fails_a_task_at_its_first_try(emulator: Emulator, kind: str) -> None:
    """A task with a missing or invalid connection fails without a retry, and logs one traceback."""
    with DAG(f"invalid_{'_'.join(kind.replace(',', '').split())}", schedule=None) as dag:
        for mistake in MISTAKES:
            TASKS[kind](task_id=mistake, flows_conn_id=mistake, **RETRIES)
    result = run_dag(dag)

    with create_session() as session:
        columns = TaskInstance.task_id, TaskInstance.try_number
        tries = dict(session.execute(select(*columns).where(TaskInstance.run_id == result.run_id)).all())
    assert tries == dict.fromkeys(MISTAKES, 1)
    assert result.states == dict.fromkeys(MISTAKES, "failed")
    for mistake in MISTAKES:
        assert_explained(result.errors[mistake], mistake)
    assert result.log.count("Traceback (most recent call last)") == len(MISTAKES)
    assert "During handling" not in result.log
    assert emulator.requests == ()


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("mistake", MISTAKES)
async def test_invalid_connection_ends_a_trigger_with_its_error(
    mistake: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A trigger with a missing or invalid connection reports it to the worker, and logs no traceback."""
    event = await anext(FlowRunTrigger(mistake, FLOW_RUN_ID).run())

    with pytest.raises(FlowInputError) as caught:
        run_from_event(event.payload)
    assert_explained(caught.value, mistake)
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("mistake", MISTAKES)
async def test_watcher_logs_an_invalid_connection_once(
    mistake: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A watcher with a missing or invalid connection waits for its correction, and logs one line."""
    caplog.set_level(logging.INFO)
    with suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            await anext(FlowRunFinishedTrigger(mistake, poll_interval=0.1).run())

    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert f"The flow runs of connection {mistake} cannot be listed: " in line
    assert MISTAKES[mistake][1] in line
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.emulator(run_seconds=1000)
@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_error_names_the_earlier_run_that_continues(mistake: str) -> None:
    """If the connection has become invalid in a retry, the error names the earlier try's run."""
    operator, store = create_retry(flows_conn_id=mistake)
    flow_run_id = store["flow_run_record"]["flow_run_id"]

    with pytest.raises(FlowInputError) as caught:
        operator.execute(context(store, try_number=4, max_tries=3))

    assert_explained(caught.value, mistake)
    assert f"Flow run {flow_run_id} continues, because there is no valid key to abort it" in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_bundle_without_certificates_is_found_when_it_changes(tmp_path: Path, monkeypatch: Any) -> None:
    """A CA bundle is read again after it has changed."""
    from airflow_provider_flows.hooks import FlowsHook

    bundle = tmp_path / "bundle.pem"
    connection = {**KEY, "host": "https://a.example", "extra": {"ca_bundle": str(bundle)}}
    monkeypatch.setenv("AIRFLOW_CONN_BUNDLED", json.dumps(connection))
    bundle.write_text("<html>not a bundle</html>")
    with pytest.raises(FlowInputError, match="has none in PEM format"):
        _ = FlowsHook.get_hook("bundled").settings
    bundle.write_text("# Our authority\n-----BEGIN CERTIFICATE-----\n")

    assert FlowsHook.get_hook("bundled").settings.verify == str(bundle)
