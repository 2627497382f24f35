"""Tests of the corners where money or outputs would be lost: doubtful starts, late completions, odd rows, untrusted links.

Each was once lost; none is about a killed process (tests/system/chaos).
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_flows.core.exceptions import FlowMalformed, FlowServiceError, FlowTimeout
from airflow_provider_flows.core.run import FlowOutput, FlowState
from airflow_provider_flows.core.start import RunRecord, RunRequest
from airflow_provider_flows.emulator import Emulator, Fault
from airflow_provider_flows.hooks import FlowsHook, GenerioHook, PromptChainerHook
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.storage.output_options import OutputOptions
from tests.support.airflow_run import THREAD_TIMEOUT, run_dag
from tests.support.downloading import fetch_or_raise
from tests.support.modes import FLOW
from tests.support.servers import StubResponse, StubServer

LOW = {"quality": "low"}


def station_hook(
    station: StubServer, monkeypatch: pytest.MonkeyPatch, kind: str = "generio", key: str = "a-key"
) -> FlowsHook:
    """Give the hook of a connection to a small server."""
    told = {"conn_type": kind, "host": station.url, "password": key, "extra": json.dumps({"retries": 0})}
    monkeypatch.setenv("AIRFLOW_CONN_STATION", json.dumps(told))
    return FlowsHook.get_hook("station")


@pytest.mark.parametrize("run_seconds", [0, 60])
def test_run_that_may_have_started_is_left_to_the_next_try(
    flow_emulator: Emulator, run_seconds: float
) -> None:
    """A start whose answer and whose settling look are both lost deletes nothing; the next try takes the one paid run up."""
    flow_emulator.run_seconds = run_seconds
    hook = GenerioHook("generio_default")
    order: RunRequest = hook.build_request(FLOW, "a chair", LOW, None)
    kept: list[RunRecord | None] = []
    flow_emulator.add_fault(Fault(method="PATCH", path="/flows/*", reset="after"))
    flow_emulator.add_fault(Fault(method="GET", path="/flows/*", status=404, times=1))
    with pytest.raises(FlowServiceError):
        hook.start(order, record=RunRecord(order.fingerprint, 0), save=kept.append)
    assert not [asked for asked in flow_emulator.requests if asked.method == "DELETE"]
    run = hook.resume(order, kept[-1], 0)
    assert run is not None
    assert run.flow_run_id in flow_emulator.runs
    assert flow_emulator.started_count == 1


def test_run_that_completed_in_the_last_moment_is_brought_home(
    flow_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferred task whose deadline passed although its run then completed ends green, with the files."""
    monkeypatch.setenv(
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "1"
    )  # the event is held back for as long, and a second
    flow_emulator.run_seconds = 0.6
    with DAG("last_moment", schedule=None) as dag:
        RunFlowOperator(
            task_id="make",
            flow=FLOW,
            inputs="a chair",
            parameters=LOW,
            deferrable=True,
            poll_interval=5,
            timeout=0.3,
            output_path=tmp_path.as_uri(),
        )
    result = run_dag(dag)
    assert result.states == {"make": "success"}, result.errors
    assert result.xcoms["make"]["return_value"]["state"] == "completed"
    assert list(tmp_path.glob("*/*.glb"))


@THREAD_TIMEOUT
@pytest.mark.parametrize("deferrable", [False, True])
def test_execution_timeout_of_the_last_try_stops_the_run(
    flow_emulator: Emulator,
    deferrable: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task whose execution_timeout is over and that has no try left leaves no run going, deferred or not."""
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-1")
    flow_emulator.run_seconds = 6
    with DAG(f"execution_timeout_{deferrable}", schedule=None) as dag:
        RunFlowOperator(
            task_id="make",
            flow=FLOW,
            inputs="a chair",
            deferrable=deferrable,
            poll_interval=0.2,
            execution_timeout=timedelta(seconds=2),
        )
    result = run_dag(dag)
    assert result.states == {"make": "failed"}
    assert isinstance(result.errors["make"], FlowTimeout)
    (run,) = flow_emulator.runs.values()
    assert run.state in {"aborting", "aborted"}


class Hurried(GenerioHook):
    """A hook that does not wait for half a minute until all outputs are called ready."""

    def list_ready_outputs(self, flow_run_id: str) -> list[FlowOutput]:
        """List them as they are."""
        return self.list_outputs(flow_run_id)


@pytest.mark.parametrize("row", [{"id": "a1"}, "a1", {"asset_id": "a1", "status": "succeeded"}])
def test_output_that_nobody_calls_ready_is_fetched_all_the_same(
    row: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An output of a completed run whose row has no status, or an unknown one, is downloaded; it is not passed over."""
    glb = b"glTF" + (2).to_bytes(4, "little") + (12).to_bytes(4, "little")
    answers = {"/flows/r1": {"flow_id": "r1", "state": "completed"}, "/flows/r1/outputs": {"outputs": [row]}}

    def reply(seen: Any) -> StubResponse:
        known = answers.get(seen.path.partition("?")[0])
        return StubResponse(body=glb) if known is None else StubResponse(body=json.dumps(known).encode())

    with StubServer(reply) as station:
        station_hook(station, monkeypatch)
        hook = Hurried("station")
        run = fetch_or_raise(hook, hook.get_run("r1"), OutputOptions(tmp_path.as_uri()))
    assert [output.status for output in run.outputs] == ["ready"]
    (file,) = tmp_path.glob("*/*.glb")
    assert file.read_bytes() == glb


def test_text_that_names_an_address_inside_is_not_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A flow's text that looks like a picture's URL on a machine inside the network stays text; nothing is asked there."""
    with (
        StubServer() as inside,
        StubServer(
            lambda seen: StubResponse(body=chain_answer(seen, f"{inside.url}/admin/x.png"))
        ) as station,
    ):
        hook = station_hook(station, monkeypatch, "promptchainer")
        run = fetch_or_raise(hook, hook.start("c", {}), OutputOptions(tmp_path.as_uri()))
        assert run.outputs[0].value == f"{inside.url}/admin/x.png"
        assert not inside.requests
    assert not list(tmp_path.glob("*/*"))


def test_link_to_something_else_than_a_picture_is_kept_as_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a picture's link leads to is saved only if its bytes are a picture's."""

    def reply(seen: Any) -> StubResponse:
        return StubResponse(
            body=b"<html>" if seen.path.startswith("/x.png") else chain_answer(seen, f"{station.url}/x.png")
        )

    with StubServer(reply) as station:
        hook = station_hook(station, monkeypatch, "promptchainer")
        assert isinstance(hook, PromptChainerHook)
        run = fetch_or_raise(hook, hook.start("c", {}), OutputOptions(tmp_path.as_uri()))
    assert run.state is FlowState.COMPLETED
    assert run.outputs[0].uri is None
    assert not list(tmp_path.glob("*/*"))


def chain_answer(seen: Any, output: str) -> bytes:
    """Answer for a chain without variables, with one output."""
    item = {"name": "picture", "type": "output"}
    return json.dumps([item] if "getFlowInfo" in seen.path else [{**item, "output": output}]).encode()


@pytest.mark.parametrize("status", [200, 400])
def test_key_that_an_answer_repeats_is_not_shown(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that repeats the key, a success or not, does not bring it into the error's text."""
    page = b"<html>you sent Authorization: Bearer SECRETKEY123</html>"
    with StubServer(lambda _: StubResponse(status=status, body=page)) as station:
        hook = station_hook(station, monkeypatch, key="SECRETKEY123")
        with pytest.raises(FlowServiceError) as caught:
            hook.get_run("r1")
    assert "SECRETKEY123" not in str(caught.value)
    assert "you sent" in str(caught.value)
    assert isinstance(caught.value, FlowMalformed) == (status == 200)
