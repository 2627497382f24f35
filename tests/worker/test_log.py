"""Tests of the lines that a wait logs: start, changes, progress and end, without secrets.

That all modes log the same is tested in test_modes.py.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from airflow.sdk import DAG

from airflow_provider_flows.core.exceptions import FlowAuthError
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import PromptChainerHook
from airflow_provider_flows.operators import RunFlowOperator
from tests.support.airflow_run import DagResult, run_dag
from tests.support.modes import MODES, PROMPT, package_log_lines, run_in_mode
from tests.support.servers import ReceivedRequest, StubResponse, StubServer

KEY = "a-key-in-no-other-text"
SECONDS = 100.0


@pytest.fixture(scope="module")
def flow_emulator_server() -> Iterator[Emulator]:
    """Serve with a key that occurs in no other text."""
    with Emulator(key=KEY, run_seconds=SECONDS) as emulator:
        yield emulator


def test_progress_is_logged_every_ten_points(emulator: Emulator) -> None:
    """Progress is logged every ten points, with percentage, elapsed time and expected end."""
    # polled at about 0, 12, 15, 18, 45, 48, 84 and 100 %
    wait = run_in_mode("blocking", emulator, (20.5, 3.0, 3.0, 24.0, 3.0, 32.0, 30.0))

    progress = [
        line.partition(" is at ")[2] for line in package_log_lines(wait.result.log) if " is at " in line
    ]
    assert [int(line.partition("%")[0]) // 10 for line in progress] == [1, 4, 8]
    assert all(re.fullmatch(r"\d+% after \d+ s; expected end: \d\d:\d\d:\d\d UTC", line) for line in progress)


def test_first_and_last_line_name_the_run(emulator: Emulator) -> None:
    """The first line has service, flow and flow run id; the others have the end of the id, and the flow.

    The last one has the final state and the duration.
    """
    wait = run_in_mode("deferrable", emulator, (20.0, 90.0))

    run = f"generio flow run {wait.flow_run_id} (flow model_generate_fromprompt)"
    lines = package_log_lines(wait.result.log)
    assert lines[0] == f"info: Started the {run}"
    name = f"The flow run ...{wait.flow_run_id[-6:]} (model_generate_fromprompt)"
    assert lines[-1] == f"info: {name} is completed after 100.0 s"
    assert [line for line in lines[1:] if name not in line] == []


@pytest.mark.parametrize("mode", MODES)
def test_key_and_inputs_are_not_logged(emulator: Emulator, mode: str) -> None:
    """API key and inputs are in no line and no error of any mode, even if the service repeats the key."""
    body = json.dumps({"detail": f"The key {KEY} has expired"}).encode()
    emulator.add_fault(Fault(method="GET", path="/flows/*", skip=2, times=None, status=401, body=body))

    wait = run_in_mode(mode, emulator, (20.0,))

    assert type(wait.error) is FlowAuthError
    assert KEY not in str(wait.error)
    assert KEY not in wait.result.log
    assert PROMPT not in "\n".join(package_log_lines(wait.result.log))


OUTPUTS = [{"name": "text", "type": "output", "output": "A slogan"}]


def run_chain(server: StubServer, monkeypatch: pytest.MonkeyPatch) -> DagResult:
    """Run a PromptChainer flow at a server, in a task."""
    connection = {
        "conn_type": "promptchainer",
        "host": server.url,
        "password": "the-key",
        "extra": {"retries": 0},
    }
    monkeypatch.setenv("AIRFLOW_CONN_CHAIN", json.dumps(connection))
    with DAG("logged_start", schedule=None) as dag:
        RunFlowOperator(
            task_id="run", flow="f", inputs={"item": "ball"}, flows_conn_id="chain", validate=False
        )
    return run_dag(dag)


def test_start_is_logged_before_the_request_and_while_it_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is one request is logged before that is sent, and again and again until it has ended."""
    monkeypatch.setattr(PromptChainerHook, "start_log_interval", 0.1)
    received_at: list[float] = []

    def respond(_: ReceivedRequest) -> StubResponse:
        received_at.append(time.time())
        return StubResponse(body=json.dumps(OUTPUTS).encode(), delay=1.0)

    with StubServer(respond) as server:
        result = run_chain(server, monkeypatch)

    assert result.state == "success", result.log
    start, *waiting, end = package_log_lines(result.log)
    assert start == (
        "info: Starting flow f at promptchainer; it responds when the flow run has ended, "
        "for which this process waits up to 300 s (read_timeout of connection 'chain')"
    )
    (line,) = [line for line in result.log.splitlines() if "Starting flow f" in line]
    assert datetime.fromisoformat(line.split()[0]).timestamp() <= received_at[0]
    assert len(waiting) >= 2
    assert all(
        re.fullmatch(r"info: Still starting flow f at promptchainer, after \d+ s", line) for line in waiting
    )
    assert end.endswith("(flow f) ended in state 'completed'")


def test_nothing_is_logged_after_a_start_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines end with the request, also if it fails."""
    monkeypatch.setattr(PromptChainerHook, "start_log_interval", 0.1)
    with StubServer(lambda _: StubResponse(500, delay=0.5)) as server:
        result = run_chain(server, monkeypatch)

    assert result.state == "failed"
    assert any("Still starting flow f" in line for line in package_log_lines(result.log))
    assert [thread for thread in threading.enumerate() if thread.name == "flow-start-log"] == []


def test_quick_start_in_steps_is_logged_once(emulator: Emulator) -> None:
    """A service that starts a run in several quick steps has one line about the start, with the run's id."""
    wait = run_in_mode("blocking", emulator, (200.0,))

    starts = [line for line in package_log_lines(wait.result.log) if "tart" in line.partition(" (")[0]]
    assert len([line for line in starts if "Start" in line]) == 1
